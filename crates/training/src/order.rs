//! The order of the data: shuffled, in batches of like lengths, and the same for the same seed.

use mlxgk_torch::TorchRng;

/// How many batches are sorted by length together (Hugging Face's `group_by_length`).
const GROUP: usize = 50;

/// Which rows make up each batch of an epoch: shuffled, and in batches of similar lengths.
///
/// ```
/// use mlxgk_training::Order;
///
/// let order = Order::new(vec![4; 10], 4, 7);
/// assert_eq!(order.batches(), 3);
/// // Every row once, in an order that is another in each epoch.
/// let mut rows = order.epoch(0).concat();
/// rows.sort();
/// assert_eq!(rows, (0..10).collect::<Vec<_>>());
/// assert_ne!(order.epoch(0), order.epoch(1));
/// ```
#[derive(Debug, Clone)]
pub struct Order {
    lengths: Vec<usize>,
    batch: usize,
    seed: u64,
}

impl Order {
    /// An order of rows of these lengths, in batches of `batch` rows (at least one).
    pub fn new(lengths: Vec<usize>, batch: usize, seed: u64) -> Self {
        Self { lengths, batch: batch.max(1), seed }
    }

    /// How many batches an epoch has.
    pub fn batches(&self) -> usize {
        self.lengths.len().div_ceil(self.batch)
    }

    /// The rows of each batch of an epoch. It depends on the seed and the epoch alone, so that a run can
    /// be resumed anywhere.
    ///
    /// ```
    /// use mlxgk_training::Order;
    ///
    /// let order = Order::new(vec![9, 2, 8, 3], 2, 7);
    /// let batches = order.epoch(0);
    /// assert_eq!(batches, order.epoch(0));
    /// let mut like = batches.clone();
    /// like.iter_mut().for_each(|it| it.sort());
    /// like.sort();
    /// assert_eq!(like, [[0, 2], [1, 3]]);
    /// ```
    pub fn epoch(&self, epoch: u64) -> Vec<Vec<usize>> {
        let mut rng = TorchRng::new(self.seed.wrapping_add(epoch));
        let shuffled = rng.randperm(self.lengths.len() as u32);
        let mut batches: Vec<Vec<usize>> = Vec::new();
        for group in shuffled.chunks(GROUP * self.batch) {
            let mut group: Vec<usize> = group.iter().map(|&it| it as usize).collect();
            // Stable: among rows of one length the shuffle decides.
            group.sort_by_key(|&row| std::cmp::Reverse(self.lengths[row]));
            batches.extend(group.chunks(self.batch).map(<[usize]>::to_vec));
        }
        let order = rng.randperm(batches.len() as u32);
        order.into_iter().map(|it| std::mem::take(&mut batches[it as usize])).collect()
    }
}
