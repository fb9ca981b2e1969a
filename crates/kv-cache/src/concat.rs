//! One text's cache after another's: both were filled apart, so that neither's tokens saw the other's.

use mlx_rs::{Array, error::Exception, ops::concatenate};

use crate::{
    Error, KvCache, LayerSpec, Result, buffer::Buffer, cache::Kept, columns::Format, mark::Timeline,
};

impl KvCache {
    /// Puts the tokens of another cache after this one's, moved to the positions they have then. `turn`
    /// is given a layer, its keys `[1, heads, columns, dimension]` and by how many positions they move,
    /// and returns them so rotated; a model knows how
    /// (`Decoder::concat`).
    ///
    /// **This is not what one pass over both texts leaves**: beyond the first layer, the second text's
    /// keys and values would depend on the first. What comes after them sees both.
    ///
    /// # Errors
    /// When the caches are not two single rows without padding of one model, kept dense and unbounded and
    /// filled under one steering, a layer has a state, or `turn` fails. This cache is then as it was.
    pub fn concat(
        &mut self,
        other: &Self,
        turn: &mut dyn FnMut(usize, &Array, i32) -> Result<Array, Exception>,
    ) -> Result<()> {
        let refuse =
            |what: &str| Err(Error::argument(format!("caches cannot be put together: {what}")));
        if !self.layers().eq(other.layers()) {
            return refuse("they were made for different models");
        }
        let plain = |it: &Self| {
            it.options.quantization.is_none()
                && it.options.bound.is_none()
                && !it.options.single_pass
        };
        if !plain(self) || !plain(other) {
            return refuse("one of them is bounded, quantized or of a single pass");
        }
        if self.layers.iter().any(|it| it.sight == LayerSpec::State) {
            return refuse("the state of a layer cannot follow another");
        }
        if self.layers.iter().any(|it| matches!(it.sight, LayerSpec::Chunked { .. })) {
            return refuse("a layer's pieces would be cut elsewhere");
        }
        let ([row], [theirs]) = (&self.rows[..], &other.rows[..]) else {
            return refuse("one of them has not one row");
        };
        if row.padding + theirs.padding > 0 || self.is_empty() || other.is_empty() {
            return refuse("one of them has padding, or nothing in it");
        }
        theirs.check_steering(row.steering())?;
        let (held, moved) = (self.len, other.len);
        let mut layers = self.layers.clone();
        for (index, (ours, theirs)) in layers.iter_mut().zip(&other.layers).enumerate() {
            let (Kept::Columns(a), Kept::Columns(b)) = (&ours.kept, &theirs.kept) else { continue };
            let joined = behind(a, held, b, moved, &mut |keys| turn(index, keys, held as i32));
            let joined = joined.map_err(|e| Error::mlx("putting two caches together", &e))?;
            ours.kept = Kept::Columns(joined);
        }
        self.layers = layers;
        self.len = held + moved;
        self.planned = 0;
        self.timeline = Timeline::default();
        let theirs = &other.rows[0];
        let row = &mut self.rows[0];
        if !(row.strengths.is_empty() && theirs.strengths.is_empty()) {
            row.strengths.resize(held, 1.0);
            row.strengths.extend_from_slice(&theirs.strengths);
        }
        row.columns.extend_from_slice(&theirs.columns);
        row.prompt_end = theirs.prompt_end.map(|it| it + held);
        Ok(())
    }
}

/// The columns of `b` after those of `a`. Where `b` has dropped some, so are those of `a`.
fn behind(
    a: &Buffer,
    held: usize,
    b: &Buffer,
    moved: usize,
    turn: &mut dyn FnMut(&Array) -> Result<Array, Exception>,
) -> Result<Buffer, Exception> {
    let mut theirs = b.without_room(moved)?;
    if let Some(keys) = theirs.first_mut() {
        *keys = turn(keys)?;
    }
    if b.first > 0 {
        return Ok(Buffer::holding(theirs, Format::Dense, 0, held + b.first));
    }
    let ours = a.without_room(held)?;
    let both = ours.iter().zip(&theirs).map(|(a, b)| concatenate(&[a, b], 2));
    Ok(Buffer::holding(both.collect::<Result<_, _>>()?, Format::Dense, 0, a.first))
}
