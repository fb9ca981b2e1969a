//! Rows of two caches in one: how a request joins a batch under way.

use crate::{Error, KvCache, Result, buffer::Piece};

impl KvCache {
    /// Adds the rows of another cache behind this one's, aligned at their newest column: whichever is
    /// shorter is padded on the left, and padding that all rows have in common is dropped. A row sees
    /// what it saw before, its prompt ends where it did, and it keeps its name and its steering. Costs a copy of both caches.
    ///
    /// # Errors
    /// When the layers differ, or MLX fails. This cache is then as it was.
    pub fn join(&mut self, other: &Self) -> Result<()> {
        if !self.layers().eq(other.layers()) {
            return Err(Error::argument("the caches to join were made for different models"));
        }
        let real = |it: &Self| it.len - it.rows.iter().map(|row| row.padding).min().unwrap_or(0);
        let len = real(self).max(real(other));
        let shifts = [len as isize - self.len as isize, len as isize - other.len as isize];
        let mut layers = self.layers.clone();
        for ((_, ours), (_, theirs)) in layers.iter_mut().zip(&other.layers) {
            let pieces = [
                Piece { buffer: ours, len: self.len, shift: shifts[0] },
                Piece { buffer: theirs, len: other.len, shift: shifts[1] },
            ];
            let joined = crate::buffer::Buffer::join(&pieces, len)
                .map_err(|e| Error::mlx("joining two caches", &e))?;
            *ours = joined;
        }
        self.layers = layers;
        self.rows.iter_mut().for_each(|row| row.shift(shifts[0]));
        let mut joining = other.rows.clone();
        joining.iter_mut().for_each(|row| row.shift(shifts[1]));
        self.rows.append(&mut joining);
        self.len = len;
        self.planned = 0;
        Ok(())
    }
}
