//! Which experts a token is fed to, and how much each counts.

use mlx_rs::{
    Array,
    error::Result as MlxResult,
    ops::{
        arange, argpartition_axis,
        indexing::{TryIndexOp, topk_axis},
        maximum, select, sigmoid, softmax_axis, tanh,
    },
    stop_gradient,
};

pub(crate) use crate::native::routing::{Groups, Routing, Scores};

/// The experts that tokens are fed to by a router's logits, `[batch, tokens, experts]`, u32, and their shares:
/// both `[batch, tokens, chosen]`, in no particular order. `correction`, `[1.., experts]`, is added to the scores
/// where experts are chosen. [`Backend::route`](crate::backend::Backend::route) has it as one operation too.
pub(crate) fn composed(
    routing: &Routing,
    logits: Array,
    correction: Option<&Array>,
) -> MlxResult<(Array, Array)> {
    let logits = match routing.logit_cap {
        None => logits,
        Some(cap) => {
            let cap = Array::from_f32(cap);
            tanh(logits.divide(&cap)?)?.multiply(&cap)?
        }
    };
    let scores = match routing.scores {
        Scores::Softmax => softmax_axis(logits, -1, true)?,
        Scores::Logits => logits,
        Scores::Sigmoid => sigmoid(logits)?,
    };
    let corrected = correction.map(|it| scores.add(it)).transpose()?;
    let judged = corrected.as_ref().unwrap_or(&scores);
    let judged = match routing.groups {
        None => judged.clone(),
        Some(groups) => mask(groups, judged)?,
    };
    let chosen = best(&judged, routing.chosen)?;
    let mut shares = scores.take_along_axis(&chosen, -1)?;
    if routing.scores == Scores::Logits {
        shares = softmax_axis(shares, -1, true)?;
    }
    if let Some(epsilon) = routing.normalise {
        let sum = shares.sum_axis(-1, true)?;
        let sum = if epsilon == 0.0 { sum } else { sum.add(Array::from_f32(epsilon))? };
        let sum = match routing.least_sum {
            0.0 => sum,
            least => maximum(sum, Array::from_f32(least))?,
        };
        shares = shares.divide(sum)?;
    }
    if routing.scale != 1.0 {
        shares = shares.multiply(Array::from_f32(routing.scale))?;
    }
    Ok((chosen, shares))
}

/// The scores, `[.., experts]`, with minus infinity outside the best groups.
fn mask(groups: Groups, scores: &Array) -> MlxResult<Array> {
    let shape = scores.shape().to_vec();
    let (leading, experts) = shape.split_at(shape.len() - 1);
    let count = groups.count as i32;
    let grouped = [leading, &[count, experts[0] / count]].concat();
    let scores = scores.reshape(&grouped)?;
    let judged = topk_axis(&scores, groups.judged_by as i32, -1)?.sum_axis(-1, false)?;
    let kept = best(&judged, groups.kept)?.expand_dims(-1)?;
    let is_kept = kept.eq(arange::<_, u32>(None, count, None)?)?.any_axis(-2, false)?;
    let masked = select(&is_kept.expand_dims(-1)?, &scores, Array::from_f32(f32::NEG_INFINITY))?;
    masked.reshape(&shape)
}

/// The places of the `count` highest values on the last axis, in no particular order. No gradient
/// goes through a choice.
fn best(values: &Array, count: usize) -> MlxResult<Array> {
    let count = count as i32;
    let order = argpartition_axis(values.negative()?, count - 1, -1)?;
    stop_gradient(order.try_index((.., .., 0..count))?)
}

#[cfg(test)]
pub(crate) mod tests {
    use mlx_rs::{Dtype, random};

    use super::*;
    use crate::backend::Backend;

    const TOKENS: usize = 5;
    const EXPERTS: usize = 12;

    pub(crate) fn noise(seed: u64, shape: &[i32]) -> Array {
        random::normal::<f32>(shape, None, None, &random::key(seed).unwrap()).unwrap()
    }

    pub(crate) fn values(array: &Array) -> Vec<f32> {
        array.to_vec_exact().unwrap()
    }

    pub(crate) fn sigma(x: f32) -> f32 {
        1.0 / (1.0 + (-x).exp())
    }

    fn softmax(values: &[f32]) -> Vec<f32> {
        let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let powers: Vec<f32> = values.iter().map(|it| (it - most).exp()).collect();
        let sum: f32 = powers.iter().sum();
        powers.iter().map(|it| it / sum).collect()
    }

    /// The places of the highest values, ascending.
    fn top(values: &[f32], count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
        order.truncate(count);
        order.sort_unstable();
        order
    }

    /// One token's experts and shares, as transformers' router modules have it.
    pub(crate) fn naive(
        routing: &Routing,
        logits: &[f32],
        correction: Option<&[f32]>,
    ) -> Vec<(usize, f32)> {
        let capped = |it: &f32| routing.logit_cap.map_or(*it, |cap| cap * (it / cap).tanh());
        let logits: &[f32] = &logits.iter().map(capped).collect::<Vec<f32>>();
        let scores: Vec<f32> = match routing.scores {
            Scores::Softmax => softmax(logits),
            Scores::Logits => logits.to_vec(),
            Scores::Sigmoid => logits.iter().map(|&it| sigma(it)).collect(),
        };
        let mut judged = scores.clone();
        if let Some(correction) = correction {
            judged.iter_mut().zip(correction).for_each(|(it, more)| *it += more);
        }
        if let Some(Groups { count, kept, judged_by }) = routing.groups {
            let size = judged.len() / count;
            let of_group =
                |group: &[f32]| -> f32 { top(group, judged_by).iter().map(|&it| group[it]).sum() };
            let groups: Vec<f32> = judged.chunks(size).map(of_group).collect();
            let kept = top(&groups, kept);
            for (index, it) in judged.iter_mut().enumerate() {
                if !kept.contains(&(index / size)) {
                    *it = f32::NEG_INFINITY;
                }
            }
        }
        let chosen = top(&judged, routing.chosen);
        let mut shares: Vec<f32> = chosen.iter().map(|&it| scores[it]).collect();
        if routing.scores == Scores::Logits {
            shares = softmax(&shares);
        }
        if let Some(epsilon) = routing.normalise {
            let sum: f32 = (shares.iter().sum::<f32>() + epsilon).max(routing.least_sum);
            shares.iter_mut().for_each(|it| *it /= sum);
        }
        chosen.into_iter().zip(shares.into_iter().map(|it| it * routing.scale)).collect()
    }

    /// What the families of today and of the near future have.
    fn routings() -> Vec<(Routing, bool)> {
        let routing = |scores, groups, normalise, scale| Routing {
            groups,
            normalise,
            scale,
            ..Routing::new(scores, 3)
        };
        let groups = |kept, judged_by| Some(Groups { count: 4, kept, judged_by });
        vec![
            // Qwen3-MoE, with and without `norm_topk_prob`.
            (routing(Scores::Softmax, None, Some(0.0), 1.0), false),
            (routing(Scores::Softmax, None, None, 1.0), false),
            // gpt-oss, Granite.
            (routing(Scores::Logits, None, None, 1.0), false),
            // DeepSeek V2: groups by their best.
            (routing(Scores::Softmax, groups(2, 1), None, 16.0), false),
            // DeepSeek V3, GLM-4.5.
            (routing(Scores::Sigmoid, groups(2, 2), Some(1e-20), 2.5), true),
            // LFM2-MoE.
            (routing(Scores::Sigmoid, None, Some(1e-6), 1.0), true),
            // A sum of shares for which the epsilon counts.
            (routing(Scores::Sigmoid, None, Some(0.5), 1.8), false),
            // ERNIE 4.5, with a least sum that counts.
            (Routing { least_sum: 0.6, ..routing(Scores::Softmax, None, Some(0.0), 1.0) }, true),
            // Laguna, with a cap that counts.
            (
                Routing { logit_cap: Some(0.7), ..routing(Scores::Sigmoid, None, Some(0.0), 1.0) },
                true,
            ),
        ]
    }

    #[test]
    fn routers_choose_and_weigh_as_their_definitions_do() {
        let correction = noise(2, &[EXPERTS as i32]);
        // Models that compute in fp32 have an operation for it on the CPU, others do not.
        for backend in [Dtype::Float32, Dtype::Bfloat16].map(|it| Backend::new(it).unwrap()) {
            let mut swayed = 0;
            for (routing, corrected) in routings() {
                let correction = corrected.then_some(&correction);
                for seed in 3..23 {
                    let logits = noise(seed, &[1, TOKENS as i32, EXPERTS as i32]);
                    swayed += compare(&routing, backend, &logits, correction);
                }
            }
            assert!(swayed > 50, "groups and corrections hardly changed a choice: {swayed}");
        }
    }

    /// Holds what is chosen against the definition; returns for how many tokens groups and correction count.
    fn compare(
        routing: &Routing,
        backend: Backend,
        logits: &Array,
        correction: Option<&Array>,
    ) -> usize {
        let (chosen, shares) = backend.route(routing, logits.clone(), correction).unwrap();
        assert_eq!(chosen.shape(), [1, TOKENS as i32, 3], "{routing:?}");
        let chosen = chosen.contiguous().unwrap().to_vec_exact::<u32>().unwrap();
        let shares = values(&shares);
        let correction = correction.map(values);
        let mut swayed = 0;
        for (token, logits) in values(logits).chunks(EXPERTS).enumerate() {
            let at = 3 * token..3 * (token + 1);
            let ours = chosen[at.clone()].iter().map(|&it| it as usize);
            let mut ours: Vec<_> = ours.zip(shares[at].iter().copied()).collect();
            ours.sort_by_key(|it| it.0);
            let theirs = naive(routing, logits, correction.as_deref());
            for (ours, theirs) in ours.iter().zip(&theirs) {
                assert_eq!(ours.0, theirs.0, "{routing:?}");
                assert!((ours.1 - theirs.1).abs() < 1e-6 * theirs.1.abs().max(1.0));
            }
            let plain = Routing { groups: None, ..*routing };
            swayed += usize::from(theirs != naive(&plain, logits, None));
        }
        swayed
    }
}
