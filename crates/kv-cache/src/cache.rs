//! The cache of one request or one left-padded batch.

use std::sync::Arc;

use mlx_rs::Array;

use crate::{
    Error, Result, RowId,
    buffer::{Buffer, ROLLBACK, Room},
    row::{Filled, RowState},
    step::Step,
};

/// What one decoder layer keeps of the past.
///
/// A model states it per layer; later kinds (a shared layer, a recurrent state) become variants
/// here and one more kind of storage beside the full and sliding buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayerSpec {
    /// Every token.
    Full,
    /// A query sees itself and the `window - 1` tokens before it.
    Sliding {
        /// Tokens visible to one query, itself included; at least 1.
        window: usize,
    },
}

impl LayerSpec {
    /// The first column that a query at column `start` may see.
    pub(crate) fn first_visible(self, start: usize) -> usize {
        match self {
            Self::Full => 0,
            Self::Sliding { window } => (start + 1).saturating_sub(window),
        }
    }
}

/// Keys and values of every layer for one batch of rows, and the tokens they came from.
///
/// A column is one token position across all rows, left padding included. All rows have the same
/// number of columns.
#[derive(Debug, Clone)]
pub struct KvCache {
    pub(crate) layers: Vec<(LayerSpec, Buffer)>,
    pub(crate) len: usize,
    pub(crate) planned: usize,
    pub(crate) least_padding: usize,
    pub(crate) rows: Vec<RowState>,
}

impl KvCache {
    /// An empty cache for `batch` rows without padding.
    pub fn new(layers: &[LayerSpec], batch: usize) -> Self {
        Self::left_padded(layers, &vec![0; batch])
    }

    /// An empty cache for a left-padded batch: row *i* begins with `padding[i]` columns that no
    /// token ever looks at.
    pub fn left_padded(layers: &[LayerSpec], padding: &[usize]) -> Self {
        Self {
            layers: layers.iter().map(|&spec| (spec, Buffer::new())).collect(),
            len: 0,
            planned: 0,
            least_padding: padding.iter().copied().min().unwrap_or(0),
            rows: RowId::first(padding.len())
                .into_iter()
                .zip(padding)
                .map(|(id, &padding)| RowState::new(id, padding))
                .collect(),
        }
    }

    /// The names of the rows, in their order.
    pub fn row_ids(&self) -> Vec<RowId> {
        self.rows.iter().map(|it| it.id).collect()
    }

    /// Names the rows: what an owner does that moves rows between caches.
    ///
    /// # Errors
    /// When there is not one name per row.
    pub fn set_row_ids(&mut self, ids: &[RowId]) -> Result<()> {
        self.check_count(ids.len(), "names")?;
        for (row, &id) in self.rows.iter_mut().zip(ids) {
            row.id = id;
        }
        Ok(())
    }

    /// Refuses what does not come once per row.
    fn check_count(&self, count: usize, what: &str) -> Result<()> {
        match self.batch() {
            rows if rows == count => Ok(()),
            rows => Err(Error::argument(format!("{count} {what} for a cache of {rows} rows"))),
        }
    }

    /// Columns held, left padding included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was fed yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Announces how many columns the first passes will bring together, when a long prompt is fed
    /// in parts: full layers allocate for all of them at once, and a model whose positions depend
    /// on the length of the whole (longrope) rotates the first part as it will the last. Without
    /// effect once something was fed.
    pub fn plan(&mut self, columns: usize) {
        if self.is_empty() {
            self.planned = columns;
        }
    }

    /// Columns [planned](Self::plan); 0 without a plan.
    pub fn planned(&self) -> usize {
        self.planned
    }

    /// Says in which column generation begins: the prompt's width, the same for every row. What
    /// depends on how far an answer has come (steering) counts from there. In a conversation the
    /// prompt of a turn is everything before its answer.
    pub fn set_prompt_end(&mut self, column: usize) {
        self.rows.iter_mut().for_each(|row| row.prompt_end = Some(column));
    }

    /// The column in which a row's generation begins, where it is known. Rows that
    /// [joined](Self::join) begin at columns of their own.
    ///
    /// # Panics
    /// When `row` is not below [`batch`](Self::batch).
    pub fn prompt_end(&self, row: usize) -> Option<usize> {
        self.rows[row].prompt_end
    }

    /// Says how strongly the hook is to act on the next `columns` columns: a factor per row, 1 for a
    /// hook's full effect. The cache remembers them, because a text that has to be
    /// [read again](Self::rewind) has to be read as it was.
    ///
    /// # Errors
    /// When there is not one factor per row.
    pub fn set_strengths(&mut self, columns: usize, strengths: &[f32]) -> Result<()> {
        self.check_count(strengths.len(), "strengths")?;
        for (row, &strength) in self.rows.iter_mut().zip(strengths) {
            row.strengths.resize(self.len, 1.0);
            row.strengths.resize(self.len + columns, strength);
        }
        Ok(())
    }

    /// The name of the steering that a row's columns went through; `None` for none.
    ///
    /// # Panics
    /// When `row` is not below [`batch`](Self::batch).
    pub fn steering(&self, row: usize) -> Option<&str> {
        if self.is_empty() { None } else { self.rows[row].steering() }
    }

    /// Refuses a pass under other steerings, one name per row, than those that the rows' columns went
    /// through: their keys and values keep what it did to them, so the text would be read as by
    /// neither.
    ///
    /// # Errors
    /// When there is not one name per row, or a row's steerings differ; the sentence names both.
    pub fn check_steering(&self, names: &[Option<Arc<str>>]) -> Result<()> {
        self.check_count(names.len(), "names of steerings")?;
        if self.is_empty() {
            return Ok(());
        }
        self.rows.iter().zip(names).try_for_each(|(row, name)| row.check_steering(name.as_deref()))
    }

    /// Notes the steerings that a pass went through, one name per row.
    ///
    /// # Errors
    /// When there is not one name per row.
    pub fn set_steering(&mut self, names: &[Option<Arc<str>>]) -> Result<()> {
        self.check_count(names.len(), "names of steerings")?;
        for (row, name) in self.rows.iter_mut().zip(names) {
            row.filled = name.clone().map_or(Filled::Bare, Filled::Under);
        }
        Ok(())
    }

    /// Lets the next pass be under any steering, whose cache this is from then on: for a prefix that
    /// is meant to be read in one way and continued in another.
    pub fn allow_other_steering(&mut self) {
        self.rows.iter_mut().for_each(|row| row.filled = Filled::Any);
    }

    /// Rows in the batch.
    pub fn batch(&self) -> usize {
        self.rows.len()
    }

    /// Left padding of each row, in columns.
    pub fn padding(&self) -> Vec<usize> {
        self.rows.iter().map(|row| row.padding).collect()
    }

    /// Left padding of the longest row there ever was, which may have left the batch since.
    ///
    /// A model that treats a batch by its longest row (longrope) thus treats those that remain as
    /// before.
    pub fn least_padding(&self) -> usize {
        self.least_padding
    }

    /// What each layer keeps.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = LayerSpec> + '_ {
        self.layers.iter().map(|(spec, _)| *spec)
    }

    /// The tokens of a row as far as they were [recorded](Self::record), left padding included.
    ///
    /// # Panics
    /// When `row` is not below [`batch`](Self::batch).
    pub fn tokens(&self, row: usize) -> &[u32] {
        &self.rows[row].tokens
    }

    /// Positions and masks for the next `count` tokens of every row.
    pub fn step(&self, count: usize) -> Step {
        Step::new(self.len, count, &self.rows, self.layers())
    }

    /// Writes a layer's new keys and values, `[batch, kv heads, count, head dimension]`, and returns
    /// all that the new tokens may look at, oldest first. The step's [`Mask`](crate::Mask) fits the
    /// returned keys.
    ///
    /// # Errors
    /// When the layer does not exist, the shapes do not fit the batch, or MLX fails.
    pub fn update(&mut self, layer: usize, keys: &Array, values: &Array) -> Result<(Array, Array)> {
        let (batch, layers) = (self.batch(), self.layers.len());
        let Some((spec, buffer)) = self.layers.get_mut(layer) else {
            return Err(Error::argument(format!("layer {layer} of a cache with {layers} layers")));
        };
        for (name, it) in [("keys", keys), ("values", values)] {
            if it.ndim() != 4 || it.dim(0) as usize != batch || it.dim(2) != keys.dim(2) {
                let shape = it.shape();
                return Err(Error::argument(format!(
                    "{name} of layer {layer} have shape {shape:?}, not [{batch}, heads, tokens, dimension]"
                )));
            }
        }
        let from = spec.first_visible(self.len);
        let (keep_from, planned) = match spec {
            LayerSpec::Full => (0, self.planned),
            LayerSpec::Sliding { .. } => (from.saturating_sub(ROLLBACK), 0),
        };
        buffer.write(self.len, from, Room { keep_from, planned }, keys, values)
    }

    /// Counts `count` new columns as held. Call it once per forward pass, after every layer was
    /// [updated](Self::update).
    pub fn advance(&mut self, count: usize) {
        self.len += count;
    }

    /// Notes the tokens of columns fed earlier, one slice per row, all of one length.
    ///
    /// Separate from [`advance`](Self::advance) because a token drawn on the device is fed to the
    /// next pass before the host has read it.
    ///
    /// # Errors
    /// When there is not one slice per row, or more tokens than columns.
    pub fn record(&mut self, rows: &[&[u32]]) -> Result<()> {
        let count = rows.first().map_or(0, |it| it.len());
        if rows.len() != self.batch() || rows.iter().any(|it| it.len() != count) {
            return Err(Error::argument(format!(
                "{} rows of tokens for a cache of {} rows, which must be equally long",
                rows.len(),
                self.batch()
            )));
        }
        if self.rows.iter().any(|row| row.tokens.len() + count > self.len) {
            return Err(Error::argument(format!(
                "{count} more tokens than the cache has columns for ({})",
                self.len
            )));
        }
        for (held, new) in self.rows.iter_mut().zip(rows) {
            held.tokens.extend_from_slice(new);
        }
        Ok(())
    }

    /// A second cache with the same content. It costs a handle per array; the first write to
    /// either copies what it writes into.
    #[must_use]
    pub fn fork(&self) -> Self {
        self.clone()
    }

    /// Forgets the last `count` columns, as if they had never been fed.
    ///
    /// # Errors
    /// When fewer columns are held, or a sliding layer no longer has the older columns that would
    /// come back into view. The cache is unchanged then. A rollback of up to 64 columns right after
    /// they were fed one by one is always possible.
    pub fn trim(&mut self, count: usize) -> Result<()> {
        let Some(len) = self.len.checked_sub(count) else {
            return Err(Error::argument(format!("cannot trim {count} of {} columns", self.len)));
        };
        for (index, (spec, buffer)) in self.layers.iter().enumerate() {
            if spec.first_visible(len) < buffer.first() {
                return Err(Error::dropped(format!(
                    "cannot trim {count} columns: layer {index} ({spec:?}) has dropped the columns \
                     before {}",
                    buffer.first()
                )));
            }
        }
        self.len = len;
        self.rows.iter_mut().for_each(|row| row.truncate(len));
        Ok(())
    }

    /// Forgets everything but the rows and their padding.
    pub fn clear(&mut self) {
        self.rewind();
        for row in &mut self.rows {
            *row = RowState::new(row.id, row.padding);
        }
    }

    /// Forgets what was fed, but not where prompts end and how strongly each column was steered: for
    /// reading the same text again.
    pub fn rewind(&mut self) {
        self.len = 0;
        self.planned = 0;
        for row in &mut self.rows {
            row.filled = Filled::Bare;
            row.tokens.clear();
        }
        self.layers.iter_mut().for_each(|(_, buffer)| *buffer = Buffer::new());
    }

    /// Keeps the given rows in the given order: drops finished rows, or repeats a row for beams or
    /// several samples of one prompt.
    ///
    /// # Errors
    /// When `rows` is empty or names a row that does not exist.
    pub fn select(&mut self, rows: &[usize]) -> Result<()> {
        let batch = self.batch();
        if let Some(row) = rows.iter().find(|&&row| row >= batch) {
            return Err(Error::argument(format!("row {row} of a cache with {batch} rows")));
        }
        if rows.is_empty() {
            return Err(Error::argument("a cache cannot be left without rows"));
        }
        let indices: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        let indices = Array::from_slice(&indices, &[indices.len() as i32]);
        let mut layers = self.layers.clone();
        for (_, buffer) in &mut layers {
            buffer.select(&indices).map_err(|e| Error::mlx("selecting rows of the cache", &e))?;
        }
        self.layers = layers;
        self.rows = rows.iter().map(|&row| self.rows[row].clone()).collect();
        Ok(())
    }

    /// [`select`](Self::select) with as many rows as before: what beam search does after each step
    /// (`reorder_cache`).
    ///
    /// # Errors
    /// As [`select`](Self::select), and when the number of rows would change.
    pub fn reorder(&mut self, rows: &[usize]) -> Result<()> {
        if rows.len() != self.batch() {
            return Err(Error::argument(format!(
                "{} indices to reorder {} rows",
                rows.len(),
                self.batch()
            )));
        }
        self.select(rows)
    }

    /// Bytes of the keys and values that the next token can still see.
    pub fn live_bytes(&self) -> usize {
        let visible = |spec: LayerSpec| self.len - spec.first_visible(self.len).min(self.len);
        self.layers.iter().map(|(spec, buffer)| visible(*spec) * buffer.column_bytes()).sum()
    }

    /// Bytes allocated, room for further tokens included.
    pub fn allocated_bytes(&self) -> usize {
        self.layers.iter().map(|(_, buffer)| buffer.allocated_bytes()).sum()
    }

    /// Every array held, to evaluate them together, as after a chunk of a long prompt.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.layers.iter().flat_map(|(_, buffer)| buffer.arrays())
    }
}
