//! Buffers that outlive a step, so that processors allocate nothing per token.
//!
//! They belong to the thread, not to the processor: a processor stays an immutable value that
//! threads can share.

use std::cell::Cell;
use std::thread::LocalKey;

thread_local! {
    /// For scores set aside.
    pub(crate) static SCORES: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    /// For coin flips, as numbers.
    pub(crate) static FLIPS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    /// For token ids, counts and lengths.
    pub(crate) static IDS: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
    /// For tokens with something known about them.
    pub(crate) static PAIRS: Cell<Vec<(u32, u32)>> = const { Cell::new(Vec::new()) };
    /// For hashes.
    pub(crate) static HASHES: Cell<Vec<u64>> = const { Cell::new(Vec::new()) };
}

/// Runs `work` with an empty buffer. A nested call of the same buffer gets a fresh one.
pub(crate) fn with<T, R>(
    buffer: &'static LocalKey<Cell<Vec<T>>>,
    work: impl FnOnce(&mut Vec<T>) -> R,
) -> R {
    let mut items = buffer.take();
    items.clear();
    let result = work(&mut items);
    buffer.set(items);
    result
}
