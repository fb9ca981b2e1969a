//! One layer's keys and values: a block of columns that grows in steps and is written in place.
//!
//! MLX arrays are immutable, but a slice update whose source nobody else holds reuses the source's
//! memory. The buffer therefore keeps exactly one handle per array between forward passes: a decode
//! step writes one column and copies nothing. A fork holds a second handle, so its first write pays
//! for one copy.

use mlx_rs::{
    Array, Dtype,
    error::Exception,
    ops::{
        concatenate,
        indexing::{TryIndexMutOp, TryIndexOp},
        zeros_dtype,
    },
};

use crate::{Error, Result};

/// Columns are allocated in multiples of this (mlx-lm's step, so allocations compare).
const STEP: usize = 256;

/// How many columns beyond its window a sliding layer keeps when it moves, so that a rejected
/// draft of up to this many tokens can always be undone.
pub(crate) const ROLLBACK: usize = 64;

/// Keys and values of one layer, `[batch, kv heads, columns, head dimension]`.
#[derive(Debug, Clone)]
pub(crate) struct Buffer {
    arrays: Option<(Array, Array)>,
    /// The absolute column that stands at index 0; above 0 only after a sliding layer moved.
    first: usize,
    capacity: usize,
}

/// What a buffer that has to move makes room for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// The first column worth carrying along.
    pub(crate) keep_from: usize,
    /// The column up to which more are known to come.
    pub(crate) planned: usize,
}

/// A buffer on its way into another: it holds `len` columns, which all move by `shift`. Those that
/// would stand before the first are padding.
#[derive(Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) buffer: &'a Buffer,
    pub(crate) len: usize,
    pub(crate) shift: isize,
}

impl Piece<'_> {
    /// Where the held columns begin after the move. A buffer that dropped nothing is complete: what
    /// stands before it is padding.
    fn first(&self) -> usize {
        match self.buffer.first {
            0 => 0,
            first => first.saturating_add_signed(self.shift),
        }
    }

    /// The columns from `from` on after the move, zeros in place of padding that is not held.
    fn columns(&self, from: usize) -> Result<[Array; 2], Exception> {
        let filler = 0_usize.saturating_add_signed(self.shift).saturating_sub(from);
        let own = from.saturating_add_signed(-self.shift);
        let (keys, values) = self.buffer.columns(own, self.len)?;
        Ok([prepend(filler, &keys)?, prepend(filler, &values)?])
    }
}

impl Buffer {
    /// The rows of all pieces, as far back as each of them goes, up to column `len`.
    pub(crate) fn join(pieces: &[Piece<'_>], len: usize) -> Result<Self, Exception> {
        let first = pieces.iter().map(Piece::first).max().unwrap_or(0);
        let rows = pieces.iter().map(|it| it.columns(first)).collect::<Result<Vec<_>, _>>()?;
        let capacity = (len - first).div_ceil(STEP) * STEP;
        let all = |which: usize| {
            let parts: Vec<&Array> = rows.iter().map(|it| &it[which]).collect();
            let rows = concatenate(&parts, 0)?;
            let none = rows.try_index((.., .., 0..0, ..))?;
            append(&rows, &none, capacity - (len - first))
        };
        Ok(Self { arrays: Some((all(0)?, all(1)?)), first, capacity })
    }

    pub(crate) fn new() -> Self {
        Self { arrays: None, first: 0, capacity: 0 }
    }

    /// Writes `keys` and `values` at absolute column `at` and returns the columns from `from` up
    /// to the end of what was written.
    pub(crate) fn write(
        &mut self,
        at: usize,
        from: usize,
        room: Room,
        keys: &Array,
        values: &Array,
    ) -> Result<(Array, Array)> {
        let end = at + keys.dim(2) as usize;
        let wrap = |e: Exception| {
            let shape = keys.shape();
            Error::mlx(&format!("writing keys {shape:?} at column {at} of the cache"), &e)
        };
        match &mut self.arrays {
            Some((held_keys, held_values)) if end - self.first <= self.capacity => {
                let columns = (at - self.first) as i32..(end - self.first) as i32;
                held_keys.try_index_mut((.., .., columns.clone(), ..), keys).map_err(wrap)?;
                held_values.try_index_mut((.., .., columns, ..), values).map_err(wrap)?;
            }
            _ => self.reallocate(at, room, keys, values).map_err(wrap)?,
        }
        self.columns(from, end).map_err(wrap)
    }

    /// Moves the columns worth keeping into a new block with the new ones behind them and room for
    /// what is planned, or for up to a step more.
    fn reallocate(
        &mut self,
        at: usize,
        room: Room,
        keys: &Array,
        values: &Array,
    ) -> Result<(), Exception> {
        let keep_from = room.keep_from.max(self.first);
        let kept = if self.arrays.is_some() {
            self.columns(keep_from, at)?
        } else {
            // Nothing is held yet, so nothing precedes the first column.
            (keys.try_index((.., .., 0..0, ..))?, values.try_index((.., .., 0..0, ..))?)
        };
        let used = at - keep_from + keys.dim(2) as usize;
        let wanted = used.max(room.planned.saturating_sub(keep_from));
        let capacity = wanted.div_ceil(STEP) * STEP;
        let arrays =
            (append(&kept.0, keys, capacity - used)?, append(&kept.1, values, capacity - used)?);
        // The old block must not outlive this call: a second handle on what was copied from it
        // would only hold memory.
        self.arrays = Some(arrays);
        self.first = keep_from;
        self.capacity = capacity;
        Ok(())
    }

    fn columns(&self, from: usize, to: usize) -> Result<(Array, Array), Exception> {
        let Some((keys, values)) = &self.arrays else {
            return Err(Exception::custom("the layer holds no columns"));
        };
        let range = (from - self.first) as i32..(to - self.first) as i32;
        Ok((keys.try_index((.., .., range.clone(), ..))?, values.try_index((.., .., range, ..))?))
    }

    /// The first column still held.
    pub(crate) fn first(&self) -> usize {
        self.first
    }

    /// Keeps, repeats or reorders rows.
    pub(crate) fn select(&mut self, rows: &Array) -> Result<(), Exception> {
        if let Some((keys, values)) = &mut self.arrays {
            *keys = keys.take_axis(rows, 0)?;
            *values = values.take_axis(rows, 0)?;
        }
        Ok(())
    }

    /// Bytes of one column of keys and values over all rows and heads.
    pub(crate) fn column_bytes(&self) -> usize {
        self.allocated_bytes().checked_div(self.capacity).unwrap_or(0)
    }

    pub(crate) fn allocated_bytes(&self) -> usize {
        self.arrays.as_ref().map_or(0, |(keys, values)| keys.nbytes() + values.nbytes())
    }

    /// The arrays held, for one evaluation over the whole cache.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.arrays.iter().flat_map(|(keys, values)| [keys, values])
    }
}

/// `kept`, then `new`, then `room` columns of zeros.
fn append(kept: &Array, new: &Array, room: usize) -> Result<Array, Exception> {
    let shape = new.shape();
    let dtype: Dtype = new.dtype();
    let zeros = zeros_dtype(&[shape[0], shape[1], room as i32, shape[3]], dtype)?;
    concatenate(&[kept, new, &zeros], 2)
}

/// `count` columns of zeros, then `columns`.
fn prepend(count: usize, columns: &Array) -> Result<Array, Exception> {
    let shape = columns.shape();
    let zeros = zeros_dtype(&[shape[0], shape[1], count as i32, shape[3]], columns.dtype())?;
    concatenate(&[&zeros, columns], 2)
}
