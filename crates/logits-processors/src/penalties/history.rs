//! Which tokens a penalty counts.

use crate::Context;

/// Which part of a row's history a penalty looks at.
///
/// Libraries disagree, and the results differ, so each choice has a name:
///
/// | library | history | prompt counts |
/// |---|---|---|
/// | transformers | [`Whole`](Self::Whole) | yes, without leading padding |
/// | OpenAI, vLLM (frequency, presence) | [`Generated`](Self::Generated) | no |
/// | llama.cpp (`penalty_last_n`, 64) | [`Last`](Self::Last) | yes |
/// | mlx-lm (`repetition_context_size`, 20) | [`Last`](Self::Last) | yes |
///
/// ```
/// use mlxgk_logits_processors::{Context, History};
///
/// let context = Context { padding: 1, ..Context::new(&[0, 7, 8, 4, 5], 3) };
/// assert_eq!(History::Whole.of(&context), [7, 8, 4, 5]);
/// assert_eq!(History::After(2).of(&context), [8, 4, 5]);
/// assert_eq!(History::Generated.of(&context), [4, 5]);
/// assert_eq!(History::Last(3).of(&context), [8, 4, 5]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum History {
    /// Prompt and generated tokens, without padding.
    Whole,
    /// Everything but the first tokens, padding counted among them (HF's integer
    /// `prompt_ignore_length`).
    After(usize),
    /// Generated tokens only.
    Generated,
    /// The last tokens, of prompt and generated ones together, without padding.
    Last(usize),
}

impl History {
    /// The tokens of `context` that count.
    pub fn of<'a>(self, context: &Context<'a>) -> &'a [u32] {
        match self {
            Self::Whole => context.unpadded(),
            Self::After(n) => &context.tokens[n.min(context.tokens.len())..],
            Self::Generated => context.generated(),
            Self::Last(n) => {
                let tokens = context.unpadded();
                &tokens[tokens.len().saturating_sub(n)..]
            }
        }
    }
}
