//! A chain at work: warpers in order, and a draw at the end.

use mlxgk_logits_processors::Result;

use crate::candidates::Candidates;
use crate::chain::{SamplerChain, Warper};
use crate::distribution::Distribution;
use crate::generator::Generator;
use crate::warpers::{Mirostat, Warp};

/// What a chain remembers of one sequence; a new one remembers nothing.
///
/// Mirostat alone has a memory. A copy of it can be tried out and thrown away, as a draft's has to
/// be.
///
/// ```
/// use mlxgk_samplers::{FastRng, Mirostat, SamplerChain, SamplerState, Warper};
///
/// let chain = SamplerChain::new(vec![Warper::Mirostat(Mirostat::v2(3.0, 0.1)?)])?;
/// let (mut sampler, mut rng) = (chain.sampler(), FastRng::new(0, 0));
/// let mut state = SamplerState::default();
/// assert_eq!(state.mu(), None);
/// sampler.sample(&[1.0, 0.5, 0.0], &mut state, &mut rng)?;
/// // Three tokens surprise less than the three bits that are wanted, so more is allowed next.
/// assert!(state.mu() > Some(6.0));
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SamplerState {
    mu: Option<f64>,
}

impl SamplerState {
    /// The surprise that [`Mirostat`] allows the next token, in bits; `None` before the first draw,
    /// when it is twice the target.
    pub fn mu(&self) -> Option<f64> {
        self.mu
    }
}

/// A [`SamplerChain`] and the buffers to apply it: one per thread, for any number of rows.
///
/// It gives what the warpers would one after the other on whole rows, bit for bit, but reads the
/// row once where a top-k comes first, and passes on only the tokens still in the running. It owns
/// all the memory that a step needs, so that drawing a token allocates nothing. What has to be
/// remembered of a row is in its [`SamplerState`].
///
/// ```
/// use mlxgk_samplers::{SamplerState, TorchRng, WarperConfig};
///
/// let config = WarperConfig { temperature: Some(0.7), top_k: Some(2), ..Default::default() };
/// let mut sampler = config.chain()?.sampler();
/// let (mut state, mut rng) = (SamplerState::default(), TorchRng::new(0));
/// let scores = [1.0, 3.0, 2.0, -1.0];
/// let token = sampler.sample(&scores, &mut state, &mut rng)?;
/// assert!(token == 1 || token == 2);
///
/// let mut warped = scores;
/// sampler.warp(&mut warped, &state, &mut rng)?;
/// assert_eq!(warped, [f32::NEG_INFINITY, 3.0 / 0.7, 2.0 / 0.7, f32::NEG_INFINITY]);
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Sampler {
    chain: SamplerChain,
    candidates: Candidates,
    drawn: Vec<u32>,
}

impl Sampler {
    /// Buffers for a chain; they are filled with the first row.
    pub fn new(chain: SamplerChain) -> Self {
        Self { chain, ..Self::default() }
    }

    /// The settings.
    pub fn chain(&self) -> &SamplerChain {
        &self.chain
    }

    /// Draws a token from the warped scores.
    ///
    /// # Errors
    /// When every token is banned, or a score is NaN or infinitely high.
    pub fn sample<G: Generator + ?Sized>(
        &mut self,
        scores: &[f32],
        state: &mut SamplerState,
        generator: &mut G,
    ) -> Result<u32> {
        self.draw(scores, 1, state, generator)?;
        // A distribution always has a token with a probability above 0.
        let token = self.drawn.first().copied().unwrap_or_default();
        self.learn(token, state);
        Ok(token)
    }

    /// Draws `count` different tokens, in the order drawn: what beam sampling does with the scores
    /// of all its beams in one row.
    ///
    /// Fewer come out where fewer have a probability above 0. Mirostat learns nothing from it.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn sample_n<G: Generator + ?Sized>(
        &mut self,
        scores: &[f32],
        count: usize,
        state: &SamplerState,
        generator: &mut G,
    ) -> Result<&[u32]> {
        self.draw(scores, count, state, generator)?;
        Ok(&self.drawn)
    }

    /// The warped probabilities: what speculative decoding compares. The generator serves [XTC's
    /// coin](crate::Xtc) alone.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn distribution<G: Generator + ?Sized>(
        &mut self,
        scores: &[f32],
        state: &SamplerState,
        generator: &mut G,
    ) -> Result<Distribution<'_>> {
        self.apply(scores, state, generator)?;
        self.candidates.softmax();
        Ok(distribution(&self.candidates))
    }

    /// Warps the scores in place, `-inf` for what was cut: what HF returns as `scores`. The
    /// generator serves [XTC's coin](crate::Xtc) alone.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn warp<G: Generator + ?Sized>(
        &mut self,
        scores: &mut [f32],
        state: &SamplerState,
        generator: &mut G,
    ) -> Result<()> {
        self.apply(scores, state, generator)?;
        self.candidates.write(scores);
        Ok(())
    }

    /// Lets a row's state learn which token was chosen from the scores last
    /// [warped](Self::warp), where someone else drew it. [`sample`](Self::sample) does so by itself.
    ///
    /// Nothing is learnt from a token that the warpers had cut: its surprise would be infinite.
    pub fn observe(&mut self, token: u32, state: &mut SamplerState) {
        if self.mirostat().is_some() {
            self.candidates.softmax();
            self.learn(token, state);
        }
    }

    fn mirostat(&self) -> Option<&Mirostat> {
        match self.chain.warpers().last() {
            Some(Warper::Mirostat(it)) => Some(it),
            _ => None,
        }
    }

    /// Learns from a token, after the softmax.
    fn learn(&self, token: u32, state: &mut SamplerState) {
        let Some(mirostat) = self.mirostat() else { return };
        let probability = distribution(&self.candidates).probability(token);
        if probability > 0.0 {
            state.mu = Some(mirostat.mu_after(state.mu, probability));
        }
    }

    fn draw<G: Generator + ?Sized>(
        &mut self,
        scores: &[f32],
        count: usize,
        state: &SamplerState,
        generator: &mut G,
    ) -> Result<()> {
        self.apply(scores, state, generator)?;
        self.candidates.softmax();
        generator.draw(&distribution(&self.candidates), count, &mut self.drawn);
        Ok(())
    }

    /// Leaves the warped scores in `candidates`.
    fn apply<G: Generator + ?Sized>(
        &mut self,
        scores: &[f32],
        state: &SamplerState,
        generator: &mut G,
    ) -> Result<()> {
        let candidates = &mut self.candidates;
        let warpers = self.chain.warpers();
        let (temperature, rest) = match warpers.split_first() {
            Some((Warper::Temperature(temperature), rest)) => (temperature.divisor(), rest),
            _ => (1.0, warpers),
        };
        match rest.first() {
            Some(Warper::TopK(top_k)) => candidates.load_top(scores, temperature, top_k.k())?,
            _ => candidates.load(scores, temperature)?,
        }
        for warper in rest {
            match warper {
                Warper::Temperature(it) => it.warp(candidates),
                Warper::DynamicTemperature(it) => it.warp(candidates),
                Warper::TopH(it) => it.warp(candidates),
                Warper::TopK(it) => it.warp(candidates),
                Warper::TopP(it) => it.warp(candidates),
                Warper::MinP(it) => it.warp(candidates),
                Warper::Typical(it) => it.warp(candidates),
                Warper::Epsilon(it) => it.warp(candidates),
                Warper::Eta(it) => it.warp(candidates),
                Warper::TopNSigma(it) => it.warp(candidates),
                Warper::Mirostat(it) => it.warp(candidates, state.mu),
                Warper::Xtc(it) => {
                    candidates.drop_banned();
                    if it.is_active(candidates) {
                        it.warp(candidates, generator.uniform());
                    }
                }
                Warper::Custom(it) => it.warp(candidates)?,
            }
        }
        Ok(())
    }
}

fn distribution(candidates: &Candidates) -> Distribution<'_> {
    Distribution::sparse(candidates.ids(), candidates.probs(), candidates.vocab())
}
