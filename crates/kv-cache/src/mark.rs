//! Going back: to a mark, to a checkpoint, or by a number of columns.
//!
//! Going back over columns means to count fewer of them. A state is replaced by every pass, so going
//! back needs the state of that place: a [`Mark`] or a checkpoint holds it, a handle and no copy.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicU64, Ordering},
};

use mlx_rs::Array;

use crate::{
    Error, KvCache, Result,
    cache::{Kept, Layer},
    row::Filled,
};

/// Checkpoints that a cache keeps.
const CHECKPOINTS: usize = 4;

/// A place in a cache to go back to: see [`KvCache::mark`].
///
/// While it lives, sliding layers keep the columns that would come back into view.
///
/// ```
/// use mlx_rs::{Dtype, ops::zeros_dtype};
/// use mlxgk_kv_cache::{KvCache, LayerSpec};
///
/// let mut cache = KvCache::new(&[LayerSpec::Full], 1);
/// let new = zeros_dtype(&[1, 1, 1, 8], Dtype::Float32)?;
/// let mut mark = cache.mark();
/// for (at, token) in [5, 9, 14].into_iter().enumerate() {
///     if at == 1 {
///         mark = cache.mark();
///     }
///     let mut pass = cache.begin_tokens(&[&[token]], &[])?;
///     pass.append(0, &new, &new)?;
///     pass.commit()?;
/// }
/// assert_eq!((mark.column(), cache.len()), (1, 3));
/// cache.roll_back_to(&mark)?;
/// assert_eq!(cache.tokens(0), [5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Mark {
    cache: u64,
    epoch: u64,
    /// The column; the cache watches it to know how long the mark lives.
    at: Arc<usize>,
    states: States,
    filled: Vec<Filled>,
}

impl Mark {
    /// How many columns the cache held.
    pub fn column(&self) -> usize {
        *self.at
    }
}

/// The states of all layers at one column; nothing for layers without one.
type States = Vec<Vec<Array>>;

/// What a cache knows of the places it can go back to.
#[derive(Debug)]
pub(crate) struct Timeline {
    /// Which cache it is, among all of the process.
    cache: u64,
    /// How often the cache went back.
    epoch: u64,
    /// Epochs, and the columns that the cache went back to when they began, each further than the
    /// one before. A mark beyond a later one is of a past that was undone.
    cuts: Vec<(u64, usize)>,
    marks: Vec<Weak<usize>>,
    /// By column, the oldest first.
    checkpoints: Vec<(usize, States)>,
}

impl Default for Timeline {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            cache: NEXT.fetch_add(1, Ordering::Relaxed),
            epoch: 0,
            cuts: Vec::new(),
            marks: Vec::new(),
            checkpoints: Vec::new(),
        }
    }
}

/// A copy is another cache: marks are of the one they were made in.
impl Clone for Timeline {
    fn clone(&self) -> Self {
        Self { checkpoints: self.checkpoints.clone(), ..Self::default() }
    }
}

impl Timeline {
    /// Notes that the cache went back to `column`.
    fn cut(&mut self, column: usize) {
        self.epoch += 1;
        self.cuts.retain(|(_, at)| *at < column);
        self.cuts.push((self.epoch, column));
        self.checkpoints.retain(|(at, _)| *at <= column);
    }

    /// The lowest column that a living mark may go back to.
    pub(crate) fn lowest_mark(&mut self) -> Option<usize> {
        self.marks.retain(|it| it.strong_count() > 0);
        self.marks.iter().filter_map(|it| it.upgrade().map(|it| *it)).min()
    }

    /// Keeps the given rows of every checkpoint and forgets `drop` columns; marks are of the past.
    pub(crate) fn select(&mut self, rows: &Array, drop: usize) -> Result<()> {
        let mut checkpoints = Vec::new();
        for (at, states) in &self.checkpoints {
            let Some(at) = at.checked_sub(drop) else { continue };
            let rows_of =
                |state: &Vec<Array>| state.iter().map(|it| it.take_axis(rows, 0)).collect();
            let states = states.iter().map(rows_of).collect::<Result<_, _>>();
            checkpoints.push((at, states.map_err(|e| Error::mlx("selecting rows of states", &e))?));
        }
        *self = Self { checkpoints, ..Self::default() };
        Ok(())
    }

    /// The arrays of all checkpoints.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.checkpoints.iter().flat_map(|(_, states)| states.iter().flatten())
    }
}

impl KvCache {
    /// The cache as it stands, to [go back to](Self::roll_back_to): before a draft is tried, or a
    /// strength of steering. Costs a handle per state and copies nothing.
    ///
    /// ```
    /// use mlx_rs::{Array, Dtype, ops::zeros_dtype};
    /// use mlxgk_kv_cache::{Column, KvCache, LayerSpec};
    ///
    /// // A layer with a state of one number per row, which counts the tokens.
    /// let mut cache = KvCache::new(&[LayerSpec::State], 1);
    /// let feed = |cache: &mut KvCache, tokens: &[Column]| -> Result<(), Box<dyn std::error::Error>> {
    ///     let mut pass = cache.begin(&[tokens], &[])?;
    ///     let before = pass.state(0)?.map_or(0.0, |it| it[0].item_exact::<f32>());
    ///     let after = before + tokens.len() as f32;
    ///     pass.set_state(0, vec![Array::from_slice(&[after], &[1])])?;
    ///     Ok(pass.commit()?)
    /// };
    /// feed(&mut cache, &[Column::Token(5), Column::Token(9)])?;
    /// let mark = cache.mark();
    /// feed(&mut cache, &[Column::Token(7), Column::Token(1)])?;
    /// cache.roll_back_to(&mark)?;
    /// assert_eq!((cache.len(), cache.tokens(0)), (2, vec![5, 9]));
    /// feed(&mut cache, &[Column::Token(3)])?;
    /// assert_eq!(cache.state_of(0)[0].item_exact::<f32>(), 3.0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn mark(&mut self) -> Mark {
        let at = Arc::new(self.len);
        self.timeline.marks.push(Arc::downgrade(&at));
        Mark {
            cache: self.timeline.cache,
            epoch: self.timeline.epoch,
            at,
            states: self.states(),
            filled: self.rows.iter().map(|row| row.filled.clone()).collect(),
        }
    }

    /// Goes back to a mark of this cache: what was fed after it is forgotten, in every kind of layer.
    /// Copies nothing.
    ///
    /// # Errors
    /// When the mark is another cache's (a fork is another cache, and so is one whose rows were
    /// [selected](Self::select) or [joined](Self::join) since), or lies in a past that was undone.
    /// The cache is then as it was.
    pub fn roll_back_to(&mut self, mark: &Mark) -> Result<()> {
        let timeline = &self.timeline;
        if mark.cache != timeline.cache {
            return Err(Error::argument("the mark was made in another cache, or of other rows"));
        }
        let undone = |(epoch, column): &(u64, usize)| *epoch > mark.epoch && *column < *mark.at;
        if timeline.cuts.iter().any(undone) {
            let at = mark.column();
            return Err(Error::argument(format!(
                "the mark at column {at} is of a text that was rolled back since"
            )));
        }
        self.check_columns(*mark.at)?;
        self.cut(*mark.at, *mark.at, &mark.states);
        for (row, filled) in self.rows.iter_mut().zip(&mark.filled) {
            row.filled = filled.clone();
        }
        Ok(())
    }

    /// Notes the states of this place, so that [`back_to`](Self::back_to) and [`trim`](Self::trim) can
    /// return here. Of use to layers with a [state](crate::LayerSpec::State) alone: elsewhere it does
    /// nothing. The newest four are kept, each a handle per state.
    pub fn checkpoint(&mut self) {
        let timeline = &self.timeline;
        let noted = timeline.checkpoints.last().is_some_and(|(at, _)| *at == self.len);
        if self.is_empty() || noted || !self.has_states() {
            return;
        }
        let states = self.states();
        let checkpoints = &mut self.timeline.checkpoints;
        checkpoints.push((self.len, states));
        if checkpoints.len() > CHECKPOINTS {
            checkpoints.remove(0);
        }
    }

    /// Goes back to the newest place at or before `column` that every layer can return to, and returns
    /// it: `column` itself where only columns are kept, a [checkpoint](Self::checkpoint) where layers
    /// have states, and 0 where nothing else is left. The text from there to `column` has to be fed
    /// again.
    pub fn back_to(&mut self, column: usize) -> usize {
        let column = column.min(self.len);
        let here = column == self.len || !self.has_states();
        if here && self.check_columns(column).is_ok() {
            self.cut(column, column, &self.states());
            return column;
        }
        let checkpoints = self.timeline.checkpoints.iter().rev();
        let reachable = |at: usize| at <= column && self.check_columns(at).is_ok();
        let found = checkpoints.into_iter().find(|(at, _)| reachable(*at)).cloned();
        if let Some((at, states)) = found.filter(|_| self.has_states()) {
            self.cut(at, column, &states);
            return at;
        }
        self.rewind();
        self.rows.iter_mut().for_each(|row| row.strengths.truncate(column));
        0
    }

    /// Forgets the last `count` columns, as if they had never been fed.
    ///
    /// # Errors
    /// When fewer columns are held, a sliding layer no longer has the older columns that would come
    /// back into view, or a layer has a state and no [checkpoint](Self::checkpoint) is there. The
    /// cache is unchanged then. A rollback of up to 64 columns right after they were fed one by one
    /// is possible wherever there is no state.
    pub fn trim(&mut self, count: usize) -> Result<()> {
        let Some(len) = self.len.checked_sub(count) else {
            return Err(Error::argument(format!("cannot trim {count} of {} columns", self.len)));
        };
        if count == 0 {
            return Ok(());
        }
        self.check_columns(len)?;
        if !self.has_states() || len == 0 {
            let none = self.layers.iter().map(|_| Vec::new()).collect();
            self.cut(len, len, &none);
            return Ok(());
        }
        let checkpoints = &self.timeline.checkpoints;
        let Some((_, states)) = checkpoints.iter().find(|(at, _)| *at == len).cloned() else {
            return Err(Error::dropped(format!(
                "cannot trim {count} columns: the layers' states at column {len} were not kept"
            )));
        };
        self.cut(len, len, &states);
        Ok(())
    }

    /// Forgets what was fed, but not where prompts end and how strongly each column was steered: for
    /// reading the same text again.
    pub fn rewind(&mut self) {
        let none = self.layers.iter().map(|_| Vec::new()).collect();
        self.cut(0, usize::MAX, &none);
        self.planned = 0;
        let format = self.format(0);
        for Layer { sight, kept, .. } in &mut self.layers {
            *kept = Kept::new(*sight, format);
        }
        for row in &mut self.rows {
            row.filled = Filled::Bare;
        }
    }

    /// Whether the columns are there that a pass at column `len` looks at.
    fn check_columns(&self, len: usize) -> Result<()> {
        for (index, Layer { sight, kept, spec }) in self.layers.iter().enumerate() {
            let Kept::Columns(buffer) = kept else { continue };
            if sight.first_visible(len) < buffer.first {
                return Err(Error::dropped(format!(
                    "cannot go back to column {len}: layer {index} ({spec:?}) has dropped the columns \
                     before {}",
                    buffer.first
                )));
            }
        }
        Ok(())
    }

    /// Counts `len` columns, of which the strengths of the first `steered` are still known, with these
    /// states.
    fn cut(&mut self, len: usize, steered: usize, states: &States) {
        if len < self.len {
            self.timeline.cut(len);
        }
        self.len = len;
        for row in &mut self.rows {
            row.columns.truncate(len);
            row.strengths.truncate(steered);
        }
        for (layer, state) in self.layers.iter_mut().zip(states) {
            if let Kept::State(held) = &mut layer.kept {
                *held = state.clone();
            }
        }
    }

    fn states(&self) -> States {
        let state = |layer: &Layer| match &layer.kept {
            Kept::State(state) => state.clone(),
            _ => Vec::new(),
        };
        self.layers.iter().map(state).collect()
    }

    fn has_states(&self) -> bool {
        self.layers.iter().any(|layer| matches!(layer.kept, Kept::State(_)))
    }
}
