//! Classifier-free guidance as a model: every row runs twice, with and without its prompt.

use mlxgk_logits_processors::guide;

use crate::{LanguageModel, Reorder, Result};

/// A model whose scores are moved away from those it has without the prompt, or with a negative one
/// (HF `guidance_scale`; the arithmetic is [`guide`]'s).
///
/// The wrapped model has two rows for each of this one's: first all with their prompts, then, in the
/// same order, all with what is to be avoided. Both go on with the same tokens, in one pass.
#[derive(Debug)]
pub struct Guided<M> {
    model: M,
    scale: f64,
    /// The guided scores, where the model's have been asked for since the last token.
    scores: Option<Vec<f32>>,
}

impl<M: LanguageModel> Guided<M> {
    /// Guides `model`, which was fed an even number of rows, by `scale`; 1 is no guidance.
    pub fn new(model: M, scale: f64) -> Self {
        Self { model, scale, scores: None }
    }
}

impl<M: LanguageModel> LanguageModel for Guided<M> {
    fn vocab_size(&self) -> usize {
        self.model.vocab_size()
    }

    fn feed(&mut self, tokens: &[u32]) -> Result<()> {
        self.scores = None;
        self.model.feed(&[tokens, tokens].concat())
    }

    fn scores(&mut self) -> Result<&[f32]> {
        if self.scores.is_none() {
            let vocab = self.model.vocab_size();
            let all = self.model.scores()?;
            let (with, without) = all.split_at(all.len() / 2);
            let mut guided = with.to_vec();
            let rows = guided.chunks_exact_mut(vocab).zip(without.chunks_exact(vocab));
            for (with, without) in rows {
                guide(with, without, self.scale)?;
            }
            self.scores = Some(guided);
        }
        Ok(self.scores.as_deref().unwrap_or_default())
    }
}

impl<M: Reorder> Reorder for Guided<M> {
    fn reorder(&mut self, rows: &[usize]) -> Result<()> {
        let vocab = self.model.vocab_size();
        let half = self.model.scores()?.len() / vocab / 2;
        let both: Vec<usize> =
            rows.iter().copied().chain(rows.iter().map(|row| row + half)).collect();
        self.scores = None;
        self.model.reorder(&both)
    }
}
