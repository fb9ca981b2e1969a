//! The most likely token.

use crate::select::highest_block;

/// The first index of the highest score, as `torch.argmax` finds it.
///
/// NaN counts as highest. When every token is banned the answer is 0, as in HF: greedy search has
/// no way to say that nothing may be said.
///
/// ```
/// use mlxgk_samplers::greedy;
///
/// assert_eq!(greedy(&[0.5, 2.0, 2.0]), 1);
/// assert_eq!(greedy(&[f32::NEG_INFINITY; 3]), 0);
/// ```
pub fn greedy(scores: &[f32]) -> u32 {
    let (highest, block) = highest_block(scores);
    let at = if highest.is_nan() {
        scores.iter().position(|score| score.is_nan())
    } else {
        scores[block.clone()].iter().position(|&score| score == highest).map(|at| block.start + at)
    };
    at.unwrap_or(0) as u32
}
