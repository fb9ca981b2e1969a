//! What the sources of guesses have in common.

use mlxgk_logits_processors::{Context, ProcessorList};

use crate::{Result, Rule};

/// Guesses for the next tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Candidates {
    /// The tokens, in order; may be none.
    pub tokens: Vec<u32>,
    /// The processed scores that each was chosen from, a vocabulary per token; empty where they were
    /// not chosen from scores.
    pub scores: Vec<f32>,
}

/// Where the text stands when a guess is asked for.
#[derive(Debug)]
pub struct Turn<'a> {
    /// Prompt and new tokens.
    pub context: Context<'a>,
    /// How many tokens are worth guessing: with one more from the model the row is full.
    pub room: usize,
    /// How many tokens the model can check in one pass.
    pub checkable: usize,
    /// Tokens that end the row.
    pub eos: &'a [u32],
    /// What the model's scores go through.
    pub processors: &'a ProcessorList,
    /// Scores per position.
    pub vocab_size: usize,
}

/// Guesses tokens that a model may say next (HF `CandidateGenerator`).
pub trait CandidateGenerator {
    /// Guesses at most `turn.checkable` tokens; those beyond `turn.room` are lost. `rule` warps and draws where tokens are drawn.
    ///
    /// # Errors
    /// When a draft model fails, or nothing can be chosen from its scores.
    fn candidates(&mut self, turn: &Turn<'_>, rule: &mut Rule) -> Result<Candidates>;

    /// Learns that `accepted` of the last `guessed` tokens stood.
    fn update(&mut self, guessed: usize, accepted: usize);
}
