//! The cache of one request or one left-padded batch.

use std::sync::Arc;

use mlx_rs::{Array, error::Exception, transforms::eval};

use crate::{
    CacheOptions, Column, Error, LayerSpec, Result, RowId,
    buffer::Buffer,
    columns::Format,
    mark::Timeline,
    row::{Filled, RowState},
    step::Step,
};

/// What every layer keeps of the past for one batch of rows, and what it came from.
///
/// A column is one position across all rows, left padding included. All rows have the same number of
/// columns. A forward pass is begun, written layer by layer and committed: [`begin`](Self::begin).
///
/// ```
/// use mlx_rs::{Dtype, ops::zeros_dtype};
/// use mlxgk_kv_cache::{KvCache, LayerSpec};
///
/// let mut cache = KvCache::left_padded(&[LayerSpec::Full], &[0, 2]);
/// let new = zeros_dtype(&[2, 1, 3, 8], Dtype::Float32)?;
/// let mut pass = cache.begin_tokens(&[&[5, 9, 14], &[0, 0, 7]], &[])?;
/// pass.append(0, &new, &new)?;
/// pass.commit()?;
/// // The first row is finished; two answers are tried for the second, whose padding is dropped.
/// assert_eq!(cache.select(&[1, 1])?, 2);
/// assert_eq!((cache.batch(), cache.len(), cache.tokens(0)), (2, 1, vec![7]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct KvCache {
    pub(crate) layers: Vec<Layer>,
    pub(crate) options: CacheOptions,
    pub(crate) len: usize,
    pub(crate) planned: usize,
    /// Columns that full layers make room for at once.
    pub(crate) reserved: usize,
    /// Left padding of the longest row there ever was; below 0 where that row left and columns that
    /// only it had were dropped.
    pub(crate) least_padding: isize,
    pub(crate) rows: Vec<RowState>,
    pub(crate) timeline: Timeline,
    /// Columns of the widest pass there was.
    pub(crate) widest: usize,
}

/// One layer of the cache.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    /// What the model says of it.
    pub(crate) spec: LayerSpec,
    /// What it sees under the cache's options.
    pub(crate) sight: LayerSpec,
    pub(crate) kept: Kept,
}

/// What a layer keeps.
#[derive(Debug, Clone)]
pub(crate) enum Kept {
    Columns(Buffer),
    /// Empty before the first pass.
    State(Vec<Array>),
    /// What it sees is another layer's, or it sees nothing.
    Nothing,
}

impl Kept {
    pub(crate) fn new(sight: LayerSpec, format: Format) -> Self {
        match sight {
            LayerSpec::State => Self::State(Vec::new()),
            LayerSpec::Shared { .. } | LayerSpec::Nothing => Self::Nothing,
            _ => Self::Columns(Buffer::new(format, sight.sinks())),
        }
    }
}

impl KvCache {
    /// An empty cache for `batch` rows without padding, which keeps dense columns.
    pub fn new(layers: &[LayerSpec], batch: usize) -> Self {
        Self::left_padded(layers, &vec![0; batch])
    }

    /// An empty cache for a left-padded batch, which keeps dense columns: row *i* begins with
    /// `padding[i]` columns that no token ever looks at.
    pub fn left_padded(layers: &[LayerSpec], padding: &[usize]) -> Self {
        Self::made(layers, padding, &CacheOptions::default())
    }

    /// As [`left_padded`](Self::left_padded), for a cache that keeps its columns as `options` say.
    ///
    /// # Errors
    /// When a layer could see nothing, or reads a layer that has no columns, or the options speak of
    /// layers that are not there.
    pub fn with_options(
        layers: &[LayerSpec],
        padding: &[usize],
        options: &CacheOptions,
    ) -> Result<Self> {
        if let Some(first) = options.early_exit
            && (first == 0 || first > layers.len())
        {
            let all = layers.len();
            let what = format!("an early exit behind layer {first} of a model with {all} layers");
            return Err(Error::argument(what));
        }
        let cache = Self::made(layers, padding, options);
        cache.check_layers()?;
        Ok(cache)
    }

    /// A cache for a single pass over `batch` rows, which keeps nothing of it: what training and
    /// scoring need. No column is copied.
    pub fn for_one_pass(layers: &[LayerSpec], batch: usize) -> Self {
        Self::made(layers, &vec![0; batch], &CacheOptions::new().single_pass())
    }

    fn made(layers: &[LayerSpec], padding: &[usize], options: &CacheOptions) -> Self {
        let mut cache = Self {
            layers: Vec::new(),
            options: options.clone(),
            len: 0,
            planned: 0,
            reserved: 0,
            least_padding: padding.iter().copied().min().unwrap_or(0) as isize,
            rows: RowId::first(padding.len())
                .into_iter()
                .zip(padding)
                .map(|(id, &padding)| RowState::new(id, padding))
                .collect(),
            timeline: Timeline::default(),
            widest: 0,
        };
        let format = cache.format(0);
        let layer = |&spec: &LayerSpec| {
            let sight = options.sight(spec);
            Layer { spec, sight, kept: Kept::new(sight, format) }
        };
        let kept = options.early_exit.unwrap_or(layers.len());
        cache.layers = layers.iter().take(kept).map(layer).collect();
        cache
    }

    pub(crate) fn check_layers(&self) -> Result<()> {
        let sights: Vec<LayerSpec> = self.layers.iter().map(|it| it.sight).collect();
        sights.iter().enumerate().try_for_each(|(index, sight)| sight.check(index, &sights))
    }

    /// How columns are held by a pass that begins at column `start`.
    pub(crate) fn format(&self, start: usize) -> Format {
        match self.options.quantization {
            Some(how) if start >= how.start => Format::Quantized(how),
            _ => Format::Dense,
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

    /// Lets full layers make room for `columns` columns when they are next enlarged, so that a text up to
    /// that length never moves (HF's static cache). Says nothing about the text, unlike
    /// [`plan`](Self::plan), and changes no result.
    pub fn reserve(&mut self, columns: usize) {
        self.reserved = columns;
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

    /// Length of the longest row there ever was, had the cache `columns` columns. Rows that have left
    /// count, so that a model that treats a batch by its longest row (longrope) treats those that
    /// remain as before.
    pub fn longest(&self, columns: usize) -> usize {
        (columns as isize - self.least_padding).max(0) as usize
    }

    /// Columns of the widest pass there was, so that what has to be read again is read in passes for
    /// which there was memory.
    pub fn widest_pass(&self) -> usize {
        self.widest
    }

    /// What each layer may see, as the model states it.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = LayerSpec> + '_ {
        self.layers.iter().map(|layer| layer.spec)
    }

    /// How the columns are kept.
    pub fn options(&self) -> &CacheOptions {
        &self.options
    }

    /// Whether another layer reads this one's columns.
    pub(crate) fn is_shared(&self, layer: usize) -> bool {
        self.layers.iter().any(|it| it.spec == LayerSpec::Shared { owner: layer })
    }

    /// What stands in a row's columns, left padding included.
    ///
    /// # Panics
    /// When `row` is not below [`batch`](Self::batch).
    pub fn columns(&self, row: usize) -> &[Column] {
        &self.rows[row].columns
    }

    /// The tokens of a row up to the first column that holds an embedding, left padding included: all
    /// that a prompt can have in common with it.
    ///
    /// # Panics
    /// When `row` is not below [`batch`](Self::batch).
    pub fn tokens(&self, row: usize) -> Vec<u32> {
        self.rows[row].columns.iter().map_while(|it| it.token()).collect()
    }

    /// Says which token stands in the newest column of each row: for tokens that were fed before they were
    /// known, as embeddings that the graph had yet to compute.
    ///
    /// # Errors
    /// When there is no column, or `tokens` is not one per row.
    pub fn set_newest_tokens(&mut self, tokens: &[u32]) -> Result<()> {
        self.check_count(tokens.len(), "tokens")?;
        for (row, &token) in self.rows.iter_mut().zip(tokens) {
            let Some(newest) = row.columns.last_mut() else {
                return Err(Error::argument("the cache holds no column to name"));
            };
            *newest = Column::Token(token);
        }
        Ok(())
    }

    /// The state of a layer, as its last pass left it; empty where there is none.
    ///
    /// # Panics
    /// When `layer` does not exist.
    pub fn state_of(&self, layer: usize) -> &[Array] {
        if let Kept::State(state) = &self.layers[layer].kept { state } else { &[] }
    }

    /// Positions of the next `count` tokens of every row, as a hook would be given them.
    pub fn step(&self, count: usize) -> Step {
        Step::new(self.len, count, &self.rows)
    }

    /// A second cache with the same content. It costs a handle per array; the first write to
    /// either copies what it writes into.
    #[must_use]
    pub fn fork(&self) -> Self {
        self.clone()
    }

    /// Forgets everything but the rows and their padding.
    pub fn clear(&mut self) {
        self.rewind();
        for row in &mut self.rows {
            *row = RowState::new(row.id, row.padding);
        }
    }

    /// Keeps the given rows in the given order: drops finished rows, or repeats a row for beams or
    /// several samples of one prompt. Columns that are padding in all rows that remain are dropped;
    /// returns how many.
    ///
    /// # Errors
    /// When `rows` is empty or names a row that does not exist.
    pub fn select(&mut self, rows: &[usize]) -> Result<usize> {
        let batch = self.batch();
        if let Some(row) = rows.iter().find(|&&row| row >= batch) {
            return Err(Error::argument(format!("row {row} of a cache with {batch} rows")));
        }
        let Some(drop) = rows.iter().map(|&row| self.rows[row].padding).min() else {
            return Err(Error::argument("a cache cannot be left without rows"));
        };
        let drop = drop.min(self.len);
        let indices: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        let indices = Array::from_slice(&indices, &[indices.len() as i32]);
        let doing = |e| Error::mlx("selecting rows of the cache", &e);
        let moved = self.moved(rows, &indices, drop).map_err(doing)?;
        let mut layers = self.layers.clone();
        for (layer, moved) in layers.iter_mut().zip(moved) {
            match (&mut layer.kept, moved) {
                (Kept::Columns(buffer), Some(moved)) => {
                    buffer.put(&moved, self.len).map_err(doing)?;
                }
                (Kept::Columns(buffer), None) => {
                    buffer.select(&indices, drop, self.len).map_err(doing)?;
                }
                (Kept::State(state), _) => {
                    for array in state {
                        *array = array.take_axis(&indices, 0).map_err(doing)?;
                    }
                }
                (Kept::Nothing, _) => {}
            }
        }
        self.timeline.select(&indices, drop)?;
        self.layers = layers;
        self.rows = rows.iter().map(|&row| self.rows[row].clone()).collect();
        self.rows.iter_mut().for_each(|row| row.shift(-(drop as isize)));
        self.least_padding -= drop as isize;
        self.planned = self.planned.saturating_sub(drop);
        self.reserved = self.reserved.saturating_sub(drop);
        self.len -= drop;
        Ok(drop)
    }

    /// For each layer the few columns that [`select`](Self::select) has to move where the rows share a text
    /// up to them, as beams do: whole arrays of a long text would be most of a step's memory traffic.
    fn moved(
        &self,
        rows: &[usize],
        indices: &Array,
        drop: usize,
    ) -> Result<Vec<Option<Vec<Array>>>, Exception> {
        let in_common = |(place, &row): (usize, &usize)| match place == row {
            true => self.len,
            false => self.rows[place].in_common(&self.rows[row]),
        };
        let same = match drop == 0 && rows.len() == self.batch() {
            true => rows.iter().enumerate().map(in_common).min().unwrap_or(0),
            false => 0,
        };
        let moved = |layer: &Layer| match &layer.kept {
            Kept::Columns(buffer) if same > 0 => buffer.moved(indices, same, self.len),
            _ => Ok(None),
        };
        let moved = self.layers.iter().map(moved).collect::<Result<Vec<_>, _>>()?;
        if moved.iter().any(Option::is_some) {
            // Read before they are written over: what still has to be read would force a copy of all.
            eval(moved.iter().flatten().flatten())?;
        }
        Ok(moved)
    }

    /// How many tokens the next one sees in each layer, itself included, however long the text: `None`
    /// where it sees all, or a state stands for them.
    pub fn windows(&self) -> impl ExactSizeIterator<Item = Option<usize>> + '_ {
        self.layers.iter().map(|layer| match layer.sight {
            LayerSpec::Bounded { size, .. } => Some(size),
            LayerSpec::Shared { owner } => self.layers[owner].sight.newest(),
            sight => sight.newest(),
        })
    }

    /// Bytes of what the next token can still see: columns, sinks and states.
    pub fn live_bytes(&self) -> usize {
        let visible = |layer: &Layer| match &layer.kept {
            Kept::Columns(buffer) => {
                let first = layer.sight.first_visible(self.len).min(self.len);
                let sinks = if first > 0 { layer.sight.sinks().min(first) } else { 0 };
                (self.len - first + sinks) * buffer.column_bytes()
            }
            Kept::State(state) => state.iter().map(Array::nbytes).sum(),
            Kept::Nothing => 0,
        };
        self.layers.iter().map(visible).sum()
    }

    /// Bytes allocated, room for further columns included.
    pub fn allocated_bytes(&self) -> usize {
        self.arrays().map(Array::nbytes).sum()
    }

    /// Every array held, to evaluate them together, as after a chunk of a long prompt.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        let kept = self.layers.iter().flat_map(|layer| match &layer.kept {
            Kept::Columns(buffer) => buffer.arrays.as_slice(),
            Kept::State(state) => state.as_slice(),
            Kept::Nothing => &[],
        });
        kept.chain(self.timeline.arrays())
    }

    /// Computes everything that is still to be computed. An MLX array belongs to the thread that made
    /// it until then, so a cache that goes to another thread has to be evaluated first.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn evaluate(&self) -> Result<()> {
        eval(self.arrays()).map_err(|e| Error::mlx("evaluating the cache", &e))
    }
}
