//! Rows of two caches in one: how a request joins a batch under way.

use crate::{Error, KvCache, Result, buffer::Piece};

impl KvCache {
    /// Adds the rows of another cache behind this one's, aligned at their newest column: whichever is
    /// shorter is padded on the left, and padding that all rows have in common is dropped. A row sees
    /// what it saw before, and its prompt ends where it did. Costs a copy of both caches.
    ///
    /// # Errors
    /// When the layers or the steerings differ, or MLX fails. This cache is then as it was.
    pub fn join(&mut self, other: &Self) -> Result<()> {
        if !self.layers().eq(other.layers()) {
            return Err(Error::argument("the caches to join were made for different models"));
        }
        if !self.is_empty() {
            other.check_steering(self.steering())?;
        }
        let real = |it: &Self| it.len - it.padding.iter().min().copied().unwrap_or(0);
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
        let moved = |columns: usize, shift: isize| columns.saturating_add_signed(shift);
        let padding = |it: &Self, shift: isize| -> Vec<usize> {
            it.padding.iter().map(|&it| moved(it, shift)).collect()
        };
        let tokens = |it: &Self, shift: isize| -> Vec<Vec<u32>> {
            let filler = vec![0; moved(0, shift)];
            let dropped = moved(0, -shift);
            let row = |row: &Vec<u32>| [&filler, row.get(dropped..).unwrap_or_default()].concat();
            it.tokens.iter().map(row).collect()
        };
        let ends = |it: &Self, shift: isize| -> Vec<Option<usize>> {
            it.prompt_ends.iter().map(|end| end.map(|it| moved(it, shift))).collect()
        };
        let strengths = |it: &Self, shift: isize| -> Vec<Vec<f32>> {
            let (filler, dropped) = (vec![1.0; moved(0, shift)], moved(0, -shift));
            let row = |row: &Vec<f32>| [&filler, row.get(dropped..).unwrap_or_default()].concat();
            it.strengths.iter().map(row).collect()
        };
        self.prompt_ends = [ends(self, shifts[0]), ends(other, shifts[1])].concat();
        self.strengths = [strengths(self, shifts[0]), strengths(other, shifts[1])].concat();
        self.steering = other.steering.clone();
        let (paddings, texts) = (
            [padding(self, shifts[0]), padding(other, shifts[1])].concat(),
            [tokens(self, shifts[0]), tokens(other, shifts[1])].concat(),
        );
        self.layers = layers;
        self.padding = paddings;
        self.tokens = texts;
        self.len = len;
        self.planned = 0;
        Ok(())
    }
}
