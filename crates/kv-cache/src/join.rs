//! Rows of two caches in one: how a request joins a batch under way.

use mlx_rs::{Array, error::Exception, ops::concatenate};

use crate::{
    Error, KvCache, Result,
    buffer::{Buffer, Piece},
    cache::Kept,
    columns::Format,
    mark::Timeline,
};

impl KvCache {
    /// Adds the rows of another cache after this one's, aligned at their newest column: whichever is
    /// shorter is padded on the left, and padding that all rows have in common is dropped. A row sees
    /// what it saw before, its prompt ends where it did, and it keeps its name and its steering. Costs
    /// a copy of both caches; a cache without rows becomes the other.
    ///
    /// # Errors
    /// When the layers or the options differ, either cache has rows that were fed nothing, or MLX
    /// fails. This cache is then as it was.
    pub fn join(&mut self, other: &Self) -> Result<()> {
        if !self.layers().eq(other.layers()) {
            return Err(Error::argument("the caches to join were made for different models"));
        }
        if self.options != other.options {
            return Err(Error::argument("the caches to join keep their columns in different ways"));
        }
        if other.batch() == 0 {
            return Ok(());
        }
        if self.batch() == 0 {
            *self = other.fork();
            return Ok(());
        }
        if self.is_empty() || other.is_empty() {
            return Err(Error::argument("rows cannot join before both caches were fed"));
        }
        let real = |it: &Self| it.len - it.rows.iter().map(|row| row.padding).min().unwrap_or(0);
        let len = real(self).max(real(other));
        let shifts = [len as isize - self.len as isize, len as isize - other.len as isize];
        let paddings = [self.padding(), other.padding()];
        let mut layers = self.layers.clone();
        for (ours, theirs) in layers.iter_mut().zip(&other.layers) {
            let joined = match (&ours.kept, &theirs.kept) {
                (Kept::Columns(a), Kept::Columns(b)) => {
                    let (a, b) = alike(a, b)?;
                    let piece = |buffer, len, which: usize| Piece {
                        buffer,
                        len,
                        shift: shifts[which],
                        padding: &paddings[which],
                    };
                    let pieces = [piece(&a, self.len, 0), piece(&b, other.len, 1)];
                    Buffer::join(&pieces, len).map(Kept::Columns)
                }
                (Kept::State(a), Kept::State(b)) if a.len() == b.len() => {
                    let both = |(a, b): (&Array, &Array)| concatenate(&[a, b], 0);
                    let states = a.iter().zip(b).map(both).collect::<Result<_, _>>();
                    states.map(Kept::State)
                }
                (Kept::Nothing, Kept::Nothing) => continue,
                _ => Err(Exception::custom("the layers keep different things")),
            };
            ours.kept = joined.map_err(|e| Error::mlx("joining two caches", &e))?;
        }
        self.layers = layers;
        self.least_padding = (self.least_padding + shifts[0]).min(other.least_padding + shifts[1]);
        self.rows.iter_mut().for_each(|row| row.shift(shifts[0]));
        let mut joining = other.rows.clone();
        joining.iter_mut().for_each(|row| row.shift(shifts[1]));
        self.rows.append(&mut joining);
        self.len = len;
        self.planned = 0;
        self.timeline = Timeline::default();
        Ok(())
    }
}

/// Two buffers in one format: where one of two caches began to quantize, so has the whole.
fn alike(a: &Buffer, b: &Buffer) -> Result<(Buffer, Buffer)> {
    let (mut a, mut b) = (a.clone(), b.clone());
    match (a.format, b.format) {
        (Format::Dense, Format::Quantized(how)) => a.quantize(how)?,
        (Format::Quantized(how), Format::Dense) => b.quantize(how)?,
        _ => {}
    }
    Ok((a, b))
}
