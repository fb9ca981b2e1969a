//! A model whose scores are a hash of the text.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use mlxgk_decoding_strategies::{
    BeamPath, FinishReason, LanguageModel, LeftPadded, Reorder, Result, RowEvent, RowOutput,
    TokenLoop,
};

pub(crate) const VOCAB: usize = 31;

/// Scores that depend on all that was fed, so that a row mistaken for another shows.
#[derive(Clone)]
pub(crate) struct Table {
    rows: Vec<Vec<u32>>,
    scores: Vec<f32>,
    /// Rows fed so far.
    pub(crate) work: usize,
}

impl Table {
    pub(crate) fn new(prompts: &[Vec<u32>], copies: usize) -> Self {
        let rows = prompts.iter().flat_map(|it| std::iter::repeat_n(it.clone(), copies)).collect();
        let mut table = Self { rows, scores: Vec::new(), work: 0 };
        table.fill();
        table
    }

    /// What each row was fed.
    pub(crate) fn rows(&self) -> &[Vec<u32>] {
        &self.rows
    }

    fn fill(&mut self) {
        self.scores = self.rows.iter().flat_map(|row| logits(row)).collect();
    }
}

/// Numbers in -2..2, no two alike in a row.
fn logits(row: &[u32]) -> impl Iterator<Item = f32> + use<> {
    let mix = |sum: u32, it: &u32| sum.wrapping_mul(31).wrapping_add(it + 1);
    let seed = row.iter().fold(7_u32, mix);
    (0..VOCAB as u32).map(move |id| {
        let hash = (seed ^ id.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
        ((hash ^ hash >> 15) % 4001) as f32 / 1000.0 - 2.0
    })
}

impl LanguageModel for Table {
    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn feed(&mut self, tokens: &[u32]) -> Result<()> {
        assert_eq!(tokens.len(), self.rows.len());
        self.rows.iter_mut().zip(tokens).for_each(|(row, token)| row.push(*token));
        self.work += tokens.len();
        self.fill();
        Ok(())
    }

    fn scores(&mut self) -> Result<&[f32]> {
        Ok(&self.scores)
    }
}

impl Reorder for Table {
    fn reorder(&mut self, rows: &[usize]) -> Result<()> {
        self.rows = rows.iter().map(|&row| self.rows[row].clone()).collect();
        self.fill();
        Ok(())
    }
}

/// Probabilities of what follows `text`, where some tokens cannot.
pub(crate) fn probabilities(text: &[u32], banned: &[u32]) -> Vec<f64> {
    let weight = |(id, score): (usize, f32)| {
        if banned.contains(&(id as u32)) { 0.0 } else { f64::from(score).exp() }
    };
    let weights: Vec<f64> = logits(text).enumerate().map(weight).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|it| it / sum).collect()
}

/// Log-probabilities of `tokens` after `prompt`.
pub(crate) fn log_probs(prompt: &[u32], tokens: &[u32]) -> Vec<f64> {
    let mut row = prompt.to_vec();
    let log_prob = |&token: &u32| {
        let probabilities = probabilities(&row, &[]);
        row.push(token);
        probabilities[token as usize].ln()
    };
    tokens.iter().map(log_prob).collect()
}

/// Prompts of one length as a batch.
pub(crate) fn batch(prompts: &[Vec<u32>]) -> LeftPadded {
    LeftPadded::new(prompts, 0).unwrap()
}

/// Steps a loop to its end.
pub(crate) fn run_out(it: &mut impl TokenLoop) -> Vec<RowEvent> {
    std::iter::from_fn(|| it.step()).flat_map(|step| step.unwrap()).collect()
}

/// A sequence, and how beams came by it.
#[derive(Debug)]
pub(crate) struct Beam {
    pub(crate) tokens: Vec<u32>,
    pub(crate) finish_reason: FinishReason,
    pub(crate) prompt_index: usize,
    pub(crate) score: f32,
    pub(crate) beam_indices: Vec<usize>,
    pub(crate) transition_scores: Vec<f32>,
}

pub(crate) fn beams(rows: Vec<RowOutput>) -> Vec<Beam> {
    let beam = |row: RowOutput| {
        let BeamPath { prompt_index, score, beam_indices, transition_scores, .. } =
            row.beam.unwrap();
        let (tokens, finish_reason) = (row.tokens, row.finish_reason.unwrap());
        Beam { tokens, finish_reason, prompt_index, score, beam_indices, transition_scores }
    };
    rows.into_iter().map(beam).collect()
}
