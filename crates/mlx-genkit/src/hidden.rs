//! The residual stream that each token was chosen from: HF's `hidden_states`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx_rs::{Array, Dtype, error::Exception, ops::concatenate, ops::indexing::TryIndexOp};
use mlxgk_generation_config::Resolved;
use mlxgk_kv_cache::Step;
use mlxgk_mlx_models::{Decoder, HookPoint, ResidualHook};

use crate::{
    Error, ErrorKind, Result,
    passes::{Fed, PassRows},
};

/// The residual stream after chosen layers, for every new token of a sequence.
///
/// HF returns a tuple per token, of which each holds a tensor per layer, `[rows, positions, hidden]`;
/// this is one row of it, its left padding left out.
///
/// ```
/// use mlx_genkit::{ComputeDtype, GenerationConfig, Model, Request};
///
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// let config = GenerationConfig { max_new_tokens: Some(2), ..Default::default() };
/// let request = Request::new([5, 17, 300]).config(config).hidden_states([0, 1]);
/// let hidden = model.generate(request)?.sequences.remove(0).hidden_states.unwrap();
/// // The stream at the prompt's last token, after the first block.
/// let prompt = &hidden.steps[0][1];
/// let last = &prompt[2 * hidden.hidden_size..];
/// assert_eq!((hidden.layers, last.len()), (vec![0, 1], hidden.hidden_size));
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct HiddenStates {
    /// The layers, numbered as in HF: 0 is the embeddings, *i* what block *i* - 1 returns, and the
    /// last, as many as there are blocks, what the final norm makes of it.
    pub layers: Vec<usize>,
    /// Width of the stream.
    pub hidden_size: usize,
    /// Per new token and, in it, per entry of `layers`: `[positions, hidden_size]`, fp32, row after
    /// row. The first token was chosen from the whole prompt, so its positions are the prompt's, or
    /// those of them that a [cache](crate::Request::cache) did not hold. Each later token has one.
    pub steps: Vec<Vec<Vec<f32>>>,
}

/// Records the stream of a request under way, row by row.
#[derive(Debug, Clone)]
pub(crate) struct HiddenRecorder {
    layers: Vec<usize>,
    points: Vec<HookPoint>,
    hidden_size: usize,
    parts: Arc<Mutex<Vec<Part>>>,
}

/// What one pass left at one point.
#[derive(Debug)]
struct Part {
    point: HookPoint,
    rows: PassRows,
    /// `[rows, tokens, hidden]`.
    states: Array,
}

impl HiddenRecorder {
    /// Records `layers`, or all of them where only the configuration asks for hidden states; `None`
    /// where nothing does.
    pub(crate) fn new(
        layers: Option<Vec<usize>>,
        resolved: &Resolved,
        model: &Decoder,
    ) -> Result<Option<Self>> {
        let count = model.layers().len();
        let layers = match layers {
            Some(layers) => layers,
            None if resolved.config.output_hidden_states == Some(true) => (0..=count).collect(),
            None => return Ok(None),
        };
        if let Some(layer) = layers.iter().find(|it| **it > count) {
            let what = format!(
                "there are no hidden states of layer {layer}: they are numbered from 0, the \
                 embeddings, to {count}, after the last block and the final norm"
            );
            return Err(Error::new(ErrorKind::Request, what));
        }
        if layers.len() > count + 1 {
            let what = format!(
                "hidden states of {} layers, but the model has {}",
                layers.len(),
                count + 1
            );
            return Err(Error::new(ErrorKind::Request, what));
        }
        let point = |&layer: &usize| match layer {
            0 => HookPoint::ResidPre(0),
            _ if layer == count => HookPoint::FinalNorm,
            _ => HookPoint::ResidPost(layer - 1),
        };
        let points = layers.iter().map(point).collect();
        let (hidden_size, parts) = (model.hidden_size(), Arc::default());
        Ok(Some(Self { layers, points, hidden_size, parts }))
    }

    fn parts(&self) -> MutexGuard<'_, Vec<Part>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the new tokens of a sequence were chosen from.
    pub(crate) fn states(&self, fed: &Fed) -> Result<HiddenStates> {
        let doing = |e: Exception| {
            Error::new(ErrorKind::Run, format!("reading the hidden states: {}", e.what()))
        };
        let size = self.hidden_size;
        let mut steps = vec![Vec::with_capacity(self.layers.len()); fed.tokens];
        for &point in &self.points {
            let parts = self.parts();
            let parts: Vec<&Part> = parts.iter().filter(|it| it.point == point).collect();
            let places = fed.places(parts.iter().map(|it| (&it.rows, it.states.dim(1) as usize)));
            // The rows that hold some of the tokens, one after the other, and where each begins.
            let (mut slices, mut begins, mut count) = (Vec::new(), vec![0; parts.len()], 0);
            for (part, begin) in parts.iter().zip(&mut begins) {
                let Some((at, _)) = fed.row_of(&part.rows) else { continue };
                *begin = count;
                count += part.states.dim(1) as usize;
                slices.push(part.states.try_index((at as i32, .., ..)).map_err(doing)?);
            }
            let values = if slices.is_empty() {
                Vec::new()
            } else {
                let whole = concatenate(&slices, 0).and_then(|it| it.as_dtype(Dtype::Float32));
                let whole = whole.and_then(|it| it.contiguous()).map_err(doing)?;
                whole.to_vec_exact::<f32>().map_err(|e| {
                    Error::new(ErrorKind::Run, format!("the hidden states cannot be read: {e}"))
                })?
            };
            for (token, step) in steps.iter_mut().enumerate() {
                let places = places.get(fed.positions(token)).unwrap_or_default().iter().flatten();
                let lines = places.map(|it| begins[it.pass] + it.token);
                step.push(
                    lines.flat_map(|it| &values[it * size..(it + 1) * size]).copied().collect(),
                );
            }
        }
        let (layers, hidden_size) = (self.layers.clone(), self.hidden_size);
        Ok(HiddenStates { layers, hidden_size, steps })
    }
}

impl ResidualHook for HiddenRecorder {
    fn apply(
        &mut self,
        point: HookPoint,
        hidden: Array,
        step: &Step,
    ) -> mlxgk_mlx_models::Result<Array> {
        if !self.points.contains(&point) {
            return Ok(hidden);
        }
        // What is read again was recorded when it was new.
        let again = step.again() as i32;
        let states =
            if again == 0 { hidden.clone() } else { hidden.try_index((.., again.., ..))? };
        self.parts().push(Part { point, rows: PassRows::new(step), states });
        Ok(hidden)
    }
}
