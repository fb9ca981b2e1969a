//! What is recorded of a step besides its token: HF's `scores` and `logits`, and log-probabilities.

use mlxgk_logits_processors::log_softmax;

use crate::Result;

/// What to record of each step besides its token.
///
/// Scores and logits are a whole vocabulary per token: 600 kB each for a model of 150,000 tokens.
///
/// ```
/// use mlxgk_decoding_strategies::{
///     DecoderSession, LeftPadded, Limits, Record, RowGroup, SampleLoop, TokenLoop,
/// };
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let prompts = LeftPadded::new(&[vec![5, 9, 14]], 0)?;
/// let session = DecoderSession::prefill(&model, &prompts, 64, NoHook)?;
/// let record = Record { logits: true, logprobs: Some(2), ..Record::default() };
/// let group = RowGroup::greedy(Limits { max_new_tokens: 3, eos: vec![] }).record(record);
/// let mut it = SampleLoop::new(session, &prompts, group);
/// while it.step().transpose()?.is_some() {}
/// let row = it.into_parts().1.remove(0);
/// assert!(row.recorded.scores.is_empty()); // not asked for
/// assert_eq!(row.recorded.logits[2].len(), model.vocab_size());
/// // Greedy rows take the likeliest token.
/// let third = &row.recorded.logprobs[2];
/// assert_eq!((third.token, third.top[0]), (row.tokens[2], (row.tokens[2], third.logprob)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Record {
    /// The scores that the token was chosen from, after processors and warpers (HF `output_scores`).
    pub scores: bool,
    /// The model's own fp32 logits (HF `output_logits`).
    pub logits: bool,
    /// Log-probabilities of the token and of this many of the likeliest.
    pub logprobs: Option<usize>,
}

/// How likely a token was under the model's own logits, whatever processors and warpers made of it.
///
/// ```
/// use mlxgk_decoding_strategies::score;
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let scored = score(&model, &[5, 9, 14], 3, &mut NoHook)?;
/// // What follows 5, and what follows 5, 9.
/// assert_eq!(scored.iter().map(|it| it.token).collect::<Vec<_>>(), [9, 14]);
/// assert!(scored[0].top.len() == 3 && scored[0].top[0].1 >= scored[0].logprob);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token that was chosen.
    pub token: u32,
    /// Its log-probability: natural logarithm, fp32.
    pub logprob: f32,
    /// The likeliest tokens and their log-probabilities, best first, ties by id.
    pub top: Vec<(u32, f32)>,
}

/// What was recorded of one row, an entry per token; empty where it was not asked for.
///
/// See the example of [`Record`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recorded {
    /// Processed scores, `-inf` for what was banned or cut.
    pub scores: Vec<Vec<f32>>,
    /// The model's logits.
    pub logits: Vec<Vec<f32>>,
    /// Log-probabilities under the model's logits.
    pub logprobs: Vec<TokenLogprobs>,
}

impl Recorded {
    /// Records one step: the chosen token, the model's logits, and the scores it was chosen from.
    pub(crate) fn push(
        &mut self,
        record: Record,
        token: u32,
        logits: &[f32],
        scores: &[f32],
    ) -> Result<()> {
        if record.scores {
            self.scores.push(scores.to_vec());
        }
        if record.logits {
            self.logits.push(logits.to_vec());
        }
        if let Some(count) = record.logprobs {
            self.logprobs.push(TokenLogprobs::of(token, logits, count)?);
        }
        Ok(())
    }
}

impl TokenLogprobs {
    pub(crate) fn of(token: u32, logits: &[f32], count: usize) -> Result<Self> {
        let mut logprobs = logits.to_vec();
        log_softmax(&mut logprobs)?;
        let mut ids: Vec<u32> = (0..logprobs.len() as u32).collect();
        let better = |a: &u32, b: &u32| {
            logprobs[*b as usize].total_cmp(&logprobs[*a as usize]).then(a.cmp(b))
        };
        let count = count.min(ids.len());
        if count > 0 && count < ids.len() {
            ids.select_nth_unstable_by(count, better);
        }
        ids.truncate(count);
        ids.sort_unstable_by(better);
        let top = ids.into_iter().map(|id| (id, logprobs[id as usize])).collect();
        Ok(Self { token, logprob: logprobs[token as usize], top })
    }
}
