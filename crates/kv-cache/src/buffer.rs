//! One layer's columns: blocks that grow in steps and are written in place.
//!
//! MLX arrays are immutable, but a slice update whose source nobody else holds reuses the source's
//! memory. The buffer therefore keeps exactly one handle per array between forward passes: a decode
//! step writes one column and copies nothing. A fork holds a second handle, so its first write pays
//! for one copy.
//!
//! A buffer holds several arrays that grow together (keys and values, or what they are packed into),
//! all `[batch, heads, slots + columns, width]`. The slots in front are for attention sinks: a row's
//! first tokens, copied there when the columns they stood in are dropped.

use mlx_rs::{
    Array,
    error::Exception,
    ops::{
        concatenate,
        indexing::{TryIndexMutOp, TryIndexOp},
        zeros_dtype,
    },
};
use mlxgk_native::updated;

use crate::{Error, Quantization, Result, columns::Format};

/// Columns are allocated in multiples of this (mlx-lm's step, so allocations compare).
const STEP: usize = 256;

/// Up to so many rows. More rows share the room of these, since what thousands of short texts have
/// to spare would be most of their memory.
const ROWS: usize = 16;

/// Nor are columns allocated in fewer.
const LEAST_STEP: usize = 16;

/// How many columns to allocate for `wanted`: up to a step more. Where rows are many, steps are
/// short, but an eighth of what there is, so that moving it costs little beside reading it.
fn capacity(wanted: usize, rows: usize) -> usize {
    let step = (STEP * ROWS / rows.max(1)).clamp(LEAST_STEP, STEP).max((wanted / 8).min(STEP));
    wanted.div_ceil(step) * step
}

/// How many columns beyond its window a sliding layer keeps when it moves, so that a rejected
/// draft of up to this many tokens can always be undone.
pub(crate) const ROLLBACK: usize = 64;

/// The columns of one layer.
#[derive(Debug, Clone)]
pub(crate) struct Buffer {
    /// Empty before the first write.
    pub(crate) arrays: Vec<Array>,
    pub(crate) format: Format,
    /// Sinks per row; they hold something once columns were dropped.
    pub(crate) slots: usize,
    /// The column that follows the slots; above 0 only after the buffer dropped some.
    pub(crate) first: usize,
    capacity: usize,
}

/// What a buffer that has to move makes room for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room<'a> {
    /// The first column worth carrying along.
    pub(crate) keep_from: usize,
    /// The column up to which more are known to come.
    pub(crate) planned: usize,
    /// Where each row's first token stands.
    pub(crate) padding: &'a [usize],
}

/// A buffer on its way into another: it holds `len` columns, which all move by `shift`. Those that
/// would precede the first are padding.
#[derive(Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) buffer: &'a Buffer,
    pub(crate) len: usize,
    pub(crate) shift: isize,
    pub(crate) padding: &'a [usize],
}

impl Piece<'_> {
    /// Where the held columns begin after the move. A buffer that dropped nothing is complete: what
    /// precedes it is padding.
    fn first(&self) -> usize {
        match self.buffer.first {
            0 => 0,
            first => first.saturating_add_signed(self.shift),
        }
    }

    /// How many columns of padding are not held, of those from `from` on after the move.
    fn filler(&self, from: usize) -> usize {
        0_usize.saturating_add_signed(self.shift).saturating_sub(from)
    }

    /// The slots, and the columns held of those from `from` on after the move.
    fn held(&self, from: usize) -> Result<(Vec<Array>, Vec<Array>), Exception> {
        let own = from.saturating_add_signed(-self.shift);
        Ok((self.buffer.sinks(own, self.padding)?, self.buffer.columns(own, self.len)?))
    }
}

impl Buffer {
    pub(crate) fn new(format: Format, slots: usize) -> Self {
        Self { arrays: Vec::new(), format, slots, first: 0, capacity: 0 }
    }

    /// The rows of all pieces, as far back as each of them goes, up to column `len`.
    pub(crate) fn join(pieces: &[Piece<'_>; 2], len: usize) -> Result<Self, Exception> {
        let first = pieces.iter().map(Piece::first).max().unwrap_or(0);
        let parts = pieces.iter().map(|it| it.held(first)).collect::<Result<Vec<_>, _>>()?;
        let rows = pieces.iter().map(|it| it.padding.len()).sum();
        let (slots, format) = (pieces[0].buffer.slots, pieces[0].buffer.format);
        // The next column has room, or the block would be moved again as soon as it is made.
        let capacity = capacity(len - first + 1, rows);
        let whole = |which: usize| {
            let like = &parts[0].1[which];
            let shape = [rows as i32, like.dim(1), (slots + capacity) as i32, like.dim(3)];
            let mut block = zeros_dtype(&shape, like.dtype())?;
            let mut row = 0;
            for (piece, (sinks, columns)) in pieces.iter().zip(&parts) {
                let (sinks, columns) = (&sinks[which], &columns[which]);
                let rows = row..row + columns.dim(0);
                if slots > 0 {
                    block.try_index_mut((rows.clone(), .., 0..slots as i32, ..), sinks)?;
                }
                let at = (slots + piece.filler(first)) as i32;
                block.try_index_mut((rows.clone(), .., at..at + columns.dim(2), ..), columns)?;
                row = rows.end;
            }
            Ok(block)
        };
        let arrays = (0..parts[0].1.len()).map(whole).collect::<Result<Vec<_>, Exception>>()?;
        Ok(Self { arrays, format, slots, first, capacity })
    }

    /// A buffer around arrays that hold the slots and the columns from `first` on.
    pub(crate) fn holding(arrays: Vec<Array>, format: Format, slots: usize, first: usize) -> Self {
        let columns = arrays.first().map_or(0, |it| it.dim(2) as usize);
        Self { arrays, format, slots, first, capacity: columns.saturating_sub(slots) }
    }

    /// Writes `new`, encoded keys and values, at column `at`.
    pub(crate) fn write(&mut self, at: usize, room: Room<'_>, new: &[Array]) -> Result<()> {
        let end = at + new[0].dim(2) as usize;
        for (held, new) in self.arrays.iter().zip(new) {
            let alike = |it: &Array| (it.dim(0), it.dim(1), it.dim(3), it.dtype());
            if alike(held) != alike(new) {
                return Err(Error::argument(format!(
                    "new columns {:?} of {:?} after held ones {:?} of {:?}",
                    new.shape(),
                    new.dtype(),
                    held.shape(),
                    held.dtype()
                )));
            }
        }
        let wrap = |e: Exception| {
            let shape = new[0].shape();
            Error::mlx(&format!("writing columns {shape:?} at column {at} of the cache"), &e)
        };
        if self.arrays.is_empty() || end - self.first > self.capacity {
            return self.reallocate(at, room, new).map_err(wrap);
        }
        let place = self.place(at);
        for (held, new) in self.arrays.iter_mut().zip(new) {
            *held = updated(held, 2, place, new).map_err(wrap)?;
        }
        Ok(())
    }

    /// Moves the columns worth keeping into a new block with the new ones after them and room for
    /// what is planned, or for up to a step more.
    fn reallocate(&mut self, at: usize, room: Room<'_>, new: &[Array]) -> Result<(), Exception> {
        let keep_from = room.keep_from.max(self.first);
        let used = at - keep_from + new[0].dim(2) as usize;
        let wanted = used.max(room.planned.saturating_sub(keep_from));
        let capacity = capacity(wanted, new[0].dim(0) as usize);
        let (sinks, kept) = if self.arrays.is_empty() {
            // Nothing is held yet, so nothing precedes the first column.
            let none = |count: usize| new.iter().map(|it| zeros_like(it, count)).collect();
            let none = |count| -> Result<Vec<Array>, Exception> { none(count) };
            (none(self.slots)?, none(0)?)
        } else {
            (self.sinks(keep_from, room.padding)?, self.columns(keep_from, at)?)
        };
        let parts = sinks.iter().zip(&kept).zip(new);
        let moved = parts.map(|((sinks, kept), new)| {
            let room = zeros_like(new, capacity - used)?;
            match self.slots {
                0 => concatenate(&[kept, new, &room], 2),
                _ => concatenate(&[sinks, kept, new, &room], 2),
            }
        });
        // The old block must not outlive this call: a second handle on what was copied from it
        // would only hold memory.
        self.arrays = moved.collect::<Result<_, _>>()?;
        self.first = keep_from;
        self.capacity = capacity;
        Ok(())
    }

    /// The slots as they have to be once the columns before `keep_from` are gone.
    fn sinks(&self, keep_from: usize, padding: &[usize]) -> Result<Vec<Array>, Exception> {
        if self.slots == 0 || keep_from <= self.first {
            let slots = |it: &Array| it.try_index((.., .., 0..self.slots as i32, ..));
            return self.arrays.iter().map(slots).collect();
        }
        // Where nothing can be read the mask hides what is: the row's token stands further behind.
        let last = self.slots + self.capacity - 1;
        let place = |padding: usize, sink: usize| match padding + sink {
            column if column < self.first => sink,
            column => (self.slots + column - self.first).min(last),
        };
        let places: Vec<i32> = padding
            .iter()
            .flat_map(|&row| (0..self.slots).map(move |sink| place(row, sink) as i32))
            .collect();
        let places = Array::from_slice(&places, &[padding.len() as i32, 1, self.slots as i32, 1]);
        self.arrays.iter().map(|it| it.take_along_axis(&places, 2)).collect()
    }

    /// Where a column stands in the arrays.
    fn place(&self, column: usize) -> i32 {
        (self.slots + column - self.first) as i32
    }

    pub(crate) fn columns(&self, from: usize, to: usize) -> Result<Vec<Array>, Exception> {
        if self.arrays.is_empty() {
            return Err(Exception::custom("the layer holds no columns"));
        }
        let range = self.place(from)..self.place(to);
        self.arrays.iter().map(|it| it.try_index((.., .., range.clone(), ..))).collect()
    }

    /// What is to be shown of the columns from `from` to `to`: where columns were dropped that sinks
    /// were taken from, the slots and all that is held.
    pub(crate) fn shown(&self, from: usize, to: usize) -> Result<Vec<Array>, Exception> {
        if self.shows_slots() {
            let range = 0..self.place(to);
            return self
                .arrays
                .iter()
                .map(|it| it.try_index((.., .., range.clone(), ..)))
                .collect();
        }
        self.columns(from, to)
    }

    /// Whether sinks stand in the slots.
    pub(crate) fn shows_slots(&self) -> bool {
        self.slots > 0 && self.first > 0
    }

    /// Holds `columns` columns from now on, quantized.
    pub(crate) fn quantize(&mut self, how: Quantization) -> Result<()> {
        let format = Format::Quantized(how);
        if self.format == format {
            return Ok(());
        }
        if let [keys, values] = self.arrays.as_slice() {
            self.arrays = format.encode(keys, values)?;
        }
        self.format = format;
        Ok(())
    }

    /// Keeps, repeats or reorders rows, and forgets the first `drop` columns, which are padding. `len`
    /// columns were written; more rows than before have less room for more.
    pub(crate) fn select(
        &mut self,
        rows: &Array,
        drop: usize,
        len: usize,
    ) -> Result<(), Exception> {
        let room = capacity((len + 1).saturating_sub(self.first), rows.dim(0) as usize);
        let grows = self.arrays.first().is_some_and(|it| it.dim(0) < rows.dim(0));
        if grows && room < self.capacity {
            let range = 0..(self.slots + room) as i32;
            for array in &mut self.arrays {
                *array = array.try_index((.., .., range.clone(), ..))?;
            }
            self.capacity = room;
        }
        let dropped = drop.saturating_sub(self.first);
        for array in &mut self.arrays {
            if dropped > 0 {
                let kept = array.try_index((.., .., (self.slots + dropped) as i32.., ..))?;
                *array = match self.slots as i32 {
                    0 => kept,
                    slots => concatenate(&[&array.try_index((.., .., 0..slots, ..))?, &kept], 2)?,
                };
            }
            *array = array.take_axis(rows, 0)?;
        }
        if !self.arrays.is_empty() {
            self.capacity -= dropped;
        }
        self.first = self.first.saturating_sub(drop);
        Ok(())
    }

    /// The columns from `same` to `len` of the rows in their new order: all that has to move where the
    /// columns before `same` are the same in every place, old and new. `None` where moving whole arrays is
    /// less work.
    pub(crate) fn moved(
        &self,
        rows: &Array,
        same: usize,
        len: usize,
    ) -> Result<Option<Vec<Array>>, Exception> {
        let from = same.max(self.first);
        if self.slots > 0 || 2 * len.saturating_sub(from) > self.capacity {
            return Ok(None);
        }
        if from >= len {
            return Ok(Some(Vec::new()));
        }
        let columns = self.columns(from, len)?;
        columns.iter().map(|it| it.take_axis(rows, 0)).collect::<Result<_, _>>().map(Some)
    }

    /// Puts such columns, which end at `len`, where they belong.
    pub(crate) fn put(&mut self, moved: &[Array], len: usize) -> Result<(), Exception> {
        for (held, moved) in self.arrays.iter_mut().zip(moved) {
            let end = (self.slots + len - self.first) as i32;
            held.try_index_mut((.., .., end - moved.dim(2)..end, ..), moved)?;
        }
        Ok(())
    }

    /// The arrays without their spare room: the slots, and the columns up to `len`.
    pub(crate) fn without_room(&self, len: usize) -> Result<Vec<Array>, Exception> {
        let range = 0..self.place(len);
        self.arrays.iter().map(|it| it.try_index((.., .., range.clone(), ..))).collect()
    }

    /// Bytes of one column over all rows and heads.
    pub(crate) fn column_bytes(&self) -> usize {
        self.allocated_bytes().checked_div(self.slots + self.capacity).unwrap_or(0)
    }

    pub(crate) fn allocated_bytes(&self) -> usize {
        self.arrays.iter().map(Array::nbytes).sum()
    }
}

/// `count` columns of zeros, else like `columns`.
fn zeros_like(columns: &Array, count: usize) -> Result<Array, Exception> {
    let shape = columns.shape();
    zeros_dtype(&[shape[0], shape[1], count as i32, shape[3]], columns.dtype())
}
