//! Warpers in order, and a draw at the end.

use mlxgk_logits_processors::{Error, ErrorKind, Result};

use crate::candidates::Candidates;
use crate::distribution::Distribution;
use crate::generator::Generator;
use crate::warpers::{
    DynamicTemperature, EpsilonCutoff, EtaCutoff, MinP, Mirostat, Temperature, TopH, TopK,
    TopNSigma, TopP, Typical, Warp, Xtc,
};

/// One step of a [`SamplerChain`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Warper {
    /// See [`Temperature`].
    Temperature(Temperature),
    /// See [`DynamicTemperature`].
    DynamicTemperature(DynamicTemperature),
    /// See [`TopH`].
    TopH(TopH),
    /// See [`TopK`].
    TopK(TopK),
    /// See [`TopP`].
    TopP(TopP),
    /// See [`MinP`].
    MinP(MinP),
    /// See [`Typical`].
    Typical(Typical),
    /// See [`EpsilonCutoff`].
    Epsilon(EpsilonCutoff),
    /// See [`EtaCutoff`].
    Eta(EtaCutoff),
    /// See [`TopNSigma`].
    TopNSigma(TopNSigma),
    /// See [`Xtc`].
    Xtc(Xtc),
    /// See [`Mirostat`].
    Mirostat(Mirostat),
}

/// Warpers applied in order, then a draw; without warpers, a plain multinomial draw.
///
/// It gives what the warpers would one after the other on whole rows, bit for bit, but reads the
/// row once where a top-k comes first, and passes on only the tokens still in the running. It owns
/// all the memory a step needs, so that drawing a token allocates nothing. Every row of a batch
/// needs a chain of its own only if it ends in [`Mirostat`].
///
/// ```
/// use mlxgk_samplers::{SamplerChain, Temperature, TopK, TorchRng, Warper};
///
/// let mut chain = SamplerChain::new(vec![
///     Warper::Temperature(Temperature::new(0.7)?),
///     Warper::TopK(TopK::new(2)?),
/// ])?;
/// let scores = [1.0, 3.0, 2.0, -1.0];
/// let token = chain.sample(&scores, &mut TorchRng::new(0))?;
/// assert!(token == 1 || token == 2);
///
/// let mut warped = scores;
/// chain.warp(&mut warped, &mut TorchRng::new(0))?;
/// assert_eq!(warped, [f32::NEG_INFINITY, 3.0 / 0.7, 2.0 / 0.7, f32::NEG_INFINITY]);
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct SamplerChain {
    warpers: Vec<Warper>,
    candidates: Candidates,
    drawn: Vec<u32>,
}

impl SamplerChain {
    /// A chain of the given warpers.
    ///
    /// # Errors
    /// When Mirostat is not the last of them: it learns from the draw that follows it.
    pub fn new(warpers: Vec<Warper>) -> Result<Self> {
        let early = warpers.iter().rev().skip(1).any(|it| matches!(it, Warper::Mirostat(_)));
        if early {
            let message = "`mirostat` has to be the last warper, since it learns from the draw";
            return Err(Error::new(ErrorKind::Parameter, message));
        }
        Ok(Self { warpers, ..Self::default() })
    }

    /// The warpers, in order.
    pub fn warpers(&self) -> &[Warper] {
        &self.warpers
    }

    /// Draws a token from the warped scores.
    ///
    /// # Errors
    /// When every token is banned, or a score is NaN or infinitely high.
    pub fn sample<G: Generator + ?Sized>(
        &mut self,
        scores: &[f32],
        generator: &mut G,
    ) -> Result<u32> {
        self.draw(scores, 1, generator)?;
        // A distribution always has a token with a probability above 0.
        let token = self.drawn.first().copied().unwrap_or_default();
        if let Some(Warper::Mirostat(mirostat)) = self.warpers.last_mut() {
            let probability = distribution(&self.candidates).probability(token);
            mirostat.observe(probability);
        }
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
        generator: &mut G,
    ) -> Result<&[u32]> {
        self.draw(scores, count, generator)?;
        Ok(&self.drawn)
    }

    /// The warped probabilities: what speculative decoding compares.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn distribution<G: Generator + ?Sized>(
        &mut self,
        scores: &[f32],
        generator: &mut G,
    ) -> Result<Distribution<'_>> {
        self.apply(scores, generator)?;
        self.candidates.softmax();
        Ok(distribution(&self.candidates))
    }

    /// Warps the scores in place, `-inf` for what was cut: what HF returns as `scores`.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn warp<G: Generator + ?Sized>(
        &mut self,
        scores: &mut [f32],
        generator: &mut G,
    ) -> Result<()> {
        self.apply(scores, generator)?;
        self.candidates.write(scores);
        Ok(())
    }

    /// Tells Mirostat which token was drawn from the scores last [warped](Self::warp), where someone
    /// else drew it. [`sample`](Self::sample) does so by itself.
    pub fn observe(&mut self, token: u32) {
        if let Some(Warper::Mirostat(mirostat)) = self.warpers.last_mut() {
            self.candidates.softmax();
            mirostat.observe(distribution(&self.candidates).probability(token));
        }
    }

    /// Forgets the drawn tokens, of which Mirostat alone keeps a memory.
    pub fn reset(&mut self) {
        if let Some(Warper::Mirostat(mirostat)) = self.warpers.last_mut() {
            mirostat.reset();
        }
    }

    fn draw<G: Generator + ?Sized>(
        &mut self,
        scores: &[f32],
        count: usize,
        generator: &mut G,
    ) -> Result<()> {
        self.apply(scores, generator)?;
        self.candidates.softmax();
        generator.draw(&distribution(&self.candidates), count, &mut self.drawn);
        Ok(())
    }

    /// Leaves the warped scores in `candidates`.
    fn apply<G: Generator + ?Sized>(&mut self, scores: &[f32], generator: &mut G) -> Result<()> {
        let candidates = &mut self.candidates;
        let (temperature, rest) = match self.warpers.split_first() {
            Some((Warper::Temperature(temperature), rest)) => (temperature.divisor(), rest),
            _ => (1.0, self.warpers.as_slice()),
        };
        match rest.first() {
            Some(Warper::TopK(top_k)) => candidates.load_top(scores, temperature, top_k.k())?,
            Some(Warper::TopH(_)) => candidates.load_top(scores, temperature, TopH::CONSIDERED)?,
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
                Warper::Mirostat(it) => it.warp(candidates),
                Warper::Xtc(it) => {
                    candidates.drop_banned();
                    if it.is_active(candidates) {
                        it.warp(candidates, generator.uniform());
                    }
                }
            }
        }
        Ok(())
    }
}

fn distribution(candidates: &Candidates) -> Distribution<'_> {
    Distribution::sparse(candidates.ids(), candidates.probs(), candidates.vocab())
}
