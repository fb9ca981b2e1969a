//! DoLa: decoding by contrasting layers (Chuang et al., arXiv 2309.03883), as transformers 4.46 did
//! it (`_dola_decoding`).
//!
//! What the last layer would say is set against what an earlier layer would say already; of several
//! earlier layers, against the one whose distribution is farthest from the last. So DoLa is a session
//! with other scores ([`Prefill::dola`](crate::Prefill::dola)), and any loop can run it. The contrast is
//! computed where the logits are. Of several layers HF takes one for the whole batch, in every step the
//! one with the highest mean divergence; so does this.

use mlx_rs::{
    Array, Dtype,
    ops::{indexing::argmax, log, logsumexp_axis, select, softmax_axis, stack},
};
use mlxgk_mlx_models::{Capture, Decoder, HookPoint};

use crate::{Chooser, Error, ErrorKind, Result, reader::last_position};

/// A token at most this much less likely than the likeliest stays in the running.
const RELATIVE_TOP: f64 = 0.1;

/// The earlier layers to choose from. Layer 0 is the embedding, layer ℓ what block ℓ - 1 returns.
///
/// ```
/// use mlxgk_decoding_strategies::{DolaLayers, LeftPadded, Prefill};
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let prompts = LeftPadded::new(&[vec![5, 9, 14]], 0)?;
/// let layers = DolaLayers::Listed(vec![0, 2]);
/// assert_eq!(layers.of(model.layers().len(), false)?, [0, 2]);
/// let session = Prefill::new(&model, &prompts, NoHook).dola(&layers)?.finish()?;
/// # drop(session);
/// // The last layer cannot be contrasted with itself.
/// let last = DolaLayers::Listed(vec![model.layers().len()]);
/// assert!(Prefill::new(&model, &prompts, NoHook).dola(&last).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DolaLayers {
    /// Every other layer of the lower half; of more than 40 layers, of the first 20.
    Low,
    /// Every other layer of the upper half; of more than 40 layers, of the last 20.
    High,
    /// These; what is not below the last layer is passed over.
    Listed(Vec<usize>),
}

impl DolaLayers {
    /// The layers of a model with `last` blocks. Where the head is the embedding's table, the lowest
    /// layers would only say their own token, and are left out.
    ///
    /// ```
    /// use mlxgk_decoding_strategies::DolaLayers;
    ///
    /// assert_eq!(DolaLayers::Low.of(32, false)?, [0, 2, 4, 6, 8, 10, 12, 14]);
    /// assert_eq!(DolaLayers::Low.of(6, true)?, [2]);
    /// assert_eq!(DolaLayers::High.of(6, true)?, [3, 5]);
    /// # Ok::<(), mlxgk_decoding_strategies::Error>(())
    /// ```
    ///
    /// # Errors
    /// When none is left.
    pub fn of(&self, last: usize, tied_head: bool) -> Result<Vec<usize>> {
        let start = match last {
            _ if !tied_head => 0,
            0 | 1 => 0,
            2 => 1,
            _ => 2,
        };
        let (half, deep) = (last / 2, last > 40);
        let layers: Vec<usize> = match self {
            Self::Low if start == half => vec![start],
            Self::Low => (start..if deep { 20 } else { half }).step_by(2).collect(),
            Self::High => (if deep { last - 20 } else { half }..last).step_by(2).collect(),
            // One that is named again changes nothing.
            Self::Listed(layers) => {
                let mut seen = vec![false; last];
                let is_new = |&&it: &&usize| it < last && !std::mem::replace(&mut seen[it], true);
                layers.iter().filter(is_new).copied().collect()
            }
        };
        if layers.is_empty() {
            let what = format!("`dola_layers` names no layer below the last, which is {last}");
            return Err(Error::new(ErrorKind::Prompt, what));
        }
        Ok(layers)
    }
}

/// What a greedy row is given where every token is banned: id 0.
///
/// DoLa leaves the few tokens that the last layer finds plausible, and processors may ban those. HF's
/// scores are then all -inf, and the argmax of such a row is 0; it feeds that and goes on. Its texts
/// depend on it, so DoLa keeps to it. In every other loop this is an error.
pub(crate) fn token_of_none(chooser: &Chooser, scores: &[f32]) -> Option<u32> {
    let is_banned = scores.iter().all(|it| *it == f32::NEG_INFINITY);
    (matches!(chooser, Chooser::Greedy) && is_banned).then_some(0)
}

/// Where HF's `hidden_states[layer]` stands; it is never asked for the last.
pub(crate) fn point(layer: usize) -> HookPoint {
    if layer == 0 { HookPoint::ResidPre(0) } else { HookPoint::ResidPost(layer - 1) }
}

/// The contrasted scores at the last position: `[rows, vocabulary]`.
pub(crate) fn contrasted(
    model: &Decoder,
    hidden: &Array,
    capture: &Capture,
    layers: &[usize],
) -> Result<Array> {
    let mature = model.logits(&last_position(hidden)?)?.squeeze_axes(&[1])?;
    let premature = layers.iter().map(|&layer| {
        // HF neither normalises what a layer returns nor caps what the head makes of it.
        let hidden = last_position(&capture.captured()[&point(layer)])?;
        Ok(model.unembed(&hidden)?.squeeze_axes(&[1])?)
    });
    contrast(&mature, &premature.collect::<Result<Vec<_>>>()?)
}

/// The last layer's logits against those of an earlier one, all `[rows, vocabulary]`.
fn contrast(mature: &Array, premature: &[Array]) -> Result<Array> {
    let base = match premature {
        [only] => only.clone(),
        several => farthest(mature, several)?,
    };
    let mature = log_softmax(mature)?;
    let threshold = mature.max_axis(-1, true)?.add(Array::from_f32(RELATIVE_TOP.ln() as f32))?;
    let contrast = mature.subtract(log_softmax(&base)?)?;
    let banned = Array::from_f32(f32::NEG_INFINITY);
    Ok(select(mature.lt(threshold)?, banned, contrast)?)
}

/// Of `layers`, the one whose distribution is farthest from `mature`, by the mean over the rows of
/// HF's divergence.
fn farthest(mature: &Array, layers: &[Array]) -> Result<Array> {
    let layers = stack(layers, 0)?;
    let mature = mature.expand_dims(0)?;
    let half = Array::from_f32(0.5);
    let middle = softmax_axis(&mature, -1, true)?.add(softmax_axis(&layers, -1, true)?)?;
    let middle = middle.multiply(&half)?;
    let log_middle = log(&middle)?;
    let zero = Array::from_f32(0.0);
    let divergence = |log_probs: Array| -> Result<Array> {
        let terms = middle.multiply(log_middle.subtract(log_probs)?)?;
        // Where both have no probability left, 0 times infinity counts as 0.
        Ok(select(middle.gt(&zero)?, terms, &zero)?.mean_axes(&[-1, 1], false)?)
    };
    let divergences = divergence(log_softmax(&mature)?)?.add(divergence(log_softmax(&layers)?)?)?;
    Ok(layers.take_axis(argmax(&divergences, false)?, 0)?)
}

fn log_softmax(logits: &Array) -> Result<Array> {
    let logits = logits.as_dtype(Dtype::Float32)?;
    Ok(logits.subtract(logsumexp_axis(&logits, -1, true)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCAB: usize = 12;

    /// Logits of `rows` rows in -4..4, another table for each seed.
    fn table(seed: u32, rows: usize) -> Vec<f32> {
        let value = |at: u32| {
            let hash = (at + 1).wrapping_mul(2_654_435_761).wrapping_add(seed.wrapping_mul(40_503));
            ((hash ^ hash >> 13) % 8001) as f32 / 1000.0 - 4.0
        };
        (0..(rows * VOCAB) as u32).map(value).collect()
    }

    fn array(values: &[f32]) -> Array {
        Array::from_slice(values, &[(values.len() / VOCAB) as i32, VOCAB as i32])
    }

    fn probabilities(row: &[f32]) -> Vec<f64> {
        let sum: f64 = row.iter().map(|it| f64::from(*it).exp()).sum();
        row.iter().map(|it| f64::from(*it).exp() / sum).collect()
    }

    /// The Jensen-Shannon divergence, over the vocabulary's size as HF has it.
    fn divergence(a: &[f32], b: &[f32]) -> f64 {
        let terms = probabilities(a).into_iter().zip(probabilities(b)).map(|(a, b)| {
            let middle = (a + b) / 2.0;
            middle * (middle.ln() - a.ln()) + middle * (middle.ln() - b.ln())
        });
        terms.sum::<f64>() / (2.0 * VOCAB as f64)
    }

    /// The definition in doubles: the layer that is farthest over all rows, and for each row what is
    /// at least a tenth as likely as the likeliest.
    fn spelt_out(mature: &[f32], layers: &[Vec<f32>]) -> (usize, Vec<f64>) {
        let distance = |layer: &Vec<f32>| -> f64 {
            let rows = mature.chunks_exact(VOCAB).zip(layer.chunks_exact(VOCAB));
            rows.map(|(a, b)| divergence(a, b)).sum()
        };
        let distances: Vec<f64> = layers.iter().map(distance).collect();
        let farthest =
            (0..layers.len()).max_by(|a, b| distances[*a].total_cmp(&distances[*b])).unwrap();
        let rows = mature.chunks_exact(VOCAB).zip(layers[farthest].chunks_exact(VOCAB));
        let scores = rows.flat_map(|(mature, base)| {
            let (mature, base) = (probabilities(mature), probabilities(base));
            let likeliest = mature.iter().copied().fold(0.0, f64::max);
            let score = move |(mature, base): (f64, f64)| {
                if mature < 0.1 * likeliest { f64::NEG_INFINITY } else { (mature / base).ln() }
            };
            mature.into_iter().zip(base).map(score).collect::<Vec<_>>()
        });
        (farthest, scores.collect())
    }

    #[test]
    fn the_contrast_is_as_defined() {
        let mut chosen = [0; 4];
        for seed in 0..40 {
            let rows = 1 + seed as usize % 3;
            let mature = table(seed, rows);
            let layers: Vec<Vec<f32>> =
                (1..=4).map(|it| table(seed * 7 + it * 191, rows)).collect();
            for count in 1..=layers.len() {
                let (farthest, expected) = spelt_out(&mature, &layers[..count]);
                let premature: Vec<Array> = layers[..count].iter().map(|it| array(it)).collect();
                let found = contrast(&array(&mature), &premature).unwrap();
                for (found, expected) in found.try_as_slice::<f32>().unwrap().iter().zip(expected) {
                    let error = (f64::from(*found) - expected).abs();
                    assert!(f64::from(*found) == expected || error < 1e-5, "{found} {expected}");
                }
                chosen[farthest] += usize::from(count == 4);
            }
        }
        assert!(chosen.iter().all(|it| *it > 0), "every layer was to be chosen once: {chosen:?}");
    }

    /// Where the last layer agrees with the earlier one, all tokens left score the same.
    #[test]
    fn a_layer_like_the_last_leaves_nothing_to_choose_by() {
        let mature = table(3, 2);
        let found = contrast(&array(&mature), &[array(&mature)]).unwrap();
        let found = found.try_as_slice::<f32>().unwrap();
        assert!(found.iter().all(|it| *it == 0.0 || *it == f32::NEG_INFINITY));
        assert!(found.contains(&0.0) && found.contains(&f32::NEG_INFINITY));
    }

    #[test]
    fn layers_are_those_of_hf() {
        let of = |layers: DolaLayers, last, tied| layers.of(last, tied).unwrap();
        assert_eq!(of(DolaLayers::High, 32, false), [16, 18, 20, 22, 24, 26, 28, 30]);
        assert_eq!(of(DolaLayers::Low, 48, false), [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]);
        assert_eq!(of(DolaLayers::High, 48, true), [28, 30, 32, 34, 36, 38, 40, 42, 44, 46]);
        assert_eq!(of(DolaLayers::Low, 4, true), [2]);
        assert_eq!(of(DolaLayers::Listed(vec![3, 0, 9, 4, 3, 0]), 4, true), [3, 0]);
        assert!(DolaLayers::Low.of(3, true).is_err());
        let error = DolaLayers::Listed(vec![4, 7]).of(4, false).unwrap_err();
        assert!(error.to_string().contains("`dola_layers` names no layer"), "{error}");
    }
}
