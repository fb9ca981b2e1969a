//! How a row's next token is chosen from its processed scores.

use mlxgk_logits_processors::{Context, LogitsProcessor, ProcessorList};
use mlxgk_samplers::{Generator, SamplerChain, Streams, greedy};

use crate::{Error, ErrorKind, Result};

/// The choice at the end of a step.
#[derive(Debug)]
pub enum Rule {
    /// The highest score; the lowest id among equals, and id 0 where everything is banned, as in HF.
    /// Where HF takes NaN for the highest score, this is an error.
    Greedy,
    /// A draw from the warped scores; boxed, because its buffers make it large.
    Sample(Box<Sampling>),
}

/// Warps and draws, row by row.
#[derive(Debug)]
pub struct Sampling {
    /// One chain per row, because a chain may learn from its draws (Mirostat).
    chains: Vec<SamplerChain>,
    after: ProcessorList,
    /// Draws from what `after` left; without warpers.
    plain: SamplerChain,
    streams: Streams,
    scratch: Vec<f32>,
}

impl Sampling {
    /// Draws for `rows` rows. `after` is what HF applies behind the warpers (watermarks and
    /// `renormalize_logits`).
    pub fn new(chain: &SamplerChain, after: ProcessorList, streams: Streams, rows: usize) -> Self {
        Self {
            chains: vec![chain.clone(); rows.max(1)],
            after,
            plain: SamplerChain::default(),
            streams,
            scratch: Vec::new(),
        }
    }

    /// Warps a row's scores in place, with the first row's warpers.
    pub(crate) fn warp(&mut self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        self.chains[0].warp(scores, self.streams.row(context.row))?;
        Ok(self.after.process(context, scores)?)
    }

    /// Draws up to `count` different places among the scores of all beams of a prompt, in the order
    /// drawn; fewer where fewer have a probability above 0.
    pub(crate) fn draw_among(
        &mut self,
        prompt: usize,
        scores: &[f32],
        count: usize,
    ) -> Result<&[u32]> {
        Ok(self.plain.sample_n(scores, count, self.streams.row(prompt))?)
    }

    fn draw(&mut self, row: usize, context: &Context<'_>, scores: &[f32]) -> Result<u32> {
        if self.after.is_empty() {
            return Ok(self.chains[row].sample(scores, self.streams.row(row))?);
        }
        let mut warped = std::mem::take(&mut self.scratch);
        let drawn = self.warp_and_draw(row, context, scores, &mut warped);
        self.scratch = warped;
        drawn
    }

    /// Draws, and leaves in `warped` what the draw was from.
    fn warp_and_draw(
        &mut self,
        row: usize,
        context: &Context<'_>,
        scores: &[f32],
        warped: &mut Vec<f32>,
    ) -> Result<u32> {
        let (chain, stream) = (&mut self.chains[row], self.streams.row(row));
        warped.clear();
        warped.extend_from_slice(scores);
        chain.warp(warped, stream)?;
        self.after.process(context, warped)?;
        let token = self.plain.sample(warped, stream)?;
        chain.observe(token);
        Ok(token)
    }

    /// The stream of the only row.
    pub(crate) fn stream(&mut self) -> &mut dyn Generator {
        self.streams.row(0)
    }
}

impl Rule {
    /// Chooses the next token of `row`.
    ///
    /// # Errors
    /// When nothing can be drawn, or the scores hold NaN.
    pub(crate) fn choose(
        &mut self,
        row: usize,
        context: &Context<'_>,
        scores: &[f32],
    ) -> Result<u32> {
        match self {
            Self::Greedy => match greedy(scores) {
                // NaN counts as highest, so looking at the winner is enough.
                best if scores[best as usize].is_nan() => {
                    let what = "no token can be chosen: the highest score is NaN";
                    Err(Error::new(ErrorKind::NoToken, what))
                }
                best => Ok(best),
            },
            Self::Sample(sampling) => sampling.draw(row, context, scores),
        }
    }

    /// As [`choose`](Self::choose), and leaves in `warped` the scores behind the warpers: what HF
    /// returns as `scores`.
    pub(crate) fn choose_keeping(
        &mut self,
        row: usize,
        context: &Context<'_>,
        scores: &[f32],
        warped: &mut Vec<f32>,
    ) -> Result<u32> {
        match self {
            Self::Greedy => {
                warped.clear();
                warped.extend_from_slice(scores);
                self.choose(row, context, scores)
            }
            Self::Sample(sampling) => sampling.warp_and_draw(row, context, scores, warped),
        }
    }

    /// Warps the scores of the only row in place; nothing where nothing is drawn.
    pub(crate) fn warp(&mut self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        match self {
            Self::Greedy => Ok(()),
            Self::Sample(sampling) => sampling.warp(context, scores),
        }
    }

    /// Passes over a row that has ended. torch draws for such rows all the same, so its stream
    /// moves on by what `vocab` scores would have used.
    pub(crate) fn skip(&mut self, row: usize, vocab: usize) {
        if let Self::Sample(sampling) = self {
            sampling.streams.row(row).skip(vocab);
        }
    }
}
