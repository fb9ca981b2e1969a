//! Mirostat: holds the text's surprise near a target.

use mlxgk_logits_processors::Result;

use super::parameter;
use crate::candidates::Candidates;

/// Cuts the distribution so that the surprise of the drawn tokens, in bits, stays near `tau`
/// (Basu et al., 2021; as in llama.cpp).
///
/// After every draw the allowed surprise `mu` moves by `eta` times the miss. So it remembers: a
/// chain that ends in Mirostat serves one sequence, in order, and
/// [`SamplerChain::reset`](crate::SamplerChain::reset) starts it over.
///
/// ```
/// use mlxgk_samplers::{FastRng, Mirostat, SamplerChain, Warper};
///
/// let mut chain = SamplerChain::new(vec![Warper::Mirostat(Mirostat::v2(1.0, 0.1)?)])?;
/// let scores = [0.5f32, 0.1, 0.3, 0.1].map(f32::ln);
/// // Of more than two bits of surprise are the tokens with a probability below a quarter.
/// let token = chain.sample(&scores, &mut FastRng::new(0, 0))?;
/// assert!(token == 0 || token == 2);
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mirostat {
    tau: f64,
    eta: f64,
    /// Tokens the first version estimates Zipf's exponent from; `None` in the second.
    estimated_from: Option<usize>,
    mu: f64,
}

impl Mirostat {
    /// The first version, which estimates Zipf's exponent from the `m` most likely tokens and cuts
    /// at the rank it implies. llama.cpp's values are 5, 0.1 and 100.
    ///
    /// # Errors
    /// When `tau` or `eta` is not above 0, or `m` below 2.
    pub fn v1(tau: f64, eta: f64, m: usize) -> Result<Self> {
        if m < 2 {
            return Err(parameter("mirostat_m", "an integer of at least 2", m));
        }
        Ok(Self { estimated_from: Some(m), ..Self::v2(tau, eta)? })
    }

    /// The second version, which removes what is more surprising than `mu` bits. llama.cpp's
    /// values are 5 and 0.1.
    ///
    /// # Errors
    /// When `tau` or `eta` is not above 0.
    pub fn v2(tau: f64, eta: f64) -> Result<Self> {
        for (name, value) in [("mirostat_tau", tau), ("mirostat_eta", eta)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(parameter(name, "a strictly positive float", value));
            }
        }
        Ok(Self { tau, eta, estimated_from: None, mu: 2.0 * tau })
    }

    /// The surprise allowed next, in bits; it starts at twice the target.
    pub fn mu(&self) -> f64 {
        self.mu
    }

    /// Forgets what was drawn.
    pub(crate) fn reset(&mut self) {
        self.mu = 2.0 * self.tau;
    }

    /// Learns the probability the drawn token had after the cut.
    pub(crate) fn observe(&mut self, probability: f32) {
        self.mu -= self.eta * (-f64::from(probability).log2() - self.tau);
    }

    pub(crate) fn warp(&self, candidates: &mut Candidates) {
        candidates.drop_banned();
        candidates.softmax();
        candidates.rank(|score| -score);
        let kept = match self.estimated_from {
            Some(m) => self.zipf_rank(candidates, m),
            None => self.unsurprising(candidates),
        };
        let kept = kept.max(1);
        candidates.keep_ranked(|rank, _| rank < kept);
    }

    /// The rank at which a Zipf distribution with the estimated exponent reaches `mu`.
    fn zipf_rank(&self, candidates: &Candidates, m: usize) -> usize {
        let probs = candidates.ranked_probs().map(f64::from);
        let (mut products, mut squares) = (0.0, 0.0);
        for (i, (p, next)) in probs.clone().zip(probs.skip(1)).take(m - 1).enumerate() {
            let t = ((i + 2) as f64 / (i + 1) as f64).ln();
            products += t * (p / next).ln();
            squares += t * t;
        }
        let exponent = products / squares;
        let epsilon = exponent - 1.0;
        let tokens = candidates.vocab() as f64;
        let k = (epsilon * self.mu.exp2() / (1.0 - tokens.powf(-epsilon))).powf(1.0 / exponent);
        // A flat or degenerate distribution has no exponent; the cast turns NaN into 0.
        k as usize
    }

    /// How many tokens are no more surprising than `mu`.
    fn unsurprising(&self, candidates: &Candidates) -> usize {
        let surprises = candidates.ranked_probs().map(|p| -f64::from(p).log2());
        surprises.take_while(|&surprise| surprise <= self.mu).count()
    }
}
