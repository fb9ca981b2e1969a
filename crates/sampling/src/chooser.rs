//! How a row's next token is chosen from its processed scores: the best, or a draw.

use mlxgk_logits_processors::{Context, LogitsProcessor, ProcessorList, Result};
use mlxgk_samplers::{Generator, Sampler, SamplerChain, SamplerState, Streams, greedy};

/// The choice at the end of a step, for all rows of a batch.
///
/// ```
/// use mlxgk_logits_processors::{Context, ProcessorList};
/// use mlxgk_sampling::Chooser;
/// use mlxgk_samplers::{Seed, WarperConfig};
///
/// let chain = WarperConfig { top_k: Some(1), ..WarperConfig::default() }.chain()?;
/// let drawn = Chooser::sample(&chain, ProcessorList::default(), Seed::Torch(42));
/// let (scores, tokens) = ([0.1, 0.7, 0.2], [5, 3]);
/// for mut chooser in [Chooser::Greedy, drawn] {
///     assert_eq!(chooser.choose(0, &Context::new(&tokens, 2), &scores)?, 1);
/// }
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug)]
pub enum Chooser {
    /// The highest score; the lowest id among equals. Where HF takes id 0 for want of a token that is
    /// not banned, or NaN for the highest score, this is an error.
    Greedy,
    /// A draw from the warped scores; boxed, because its buffers make it large.
    Sample(Box<Sampling>),
}

/// Warps and draws, row by row.
///
/// The warpers' settings and buffers serve all rows; a row has its stream of random numbers and what
/// Mirostat remembers of it.
///
/// ```
/// use mlxgk_logits_processors::{Context, ProcessorList};
/// use mlxgk_samplers::{Seed, WarperConfig};
/// use mlxgk_sampling::Sampling;
///
/// let chain = WarperConfig { top_k: Some(2), ..WarperConfig::default() }.chain()?;
/// let mut sampling = Sampling::new(&chain, ProcessorList::default(), Seed::Fast(7));
/// let mut scores = [0.1, 0.7, 0.2];
/// sampling.warp(0, &Context::new(&[5, 3], 2), &mut scores)?;
/// assert_eq!(scores, [f32::NEG_INFINITY, 0.7, 0.2]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug)]
pub struct Sampling {
    sampler: Sampler,
    after: ProcessorList,
    /// Draws from what `after` left; without warpers.
    plain: Sampler,
    streams: Streams,
    states: Vec<SamplerState>,
    scratch: Vec<f32>,
}

impl Sampling {
    /// Draws behind the warpers of a chain. `after` is what HF applies behind them (watermarks and
    /// `renormalize_logits`).
    pub fn new(chain: &SamplerChain, after: ProcessorList, streams: impl Into<Streams>) -> Self {
        Self {
            sampler: chain.sampler(),
            after,
            plain: Sampler::default(),
            streams: streams.into(),
            states: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// The warpers, where nothing follows them.
    pub fn sole_chain(&self) -> Option<&SamplerChain> {
        self.after.is_empty().then(|| self.sampler.chain())
    }

    /// The [quantile](Generator::quantile) by which the next draw of a row is made, for a draw that is made
    /// elsewhere.
    pub fn quantile(&mut self, row: usize) -> Option<f64> {
        self.streams.row(row).quantile()
    }

    /// Whether draws have quantiles, so that they can be made elsewhere.
    pub fn has_quantiles(&self) -> bool {
        self.streams.has_quantiles()
    }

    /// What the warpers remember of a row.
    pub fn state(&self, row: usize) -> SamplerState {
        self.states.get(row).copied().unwrap_or_default()
    }

    /// Puts back what the warpers remember of a row: after a draft, whose tokens the row did not
    /// get.
    pub fn set_state(&mut self, row: usize, state: SamplerState) {
        *self.state_mut(row) = state;
    }

    fn state_mut(&mut self, row: usize) -> &mut SamplerState {
        if self.states.len() <= row {
            self.states.resize(row + 1, SamplerState::default());
        }
        &mut self.states[row]
    }

    /// Warps the scores of a row in place, with what the warpers remember of `row` and the stream of
    /// `context.row`. A token that is then chosen by other means must be [observed](Self::observe).
    ///
    /// # Errors
    /// When every token is banned, or a score is NaN or infinitely high.
    pub fn warp(&mut self, row: usize, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        let state = self.state(row);
        self.sampler.warp(scores, &state, self.streams.row(context.row))?;
        self.after.process(context, scores)
    }

    /// Lets the warpers remember the token that `row` got, chosen from the scores last
    /// [warped](Self::warp).
    pub fn observe(&mut self, row: usize, token: u32) {
        let mut state = self.state(row);
        self.sampler.observe(token, &mut state);
        self.set_state(row, state);
    }

    /// Draws up to `count` different places among the scores of all beams of a prompt, in the order
    /// drawn; fewer where fewer have a probability above 0.
    ///
    /// # Errors
    /// As [`warp`](Self::warp).
    pub fn draw_among(&mut self, prompt: usize, scores: &[f32], count: usize) -> Result<&[u32]> {
        let generator = self.streams.row(prompt);
        self.plain.sample_n(scores, count, &SamplerState::default(), generator)
    }

    /// The stream of a row.
    pub fn stream(&mut self, row: usize) -> &mut dyn Generator {
        self.streams.row(row)
    }

    fn draw(&mut self, row: usize, context: &Context<'_>, scores: &[f32]) -> Result<u32> {
        if self.after.is_empty() {
            let mut state = self.state(row);
            let token = self.sampler.sample(scores, &mut state, self.streams.row(row))?;
            self.set_state(row, state);
            return Ok(token);
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
        let (mut state, stream) = (self.state(row), self.streams.row(row));
        warped.clear();
        warped.extend_from_slice(scores);
        self.sampler.warp(warped, &state, stream)?;
        self.after.process(context, warped)?;
        let token = self.plain.sample(warped, &mut SamplerState::default(), stream)?;
        self.sampler.observe(token, &mut state);
        self.set_state(row, state);
        Ok(token)
    }
}

impl Chooser {
    /// A chooser that draws; see [`Sampling::new`].
    pub fn sample(chain: &SamplerChain, after: ProcessorList, streams: impl Into<Streams>) -> Self {
        Self::Sample(Box::new(Sampling::new(chain, after, streams)))
    }

    /// Chooses the next token of `row`.
    ///
    /// # Errors
    /// When every token is banned, or the scores hold NaN; [`ProcessorList::explain`] says which processor banned
    /// the last.
    pub fn choose(&mut self, row: usize, context: &Context<'_>, scores: &[f32]) -> Result<u32> {
        match self {
            Self::Greedy => greedy(scores),
            Self::Sample(sampling) => sampling.draw(row, context, scores),
        }
    }

    /// As [`choose`](Self::choose), and leaves in `warped` the scores after the warpers: what HF
    /// returns as `scores`.
    ///
    /// # Errors
    /// As [`choose`](Self::choose).
    pub fn choose_keeping(
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
                greedy(scores)
            }
            Self::Sample(sampling) => sampling.warp_and_draw(row, context, scores, warped),
        }
    }

    /// Warps the scores of the only row in place; nothing where nothing is drawn.
    ///
    /// # Errors
    /// As [`choose`](Self::choose).
    pub fn warp(&mut self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        match self {
            Self::Greedy => Ok(()),
            Self::Sample(sampling) => sampling.warp(0, context, scores),
        }
    }

    /// Passes over a row that has ended. torch draws for such rows all the same, so its stream
    /// moves on by what `vocab` scores would have used.
    pub fn skip(&mut self, row: usize, vocab: usize) {
        if let Self::Sample(sampling) = self {
            sampling.streams.row(row).skip(vocab);
        }
    }

    /// What the warpers remember of a row: a copy, to be [put back](Self::set_state) when the tokens
    /// chosen since were only tried out.
    pub fn state(&self, row: usize) -> SamplerState {
        match self {
            Self::Greedy => SamplerState::default(),
            Self::Sample(sampling) => sampling.state(row),
        }
    }

    /// Puts back what the warpers remember of a row; nothing where nothing is drawn.
    pub fn set_state(&mut self, row: usize, state: SamplerState) {
        if let Self::Sample(sampling) = self {
            sampling.set_state(row, state);
        }
    }
}
