//! What the model looked at when it chose each token: HF's `attentions`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx_rs::{Array, Dtype, error::Exception, ops::indexing::TryIndexOp};
use mlxgk_generation_config::Resolved;
use mlxgk_kv_cache::Step;
use mlxgk_mlx_models::{Decoder, HookPoint, ResidualHook};

use crate::{
    Error, ErrorKind, Result,
    passes::{Fed, PassRows},
};

/// The attention weights of chosen layers, for every new token of a sequence.
///
/// HF returns a tuple per token, of which each holds a tensor per layer, `[rows, heads, positions,
/// columns]`; this is one row of it, its left padding left out.
///
/// ```
/// use mlx_genkit::{ComputeDtype, GenerationConfig, Model, Request};
///
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// let config = GenerationConfig { max_new_tokens: Some(3), ..Default::default() };
/// let request = Request::new([5, 17, 300]).config(config).attentions([0, 2]);
/// let attentions = model.generate(request)?.sequences.remove(0).attentions.unwrap();
/// assert_eq!(attentions.layers, [0, 2]);
/// // `steps[token][layer]`: the third token was chosen from the one before it, which sees five.
/// let weights = &attentions.steps[2][1];
/// assert_eq!((weights.positions, weights.columns), (1, 5));
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Attentions {
    /// The blocks, counted from 0.
    pub layers: Vec<usize>,
    /// Per new token and, in it, per entry of `layers`. The first token was chosen from the whole
    /// prompt, so its positions are the prompt's, or those of them that a
    /// [cache](crate::Request::cache) did not hold. Each later token has one.
    pub steps: Vec<Vec<AttentionWeights>>,
}

/// How much each position looks at each column, in one layer.
///
/// ```
/// use mlx_genkit::{ComputeDtype, Model, Request};
///
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// let sequence = model.generate(Request::new([5, 17, 300]).attentions([0]))?.sequences.remove(0);
/// let weights = &sequence.attentions.unwrap().steps[0][0];
/// let row = weights.row(0, 1).unwrap();
/// // The second token sees the first and itself; the third comes after it.
/// assert!((row[0] + row[1] - 1.0).abs() < 1e-3 && row[2] == 0.0);
/// assert_eq!(weights.row(weights.heads, 0), None);
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct AttentionWeights {
    /// Query heads.
    pub heads: usize,
    /// Tokens that look.
    pub positions: usize,
    /// Tokens that may be looked at: all of the sequence so far. HF shows of a layer with a window
    /// the newest columns only; here it has all, and 0 where it sees nothing.
    pub columns: usize,
    /// `[heads, positions, columns]`, row after row. Each position's sum is 1, or less where the
    /// layer has attention sinks.
    pub values: Vec<f32>,
}

impl AttentionWeights {
    /// What one head of one position gives to each column; `None` where there is no such head or
    /// position.
    pub fn row(&self, head: usize, position: usize) -> Option<&[f32]> {
        if head >= self.heads || position >= self.positions {
            return None;
        }
        let begin = (head * self.positions + position) * self.columns;
        self.values.get(begin..begin + self.columns)
    }
}

/// Records the attention of a request under way, row by row.
#[derive(Debug, Clone)]
pub(crate) struct AttentionRecorder {
    layers: Vec<usize>,
    parts: Arc<Mutex<Vec<Part>>>,
}

/// What one pass left of one layer.
#[derive(Debug)]
struct Part {
    layer: usize,
    rows: PassRows,
    /// `[rows, heads, tokens, columns]`; the last column is that of the last token.
    weights: Array,
}

impl AttentionRecorder {
    /// Records `layers`, or all that have attention where only the configuration asks for weights;
    /// `None` where nothing does.
    pub(crate) fn new(
        layers: Option<Vec<usize>>,
        resolved: &Resolved,
        model: &Decoder,
    ) -> Result<Option<Self>> {
        let count = model.layers().len();
        let has_attention = |layer: &usize| model.layers()[*layer].has_attention();
        let layers = match layers {
            Some(layers) => layers,
            None if resolved.config.output_attentions == Some(true) => {
                (0..count).filter(has_attention).collect()
            }
            None => return Ok(None),
        };
        if let Some(layer) = layers.iter().find(|it| **it >= count) {
            let what = format!(
                "there are no attention weights of layer {layer}: the model has {count} layers, \
                 numbered from 0"
            );
            return Err(Error::new(ErrorKind::Request, what));
        }
        if let Some(layer) = layers.iter().find(|it| !has_attention(it)) {
            let what = format!("layer {layer} has no attention weights: it keeps a state");
            return Err(Error::new(ErrorKind::Request, what));
        }
        Ok(Some(Self { layers, parts: Arc::default() }))
    }

    fn parts(&self) -> MutexGuard<'_, Vec<Part>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the new tokens of a sequence were chosen by.
    pub(crate) fn weights(&self, fed: &Fed) -> Result<Attentions> {
        let mut steps = vec![Vec::with_capacity(self.layers.len()); fed.tokens];
        for &layer in &self.layers {
            let parts = self.parts();
            let parts: Vec<&Part> = parts.iter().filter(|it| it.layer == layer).collect();
            if parts.is_empty() && fed.tokens > 0 {
                let what = format!("the attention of layer {layer} does not show its weights");
                return Err(Error::new(ErrorKind::Request, what));
            }
            let places = fed.places(parts.iter().map(|it| (&it.rows, it.weights.dim(2) as usize)));
            let read = |part: &&Part| Read::new(part, fed).transpose();
            let read: Vec<_> = parts.iter().map(read).collect::<Result<_>>()?;
            let heads = parts.first().map_or(0, |it| it.weights.dim(1) as usize);
            for (token, step) in steps.iter_mut().enumerate() {
                let positions = fed.positions(token);
                let columns = positions.end;
                let found: Vec<_> =
                    places.get(positions).unwrap_or_default().iter().flatten().collect();
                let mut values = Vec::with_capacity(heads * found.len() * columns);
                for head in 0..heads {
                    for place in &found {
                        let end = values.len() + columns;
                        if let Some(part) = &read[place.pass] {
                            part.append(head, place.token, columns, &mut values);
                        }
                        values.resize(end, 0.0);
                    }
                }
                step.push(AttentionWeights { heads, positions: found.len(), columns, values });
            }
        }
        Ok(Attentions { layers: self.layers.clone(), steps })
    }
}

/// The weights of one row of a pass, on the host.
struct Read {
    /// `[heads, tokens, columns]`.
    values: Vec<f32>,
    tokens: usize,
    columns: usize,
    /// The position that the first column is at; below 0 where that is padding.
    first: isize,
}

impl Read {
    fn new(part: &Part, fed: &Fed) -> Option<Result<Self>> {
        let (at, position) = fed.row_of(&part.rows)?;
        let (tokens, columns) = (part.weights.dim(2) as usize, part.weights.dim(3) as usize);
        let first = position + tokens as isize - columns as isize;
        let doing = |e: Exception| {
            Error::new(ErrorKind::Run, format!("reading the attention weights: {}", e.what()))
        };
        let row = part.weights.try_index((at as i32, .., .., ..));
        let row = row.and_then(|it| it.as_dtype(Dtype::Float32)).and_then(|it| it.contiguous());
        let values = row.map_err(doing).and_then(|it| {
            it.to_vec_exact::<f32>().map_err(|e| {
                Error::new(ErrorKind::Run, format!("the attention weights cannot be read: {e}"))
            })
        });
        Some(values.map(|values| Self { values, tokens, columns, first }))
    }

    /// Appends what a token gives to the sequence's first `count` columns, or to those of them that
    /// the pass had.
    fn append(&self, head: usize, token: usize, count: usize, out: &mut Vec<f32>) {
        let row = (head * self.tokens + token) * self.columns;
        let row = &self.values[row..row + self.columns];
        out.extend(std::iter::repeat_n(0.0, self.first.clamp(0, count as isize) as usize));
        let begin = self.first.min(0).unsigned_abs().min(row.len());
        let end = (count as isize - self.first).clamp(begin as isize, row.len() as isize) as usize;
        out.extend_from_slice(&row[begin..end]);
    }
}

impl ResidualHook for AttentionRecorder {
    fn apply(&mut self, _: HookPoint, hidden: Array, _: &Step) -> mlxgk_mlx_models::Result<Array> {
        Ok(hidden)
    }

    fn sees_attention(&self, layer: usize) -> bool {
        self.layers.contains(&layer)
    }

    fn attention(
        &mut self,
        layer: usize,
        weights: &Array,
        step: &Step,
    ) -> mlxgk_mlx_models::Result<()> {
        let again = step.again() as i32;
        let weights = match again {
            0 => weights.clone(),
            _ if step.again() == step.count() => return Ok(()),
            _ => weights.try_index((.., .., again.., ..))?,
        };
        self.parts().push(Part { layer, rows: PassRows::new(step), weights });
        Ok(())
    }
}
