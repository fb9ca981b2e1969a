//! Where the next tokens stand and what they may look at.

use std::cell::RefCell;

use mlx_rs::Array;

use crate::{Error, LayerSpec, Result, RowId, row::RowState};

/// The next `count` tokens of every row: their positions and masks.
///
/// Made once per forward pass and shared by all layers; masks are built on first use and kept, one per
/// kind of layer.
///
/// ```
/// use mlxgk_kv_cache::{KvCache, LayerSpec, Positions};
///
/// let mut cache = KvCache::left_padded(&[LayerSpec::Full], &[0, 2]);
/// cache.set_prompt_end(3);
/// let step = cache.step(3);
/// assert_eq!((step.start(), step.count(), step.prompt_end(1)), (0, 3, Some(3)));
/// // The second row begins two columns later than the first.
/// let Positions::PerRow(first) = step.positions() else { panic!("the rows differ") };
/// assert_eq!(first.as_slice::<i32>(), [0, -2]);
/// assert_eq!(step.real().unwrap().as_slice::<bool>(), [true, true, true, false, false, true]);
/// ```
#[derive(Debug)]
pub struct Step {
    start: usize,
    count: usize,
    again: usize,
    rows: Vec<RowId>,
    padding: Vec<usize>,
    prompt_ends: Vec<Option<usize>>,
    /// Row after row, one per token.
    strengths: Option<Vec<f32>>,
    tokens: Option<Array>,
    positions: Positions,
    masks: RefCell<Vec<(Sight, Mask)>>,
}

/// What the queries of a layer are shown: the slots of its sinks where it shows any, and the columns
/// from `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sight {
    pub(crate) spec: LayerSpec,
    pub(crate) first: usize,
    pub(crate) slots: bool,
}

/// The position of a step's first token, for rotary embeddings.
///
/// ```
/// use mlxgk_kv_cache::{KvCache, LayerSpec, Positions};
///
/// let same = KvCache::new(&[LayerSpec::Full], 3).step(1);
/// assert!(matches!(same.positions(), Positions::Same(0)));
/// let padded = KvCache::left_padded(&[LayerSpec::Full], &[1, 0]).step(1);
/// assert!(matches!(padded.positions(), Positions::PerRow(it) if it.shape() == [2]));
/// ```
#[derive(Debug, Clone)]
pub enum Positions {
    /// The same in every row.
    Same(i32),
    /// `[batch]`, i32: rows with left padding start later. Negative while a row is still padding.
    PerRow(Array),
}

impl Positions {
    fn new(start: usize, padding: &[usize]) -> Self {
        let position = |padding: usize| start as i32 - padding as i32;
        match padding {
            [] => Self::Same(start as i32),
            [first, rest @ ..] if rest.iter().all(|it| it == first) => Self::Same(position(*first)),
            _ => {
                let offsets: Vec<i32> = padding.iter().map(|&it| position(it)).collect();
                Self::PerRow(Array::from_slice(&offsets, &[offsets.len() as i32]))
            }
        }
    }
}

/// Which keys a query may see.
///
/// ```
/// use mlx_rs::{Dtype, ops::zeros_dtype};
/// use mlxgk_kv_cache::{KvCache, LayerSpec, Mask};
///
/// let seen = |padding: &[usize], tokens: &[u32]| -> Result<Mask, Box<dyn std::error::Error>> {
///     let rows = vec![tokens; padding.len()];
///     let mut cache = KvCache::left_padded(&[LayerSpec::Full], padding);
///     let shape = [rows.len() as i32, 1, tokens.len() as i32, 8];
///     let new = zeros_dtype(&shape, Dtype::Float32)?;
///     Ok(cache.begin_tokens(&rows, &[])?.append(0, &new, &new)?.mask)
/// };
/// assert!(matches!(seen(&[0], &[5])?, Mask::None));
/// assert!(matches!(seen(&[0], &[5, 9, 14])?, Mask::Causal));
/// assert!(matches!(seen(&[0, 1], &[5, 9, 14])?, Mask::Array(_)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
    pub(crate) fn new(start: usize, count: usize, rows: &[RowState]) -> Self {
        let strengths =
            |row: &RowState| row.strengths.get(start..start + count).map(<[f32]>::to_vec);
        let padding: Vec<usize> = rows.iter().map(|row| row.padding).collect();
        Self {
            start,
            count,
            again: 0,
            rows: rows.iter().map(|row| row.id).collect(),
            prompt_ends: rows.iter().map(|row| row.prompt_end).collect(),
            strengths: rows.iter().map(strengths).collect::<Option<Vec<_>>>().map(|it| it.concat()),
            tokens: None,
            positions: Positions::new(start, &padding),
            padding,
            masks: RefCell::default(),
        }
    }

    /// The same step for some of its rows, in the order given: for a hook that treats them apart.
    ///
    /// ```
    /// use mlxgk_kv_cache::{KvCache, LayerSpec, RowId};
    ///
    /// let cache = KvCache::left_padded(&[LayerSpec::Full], &[0, 3, 1]);
    /// let step = cache.step(4).select(&[2, 1])?;
    /// assert_eq!(step.rows(), [RowId::new(2), RowId::new(1)]);
    /// assert_eq!(step.padding(), [1, 3]);
    /// assert!(cache.step(4).select(&[3]).is_err());
    /// # Ok::<(), mlxgk_kv_cache::Error>(())
    /// ```
    ///
    /// # Errors
    /// When a row does not exist, or MLX fails.
    pub fn select(&self, rows: &[usize]) -> Result<Self> {
        if let Some(row) = rows.iter().find(|&&row| row >= self.rows.len()) {
            return Err(Error::argument(format!(
                "row {row} of a step of {} rows",
                self.rows.len()
            )));
        }
        let tokens = self.tokens.as_ref().map(|it| {
            let indices: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
            it.take_axis(Array::from_slice(&indices, &[indices.len() as i32]), 0)
        });
        let tokens = tokens.transpose().map_err(|e| Error::mlx("selecting rows of a step", &e))?;
        let padding: Vec<usize> = rows.iter().map(|&row| self.padding[row]).collect();
        let strengths = self.strengths.as_ref().map(|all| {
            let of_row = |&row: &usize| &all[row * self.count..(row + 1) * self.count];
            rows.iter().flat_map(of_row).copied().collect()
        });
        Ok(Self {
            start: self.start,
            count: self.count,
            again: self.again,
            rows: rows.iter().map(|&row| self.rows[row]).collect(),
            prompt_ends: rows.iter().map(|&row| self.prompt_ends[row]).collect(),
            strengths,
            tokens,
            positions: Positions::new(self.start, &padding),
            padding,
            masks: RefCell::default(),
        })
    }

    /// The names of the rows, in their order.
    pub fn rows(&self) -> &[RowId] {
        &self.rows
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
    /// [set it](crate::KvCache::set_prompt_end).
    ///
    /// # Panics
    /// When there is no such row.
    pub fn prompt_end(&self, row: usize) -> Option<usize> {
        self.prompt_ends[row]
    }

    /// How strongly a hook is to act on each token, row after row, where the caller
    /// [set them](crate::KvCache::set_strengths).
    pub fn strengths(&self) -> Option<&[f32]> {
        self.strengths.as_deref()
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
    /// again so that it can be continued: beyond the original context of longrope, or without a cache. A hook
    /// that keeps what it sees need not keep it twice.
    pub fn again(&self) -> usize {
        self.again
    }

    /// The ids of the step's tokens, u32 `[batch, count]`; `u32::MAX` for an embedding without a
    /// token.
    pub fn tokens(&self) -> Option<&Array> {
        self.tokens.as_ref()
    }

    /// The positions, counted per row from its first real token.
    pub fn positions(&self) -> &Positions {
        &self.positions
    }

    /// Which of the step's tokens are not left padding, boolean `[batch, count]`; `None` where all of
    /// them are real. A recurrence or a convolution has to leave padding out, which attention masks.
    pub fn real(&self) -> Option<Array> {
        let before = |row: &usize| row.saturating_sub(self.start).min(self.count);
        if self.padding.iter().all(|row| before(row) == 0) {
            return None;
        }
        let columns = |row: &usize| {
            let before = before(row);
            (0..self.count).map(move |column| column >= before)
        };
        let real: Vec<bool> = self.padding.iter().flat_map(columns).collect();
        Some(Array::from_slice(&real, &[self.padding.len() as i32, self.count as i32]))
    }

    /// Which of the keys that `sight` shows the step's tokens may look at.
    pub(crate) fn mask(&self, sight: Sight) -> Mask {
        if let Some((_, mask)) = self.masks.borrow().iter().find(|(it, _)| *it == sight) {
            return mask.clone();
        }
        let mask = self.build(sight);
        self.masks.borrow_mut().push((sight, mask.clone()));
        mask
    }

    fn build(&self, Sight { spec, first, slots }: Sight) -> Mask {
        let end = self.start + self.count;
        let size =
            if let LayerSpec::Bounded { size, .. } = spec { Some(size) } else { spec.newest() };
        let padded = self.padding.iter().any(|&it| it > first);
        let limited = slots || size.is_some_and(|size| end > size);
        // A single query of a sliding layer is handed exactly its window of keys.
        let is_chunked = matches!(spec, LayerSpec::Chunked { .. });
        let exact = spec.sinks() == 0 && self.count == 1 && !is_chunked;
        if !padded && (exact || !limited) {
            return if self.count == 1 { Mask::None } else { Mask::Causal };
        }
        let rows = match self.positions {
            Positions::Same(_) => &self.padding[..1],
            Positions::PerRow(_) => &self.padding,
        };
        let slots = if slots { spec.sinks() } else { 0 };
        let width = slots + end - first;
        // Written down here, a stretch at a time: as operations they would be ten, on every number.
        let mut seen = vec![false; rows.len() * self.count * width];
        for (line, seen) in seen.chunks_exact_mut(width).enumerate() {
            let (padding, query) = (rows[line / self.count], self.start + line % self.count);
            let (taken, seen) = seen.split_at_mut(slots);
            // A slot counts once the column that it was taken from is no longer shown.
            taken[..first.saturating_sub(padding).min(slots)].fill(true);
            let mut show = |from: usize, to: usize| {
                let at = |column: usize| column.clamp(first, query + 1) - first;
                seen[at(from)..at(to).max(at(from))].fill(true);
            };
            if query < padding {
                // A padding query sees itself: with nothing to see its softmax would be NaN, and a
                // NaN value poisons the rows that mask it (0 · NaN).
                show(query, query + 1);
                continue;
            }
            let piece = match spec {
                LayerSpec::Chunked { size } => query - (query - padding) % size,
                _ => padding,
            };
            let newest = spec.newest().map_or(0, |newest| (query + 1).saturating_sub(newest));
            show(piece.max(newest), query + 1);
            show(padding, padding + spec.sinks());
        }
        let shape = [rows.len(), 1, self.count, width].map(|it| it as i32);
        Mask::Array(Array::from_slice(&seen, &shape))
    }
}
