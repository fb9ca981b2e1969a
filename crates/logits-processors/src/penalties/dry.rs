//! DRY: don't repeat yourself.

use super::{History, SequenceBreakers};
use crate::error::positive;
use crate::{Context, Error, LogitsProcessor, Result, Stage, scratch};

/// Penalises a token that would continue a repetition, the more the longer the repetition is.
///
/// The method is p-e-w's [DRY](https://github.com/oobabooga/text-generation-webui/pull/5677), the
/// semantics are llama.cpp's. If the last `n` tokens stand somewhere earlier in the history, then
/// the token that followed there loses `multiplier * base^(n - allowed_length)`, for the greatest
/// such `n`, when `n` is at least `allowed_length`. A match does not reach across a
/// [sequence breaker](SequenceBreakers), and a token that is a breaker by itself is spared.
///
/// ```
/// use mlxgk_logits_processors::{Context, Dry, LogitsProcessor};
///
/// let mut scores = [0.0; 4];
/// let so_far = [0, 1, 2, 0, 1];
/// Dry::new(1.0, 1.75, 2)?.process(&Context::new(&so_far, 5), &mut scores)?;
/// assert_eq!(scores, [0.0, 0.0, -1.0, 0.0]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Dry {
    multiplier: f32,
    base: f32,
    allowed_length: usize,
    history: History,
    breakers: SequenceBreakers,
}

/// The logarithm of fp32's largest number, as llama.cpp has it.
const LARGEST_LOG: f64 = 88.722_839_1;

impl Dry {
    /// A penalty on the whole history, prompt included, without breakers. Usual values are a
    /// multiplier of 0.8, a base of 1.75 and an allowed length of 2.
    ///
    /// # Errors
    /// When `multiplier` is not a finite number above 0, or `base` not a finite number of at least
    /// 1.
    pub fn new(multiplier: f64, base: f64, allowed_length: usize) -> Result<Self> {
        let multiplier = positive("dry_multiplier", multiplier)?;
        let base = positive("dry_base", base)
            .ok()
            .filter(|&it| it >= 1.0)
            .ok_or_else(|| Error::parameter("dry_base", "a finite number of at least 1", base))?;
        let (history, breakers) = (History::Whole, SequenceBreakers::default());
        Ok(Self { multiplier, base, allowed_length, history, breakers })
    }

    /// The same penalty on another part of the history (llama.cpp's `dry_penalty_last_n`).
    pub fn over(self, history: History) -> Self {
        Self { history, ..self }
    }

    /// The same penalty with these breakers.
    pub fn with_breakers(self, breakers: SequenceBreakers) -> Self {
        Self { breakers, ..self }
    }

    fn penalty(&self, repeat: usize) -> f32 {
        let base = f64::from(self.base);
        // The power stays within fp32. A base next to 1 has no such limit, and needs none.
        let most = if self.base > 1.000_001 { LARGEST_LOG / base.ln() } else { f64::INFINITY };
        let power = base.powf(((repeat - self.allowed_length) as f64).min(most.floor()));
        (f64::from(self.multiplier) * power).min(f64::from(f32::MAX)) as f32
    }
}

impl LogitsProcessor for Dry {
    fn name(&self) -> &'static str {
        "DRY"
    }

    fn stage(&self) -> Stage {
        Stage::RepetitionPenalty
    }

    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        let so_far = self.history.of(context);
        let limit = self.breakers.distance_to_last(so_far).unwrap_or(so_far.len());
        if so_far.len() <= self.allowed_length || limit < self.allowed_length {
            return Ok(());
        }
        scratch::with(&scratch::IDS, |repeats| {
            scratch::with(&scratch::PAIRS, |continuations| {
                suffix_repeats(so_far, repeats);
                for (&repeat, &next) in repeats[1..].iter().zip(so_far.iter().rev()) {
                    let repeat = repeat.min(limit as u32);
                    if repeat as usize >= self.allowed_length {
                        continuations.push((next, repeat));
                    }
                }
                continuations.sort_unstable();
                for same in continuations.chunk_by(|a, b| a.0 == b.0) {
                    let Some(&(token, longest)) = same.last() else { continue };
                    if self.breakers.is_breaker(token) {
                        continue;
                    }
                    if let Some(score) = scores.get_mut(token as usize) {
                        *score -= self.penalty(longest as usize);
                    }
                }
            });
        });
        Ok(())
    }
}

/// For each `k`, how many of the last tokens stand in the same order `k` places earlier.
///
/// This is the [Z-algorithm](https://en.wikipedia.org/wiki/Z_algorithm) read from the end, linear
/// in the history. The match found furthest to the left is kept as a window: inside it the text
/// repeats its own ending, so earlier results can be reused.
fn suffix_repeats(so_far: &[u32], repeats: &mut Vec<u32>) {
    let from_end = |at: usize| so_far[so_far.len() - 1 - at];
    let (mut left, mut right) = (0, 0);
    repeats.push(0);
    for k in 1..so_far.len() {
        let known = if k < right { (repeats[k - left] as usize).min(right - k) } else { 0 };
        let mut length = known;
        while k + length < so_far.len() && from_end(length) == from_end(k + length) {
            length += 1;
        }
        if k + length > right {
            (left, right) = (k, k + length);
        }
        repeats.push(length as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probabilities(scores: &[f32]) -> Vec<f32> {
        let sum: f32 = scores.iter().map(|it| it.exp()).sum();
        scores.iter().map(|it| it.exp() / sum).collect()
    }

    /// llama.cpp's own examples (tests/test-sampling.cpp, `test_dry`), over uniform scores.
    #[test]
    fn agrees_with_llama_cpp() {
        let dry = |multiplier, allowed, last| {
            Dry::new(multiplier, 1.1, allowed).unwrap().over(History::Last(last))
        };
        let three = SequenceBreakers::new(vec![vec![3]]).unwrap();
        let cases: [(Dry, &[u32], &[f32]); 5] = [
            (dry(1.0, 2, 4), &[0, 1], &[0.25; 4]),
            (dry(1.0, 2, 5), &[0, 1, 2, 0, 1], &[0.296923, 0.296923, 0.109232, 0.296923]),
            (dry(1.0, 2, 6).with_breakers(three), &[0, 1, 3, 4, 0, 1], &[0.2; 5]),
            (dry(2.0, 2, 5), &[0, 1, 2, 0, 1], &[0.241818, 0.241818, 0.032727, 0.241818, 0.241818]),
            (dry(1.0, 4, 7), &[0, 1, 2, 3, 4, 0, 1], &[0.2; 5]),
        ];
        for (dry, so_far, expected) in cases {
            let mut scores = vec![0.0; expected.len()];
            dry.process(&Context::new(so_far, so_far.len()), &mut scores).unwrap();
            for (got, expected) in probabilities(&scores).iter().zip(expected) {
                assert!((got - expected).abs() < 1e-5, "{dry:?} after {so_far:?}: {scores:?}");
            }
        }
    }

    #[test]
    fn the_exponent_stops_where_fp32_ends() {
        let so_far = [1; 400];
        let mut scores = [0.0; 2];
        let dry = Dry::new(1.0, 2.0, 2).unwrap();
        dry.process(&Context::new(&so_far, 400), &mut scores).unwrap();
        assert_eq!(scores, [0.0, -(2f32.powi(127))]);
    }

    #[test]
    fn a_breaker_is_spared_and_stops_the_match() {
        let so_far = [5, 1, 2, 3, 5, 1, 2];
        let breakers = |it: &[u32]| SequenceBreakers::new(it.iter().map(|&it| vec![it])).unwrap();
        let run = |breakers| {
            let mut scores = [0.0; 6];
            let dry = Dry::new(1.0, 2.0, 1).unwrap().with_breakers(breakers);
            dry.process(&Context::new(&so_far, 7), &mut scores).unwrap();
            scores[3]
        };
        assert_eq!(run(breakers(&[])), -4.0);
        assert_eq!(run(breakers(&[5])), -2.0);
        assert_eq!(run(breakers(&[3])), 0.0);
        assert_eq!(run(breakers(&[2])), 0.0);
    }
}
