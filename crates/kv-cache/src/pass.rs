//! A forward pass as an object: begun, written layer by layer, committed.

use std::{collections::BTreeMap, sync::Arc};

use mlx_rs::Array;

use crate::{
    Column, Error, KvCache, LayerSpec, Result, Step,
    buffer::{Buffer, ROLLBACK, Room},
    cache::Kept,
    columns::{Format, Seen},
    row::Filled,
    step::Sight,
};

/// One forward pass over the next tokens of every row: [`KvCache::begin`].
///
/// Each layer appends its keys and values or replaces its state, once; [`commit`](Self::commit) then
/// makes them the cache's. A pass that is dropped before has changed nothing.
///
/// ```
/// use mlx_rs::{Dtype, ops::zeros_dtype};
/// use mlxgk_kv_cache::{KvCache, LayerSpec};
///
/// let mut cache = KvCache::new(&[LayerSpec::Full], 1);
/// let new = zeros_dtype(&[1, 1, 2, 8], Dtype::Float32)?;
/// let mut pass = cache.begin_tokens(&[&[5, 9]], &[])?;
/// assert_eq!(pass.step().count(), 2);
/// pass.append(0, &new, &new)?;
/// drop(pass); // such as when a later layer fails
/// assert!(cache.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Pass<'c> {
    cache: &'c mut KvCache,
    step: Step,
    fed: Vec<Vec<Column>>,
    filled: Vec<Filled>,
    written: Vec<Written>,
    /// What the layers see that others share.
    seen: BTreeMap<usize, Seen>,
}

/// What a layer has brought.
#[derive(Debug)]
enum Written {
    Nothing,
    /// Columns after those that count.
    Columns,
    /// All columns in another format.
    Moved(Buffer),
    State(Vec<Array>),
}

impl KvCache {
    /// Begins a forward pass over `fed`, equally many columns per row. `steering` names what hook each
    /// row goes through; empty for none.
    ///
    /// # Errors
    /// When there is no row or no column, `fed` is not one equally long slice per row, a row was
    /// filled under another steering, or the cache keeps a single pass and has had it.
    pub fn begin(&mut self, fed: &[&[Column]], steering: &[Option<Arc<str>>]) -> Result<Pass<'_>> {
        let (rows, count) = (self.batch(), fed.first().map_or(0, |row| row.len()));
        if rows == 0 || fed.len() != rows {
            let given = fed.len();
            return Err(Error::argument(format!("{given} rows to feed to a cache of {rows} rows")));
        }
        if count == 0 || fed.iter().any(|row| row.len() != count) {
            let what = "a pass needs rows of one length, with at least one column each";
            return Err(Error::argument(what));
        }
        if self.options.single_pass && !self.is_empty() {
            return Err(Error::argument("the cache serves a single pass, which it has had"));
        }
        if self.is_empty() {
            self.check_layers()?;
        }
        let filled: Vec<Filled> = if steering.is_empty() {
            self.check_steering(&vec![None; rows])?;
            vec![Filled::Bare; rows]
        } else {
            self.check_steering(steering)?;
            steering.iter().map(|it| it.clone().map_or(Filled::Bare, Filled::Under)).collect()
        };
        let ids: Vec<u32> = fed
            .iter()
            .flat_map(|row| row.iter().map(|it| it.token().unwrap_or(u32::MAX)))
            .collect();
        let ids = Array::from_slice(&ids, &[rows as i32, count as i32]);
        Ok(Pass {
            step: Step::new(self.len(), count, &self.rows).with_tokens(&ids),
            fed: fed.iter().map(|row| row.to_vec()).collect(),
            filled,
            written: self.layers.iter().map(|_| Written::Nothing).collect(),
            seen: BTreeMap::new(),
            cache: self,
        })
    }

    /// As [`begin`](Self::begin), for tokens.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub fn begin_tokens(
        &mut self,
        rows: &[&[u32]],
        steering: &[Option<Arc<str>>],
    ) -> Result<Pass<'_>> {
        let columns: Vec<Vec<Column>> =
            rows.iter().map(|row| row.iter().copied().map(Column::Token).collect()).collect();
        let columns: Vec<&[Column]> = columns.iter().map(Vec::as_slice).collect();
        self.begin(&columns, steering)
    }
}

impl Pass<'_> {
    /// The new tokens' positions, ids and rows.
    pub fn step(&self) -> &Step {
        &self.step
    }

    /// Says that the first `again` columns of the pass are read a second time; see [`Step::again`].
    #[must_use]
    pub fn reading_again(self, again: usize) -> Self {
        Self { step: self.step.reading_again(again), ..self }
    }

    /// Length of the longest row there ever was, this pass included: what longrope goes by.
    pub fn longest(&self) -> usize {
        self.cache.longest(self.step.start() + self.step.count())
    }

    /// Brings a layer's new keys and values, `[batch, kv heads, columns, dimension]` each, and returns
    /// all that the new tokens may look at.
    ///
    /// # Errors
    /// When the layer does not exist, has no columns of its own or was written in this pass already,
    /// the shapes do not fit the pass, or MLX fails.
    pub fn append(&mut self, layer: usize, keys: &Array, values: &Array) -> Result<Seen> {
        let (batch, start, count) = (self.cache.batch(), self.step.start(), self.step.count());
        self.check_turn(layer)?;
        for (name, it) in [("keys", keys), ("values", values)] {
            if it.ndim() != 4 || it.dim(0) as usize != batch || it.dim(2) as usize != count {
                let shape = it.shape();
                return Err(Error::argument(format!(
                    "{name} of layer {layer} have shape {shape:?}, not [{batch}, heads, {count}, \
                     dimension]"
                )));
            }
        }
        let shared = self.cache.is_shared(layer);
        let format = self.cache.format(start);
        let planned = self.cache.planned.max(self.cache.reserved);
        let single = self.cache.options.single_pass;
        let sight = self.cache.layers[layer].sight;
        let from = sight.first_visible(start);
        let (keep_from, planned) = match sight.newest() {
            None => (0, planned),
            Some(_) => {
                let lowest = self.cache.timeline.lowest_mark().unwrap_or(start).min(start);
                (sight.first_visible(lowest).min(from.saturating_sub(ROLLBACK)), 0)
            }
        };
        let Kept::Columns(buffer) = &mut self.cache.layers[layer].kept else {
            let what = format!("layer {layer} ({sight:?}) has no columns of its own");
            return Err(Error::argument(what));
        };
        let seen = if single {
            let mask = self.step.mask(Sight { spec: sight, first: 0, slots: false });
            self.written[layer] = Written::Columns;
            Format::Dense.show(vec![keys.clone(), values.clone()], mask)?
        } else {
            let mut moved = None;
            let target = match format {
                Format::Quantized(how) if buffer.format != format => {
                    let mut quantized = buffer.clone();
                    quantized.quantize(how)?;
                    moved.insert(quantized)
                }
                // Once quantized, columns stay so.
                _ => buffer,
            };
            let format = target.format;
            let room = Room { keep_from, planned, padding: self.step.padding() };
            target.write(start, room, &format.encode(keys, values)?)?;
            let slots = target.shows_slots();
            let first = if sight.sinks() > 0 { target.first } else { from };
            let shown = target
                .shown(first, start + count)
                .map_err(|e| Error::mlx("showing a layer its columns", &e))?;
            let mask = self.step.mask(Sight { spec: sight, first, slots });
            self.written[layer] = moved.map_or(Written::Columns, Written::Moved);
            format.show(shown, mask)?
        };
        if shared {
            self.seen.insert(layer, seen.clone());
        }
        Ok(seen)
    }

    /// What a [shared](LayerSpec::Shared) layer may look at: the columns of its owner, those of this
    /// pass included.
    ///
    /// # Errors
    /// When the layer does not exist or shares nothing, or its owner has not appended yet.
    pub fn shared(&self, layer: usize) -> Result<&Seen> {
        match self.cache.layers.get(layer).map(|it| it.spec) {
            Some(LayerSpec::Shared { owner }) => self.seen.get(&owner).ok_or_else(|| {
                Error::argument(format!(
                    "layer {layer} shares layer {owner}, which has not appended"
                ))
            }),
            Some(_) => Err(Error::argument(format!("layer {layer} shares no other's columns"))),
            None => Err(self.no_layer(layer)),
        }
    }

    /// The state that a layer left in the pass before; `None` before the first.
    ///
    /// # Errors
    /// When the layer does not exist or has no state.
    pub fn state(&self, layer: usize) -> Result<Option<&[Array]>> {
        match self.cache.layers.get(layer).map(|it| &it.kept) {
            Some(Kept::State(state)) if state.is_empty() => Ok(None),
            Some(Kept::State(state)) => Ok(Some(state)),
            Some(_) => Err(Error::argument(format!("layer {layer} has columns and no state"))),
            None => Err(self.no_layer(layer)),
        }
    }

    /// Replaces the state of a layer by what it is after this pass: arrays with a row of the batch
    /// along their first axis. Left padding must have left it untouched ([`Step::real`]).
    ///
    /// # Errors
    /// When the layer does not exist, has no state or was written in this pass already, or an array
    /// has not one entry per row.
    pub fn set_state(&mut self, layer: usize, state: Vec<Array>) -> Result<()> {
        self.state(layer)?;
        self.check_turn(layer)?;
        let rows = self.cache.batch();
        if state.is_empty() || state.iter().any(|it| it.ndim() == 0 || it.dim(0) as usize != rows) {
            let shapes: Vec<&[i32]> = state.iter().map(|it| it.shape()).collect();
            return Err(Error::argument(format!(
                "the state of layer {layer} has shapes {shapes:?}, which do not begin with the {rows} \
                 rows"
            )));
        }
        self.written[layer] = Written::State(state);
        Ok(())
    }

    /// Makes what the layers brought the cache's.
    ///
    /// # Errors
    /// When a layer has brought nothing; the cache is then as it was.
    pub fn commit(self) -> Result<()> {
        let Self { cache, step, fed, filled, written, .. } = self;
        for (index, (layer, written)) in cache.layers.iter().zip(&written).enumerate() {
            if layer.spec.is_kept() && matches!(written, Written::Nothing) {
                let what = format!("layer {index} ({:?}) has brought nothing", layer.spec);
                return Err(Error::argument(what));
            }
        }
        let keeps = !cache.options.single_pass;
        for (layer, written) in cache.layers.iter_mut().zip(written) {
            match written {
                Written::Moved(buffer) => layer.kept = Kept::Columns(buffer),
                Written::State(state) if keeps => layer.kept = Kept::State(state),
                _ => {}
            }
        }
        for ((row, fed), filled) in cache.rows.iter_mut().zip(fed).zip(filled) {
            row.columns.extend(fed);
            row.filled = filled;
        }
        cache.len += step.count();
        cache.widest = cache.widest.max(step.count());
        Ok(())
    }

    fn no_layer(&self, layer: usize) -> Error {
        Error::argument(format!("layer {layer} of a cache with {} layers", self.cache.layers.len()))
    }

    /// Refuses a layer that does not exist, or has had its turn.
    fn check_turn(&self, layer: usize) -> Result<()> {
        match self.written.get(layer) {
            Some(Written::Nothing) => Ok(()),
            Some(_) => {
                Err(Error::argument(format!("layer {layer} was written in this pass already")))
            }
            None => Err(self.no_layer(layer)),
        }
    }
}
