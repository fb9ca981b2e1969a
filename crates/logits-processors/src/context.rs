//! The history a processor looks at.

/// One row's history: the padded prompt and every token generated so far.
///
/// It is borrowed and immutable, so a processor cannot tell whether it runs for the first time, on
/// another beam, or after a rollback.
///
/// ```
/// use mlxgk_logits_processors::Context;
///
/// // Two pads, a prompt of three tokens, two generated tokens.
/// let context = Context { padding: 2, ..Context::new(&[0, 0, 7, 8, 9, 4, 5], 5) };
/// assert_eq!(context.prompt(), [0, 0, 7, 8, 9]);
/// assert_eq!(context.generated(), [4, 5]);
/// assert_eq!(context.unpadded(), [7, 8, 9, 4, 5]);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Left padding, prompt and generated tokens, in order.
    pub tokens: &'a [u32],
    /// How many of `tokens` are padding and prompt.
    pub prompt_len: usize,
    /// How many of `tokens`, from the left, are padding.
    pub padding: usize,
    /// HF's `batch_id`: the index of the row's prompt in the batch. Beams of one prompt share it;
    /// several samples of one prompt are rows of their own.
    pub row: usize,
}

impl<'a> Context<'a> {
    /// The context of a single, unpadded row.
    pub fn new(tokens: &'a [u32], prompt_len: usize) -> Self {
        Self { tokens, prompt_len, padding: 0, row: 0 }
    }

    /// The prompt with its padding: what HF hands to the `encoder_*` processors of a
    /// decoder-only model.
    pub fn prompt(&self) -> &'a [u32] {
        &self.tokens[..self.prompt_len.min(self.tokens.len())]
    }

    /// What was generated after the prompt.
    pub fn generated(&self) -> &'a [u32] {
        &self.tokens[self.prompt_len.min(self.tokens.len())..]
    }

    /// Prompt and generated tokens without the padding.
    pub fn unpadded(&self) -> &'a [u32] {
        &self.tokens[self.padding.min(self.tokens.len())..]
    }
}
