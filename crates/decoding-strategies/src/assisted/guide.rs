//! What guidance moves away from, beside guesses that come and go.

use mlxgk_logits_processors::guide;

use super::Speculative;
use crate::Result;

/// A second text of the model, which guidance moves a row's scores away from
/// (HF `UnbatchedClassifierFreeGuidanceLogitsProcessor`).
///
/// As in HF it is fed the last token of whatever text scores are guided for, in that order: the texts that a
/// draft tries out, those that the model checks, rejected guesses included. So what a guided row says with a
/// helper is not what it says without one.
///
/// ```
/// use mlxgk_decoding_strategies::{
///     AssistedLoop, DecoderSession, Guide, LeftPadded, Limits, PromptLookup, RowGroup, TokenLoop,
/// };
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let fed = |tokens: &[u32]| {
///     DecoderSession::prefill(&model, &LeftPadded::new(&[tokens.to_vec()], 0)?, 64, NoHook)
/// };
/// let run = |scale: f64| {
///     let group = RowGroup::greedy(Limits { max_new_tokens: 8, eos: vec![] });
///     let it = AssistedLoop::new(fed(&[5, 9, 14])?, PromptLookup::new(2, 2)?, &[5, 9, 14], group);
///     let mut it = it.guide(Some(Guide::new(fed(&[14])?, scale)));
///     while it.step().transpose()?.is_some() {}
///     Ok::<_, mlxgk_decoding_strategies::Error>(it.into_parts().1.tokens)
/// };
/// // Moved away from what the model would say behind the last token alone.
/// assert_ne!(run(1.0)?, run(4.0)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Guide<'a> {
    model: Box<dyn Speculative + 'a>,
    scale: f64,
    /// Whether scores were guided before: the first are those that the prompt left.
    has_begun: bool,
}

impl<'a> Guide<'a> {
    /// Guides by `scale` (`guidance_scale`) with a model that has been fed the negative prompt.
    pub fn new(model: impl Speculative + 'a, scale: f64) -> Self {
        Self { model: Box::new(model), scale, has_begun: false }
    }

    /// Guides `scores`, a vocabulary for each of `last`: the last token of the text before it.
    pub(super) fn apply(&mut self, last: &[u32], scores: &mut [f32]) -> Result<()> {
        let vocab = self.model.vocab_size();
        let mut rows = scores.chunks_exact_mut(vocab);
        let mut unread = last;
        if !self.has_begun {
            self.has_begun = true;
            if let Some(row) = rows.next() {
                guide(row, self.model.scores()?, self.scale)?;
            }
            unread = last.get(1..).unwrap_or_default();
        }
        if unread.is_empty() {
            return Ok(());
        }
        self.model.feed_several(unread)?;
        for (row, without) in rows.zip(self.model.scores()?.chunks_exact(vocab)) {
            guide(row, without, self.scale)?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Guide<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guide").field("scale", &self.scale).finish_non_exhaustive()
    }
}
