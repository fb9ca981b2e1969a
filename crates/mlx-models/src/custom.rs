//! Blocks of one's own in a model that was loaded.

use std::fmt::Debug;

use mlx_rs::Array;
use mlxgk_kv_cache::LayerSpec;

use crate::{
    BlockPass, Decoder, Error, ErrorKind, Result,
    block::Block,
    parameters::{Module, ModuleMut, Visit},
};

/// A decoder block that does not come from a checkpoint: for research on other token mixers, such as
/// a recurrence or a sparse attention, in place of a layer's own
/// ([`Decoder::replace_block`]).
///
/// As every block, it returns what each half adds to the residual stream.
///
/// ```
/// use mlx_rs::Array;
/// use mlxgk_kv_cache::LayerSpec;
/// use mlxgk_mlx_models::{BlockPass, ComputeDtype, CustomBlock, Decoder, Result};
///
/// /// Adds nothing to the stream: a model without one of its layers.
/// #[derive(Debug)]
/// struct Nothing;
///
/// impl CustomBlock for Nothing {
///     fn mix(&self, _: usize, hidden: &Array, _: &mut BlockPass<'_>) -> Result<Array> {
///         Ok(hidden.multiply(Array::from_f32(0.0))?)
///     }
///
///     fn feed_forward(&self, hidden: &Array) -> Result<Array> {
///         Ok(hidden.multiply(Array::from_f32(0.0))?)
///     }
///
///     fn spec(&self) -> LayerSpec {
///         LayerSpec::Nothing
///     }
/// }
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let mut model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let bytes = model.kv_bytes_per_token();
/// model.replace_block(1, Nothing)?;
/// assert_eq!(model.layers()[1], LayerSpec::Nothing);
/// assert!(model.kv_bytes_per_token() < bytes);
/// let (_, states) = model.forward_with_hidden(&[&[5, 9]], &[0, 1])?;
/// assert!(states[0].all_close(&states[1], None, None, None)?);
/// # Ok::<(), mlxgk_mlx_models::Error>(())
/// ```
pub trait CustomBlock: Debug + Send {
    /// What the token mixer adds to `hidden`, `[batch, tokens, hidden]`, for layer number `layer`. It
    /// [appends](BlockPass::append) keys and values, or [replaces](BlockPass::set_state) a state, as
    /// [`spec`](Self::spec) says.
    ///
    /// # Errors
    /// An error ends the forward pass; the cache is as it was before it.
    fn mix(&self, layer: usize, hidden: &Array, pass: &mut BlockPass<'_>) -> Result<Array>;

    /// What the feed-forward half adds to `hidden`, `[batch, tokens, hidden]`.
    ///
    /// # Errors
    /// As [`mix`](Self::mix).
    fn feed_forward(&self, hidden: &Array) -> Result<Array>;

    /// What the layer may see of the past.
    fn spec(&self) -> LayerSpec;

    /// How many numbers one more token adds to the layer's cache; 0 for a state.
    fn cached_per_token(&self) -> usize {
        0
    }
}

impl Decoder {
    /// Puts a block in place of layer `layer`'s. Caches made before are another model's from then on,
    /// unless the layer sees the same.
    ///
    /// # Errors
    /// When there is no such layer; the model is as it was.
    pub fn replace_block(&mut self, layer: usize, block: impl CustomBlock + 'static) -> Result<()> {
        let count = self.blocks.len();
        if self.layers.len() > count {
            let what =
                "the model's blocks keep two things each, which a block of one's own does not";
            return Err(Error::new(ErrorKind::Hook, what));
        }
        let Some(place) = self.blocks.get_mut(layer) else {
            let what = format!("layer {layer} of a model with {count} layers");
            return Err(Error::new(ErrorKind::Hook, what));
        };
        *place = Box::new(Custom(Box::new(block)));
        self.layers[layer] = place.spec();
        Ok(())
    }
}

/// A block whose weights are its own affair.
#[derive(Debug)]
struct Custom(Box<dyn CustomBlock>);

impl Block for Custom {
    fn mix(&self, layer: usize, hidden: &Array, pass: &mut BlockPass<'_>) -> Result<Option<Array>> {
        self.0.mix(layer, hidden, pass).map(Some)
    }

    fn feed_forward(
        &self,
        _: usize,
        hidden: &Array,
        _: &mut BlockPass<'_>,
    ) -> Result<Option<Array>> {
        self.0.feed_forward(hidden).map(Some)
    }

    fn spec(&self) -> LayerSpec {
        self.0.spec()
    }

    fn cached_per_token(&self) -> usize {
        self.0.cached_per_token()
    }
}

impl Visit for Custom {
    fn visit<'a>(&'a self, _: &mut dyn FnMut(Module<'a>)) {}

    fn visit_mut<'a>(&'a mut self, _: &mut dyn FnMut(ModuleMut<'a>)) {}
}
