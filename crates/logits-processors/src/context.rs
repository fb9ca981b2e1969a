//! The history a processor looks at.

/// One row's history: the padded prompt and every token generated so far.
///
/// It is borrowed and immutable, so a processor cannot tell whether it runs for the first time, on
/// another beam, or after a rollback.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Left padding, prompt and generated tokens, in order.
    pub tokens: &'a [u32],
    /// How many of `tokens` are padding and prompt.
    pub prompt_len: usize,
    /// How many of `tokens`, from the left, are padding.
    pub padding: usize,
    /// Index of the row's prompt in the batch (`batch_id` in `prefix_allowed_tokens_fn`).
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
}
