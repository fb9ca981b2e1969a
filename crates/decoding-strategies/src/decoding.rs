//! The greedy and sampling loop (HF `GenerationMixin._sample`).

use mlxgk_logits_processors::{Context, LogitsProcessor, ProcessorList, Row};

use crate::{LanguageModel, Result, Rule};

/// When a row ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// New tokens per row, the end token included.
    pub max_new_tokens: usize,
    /// Tokens that end a row; they stay in its tokens.
    pub eos: Vec<u32>,
}

/// Why a row ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// An end token was chosen.
    Eos,
    /// The row has all the tokens it may have.
    Length,
}

impl FinishReason {
    /// The name in the command line's JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Eos => "eos",
            Self::Length => "length",
        }
    }
}

/// One row's new tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decoded {
    /// New tokens, up to and including the end token; no padding.
    pub tokens: Vec<u32>,
    /// Why the row ended; `None` while it goes on.
    pub finish_reason: Option<FinishReason>,
}

/// A batch being continued, one token per row and step.
///
/// An iterator over steps; each item holds the new token of every row, `None` for rows that ended
/// earlier. When an item is handed out the model is already at work on the next one.
#[derive(Debug)]
pub struct Decoding<M> {
    model: M,
    processors: ProcessorList,
    rule: Rule,
    stop: Stop,
    pad: u32,
    prompt_len: usize,
    padding: Vec<usize>,
    /// Padded prompt and new tokens per row; rows that have ended go on with padding.
    history: Vec<Vec<u32>>,
    rows: Vec<Decoded>,
    scratch: Vec<f32>,
    failed: bool,
}

impl<M: LanguageModel> Decoding<M> {
    /// Continues `prompts`, padded rows of one length that `model` has been fed, with `padding[i]`
    /// tokens of padding at the left of row *i*. Rows that have ended are fed `pad`.
    pub fn new(
        model: M,
        prompts: &[Vec<u32>],
        padding: &[usize],
        processors: ProcessorList,
        rule: Rule,
        stop: Stop,
        pad: u32,
    ) -> Self {
        Self {
            model,
            processors,
            rule,
            stop,
            pad,
            prompt_len: prompts.first().map_or(0, Vec::len),
            padding: padding.to_vec(),
            history: prompts.to_vec(),
            rows: vec![Decoded::default(); prompts.len()],
            scratch: Vec::new(),
            failed: false,
        }
    }

    /// The rows as far as they got.
    pub fn rows(&self) -> &[Decoded] {
        &self.rows
    }

    /// When rows end.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Gives up the model and the rows.
    pub fn into_parts(self) -> (M, Vec<Decoded>) {
        (self.model, self.rows)
    }

    /// Waits until the scores of the next token are there: the end of the prefill, when called
    /// before the first step.
    ///
    /// # Errors
    /// When the model fails.
    pub fn wait(&mut self) -> Result<()> {
        self.model.scores().map(|_| ())
    }

    fn is_done(&self) -> bool {
        self.failed || self.rows.iter().all(|it| it.finish_reason.is_some())
    }

    fn step(&mut self) -> Result<Vec<Option<u32>>> {
        let chosen = self.choose()?;
        for (row, token) in chosen.iter().enumerate() {
            self.history[row].push(token.unwrap_or(self.pad));
            let Some(token) = *token else { continue };
            let decoded = &mut self.rows[row];
            decoded.tokens.push(token);
            if self.stop.eos.contains(&token) {
                decoded.finish_reason = Some(FinishReason::Eos);
            } else if decoded.tokens.len() >= self.stop.max_new_tokens {
                decoded.finish_reason = Some(FinishReason::Length);
            }
        }
        if !self.is_done() {
            let fed: Vec<u32> = chosen.iter().map(|it| it.unwrap_or(self.pad)).collect();
            self.model.feed(&fed)?;
        }
        Ok(chosen)
    }

    /// The next token of every row, `None` for those that have ended.
    fn choose(&mut self) -> Result<Vec<Option<u32>>> {
        let vocab = self.model.vocab_size();
        let mut scores = self.model.scores()?;
        let (prompt_len, padding, history) = (self.prompt_len, &self.padding, &self.history);
        let context =
            |row: usize| Context { tokens: &history[row], prompt_len, padding: padding[row], row };
        if !self.processors.is_empty() {
            // Processors write, and the array that MLX owns is read-only.
            self.scratch.clear();
            self.scratch.extend_from_slice(scores);
            let mut rows: Vec<Row<'_>> = self
                .scratch
                .chunks_exact_mut(vocab)
                .enumerate()
                .map(|(row, scores)| Row { context: context(row), scores })
                .collect();
            self.processors.process_rows(&mut rows)?;
            scores = &self.scratch;
        }
        let rule = &mut self.rule;
        let choose = |(row, scores): (usize, &[f32])| {
            if self.rows[row].finish_reason.is_some() {
                rule.skip(row, vocab);
                return Ok(None);
            }
            rule.choose(row, &context(row), scores).map(Some)
        };
        scores.chunks_exact(vocab).enumerate().map(choose).collect()
    }
}

impl<M: LanguageModel> Iterator for Decoding<M> {
    type Item = Result<Vec<Option<u32>>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done() || self.stop.max_new_tokens == 0 {
            return None;
        }
        let step = self.step();
        self.failed = step.is_err();
        Some(step)
    }
}
