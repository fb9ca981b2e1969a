//! A hook of its own for each row of a batch.
//!
//! Where hooks only add vectors, as most steering does, the rows are served together: the vectors of
//! all rows stand in one table per hook point, of which each pass gathers a line per row. Other hooks
//! are given their rows as a batch of their own.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use mlx_rs::{Array, ops::concatenate};
use mlxgk_kv_cache::{RowId, Step};

use crate::{AdapterChoice, Error, ErrorKind, HookPoint, ResidualHook, Result, hooks::locked};

/// A hook that several rows may share.
pub type SharedHook<'a> = Arc<Mutex<dyn ResidualHook + 'a>>;

/// A vector that a hook adds to the residual stream of one row.
///
/// ```
/// use std::sync::Arc;
///
/// use mlx_rs::Array;
/// use mlxgk_kv_cache::{KvCache, LayerSpec, Step};
/// use mlxgk_mlx_models::{Addition, HookPoint, ResidualHook, Result};
///
/// /// Adds a vector to all tokens but the text's first.
/// struct Later(Arc<[f32]>);
///
/// fn factors(step: &Step) -> Vec<f32> {
///     let columns = step.start()..step.start() + step.count();
///     columns.map(|it| if it > 0 { 1.0 } else { 0.0 }).collect()
/// }
///
/// impl ResidualHook for Later {
///     fn apply(&mut self, _: HookPoint, hidden: Array, step: &Step) -> Result<Array> {
///         let vector = Array::from_slice(&self.0, &[self.0.len() as i32]);
///         let factors = Array::from_slice(&factors(step), &[1, step.count() as i32, 1]);
///         Ok(hidden.add(vector.multiply(factors)?)?)
///     }
///
///     /// The same, said in a way that rows with other hooks can share a batch with.
///     fn additions(&self, _: HookPoint, step: &Step, _: usize) -> Result<Option<Vec<Addition>>> {
///         Ok(Some(vec![Addition { vector: Arc::clone(&self.0), factors: factors(step) }]))
///     }
/// }
///
/// let step = KvCache::new(&[LayerSpec::Full], 1).step(3);
/// let mut later = Later([0.5; 4].into());
/// let added = later.additions(HookPoint::FinalNorm, &step, 0)?.unwrap();
/// assert_eq!(added[0].factors, [0.0, 1.0, 1.0]);
/// let zeros = mlx_rs::ops::zeros::<f32>(&[1, 3, 4])?;
/// let hidden = later.apply(HookPoint::FinalNorm, zeros, &step)?;
/// assert_eq!(hidden.sum(None)?.item_exact::<f32>(), 4.0); // 2 tokens · 4 · 0.5
/// # Ok::<(), mlxgk_mlx_models::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Addition {
    /// `[hidden]`. The same allocation from pass to pass, since it is known again by its address.
    pub vector: Arc<[f32]>,
    /// How much of it is added to each of the step's tokens; 0 leaves a token as it is.
    pub factors: Vec<f32>,
}

/// Gives each row of a batch to the hook that was registered for it, by the row's id; rows without
/// one pass through.
///
/// What a row's hook does to it does not depend on the other rows. Rows that share an id, as the beams
/// of a prompt do, share a hook; so may others, and are then given to it together.
///
/// ```
/// use std::sync::{Arc, Mutex};
///
/// use mlxgk_kv_cache::RowId;
/// use mlxgk_mlx_models::{Capture, HookPoint, RowHooks};
///
/// let watched = Arc::new(Mutex::new(Capture::new([HookPoint::FinalNorm])));
/// let mut hooks = RowHooks::default();
/// hooks.insert(RowId::new(1), watched.clone());
/// assert_eq!(hooks.len(), 1);
/// hooks.remove(RowId::new(1));
/// assert!(hooks.is_empty());
/// ```
#[derive(Default)]
pub struct RowHooks<'a> {
    hooks: BTreeMap<RowId, SharedHook<'a>>,
    tables: BTreeMap<HookPoint, Table>,
}

impl<'a> RowHooks<'a> {
    /// Registers the hook of a row, in place of an earlier one.
    pub fn insert(&mut self, row: RowId, hook: SharedHook<'a>) {
        self.hooks.insert(row, hook);
    }

    /// Forgets the hook of a row that has left the batch, and returns it.
    pub fn remove(&mut self, row: RowId) -> Option<SharedHook<'a>> {
        self.hooks.remove(&row)
    }

    /// How many rows have a hook.
    pub fn len(&self) -> usize {
        self.hooks.len()
    }

    /// Whether no row has one.
    pub fn is_empty(&self) -> bool {
        self.hooks.is_empty()
    }

    /// The hook that all rows of a step share; `None` where they do not.
    fn common(&self, step: &Step) -> Option<SharedHook<'a>> {
        let mut hooks = step.rows().iter().map(|row| self.hooks.get(row));
        let first = hooks.next()??;
        hooks.all(|it| it.is_some_and(|it| Arc::ptr_eq(it, first))).then(|| Arc::clone(first))
    }
}

impl ResidualHook for RowHooks<'_> {
    fn apply(&mut self, point: HookPoint, hidden: Array, step: &Step) -> Result<Array> {
        if self.hooks.is_empty() {
            return Ok(hidden);
        }
        if let Some(hook) = self.common(step) {
            return locked(&hook).apply(point, hidden, step);
        }
        let mut others = Vec::new();
        let mut added: Vec<Vec<Addition>> = vec![Vec::new(); step.rows().len()];
        for (row, id) in step.rows().iter().enumerate() {
            let Some(hook) = self.hooks.get(id) else { continue };
            match locked(hook).additions(point, step, row)? {
                Some(additions) => added[row] = additions,
                None => others.push((row, hook)),
            }
        }
        let groups = groups(others.into_iter());
        let mut hidden = hidden;
        if added.iter().any(|it| !it.is_empty()) {
            hidden = self.tables.entry(point).or_default().add(&added, hidden, step)?;
        }
        in_groups(&groups, point, hidden, step)
    }

    fn name(&self, row: RowId) -> Option<Arc<str>> {
        self.hooks.get(&row).and_then(|it| locked(it).name(row))
    }

    fn sees_attention(&self, layer: usize) -> bool {
        self.hooks.values().any(|it| locked(it).sees_attention(layer))
    }

    fn attention(&mut self, layer: usize, weights: &Array, step: &Step) -> Result<()> {
        if let Some(hook) = self.common(step) {
            return locked(&hook).attention(layer, weights, step);
        }
        let sees = |hook: &SharedHook<'_>| locked(hook).sees_attention(layer);
        let rows = step.rows().iter().enumerate();
        for (hook, rows) in groups(rows.filter_map(|(row, id)| Some((row, self.hooks.get(id)?)))) {
            if sees(&hook) {
                let weights = weights.take_axis(rows_of(&rows), 0);
                let weights = weights.map_err(|e| Error::mlx("giving rows to their hooks", &e))?;
                locked(&hook).attention(layer, &weights, &step.select(&rows)?)?;
            }
        }
        Ok(())
    }

    fn budget(&self, row: RowId) -> Option<f64> {
        self.hooks.get(&row).and_then(|it| locked(it).budget(row))
    }

    fn additions(
        &self,
        point: HookPoint,
        step: &Step,
        row: usize,
    ) -> Result<Option<Vec<Addition>>> {
        match step.rows().get(row).and_then(|id| self.hooks.get(id)) {
            Some(hook) => locked(hook).additions(point, step, row),
            None => Ok(Some(Vec::new())),
        }
    }

    fn adapters(&self, row: RowId) -> AdapterChoice {
        self.hooks.get(&row).map(|it| locked(it).adapters(row)).unwrap_or_default()
    }
}

/// The rows of each hook.
fn groups<'h, 'a: 'h>(
    rows: impl Iterator<Item = (usize, &'h SharedHook<'a>)>,
) -> Vec<(SharedHook<'a>, Vec<usize>)> {
    let mut groups: Vec<(SharedHook<'a>, Vec<usize>)> = Vec::new();
    for (row, hook) in rows {
        match groups.iter_mut().find(|it| Arc::ptr_eq(&it.0, hook)) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((Arc::clone(hook), vec![row])),
        }
    }
    groups
}

/// Gives each hook its rows as a batch of their own, and puts what comes back in their places.
fn in_groups(
    groups: &[(SharedHook<'_>, Vec<usize>)],
    point: HookPoint,
    hidden: Array,
    step: &Step,
) -> Result<Array> {
    if groups.is_empty() {
        return Ok(hidden);
    }
    let doing = |e| Error::mlx("giving rows to their hooks", &e);
    // Of each row, where it stands in `parts`, one after the other.
    let mut places: Vec<usize> = (0..step.rows().len()).collect();
    let mut len = places.len();
    let mut parts = vec![hidden.clone()];
    for (hook, rows) in groups {
        let part = hidden.take_axis(rows_of(rows), 0).map_err(doing)?;
        let part = locked(hook).apply(point, part, &step.select(rows)?)?;
        rows.iter().enumerate().for_each(|(index, &row)| places[row] = len + index);
        len += rows.len();
        parts.push(part);
    }
    concatenate(&parts, 0).and_then(|it| it.take_axis(rows_of(&places), 0)).map_err(doing)
}

/// The vectors that are added at one hook point, and what was made of them last.
#[derive(Debug)]
struct Table {
    vectors: Vec<Arc<[f32]>>,
    /// fp32 `[vectors, hidden]`.
    lines: Array,
    /// First every row's first addition, then every row's second, and so on.
    made: Vec<Made>,
}

/// What one addition per row comes to, as long as rows and factors stay the same.
#[derive(Debug)]
struct Made {
    lines: Vec<usize>,
    factors: Vec<f32>,
    /// In the stream's dtype, `[batch, 1, hidden]`.
    sum: Array,
}

impl Default for Table {
    fn default() -> Self {
        // The lines are replaced as soon as there is a vector.
        Self { vectors: Vec::new(), lines: Array::from_f32(0.0), made: Vec::new() }
    }
}

impl Table {
    /// Adds to each row what is its own.
    fn add(&mut self, added: &[Vec<Addition>], hidden: Array, step: &Step) -> Result<Array> {
        let doing = |e| Error::mlx("adding to the rows of the residual stream", &e);
        let wanted = added.iter().flatten();
        self.know(wanted, hidden.dim(-1) as usize, step.count())?;
        let mut hidden = hidden;
        for turn in 0..added.iter().map(Vec::len).max().unwrap_or(0) {
            let of_row = |it: &Vec<Addition>| it.get(turn).map_or(0, |it| self.line(&it.vector));
            let lines: Vec<usize> = added.iter().map(of_row).collect();
            let zeros = vec![0.0; step.count()];
            let factors: Vec<&[f32]> =
                added.iter().map(|it| it.get(turn).map_or(&zeros[..], |it| &it.factors)).collect();
            if factors.iter().all(|it| it.iter().all(|it| *it == 0.0)) {
                continue;
            }
            // One factor per row, where all its tokens have the same.
            let is_even = factors.iter().all(|it| it.iter().all(|factor| *factor == it[0]));
            let count = if is_even { 1 } else { step.count() };
            let factors: Vec<f32> = factors.iter().flat_map(|it| &it[..count]).copied().collect();
            let known = self.made.get(turn);
            let known = known.filter(|it| it.lines == lines && it.factors == factors);
            let sum = match known {
                Some(known) => known.sum.clone(),
                None => {
                    let shape = [added.len() as i32, count as i32, 1];
                    let factors = Array::from_slice(&factors, &shape);
                    self.sum(&lines, &factors, &hidden).map_err(doing)?
                }
            };
            hidden = hidden.add(&sum).map_err(doing)?;
            if count == 1 && turn <= self.made.len() {
                let made = Made { lines, factors, sum };
                match self.made.get_mut(turn) {
                    Some(old) => *old = made,
                    None => self.made.push(made),
                }
            }
        }
        Ok(hidden)
    }

    fn sum(
        &self,
        lines: &[usize],
        factors: &Array,
        hidden: &Array,
    ) -> Result<Array, mlx_rs::error::Exception> {
        let vectors = self.lines.take_axis(rows_of(lines), 0)?.expand_dims(1)?;
        factors.multiply(vectors)?.as_dtype(hidden.dtype())
    }

    /// The line of a vector in the table.
    fn line(&self, vector: &Arc<[f32]>) -> usize {
        self.vectors.iter().position(|it| Arc::ptr_eq(it, vector)).unwrap_or(0)
    }

    /// Makes sure that the vectors are in the table. Those that no hook has any more leave it then.
    fn know<'v>(
        &mut self,
        wanted: impl Iterator<Item = &'v Addition> + Clone,
        width: usize,
        count: usize,
    ) -> Result<()> {
        let fits = |it: &Addition| it.vector.len() == width && it.factors.len() == count;
        if let Some(wrong) = wanted.clone().find(|it| !fits(it)) {
            let what = format!(
                "a hook adds a vector of {} values with {} factors to {count} tokens of width {width}",
                wrong.vector.len(),
                wrong.factors.len()
            );
            return Err(Error::new(ErrorKind::Hook, what));
        }
        let known = |all: &[Arc<[f32]>], it: &Addition| {
            all.iter().any(|known| Arc::ptr_eq(known, &it.vector))
        };
        if wanted.clone().all(|it| known(&self.vectors, it)) {
            return Ok(());
        }
        self.made.clear();
        self.vectors.retain(|it| Arc::strong_count(it) > 1);
        for addition in wanted {
            if !known(&self.vectors, addition) {
                self.vectors.push(Arc::clone(&addition.vector));
            }
        }
        let values: Vec<f32> = self.vectors.iter().flat_map(|it| it.iter()).copied().collect();
        self.lines = Array::from_slice(&values, &[self.vectors.len() as i32, width as i32]);
        Ok(())
    }
}

/// Rows as MLX indexes them.
fn rows_of(rows: &[usize]) -> Array {
    let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    Array::from_slice(&rows, &[rows.len() as i32])
}

impl std::fmt::Debug for RowHooks<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowHooks").field("rows", &self.hooks.keys()).finish_non_exhaustive()
    }
}
