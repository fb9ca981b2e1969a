//! What all loops are to their callers: something that is stepped, and says what became of rows.

use mlxgk_kv_cache::KvCache;

use crate::{Acceptance, BeamPath, Error, FinishReason, Recorded, Result, RowId, TokenLogprobs};

/// What a step made of one row.
///
/// See the example of [`TokenLoop`].
#[derive(Debug, Clone, PartialEq)]
pub struct RowEvent {
    /// Which row.
    pub row: RowId,
    /// What became of it.
    pub outcome: RowOutcome,
}

/// See [`RowEvent`].
///
/// See the example of [`TokenLoop`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RowOutcome {
    /// It has one token more.
    Token {
        /// The token.
        token: u32,
        /// How likely it was, where that is [recorded](crate::Record::logprobs).
        logprobs: Option<TokenLogprobs>,
        /// Why the row ended with it; `None` while it runs.
        finish_reason: Option<FinishReason>,
    },
    /// It ended without another token.
    Finished(FinishReason),
    /// It cannot be continued, and has ended. The other rows are not affected.
    Failed(Error),
}

/// What became of one row.
///
/// See the example of [`TokenLoop`].
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct RowOutput {
    /// New tokens, up to and including the end token; no padding.
    pub tokens: Vec<u32>,
    /// Why the row ended; `None` where it runs, failed or was taken out.
    pub finish_reason: Option<FinishReason>,
    /// What else was [recorded](crate::Record) of its steps.
    pub recorded: Recorded,
    /// How beam search came by it.
    pub beam: Option<BeamPath>,
}

/// The outcome of a loop.
///
/// See the example of [`TokenLoop`].
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct LoopOutput {
    /// The rows, in order, however far they came; with beams the sequences found, best first.
    pub rows: Vec<RowOutput>,
    /// How many guesses were accepted, in assisted decoding.
    pub acceptance: Option<Acceptance>,
    /// The model's cache, where it can be resumed.
    pub cache: Option<KvCache>,
}

/// A batch of rows under way.
///
/// Loops differ in what they propose for the next tokens; what a row is, and when it ends, is the
/// same in all of them.
///
/// ```
/// use mlxgk_decoding_strategies::{
///     DecoderSession, FinishReason, LeftPadded, Limits, RowGroup, RowOutcome, SampleLoop,
///     TokenLoop,
/// };
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let prompts = LeftPadded::new(&[vec![5, 9, 14], vec![7]], 0)?;
/// let session = DecoderSession::prefill(&model, &prompts, 64, NoHook)?;
/// let group = RowGroup::greedy(Limits { max_new_tokens: 3, eos: vec![] });
/// let mut it: Box<dyn TokenLoop> = Box::new(SampleLoop::new(session, &prompts, group));
/// let mut tokens = [0, 0];
/// while let Some(step) = it.step() {
///     for event in step? {
///         match event.outcome {
///             RowOutcome::Token { .. } => tokens[event.row.get() as usize] += 1,
///             RowOutcome::Failed(error) => eprintln!("row {}: {error}", event.row),
///             _ => {}
///         }
///     }
/// }
/// let output = it.finish()?;
/// assert_eq!(tokens, [3, 3]);
/// assert_eq!(output.rows[1].finish_reason, Some(FinishReason::Length));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait TokenLoop {
    /// Waits until the scores of the next token are there: the end of the prefill, when called before
    /// the first step.
    ///
    /// # Errors
    /// When the model fails.
    fn wait(&mut self) -> Result<()>;

    /// Advances every row, and says what became of each; a row may get several tokens at once, or,
    /// in a search that is ranked at its end, none. `None` once no row runs.
    ///
    /// # Errors
    /// When the model fails, which ends all rows. A row that fails ends alone, as an event.
    fn step(&mut self) -> Option<Result<Vec<RowEvent>>>;

    /// Ends a row without an event; `false` where it is not running.
    fn leave(&mut self, row: RowId) -> bool;

    /// Ends the loop.
    ///
    /// # Errors
    /// When a search found fewer sequences than were asked for.
    fn finish(self: Box<Self>) -> Result<LoopOutput>;
}
