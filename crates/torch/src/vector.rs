//! Loops over rows, run with the widest vectors that the processor has.
//!
//! The compiler vectorises them; `pulp` picks, at run time, the version for the processor. Each
//! loop is a type rather than a closure, because only then is inlining it a promise: a closure
//! that is not inlined is compiled for the oldest processors.

use pulp::{Arch, NullaryFnOnce};

/// Fills `out` with a function of each item; of two slices of unlike length, as far as the shorter.
///
/// ```
/// let mut halves = [0.0; 3];
/// mlxgk_torch::vector::map(&[2.0, 4.0, 6.0], &mut halves, |it| it / 2.0);
/// assert_eq!(halves, [1.0, 2.0, 3.0]);
/// ```
#[inline(always)]
pub fn map<A, B>(items: &[A], out: &mut [B], function: impl Fn(&A) -> B) {
    dispatch(Map { items, out, function });
}

/// Fills `out` with a function of each pair of items; as far as the shortest of the three goes.
#[inline(always)]
pub fn zip_map<A, B, C>(left: &[A], right: &[B], out: &mut [C], function: impl Fn(&A, &B) -> C) {
    dispatch(ZipMap { left, right, out, function });
}

/// Runs a loop with the widest vectors that the processor has.
#[inline(always)]
pub(crate) fn dispatch<L: NullaryFnOnce>(it: L) -> L::Output {
    Arch::new().dispatch(it)
}

struct Map<'a, A, B, F> {
    items: &'a [A],
    out: &'a mut [B],
    function: F,
}

impl<A, B, F: Fn(&A) -> B> NullaryFnOnce for Map<'_, A, B, F> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { items, out, function } = self;
        for (out, item) in out.iter_mut().zip(items) {
            *out = function(item);
        }
    }
}

struct ZipMap<'a, A, B, C, F> {
    left: &'a [A],
    right: &'a [B],
    out: &'a mut [C],
    function: F,
}

impl<A, B, C, F: Fn(&A, &B) -> C> NullaryFnOnce for ZipMap<'_, A, B, C, F> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { left, right, out, function } = self;
        for ((out, left), right) in out.iter_mut().zip(left).zip(right) {
            *out = function(left, right);
        }
    }
}

/// The first `len` places of a buffer, which is lengthened if need be and never shortened, since
/// filling it again costs.
pub fn room<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}

/// A sum in 16 lanes, which compilers vectorise. Its order is not torch's.
pub fn sum(terms: &[f32]) -> f32 {
    let (chunks, rest) = terms.as_chunks::<16>();
    let mut lanes = [0.0; 16];
    for chunk in chunks {
        for (lane, term) in lanes.iter_mut().zip(chunk) {
            *lane += term;
        }
    }
    lanes.iter().chain(rest).sum()
}
