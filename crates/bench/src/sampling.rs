//! One draw after another at a large vocabulary, as the decoding loop makes them.

use mlx_genkit::{
    GenerationConfig, Seed,
    generation_config::{Kwargs, Pipeline, Sources},
    logits_processors::{Context, LogitsProcessor},
    samplers::{Sampler, SamplerState, Streams},
};
use mlxgk_torch::SplitMix64;
use serde_json::{Value, json};

use crate::{Result, shapes::QWEN3_VOCAB};

/// The vocabulary of Qwen 2 and 3.
pub const VOCAB: usize = QWEN3_VOCAB;

/// Rows of scores, drawn from in turn: together they exceed the inner caches, as fresh logits do.
const ROWS: usize = 8;

/// The fields of the usual draw: a repetition penalty, an n-gram ban, temperature, top-k, top-p.
pub fn usual() -> Value {
    json!({
        "do_sample": true, "repetition_penalty": 1.1, "no_repeat_ngram_size": 3,
        "temperature": 0.7, "top_k": 50, "top_p": 0.9,
    })
}

/// Temperature and top-p alone, which have to consider the whole vocabulary.
pub fn nucleus() -> Value {
    json!({"do_sample": true, "temperature": 0.7, "top_k": 0, "top_p": 0.9})
}

/// Normally distributed scores with a deviation of 3, about as peaked as a language model's:
/// [`VOCAB`] per row, row after row.
pub fn scores() -> Vec<f32> {
    let mut rng = SplitMix64::new(0);
    (0..ROWS * VOCAB).map(|_| 3.0 * rng.normal() as f32).collect()
}

/// 512 tokens, from 97 different ones, so that many n-grams occur more than once.
pub fn history() -> Vec<u32> {
    (0..512).map(|at| at * at % 97 * 1563).collect()
}

/// A sampled request in the middle of its work.
pub struct Draws {
    pipeline: Pipeline,
    sampler: Sampler,
    state: SamplerState,
    streams: Streams,
    scores: Vec<f32>,
    vocab: usize,
    history: Vec<u32>,
    scratch: Vec<f32>,
    row: usize,
}

impl Draws {
    /// Sets up a request with the given fields of HF's generation config, rows of `vocab` scores to
    /// draw from in turn, and the tokens so far.
    ///
    /// # Errors
    /// When the fields are wrong, or there is no whole row.
    pub fn new(
        fields: &Value,
        seed: Seed,
        scores: Vec<f32>,
        vocab: usize,
        history: Vec<u32>,
    ) -> Result<Self> {
        if vocab == 0 || scores.is_empty() || !scores.len().is_multiple_of(vocab) {
            return Err(format!("{} scores are not rows of {vocab}", scores.len()).into());
        }
        let none = GenerationConfig::default();
        let kwargs = Kwargs::from_json(fields)?;
        let merged = Sources { kwargs: &kwargs, passed: &none, model: &none }.merge()?;
        let pipeline = merged.resolve(history.len(), None)?.pipeline(vocab)?;
        Ok(Self {
            sampler: pipeline.warpers.sampler(),
            pipeline,
            state: SamplerState::default(),
            streams: Streams::new(seed),
            scores,
            vocab,
            history,
            scratch: Vec::new(),
            row: 0,
        })
    }

    /// Draws the token that follows the history.
    ///
    /// # Errors
    /// When nothing can be drawn.
    pub fn step(&mut self) -> Result<u32> {
        let mut scores = &self.scores[self.row * self.vocab..][..self.vocab];
        self.row = (self.row + 1) % (self.scores.len() / self.vocab);
        if !self.pipeline.processors.is_empty() {
            // As in the loop: logits are read-only.
            self.scratch.clear();
            self.scratch.extend_from_slice(scores);
            let prompt_len = self.history.len();
            let context = Context { tokens: &self.history, prompt_len, padding: 0, row: 0 };
            self.pipeline.processors.process(&context, &mut self.scratch)?;
            scores = &self.scratch;
        }
        Ok(self.sampler.sample(scores, &mut self.state, self.streams.row(0))?)
    }
}

impl std::fmt::Debug for Draws {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Draws").field("pipeline", &self.pipeline).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_draw_bans_an_n_gram_and_penalises_what_was_said() {
        let mut draws = Draws::new(&usual(), Seed::Fast(0), scores(), VOCAB, history()).unwrap();
        draws.step().unwrap();
        let (before, after) = (&draws.scores[..VOCAB], &draws.scratch[..]);
        let banned = after.iter().filter(|it| **it == f32::NEG_INFINITY).count();
        let changed = before.iter().zip(after).filter(|(a, b)| a != b).count();
        assert_eq!(banned, 1);
        let mut so_far = history();
        so_far.sort_unstable();
        so_far.dedup();
        assert_eq!(changed, so_far.len());
    }

    #[test]
    fn the_scores_are_as_spread_as_they_are_said_to_be() {
        let scores = scores();
        let mean = |of: &dyn Fn(f64) -> f64| {
            scores.iter().map(|&it| of(f64::from(it))).sum::<f64>() / scores.len() as f64
        };
        assert!(mean(&|it| it).abs() < 0.02);
        assert!((mean(&|it| it * it) - 9.0).abs() < 0.1);
    }
}
