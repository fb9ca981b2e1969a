//! Residual hooks: read or rewrite the residual stream while the decoder runs.
//!
//! The decoder loop calls the hook and nothing else does, so whatever drives the loop (a batch,
//! beams, a draft, a chunked prompt) is hooked in the same way.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mlx_rs::Array;
use mlxgk_kv_cache::{RowId, Step};

use crate::{AdapterChoice, Addition, Result};

/// A place in the decoder where the residual stream can be read or rewritten, named as
/// TransformerLens names it (`blocks.{layer}.hook_resid_pre` and so on). Layers count from 0.
///
/// ```
/// use mlxgk_mlx_models::{Capture, ComputeDtype, Decoder, HookPoint};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let point = HookPoint::ResidPost(1);
/// assert_eq!((point.to_string().as_str(), point.layer()), ("resid_post.1", Some(1)));
/// // HF's `hidden_states[2]`.
/// let mut capture = Capture::new([point]);
/// model.forward(&[&[5, 9]], &mut model.new_cache(1), &mut capture)?;
/// assert_eq!(capture.captured()[&point].shape(), [1, 2, 32]);
/// # Ok::<(), mlxgk_mlx_models::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HookPoint {
    /// What block `layer` is given.
    ResidPre(usize),
    /// Between the attention and the feed-forward half of block `layer`: the stream with the first half's
    /// addition. Where both halves read what the block is given (Cohere 2), a change here reaches the
    /// blocks behind, but not this block's second half.
    ResidMid(usize),
    /// What block `layer` returns, after its last addition: HF's `hidden_states[layer + 1]`.
    ResidPost(usize),
    /// After the final norm: what the head is given.
    FinalNorm,
}

impl HookPoint {
    /// The block it belongs to; `None` after the last.
    pub fn layer(self) -> Option<usize> {
        match self {
            Self::ResidPre(layer) | Self::ResidMid(layer) | Self::ResidPost(layer) => Some(layer),
            Self::FinalNorm => None,
        }
    }
}

/// `resid_pre.{layer}`, `resid_mid.{layer}`, `resid_post.{layer}` or `final_norm`: the tensor names of
/// steering files.
impl std::fmt::Display for HookPoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ResidPre(layer) => write!(f, "resid_pre.{layer}"),
            Self::ResidMid(layer) => write!(f, "resid_mid.{layer}"),
            Self::ResidPost(layer) => write!(f, "resid_post.{layer}"),
            Self::FinalNorm => f.write_str("final_norm"),
        }
    }
}

/// Called by the decoder loop at every [`HookPoint`], in order, once per forward pass.
///
/// A hook moves with the request it belongs to, so it is `Send`; one that its owner looks into while
/// something else drives it stands behind an `Arc<Mutex<_>>`.
///
/// ```
/// use mlx_rs::Array;
/// use mlxgk_kv_cache::Step;
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, HookPoint, NoHook, ResidualHook, Result};
///
/// /// Takes the stream after one block times a factor.
/// struct Scale(usize, f32);
///
/// impl ResidualHook for Scale {
///     fn apply(&mut self, point: HookPoint, hidden: Array, _: &Step) -> Result<Array> {
///         if point == HookPoint::ResidPost(self.0) {
///             return Ok(hidden.multiply(Array::from_f32(self.1))?);
///         }
///         Ok(hidden)
///     }
/// }
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let plain = model.forward(&[&[5, 9]], &mut model.new_cache(1), &mut NoHook)?;
/// let scaled = model.forward(&[&[5, 9]], &mut model.new_cache(1), &mut Scale(1, 3.0))?;
/// assert!(!scaled.all_close(&plain, None, None, None)?);
/// # Ok::<(), mlxgk_mlx_models::Error>(())
/// ```
pub trait ResidualHook: Send {
    /// Returns the residual stream to continue with, `[batch, tokens, hidden]`, in the dtype it came in.
    /// Returning `hidden` itself costs nothing.
    ///
    /// `step` says which absolute positions the tokens stand at; a hook must depend on those and
    /// not on how often it was called, or chunked prefill and speculation change its effect.
    ///
    /// # Errors
    /// A hook's error ends the forward pass; the cache is as it was before it.
    fn apply(&mut self, point: HookPoint, hidden: Array, step: &Step) -> Result<Array>;

    /// What the hook does to the stream of a row, as a name; `None` where it only looks on. A cache
    /// remembers it by row, and a pass under another name is refused
    /// ([`KvCache::check_steering`](mlxgk_kv_cache::KvCache::check_steering)).
    fn name(&self, row: RowId) -> Option<Arc<str>> {
        let _ = row;
        None
    }

    /// Whether the hook wants to see what the attention of block `layer` looks at. Attention is then
    /// computed unfused there, which costs time and `heads · tokens · columns` numbers per row.
    fn sees_attention(&self, layer: usize) -> bool {
        let _ = layer;
        false
    }

    /// Shows the attention weights of block `layer`, `[batch, heads, tokens, columns]`, where
    /// [`sees_attention`](Self::sees_attention) asked for them: the columns are those that the layer
    /// sees, the newest last.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    fn attention(&mut self, layer: usize, weights: &Array, step: &Step) -> Result<()> {
        let _ = (layer, weights, step);
        Ok(())
    }

    /// How far the hook may move the choice of a row's token: the most that KL(hooked ‖ unhooked) may be,
    /// in nats. A loop that chooses tokens keeps to it by scaling the hook down with
    /// [`KvCache::set_strengths`](mlxgk_kv_cache::KvCache::set_strengths), for which `apply` has to
    /// take [`Step::strengths`] into account.
    fn budget(&self, row: RowId) -> Option<f64> {
        let _ = row;
        None
    }

    /// What [`apply`](Self::apply) adds to the tokens of one of the step's rows at `point`, where adding
    /// is all that it does there and does not depend on `hidden`: nothing, as an empty list.
    /// [`RowHooks`](crate::RowHooks) serves rows with unlike hooks together by it.
    ///
    /// `None`, the default, is always right: the hook is then applied.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    fn additions(
        &self,
        point: HookPoint,
        step: &Step,
        row: usize,
    ) -> Result<Option<Vec<Addition>>> {
        let _ = (point, step, row);
        Ok(None)
    }

    /// Which of the model's [named adapters](crate::Decoder::add_named_adapter) a row runs under. They are
    /// part of what the hook does to the row, so its [`name`](Self::name) has to say them, as
    /// [`Decoder::name_of_choice`](crate::Decoder::name_of_choice) does.
    fn adapters(&self, row: RowId) -> AdapterChoice {
        let _ = row;
        AdapterChoice::none()
    }
}

impl<H: ResidualHook + ?Sized> ResidualHook for &mut H {
    fn apply(&mut self, point: HookPoint, hidden: Array, step: &Step) -> Result<Array> {
        (**self).apply(point, hidden, step)
    }

    fn name(&self, row: RowId) -> Option<Arc<str>> {
        (**self).name(row)
    }

    fn sees_attention(&self, layer: usize) -> bool {
        (**self).sees_attention(layer)
    }

    fn attention(&mut self, layer: usize, weights: &Array, step: &Step) -> Result<()> {
        (**self).attention(layer, weights, step)
    }

    fn budget(&self, row: RowId) -> Option<f64> {
        (**self).budget(row)
    }

    fn additions(
        &self,
        point: HookPoint,
        step: &Step,
        row: usize,
    ) -> Result<Option<Vec<Addition>>> {
        (**self).additions(point, step, row)
    }

    fn adapters(&self, row: RowId) -> AdapterChoice {
        (**self).adapters(row)
    }
}

impl<H: ResidualHook + ?Sized> ResidualHook for Box<H> {
    fn apply(&mut self, point: HookPoint, hidden: Array, step: &Step) -> Result<Array> {
        (**self).apply(point, hidden, step)
    }

    fn name(&self, row: RowId) -> Option<Arc<str>> {
        (**self).name(row)
    }

    fn sees_attention(&self, layer: usize) -> bool {
        (**self).sees_attention(layer)
    }

    fn attention(&mut self, layer: usize, weights: &Array, step: &Step) -> Result<()> {
        (**self).attention(layer, weights, step)
    }

    fn budget(&self, row: RowId) -> Option<f64> {
        (**self).budget(row)
    }

    fn additions(
        &self,
        point: HookPoint,
        step: &Step,
        row: usize,
    ) -> Result<Option<Vec<Addition>>> {
        (**self).additions(point, step, row)
    }

    fn adapters(&self, row: RowId) -> AdapterChoice {
        (**self).adapters(row)
    }
}

/// A hook that its owner looks into while something else drives it.
impl<H: ResidualHook + ?Sized> ResidualHook for Arc<Mutex<H>> {
    fn apply(&mut self, point: HookPoint, hidden: Array, step: &Step) -> Result<Array> {
        locked(self).apply(point, hidden, step)
    }

    fn name(&self, row: RowId) -> Option<Arc<str>> {
        locked(self).name(row)
    }

    fn sees_attention(&self, layer: usize) -> bool {
        locked(self).sees_attention(layer)
    }

    fn attention(&mut self, layer: usize, weights: &Array, step: &Step) -> Result<()> {
        locked(self).attention(layer, weights, step)
    }

    fn budget(&self, row: RowId) -> Option<f64> {
        locked(self).budget(row)
    }

    fn additions(
        &self,
        point: HookPoint,
        step: &Step,
        row: usize,
    ) -> Result<Option<Vec<Addition>>> {
        locked(self).additions(point, step, row)
    }

    fn adapters(&self, row: RowId) -> AdapterChoice {
        locked(self).adapters(row)
    }
}

/// A hook is used by one pass at a time, so a panic elsewhere leaves it as a failed pass does.
pub(crate) fn locked<H: ?Sized>(hook: &Mutex<H>) -> MutexGuard<'_, H> {
    hook.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Two hooks in succession: the second sees what the first returned.
impl<A: ResidualHook, B: ResidualHook> ResidualHook for (A, B) {
    fn apply(&mut self, point: HookPoint, hidden: Array, step: &Step) -> Result<Array> {
        let hidden = self.0.apply(point, hidden, step)?;
        self.1.apply(point, hidden, step)
    }

    fn name(&self, row: RowId) -> Option<Arc<str>> {
        match (self.0.name(row), self.1.name(row)) {
            (Some(a), Some(b)) => Some(format!("{a}; {b}").into()),
            (one, other) => one.or(other),
        }
    }

    fn sees_attention(&self, layer: usize) -> bool {
        self.0.sees_attention(layer) || self.1.sees_attention(layer)
    }

    fn attention(&mut self, layer: usize, weights: &Array, step: &Step) -> Result<()> {
        if self.0.sees_attention(layer) {
            self.0.attention(layer, weights, step)?;
        }
        if self.1.sees_attention(layer) {
            self.1.attention(layer, weights, step)?;
        }
        Ok(())
    }

    fn budget(&self, row: RowId) -> Option<f64> {
        match (self.0.budget(row), self.1.budget(row)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (one, other) => one.or(other),
        }
    }

    fn additions(
        &self,
        point: HookPoint,
        step: &Step,
        row: usize,
    ) -> Result<Option<Vec<Addition>>> {
        let (first, second) =
            (self.0.additions(point, step, row)?, self.1.additions(point, step, row)?);
        Ok(first.zip(second).map(|(first, second)| [first, second].concat()))
    }

    fn adapters(&self, row: RowId) -> AdapterChoice {
        self.0.adapters(row).plus(&self.1.adapters(row))
    }
}

/// The hook that does nothing.
///
/// See the example of [`ResidualHook`], which compares with it.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHook;

impl NoHook {
    /// One where a hook of any lifetime is needed: an empty box, so that leaking it leaks no memory.
    pub fn leaked() -> &'static mut Self {
        Box::leak(Box::new(Self))
    }
}

impl ResidualHook for NoHook {
    fn apply(&mut self, _: HookPoint, hidden: Array, _: &Step) -> Result<Array> {
        Ok(hidden)
    }

    fn additions(&self, _: HookPoint, _: &Step, _: usize) -> Result<Option<Vec<Addition>>> {
        Ok(Some(Vec::new()))
    }
}

/// Keeps the residual stream at chosen points.
///
/// ```
/// use mlxgk_mlx_models::{Capture, ComputeDtype, Decoder, HookPoint};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let mut capture = Capture::new([HookPoint::ResidPost(0), HookPoint::FinalNorm]);
/// let logits = model.forward(&[&[5, 9]], &mut model.new_cache(1), &mut capture)?;
/// let mut states = capture.into_captured();
/// // The head makes the logits of what the final norm returned.
/// let last = states.remove(&HookPoint::FinalNorm).unwrap();
/// assert!(model.logits(&last)?.all_close(&logits, None, None, None)?);
/// assert_eq!(states.len(), 1);
/// # Ok::<(), mlxgk_mlx_models::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Capture {
    wanted: Vec<HookPoint>,
    captured: BTreeMap<HookPoint, Array>,
}

impl Capture {
    /// Captures at `points`; a later forward pass replaces what an earlier one left.
    pub fn new(points: impl IntoIterator<Item = HookPoint>) -> Self {
        Self { wanted: points.into_iter().collect(), captured: BTreeMap::new() }
    }

    /// What the last forward pass left, `[batch, tokens, hidden]` each, not yet evaluated.
    pub fn captured(&self) -> &BTreeMap<HookPoint, Array> {
        &self.captured
    }

    /// Gives up the captured arrays.
    pub fn into_captured(self) -> BTreeMap<HookPoint, Array> {
        self.captured
    }
}

impl ResidualHook for Capture {
    fn apply(&mut self, point: HookPoint, hidden: Array, _: &Step) -> Result<Array> {
        if self.wanted.contains(&point) {
            self.captured.insert(point, hidden.clone());
        }
        Ok(hidden)
    }
}
