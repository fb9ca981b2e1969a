//! The most likely token.

use mlxgk_logits_processors::{Error, ErrorKind, Result};

use crate::select::highest_block;

/// The token with the highest score; the lowest id among equals.
///
/// ```
/// use mlxgk_samplers::greedy;
///
/// assert_eq!(greedy(&[0.5, 2.0, 2.0])?, 1);
/// let error = greedy(&[f32::NEG_INFINITY; 3]).unwrap_err();
/// assert_eq!(error.to_string(), "every token is banned: no score is above -inf");
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
///
/// # Errors
/// When there is no score, every token is banned, or a score is NaN.
pub fn greedy(scores: &[f32]) -> Result<u32> {
    let what = match argmax(scores) {
        None => "there are no scores to choose from",
        Some(best) => match scores[best as usize] {
            it if it.is_nan() => "no token can be chosen: the highest score is NaN",
            f32::NEG_INFINITY => "every token is banned: no score is above -inf",
            _ => return Ok(best),
        },
    };
    Err(Error::new(ErrorKind::NoTokenAllowed, what))
}

/// `torch.argmax`: the first index of the highest score, NaN counting as highest; `None` of nothing.
///
/// Where everything is banned this is 0, which is what HF's greedy search says then.
/// [`greedy`] gives an error instead.
///
/// ```
/// use mlxgk_samplers::argmax;
///
/// assert_eq!(argmax(&[0.5, f32::NAN, 2.0]), Some(1));
/// assert_eq!(argmax(&[f32::NEG_INFINITY; 3]), Some(0));
/// assert_eq!(argmax(&[]), None);
/// ```
pub fn argmax(scores: &[f32]) -> Option<u32> {
    if scores.is_empty() {
        return None;
    }
    let (highest, block) = highest_block(scores);
    let at = if highest.is_nan() {
        scores.iter().position(|score| score.is_nan())
    } else {
        scores[block.clone()].iter().position(|&score| score == highest).map(|at| block.start + at)
    };
    at.map(|it| it as u32)
}
