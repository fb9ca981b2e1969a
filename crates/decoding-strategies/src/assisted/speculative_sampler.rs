//! Which guesses are accepted, and what is drawn in place of the first that is not.

use mlxgk_samplers::Distribution;
use mlxgk_torch::softmax;

use super::Candidates;
use crate::{Error, ErrorKind, Result, Sampling};

/// Judges guesses by the two distributions (HF `_speculative_sampling`).
///
/// torch draws the numbers that decide over all guesses before it looks at the first, so they are
/// drawn here at the beginning.
#[derive(Debug)]
pub(super) struct SpeculativeSampler<'a> {
    guess: &'a Candidates,
    /// One number in `[0, 1)` per guess.
    chances: Vec<f32>,
    ensemble_weight: Option<f64>,
    p: Vec<f32>,
    q: Vec<f32>,
}

impl<'a> SpeculativeSampler<'a> {
    pub(super) fn new(
        guess: &'a Candidates,
        ensemble_weight: Option<f64>,
        sampling: &mut Sampling,
    ) -> Self {
        let chances = guess.tokens.iter().map(|_| sampling.stream(0).uniform()).collect();
        Self { guess, chances, ensemble_weight, p: Vec::new(), q: Vec::new() }
    }

    /// The token at `place`, given the model's warped scores there: the guess where it is accepted,
    /// else another.
    pub(super) fn token(
        &mut self,
        place: usize,
        scores: &[f32],
        sampling: &mut Sampling,
    ) -> Result<u32> {
        softmax(scores, &mut self.p);
        let Some(&guess) = self.guess.tokens.get(place) else {
            return draw(&self.p, sampling);
        };
        let vocab = scores.len();
        softmax(&self.guess.scores[place * vocab..][..vocab], &mut self.q);
        let ratio = self.p[guess as usize] / self.q[guess as usize];
        let ratio = match self.ensemble_weight {
            None => ratio,
            // torch rounds each step to fp32.
            Some(weight) => (1.0 - weight) as f32 + weight as f32 * ratio,
        };
        if self.chances[place] <= ratio {
            return Ok(guess);
        }
        let rest: Vec<f32> = self.p.iter().zip(&self.q).map(|(p, q)| (p - q).max(0.0)).collect();
        let sum: f32 = rest.iter().sum();
        if self.ensemble_weight.is_some() && sum <= f32::MIN_POSITIVE {
            return draw(&self.p, sampling);
        }
        let rest: Vec<f32> = rest.iter().map(|it| it / sum).collect();
        draw(&rest, sampling)
    }
}

fn draw(probs: &[f32], sampling: &mut Sampling) -> Result<u32> {
    let mut drawn = Vec::with_capacity(1);
    sampling.stream(0).draw(&Distribution::new(probs), 1, &mut drawn);
    drawn.first().copied().ok_or_else(|| {
        Error::new(ErrorKind::NoToken, "no token can be drawn: none has a probability above 0")
    })
}

/// What greedy decoding chooses among where the draft counts, too: the best of `w · p + (1 - w) · q`.
pub(super) fn best_of_both(scores: &[f32], draft: &[f32], weight: f64) -> Vec<f32> {
    let (mut p, mut q) = (Vec::new(), Vec::new());
    softmax(scores, &mut p);
    softmax(draft, &mut q);
    p.iter().zip(&q).map(|(p, q)| weight as f32 * p + (1.0 - weight) as f32 * q).collect()
}
