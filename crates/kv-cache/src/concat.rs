//! One text's cache after another's: both were filled apart, so that neither's tokens saw the other's.
//!
//! A second text's first tokens can be read again behind the first, as in one pass over both. Those are
//! where seeing nothing before them matters most: a text's first token draws much of the attention of all
//! that follow it, and does so wherever its cache is moved to (EPIC, arXiv 2410.15332). CacheBlend (arXiv
//! 2405.16444) chooses tokens from all over the text, by how far their keys are off; a [`Pass`](crate::Pass)
//! is of neighbouring columns, each at the position after the one before, in every kind of layer, and would
//! have to be of scattered ones.

use std::ops::Range;

use mlx_rs::{Array, error::Exception, ops::concatenate};

use crate::{
    Column, Error, KvCache, LayerSpec, Result, buffer::Buffer, cache::Kept, columns::Format,
    mark::Timeline, row::RowState,
};

impl KvCache {
    /// Prepares this cache for reading the first `count` columns of another again, which then follow its
    /// own: they are steered as strongly as they were there, and the prompt ends where it did there.
    /// Returns the columns to be fed.
    ///
    /// # Errors
    /// As [`concat`](Self::concat).
    pub fn before_concat(&mut self, other: &Self, count: usize) -> Result<Vec<Column>> {
        self.check_concat(other)?;
        let (held, theirs) = (self.len, &other.rows[0]);
        let count = count.min(other.len);
        let row = &mut self.rows[0];
        row.prompt_end = theirs.prompt_end.map(|it| it + held);
        append_strengths(row, held, &theirs.strengths, 0..count);
        Ok(theirs.columns[..count].to_vec())
    }

    /// Puts the tokens of another cache after this one's, moved to the positions they have then. `turn`
    /// is given a layer, its keys `[1, heads, columns, dimension]` and by how many positions they move,
    /// and returns them so rotated; a model knows how
    /// (`Decoder::concat`). The first `again` tokens of the other are the last of this one already, since
    /// they were read again behind what it held ([`before_concat`](Self::before_concat)); they are left out.
    ///
    /// **This is not what one pass over both texts leaves**, unless all were read again: beyond the first
    /// layer, the second text's keys and values would depend on the first. What comes after them sees both.
    ///
    /// # Errors
    /// When the caches are not two single rows without padding of one model, kept dense and unbounded and
    /// filled under one steering, a layer has a state, this one does not end with the other's first `again`
    /// tokens, or `turn` fails. This cache is then as it was.
    pub fn concat(
        &mut self,
        other: &Self,
        again: usize,
        turn: &mut dyn FnMut(usize, &Array, i32) -> Result<Array, Exception>,
    ) -> Result<()> {
        self.check_concat(other)?;
        let theirs = &other.rows[0];
        let reread = theirs.columns.get(..again);
        if reread.is_none_or(|it| !self.rows[0].columns.ends_with(it)) {
            return Err(refused(&format!(
                "the first does not end with the first {again} tokens of the second"
            )));
        }
        let (held, by) = (self.len, (self.len - again) as i32);
        let mut layers = self.layers.clone();
        for (index, (ours, theirs)) in layers.iter_mut().zip(&other.layers).enumerate() {
            let (Kept::Columns(a), Kept::Columns(b)) = (&ours.kept, &theirs.kept) else { continue };
            let theirs = Behind { buffer: b, from: again, len: other.len };
            let joined = theirs.joined(a, held, &mut |keys| turn(index, keys, by));
            let joined = joined.map_err(|e| Error::mlx("putting two caches together", &e))?;
            ours.kept = Kept::Columns(joined);
        }
        self.layers = layers;
        self.len = held + other.len - again;
        self.planned = 0;
        self.timeline = Timeline::default();
        let row = &mut self.rows[0];
        append_strengths(row, held, &theirs.strengths, again..other.len);
        row.columns.extend_from_slice(&theirs.columns[again..]);
        row.prompt_end = theirs.prompt_end.map(|it| it + by as usize);
        Ok(())
    }

    fn check_concat(&self, other: &Self) -> Result<()> {
        if !self.layers().eq(other.layers()) {
            return Err(refused("they were made for different models"));
        }
        let plain = |it: &Self| {
            it.options.quantization.is_none()
                && it.options.bound.is_none()
                && !it.options.single_pass
        };
        if !plain(self) || !plain(other) {
            return Err(refused("one of them is bounded, quantized or of a single pass"));
        }
        if self.layers.iter().any(|it| it.sight == LayerSpec::State) {
            return Err(refused("the state of a layer cannot follow another"));
        }
        if self.layers.iter().any(|it| matches!(it.sight, LayerSpec::Chunked { .. })) {
            return Err(refused("a layer's pieces would be cut elsewhere"));
        }
        let ([row], [theirs]) = (&self.rows[..], &other.rows[..]) else {
            return Err(refused("one of them has not one row"));
        };
        if row.padding + theirs.padding > 0 || self.is_empty() || other.is_empty() {
            return Err(refused("one of them has padding, or nothing in it"));
        }
        theirs.check_steering(row.steering())
    }
}

fn refused(what: &str) -> Error {
    Error::argument(format!("caches cannot be put together: {what}"))
}

/// Notes behind the first `held` columns how strongly those of another row were steered, 1 where that was
/// not set.
fn append_strengths(row: &mut RowState, held: usize, theirs: &[f32], columns: Range<usize>) {
    if !(row.strengths.is_empty() && theirs.is_empty()) {
        row.strengths.resize(held, 1.0);
        row.strengths.extend(columns.map(|it| theirs.get(it).copied().unwrap_or(1.0)));
    }
}

/// The columns from `from` on of a buffer of `len` columns, to follow those of another.
struct Behind<'b> {
    buffer: &'b Buffer,
    from: usize,
    len: usize,
}

impl Behind<'_> {
    /// The first `held` columns of `a` and these. Where some of these were dropped, so are those of `a`.
    fn joined(
        &self,
        a: &Buffer,
        held: usize,
        turn: &mut dyn FnMut(&Array) -> Result<Array, Exception>,
    ) -> Result<Buffer, Exception> {
        let Self { buffer, from, len } = *self;
        if from == len {
            return Ok(a.clone());
        }
        let begin = from.max(buffer.first);
        let mut theirs = buffer.columns(begin, len)?;
        if let Some(keys) = theirs.first_mut() {
            *keys = turn(keys)?;
        }
        if begin > from {
            return Ok(Buffer::holding(theirs, Format::Dense, 0, held + begin - from));
        }
        let ours = a.without_room(held)?;
        let both = ours.iter().zip(&theirs).map(|(a, b)| concatenate(&[a, b], 2));
        Ok(Buffer::holding(both.collect::<Result<_, _>>()?, Format::Dense, 0, a.first))
    }
}
