//! The arithmetic of classifier-free guidance.

use super::normalization::LogSum;
use crate::error::finite;
use crate::{Error, ErrorKind, Result};

/// Moves scores away from those without the prompt
/// (`UnbatchedClassifierFreeGuidanceLogitsProcessor`; Sanchez et al.,
/// [Stay on topic](https://arxiv.org/abs/2306.17806)).
///
/// Both rows become log-probabilities, `c` and `u`, and `conditional` is overwritten by
/// `guidance_scale * (c - u) + u`. A scale of 1 leaves `c`; above 1 the prompt is followed more.
/// The second forward pass, with its own cache, is the caller's.
///
/// A token banned in `conditional` stays banned. One banned in `unconditional` alone keeps `c`,
/// because there is nothing to move away from. (torch gives NaN in both cases.)
///
/// # Errors
/// When the lengths differ, the scale is not finite, or a row is all banned.
///
/// ```
/// use mlxgk_logits_processors::guide;
///
/// let mut scores = [1.0, 0.0];
/// guide(&mut scores, &[0.0, 0.0], 2.0)?;
/// // c = [-0.3133, -1.3133] and u = [-0.6931, -0.6931], so 2c - u is:
/// assert!((scores[0] - 0.0666).abs() < 1e-4 && (scores[1] + 1.9334).abs() < 1e-4);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
pub fn guide(conditional: &mut [f32], unconditional: &[f32], guidance_scale: f64) -> Result<()> {
    let scale = finite("guidance_scale", guidance_scale)?;
    if conditional.len() != unconditional.len() {
        let message = format!(
            "guidance needs two rows of one length, but they have {} and {} scores",
            conditional.len(),
            unconditional.len()
        );
        return Err(Error::new(ErrorKind::Parameter, message));
    }
    let with = LogSum::of(conditional)?;
    let without = LogSum::of(unconditional)?;
    for (score, &unconditional) in conditional.iter_mut().zip(unconditional) {
        let c = *score - with.max - with.log_sum;
        let u = unconditional - without.max - without.log_sum;
        let kept = c == f32::NEG_INFINITY || u == f32::NEG_INFINITY || scale == 1.0;
        *score = if kept { c } else { scale * (c - u) + u };
    }
    Ok(())
}
