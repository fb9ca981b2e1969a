//! The most likely token.

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
    let highest = highest(scores);
    let at = if highest.is_nan() {
        scores.iter().position(|score| score.is_nan())
    } else {
        scores.iter().position(|&score| score == highest)
    };
    at.unwrap_or(0) as u32
}

/// The highest score; NaN if there is one.
pub(crate) fn highest(scores: &[f32]) -> f32 {
    pulp::Arch::new().dispatch(|| {
        let (chunks, rest) = scores.as_chunks::<32>();
        let mut highest = [f32::NEG_INFINITY; 32];
        let mut nan = [false; 32];
        for chunk in chunks {
            for lane in 0..32 {
                highest[lane] =
                    if chunk[lane] > highest[lane] { chunk[lane] } else { highest[lane] };
                nan[lane] |= chunk[lane].is_nan();
            }
        }
        let highest = highest.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
        if nan.contains(&true) || rest.iter().any(|score| score.is_nan()) {
            f32::NAN
        } else {
            highest
        }
    })
}

/// Appends the highest score of every block of `N`, the last one shorter; NaN is passed over.
pub(crate) fn block_maxima<const N: usize>(scores: &[f32], maxima: &mut Vec<f32>) {
    pulp::Arch::new().dispatch(|| {
        let (blocks, rest) = scores.as_chunks::<N>();
        maxima.extend(blocks.iter().map(|block| max(block)));
        if !rest.is_empty() {
            maxima.push(max(rest));
        }
    });
}

#[inline(always)]
fn max(scores: &[f32]) -> f32 {
    let (chunks, rest) = scores.as_chunks::<16>();
    let mut highest = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        for (highest, &score) in highest.iter_mut().zip(chunk) {
            *highest = if score > *highest { score } else { *highest };
        }
    }
    highest.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}
