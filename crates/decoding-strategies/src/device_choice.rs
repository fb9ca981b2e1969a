//! The choice of a token as operations of the graph.
//!
//! The next pass can then be built and queued before the scores are there, so that a device does not wait
//! for the host. What is chosen is what [`Chooser`] chooses, but for rounding: a draw differs where its
//! quantile falls within the rounding error of a cumulative sum, and of equal scores at a top-p's cut all
//! are kept.

use mlx_rs::{
    Array, Dtype,
    ops::{
        indexing::{argmax_axis, topk_axis},
        minimum, select, softmax_axis, sort_axis,
    },
};
use mlxgk_samplers::Warper;

use crate::{Chooser, DecoderSession, Record, Result, RowGroup};

/// How tokens are chosen on the device: the likeliest, or a draw behind temperature, top-k and top-p, by
/// quantiles that the host's generator gives.
///
/// See the example of [`AheadLoop`](crate::AheadLoop).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeviceChoice(Choice);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Choice {
    Greedy,
    Draw {
        temperature: f32,
        top_k: Option<usize>,
        /// The probability that top-p removes.
        removed: Option<f32>,
    },
}

impl DeviceChoice {
    /// The choice that a group makes, where the device can make it for this session: without processors,
    /// records and guidance, from plain scores of a pass that takes embeddings, and with a generator that
    /// has [quantiles](mlxgk_samplers::Generator::quantile).
    pub fn of(session: &DecoderSession<'_>, group: &RowGroup) -> Option<Self> {
        let is_plain = group.rules.processors.is_empty()
            && group.record == Record::default()
            && !group.is_guided()
            && session.can_run_ahead(group.limits().max_new_tokens);
        if !is_plain {
            return None;
        }
        let sampling = match &group.rules.chooser {
            Chooser::Greedy => return Some(Self(Choice::Greedy)),
            Chooser::Sample(sampling) => sampling,
        };
        let choice = drawn_behind(sampling.sole_chain()?.warpers())?;
        sampling.has_quantiles().then_some(Self(choice))
    }

    /// The highest score of each row, as it is drawn from; not yet evaluated.
    pub(crate) fn highest(self, scores: &Array) -> Result<Array> {
        let highest = scores.max_axis(-1, false)?;
        Ok(match self.0 {
            Choice::Greedy => highest,
            Choice::Draw { temperature, .. } => highest.divide(Array::from_f32(temperature))?,
        })
    }

    /// The chosen token of each row, u32 `[rows]`, not yet evaluated. `scores` is fp32 `[rows,
    /// vocabulary]`; a row has one quantile, which greedy rows do not read.
    pub(crate) fn tokens(self, scores: &Array, quantiles: &[f64]) -> Result<Array> {
        let Choice::Draw { temperature, top_k, removed } = self.0 else {
            return Ok(argmax_axis(scores, -1, false)?);
        };
        let mut scores = scores.divide(Array::from_f32(temperature))?;
        if let Some(k) = top_k.filter(|&k| k < scores.dim(-1) as usize) {
            let least = topk_axis(&scores, k as i32, -1)?.min_axis(-1, true)?;
            scores = from(&scores, &least)?;
        }
        if let Some(removed) = removed {
            let sorted = sort_axis(&scores, -1)?;
            let kept = cumulative(&sorted)?.gt(Array::from_f32(removed))?;
            let least = select(kept, &sorted, Array::from_f32(f32::INFINITY))?;
            // The likeliest is kept, however the sum is rounded.
            let least = minimum(least.min_axis(-1, true)?, scores.max_axis(-1, true)?)?;
            scores = from(&scores, &least)?;
        }
        let cumulative = cumulative(&scores)?;
        // Below 1 in fp32, too, so that a token is always reached.
        let below_one = 1.0 - f32::EPSILON;
        let quantiles: Vec<f32> = quantiles.iter().map(|&it| (it as f32).min(below_one)).collect();
        let quantiles = Array::from_slice(&quantiles, &[quantiles.len() as i32, 1]);
        let goal = cumulative.max_axis(-1, true)?.multiply(quantiles)?;
        Ok(argmax_axis(cumulative.gt(goal)?.as_dtype(Dtype::Int32)?, -1, false)?)
    }
}

/// The draw behind these warpers; `None` where they are not temperature, top-k and top-p, in this order.
fn drawn_behind(warpers: &[Warper]) -> Option<Choice> {
    let (mut temperature, mut top_k, mut removed) = (1.0, None, None);
    let mut last = 0;
    for warper in warpers {
        let place = match warper {
            Warper::Temperature(it) => {
                temperature = it.divisor();
                1
            }
            Warper::TopK(it) => {
                top_k = Some(it.k());
                2
            }
            Warper::TopP(it) => {
                let (share, least) = it.limits();
                if least > 1 {
                    return None;
                }
                removed = Some(share);
                3
            }
            _ => return None,
        };
        if place <= last {
            return None;
        }
        last = place;
    }
    Some(Choice::Draw { temperature, top_k, removed })
}

/// The scores from `least` on, and `-inf` for those below it.
fn from(scores: &Array, least: &Array) -> Result<Array> {
    Ok(select(scores.ge(least)?, scores, Array::from_f32(f32::NEG_INFINITY))?)
}

/// The running sum of the probabilities along the last axis.
fn cumulative(scores: &Array) -> Result<Array> {
    Ok(softmax_axis(scores, -1, true)?.cumsum(-1, None, None)?)
}
