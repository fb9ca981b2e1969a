//! Where the next tokens stand and what they may look at.

use std::cell::OnceCell;

use mlx_rs::{Array, error::Exception, ops::arange};

use crate::{Error, LayerSpec, Result};

/// The next `count` tokens of every row: their positions and masks.
///
/// Made by [`KvCache::step`](crate::KvCache::step) once per forward pass and shared by all layers;
/// masks are built on first use and kept, one per distinct [`LayerSpec`].
#[derive(Debug)]
pub struct Step {
    start: usize,
    count: usize,
    again: usize,
    padding: Vec<usize>,
    marks: Marks,
    tokens: Option<Array>,
    positions: Positions,
    masks: Vec<(LayerSpec, OnceCell<Mask>)>,
}

/// What the caller said of the rows.
#[derive(Debug)]
pub(crate) struct Marks {
    /// By row.
    pub(crate) prompt_ends: Vec<Option<usize>>,
    /// Row after row, one per token.
    pub(crate) strengths: Option<Vec<f32>>,
}

/// The position of a step's first token, for rotary embeddings.
#[derive(Debug, Clone)]
pub enum Positions {
    /// The same in every row.
    Same(i32),
    /// `[batch]`, i32: rows with left padding start later. Negative while a row is still padding.
    PerRow(Array),
}

/// Which keys a query may see.
#[derive(Debug, Clone)]
pub enum Mask {
    /// All of them.
    None,
    /// Those up to the query itself; the last query sees every key.
    Causal,
    /// Boolean, broadcastable to `[batch, heads, queries, keys]`; `true` may be seen.
    Array(Array),
}

impl Step {
    pub(crate) fn new(
        start: usize,
        count: usize,
        padding: &[usize],
        marks: Marks,
        specs: impl Iterator<Item = LayerSpec>,
    ) -> Self {
        let positions = if padding.iter().all(|&it| it == padding[0]) {
            Positions::Same(start as i32 - padding[0] as i32)
        } else {
            let offsets: Vec<i32> = padding.iter().map(|&it| start as i32 - it as i32).collect();
            Positions::PerRow(Array::from_slice(&offsets, &[offsets.len() as i32]))
        };
        let mut masks: Vec<(LayerSpec, OnceCell<Mask>)> = Vec::new();
        for spec in specs {
            if !masks.iter().any(|(it, _)| *it == spec) {
                masks.push((spec, OnceCell::new()));
            }
        }
        let padding = padding.to_vec();
        Self { start, count, again: 0, padding, marks, tokens: None, positions, masks }
    }

    /// The column of the first token: how many columns the cache held before this step.
    pub fn start(&self) -> usize {
        self.start
    }

    /// How many tokens each row brings.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How many columns of each row are left padding.
    pub fn padding(&self) -> &[usize] {
        &self.padding
    }

    /// The column after the last token of a row's prompt, where the caller
    /// [said so](crate::KvCache::set_prompt_end).
    ///
    /// # Panics
    /// When there is no such row.
    pub fn prompt_end(&self, row: usize) -> Option<usize> {
        self.marks.prompt_ends[row]
    }

    /// How strongly a hook is to act on each token, row after row, where the caller
    /// [said so](crate::KvCache::set_strengths).
    pub fn strengths(&self) -> Option<&[f32]> {
        self.marks.strengths.as_deref()
    }

    /// Attaches the ids of the step's tokens, `[batch, count]`, for hooks that look at them.
    #[must_use]
    pub fn with_tokens(self, tokens: &Array) -> Self {
        Self { tokens: Some(tokens.clone()), ..self }
    }

    /// Says that the first `again` tokens of the step are read a second time.
    #[must_use]
    pub fn reading_again(self, again: usize) -> Self {
        Self { again, ..self }
    }

    /// How many of the step's first tokens went through the model before. Only where a text is read
    /// anew so that it can go on: beyond the original context of longrope, or without a cache. A hook
    /// that keeps what it sees need not keep it twice.
    pub fn again(&self) -> usize {
        self.again
    }

    /// The ids of the step's tokens, `[batch, count]`, perhaps still on the device.
    pub fn tokens(&self) -> Option<&Array> {
        self.tokens.as_ref()
    }

    /// The positions, counted per row from its first real token.
    pub fn positions(&self) -> &Positions {
        &self.positions
    }

    /// What the step's tokens may look at in a layer of the given kind.
    ///
    /// # Errors
    /// When the cache has no layer of this kind, or MLX fails.
    pub fn mask(&self, spec: LayerSpec) -> Result<&Mask> {
        let Some((_, cell)) = self.masks.iter().find(|(it, _)| *it == spec) else {
            return Err(Error::argument(format!("the cache has no {spec:?} layer")));
        };
        if let Some(mask) = cell.get() {
            return Ok(mask);
        }
        let mask = self.build(spec).map_err(|e| Error::mlx("building the attention mask", &e))?;
        Ok(cell.get_or_init(|| mask))
    }

    fn build(&self, spec: LayerSpec) -> Result<Mask, Exception> {
        let end = self.start + self.count;
        let first_key = spec.first_visible(self.start);
        let padded = self.padding.iter().any(|&it| it > first_key);
        let windowed = matches!(spec, LayerSpec::Sliding { window } if end > window);
        if !padded && (self.count == 1 || !windowed) {
            // A single query of a sliding layer is handed exactly its window of keys.
            return Ok(if self.count == 1 { Mask::None } else { Mask::Causal });
        }
        let queries = arange::<i32, i32>(self.start as i32, end as i32, 1)?.expand_dims(1)?;
        let keys = arange::<i32, i32>(first_key as i32, end as i32, 1)?.expand_dims(0)?;
        let mut seen = keys.le(&queries)?;
        if let LayerSpec::Sliding { window } = spec {
            let oldest = queries.subtract(Array::from_int(window as i32))?;
            seen = seen.logical_and(keys.gt(oldest)?)?;
        }
        if padded {
            let padding: Vec<i32> = self.padding.iter().map(|&it| it as i32).collect();
            let padding = Array::from_slice(&padding, &[padding.len() as i32, 1, 1]);
            // A padding query sees itself: with nothing to see its softmax would be NaN, and a NaN
            // value poisons the rows that mask it (0 · NaN).
            seen = seen.logical_and(keys.ge(padding)?)?.logical_or(keys.eq(&queries)?)?;
            return Ok(Mask::Array(seen.expand_dims(1)?));
        }
        Ok(Mask::Array(seen.expand_dims_axes(&[0, 1])?))
    }
}
