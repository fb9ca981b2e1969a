//! A hook that keeps the attention weights of a whole generation.

use std::{collections::BTreeMap, ops::Range};

use mlx_rs::{
    Array,
    error::Exception,
    ops::{concatenate, indexing::TryIndexOp, zeros_dtype},
};
use mlxgk_kv_cache::Step;

use crate::{Error, HookPoint, ResidualHook, Result};

/// Keeps what the attention of chosen blocks looked at, for every token that was fed: HF's
/// `attentions`.
///
/// As [`Recording`](crate::Recording) does with the residual stream, it goes by position: chunks of a
/// prompt, single tokens and checked drafts make up one sequence, and what is rolled back is
/// forgotten. A layer without attention leaves nothing. Rows must not join, nor common padding be
/// dropped, while it records, for then columns are renumbered.
///
/// ```
/// use mlxgk_mlx_models::{AttentionRecorder, ComputeDtype, Decoder};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let mut recorder = AttentionRecorder::new([1]);
/// let mut cache = model.new_cache(1);
/// model.forward(&[&[5, 9, 14]], &mut cache, &mut recorder)?;
/// model.forward(&[&[7]], &mut cache, &mut recorder)?;
/// // What the fourth token looked at: itself and the three before it, by each of four heads.
/// let weights = recorder.weights(1, 3..4)?.unwrap();
/// assert_eq!(weights.shape(), [1, 4, 1, 4]);
/// assert!(recorder.weights(0, 3..4)?.is_none()); // not asked for
/// # Ok::<(), mlxgk_mlx_models::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct AttentionRecorder {
    layers: BTreeMap<usize, Vec<Part>>,
}

/// What one pass left of one layer.
#[derive(Debug)]
struct Part {
    /// The columns whose tokens looked.
    queries: Range<usize>,
    /// The first column they may have looked at.
    first: usize,
    /// `[batch, heads, queries, columns]`.
    weights: Array,
}

impl AttentionRecorder {
    /// Keeps the weights of `layers`, numbered from 0.
    pub fn new(layers: impl IntoIterator<Item = usize>) -> Self {
        Self { layers: layers.into_iter().map(|layer| (layer, Vec::new())).collect() }
    }

    /// What the tokens in columns `queries` looked at in block `layer`: `[batch, heads, queries,
    /// columns]`, 0 where a token may not look. The last column is that of the last query; the first
    /// is 0, or for a layer with a window the first that any of them may see. `None` where nothing of
    /// them was kept.
    ///
    /// HF's `attentions[step][layer]` is this for the prompt's columns and then for each new token's.
    /// Where a prompt's row was repeated for several sequences, so is its part.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn weights(&self, layer: usize, queries: Range<usize>) -> Result<Option<Array>> {
        let Some(parts) = self.layers.get(&layer) else { return Ok(None) };
        let meets = |it: &&Part| it.queries.start < queries.end && queries.start < it.queries.end;
        let parts: Vec<&Part> = parts.iter().filter(meets).collect();
        let Some(first) = parts.iter().map(|it| it.first).min() else { return Ok(None) };
        let rows = parts.iter().map(|it| it.weights.dim(0)).max().unwrap_or(0);
        let doing = |e| Error::mlx("joining the recorded attention", &e);
        let pieces: Vec<Array> = parts
            .iter()
            .map(|part| part.piece(&queries, first, rows))
            .collect::<Result<_, _>>()
            .map_err(doing)?;
        concatenate(&pieces, 2).map(Some).map_err(doing)
    }
}

impl Part {
    /// The rows of `queries`, over the columns from `first` to the last query's, each row of the batch
    /// repeated until there are `rows`.
    fn piece(&self, queries: &Range<usize>, first: usize, rows: i32) -> Result<Array, Exception> {
        let from = queries.start.max(self.queries.start) - self.queries.start;
        let to = queries.end.min(self.queries.end) - self.queries.start;
        let mut weights = self.weights.try_index((.., .., from as i32..to as i32, ..))?;
        let shape = weights.shape().to_vec();
        let none = |count: usize| {
            zeros_dtype(&[shape[0], shape[1], shape[2], count as i32], weights.dtype())
        };
        let (before, behind) = (self.first - first, queries.end.saturating_sub(self.queries.end));
        if before + behind > 0 {
            weights = concatenate(&[&none(before)?, &weights, &none(behind)?], 3)?;
        }
        // Queries that come before the part's last do not see its last columns.
        let columns = (queries.end - first) as i32;
        if weights.dim(3) > columns {
            weights = weights.try_index((.., .., .., ..columns))?;
        }
        let times = (rows / shape[0].max(1)) as usize;
        if times <= 1 {
            return Ok(weights);
        }
        let repeated: Vec<i32> =
            (0..shape[0]).flat_map(|row| std::iter::repeat_n(row, times)).collect();
        weights.take_axis(Array::from_slice(&repeated, &[repeated.len() as i32]), 0)
    }
}

impl ResidualHook for AttentionRecorder {
    fn apply(&mut self, _: HookPoint, hidden: Array, _: &Step) -> Result<Array> {
        Ok(hidden)
    }

    fn sees_attention(&self, layer: usize) -> bool {
        self.layers.contains_key(&layer)
    }

    fn attention(&mut self, layer: usize, weights: &Array, step: &Step) -> Result<()> {
        let Some(parts) = self.layers.get_mut(&layer) else { return Ok(()) };
        // What is read again was recorded when it was new.
        if step.again() == step.count() {
            return Ok(());
        }
        let again = step.again() as i32;
        let start = step.start() + step.again();
        let end = step.start() + step.count();
        parts.retain(|it| it.queries.start < start);
        if let Some(last) = parts.last_mut() {
            last.queries.end = last.queries.end.min(start);
        }
        let first = end.saturating_sub(weights.dim(3) as usize);
        let weights = match again {
            0 => weights.clone(),
            _ => weights.try_index((.., .., again.., ..))?,
        };
        parts.push(Part { queries: start..end, first, weights });
        Ok(())
    }
}
