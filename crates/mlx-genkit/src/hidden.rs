//! The residual stream that each token was chosen from: HF's `hidden_states`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx_rs::{Array, Dtype, error::Exception, ops::concatenate, ops::indexing::TryIndexOp};
use mlxgk_decoding_strategies::RowId;
use mlxgk_generation_config::Resolved;
use mlxgk_kv_cache::Step;
use mlxgk_mlx_models::{Decoder, HookPoint, ResidualHook};

use crate::{Error, ErrorKind, Result};

/// The residual stream after chosen layers, for every new token of a sequence.
///
/// HF returns a tuple per token, of which each holds a tensor per layer, `[rows, positions, hidden]`;
/// this is one row of it, its left padding left out.
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
    /// Each row's id and the position of its first token, counted from the row's own first; below 0
    /// while it is padding.
    rows: Vec<(RowId, isize)>,
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
        let point = |&layer: &usize| match layer {
            0 => HookPoint::ResidPre(0),
            _ if layer == count => HookPoint::FinalNorm,
            _ => HookPoint::ResidPost(layer - 1),
        };
        let points = layers.iter().map(point).collect();
        let (hidden_size, parts) = (model.hidden_size(), Arc::default());
        Ok(Some(Self { layers, points, hidden_size, parts }))
    }

    /// The request's own hook, and after it the recorder.
    pub(crate) fn after<'a>(&self, hook: Box<dyn ResidualHook + 'a>) -> Box<dyn ResidualHook + 'a> {
        Box::new((hook, self.clone()))
    }

    fn parts(&self) -> MutexGuard<'_, Vec<Part>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the `tokens` new tokens of a row were chosen from. Its prompt of `prompt_len` tokens was
    /// fed as a part of `prompt_row`, perhaps another.
    pub(crate) fn states(
        &self,
        row: RowId,
        prompt_row: RowId,
        prompt_len: usize,
        tokens: usize,
    ) -> Result<HiddenStates> {
        let doing = |e: Exception| {
            Error::new(ErrorKind::Run, format!("reading the hidden states: {}", e.what()))
        };
        let mut steps = vec![Vec::with_capacity(self.layers.len()); tokens];
        for &point in &self.points {
            // By position; what is fed later to a position that was rolled back takes its place.
            let end = (prompt_len + tokens).saturating_sub(1);
            let mut places: Vec<Option<usize>> = vec![None; end];
            let (mut slices, mut count) = (Vec::new(), 0);
            for part in self.parts().iter().filter(|it| it.point == point) {
                let found = part.rows.iter().enumerate().find(|(_, (id, first))| {
                    *id == row || (*id == prompt_row && *first < prompt_len as isize)
                });
                let Some((at, &(id, first))) = found else { continue };
                let end = if id == row { end } else { prompt_len };
                let width = part.states.dim(1) as usize;
                for token in 0..width {
                    let position = first + token as isize;
                    if (0..end as isize).contains(&position) {
                        places[position as usize] = Some(count + token);
                    }
                }
                count += width;
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
            let of = |positions: std::ops::Range<usize>| -> Vec<f32> {
                let places = places.get(positions).unwrap_or_default().iter().flatten();
                let size = self.hidden_size;
                places.flat_map(|it| &values[it * size..(it + 1) * size]).copied().collect()
            };
            for (token, step) in steps.iter_mut().enumerate() {
                let begin = if token == 0 { 0 } else { prompt_len + token - 1 };
                step.push(of(begin..prompt_len + token));
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
        let start = (step.start() + step.again()) as isize;
        let first = |(&id, padding): (&RowId, &usize)| (id, start - *padding as isize);
        let rows = step.rows().iter().zip(step.padding()).map(first).collect();
        self.parts().push(Part { point, rows, states });
        Ok(hidden)
    }
}
