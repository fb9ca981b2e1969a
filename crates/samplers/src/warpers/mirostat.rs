//! Mirostat: holds the text's surprise near a target.

use mlxgk_logits_processors::{Error, Result};

use crate::candidates::Candidates;

/// Cuts the distribution so that the surprise of the drawn tokens, in bits, stays near `tau`
/// (Basu et al., 2021; as in llama.cpp).
///
/// After every draw the allowed surprise `mu` moves by `eta` times the miss. That is the one thing
/// that a chain remembers of a sequence, in its [`SamplerState`](crate::SamplerState).
///
/// ```
/// use mlxgk_samplers::{FastRng, Mirostat, SamplerChain, SamplerState, Warper};
///
/// let chain = SamplerChain::new(vec![Warper::Mirostat(Mirostat::v2(1.0, 0.1)?)])?;
/// let mut state = SamplerState::default();
/// let scores = [0.5f32, 0.1, 0.3, 0.1].map(f32::ln);
/// // The tokens with a probability below a quarter have more than two bits of surprise.
/// let token = chain.sampler().sample(&scores, &mut state, &mut FastRng::new(0, 0))?;
/// assert!(token == 0 || token == 2);
/// assert!(state.mu() != Some(2.0));
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mirostat {
    tau: f64,
    eta: f64,
    /// Tokens the first version estimates Zipf's exponent from; `None` in the second.
    estimated_from: Option<usize>,
}

impl Mirostat {
    /// The first version, which estimates Zipf's exponent from the `m` most likely tokens and cuts
    /// at the rank it implies. llama.cpp's values are 5, 0.1 and 100.
    ///
    /// # Errors
    /// When `tau` or `eta` is not above 0, or `m` below 2.
    pub fn v1(tau: f64, eta: f64, m: usize) -> Result<Self> {
        if m < 2 {
            return Err(Error::parameter("mirostat_m", "at least 2", m));
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
                return Err(Error::parameter(name, "a finite number above 0", value));
            }
        }
        Ok(Self { tau, eta, estimated_from: None })
    }

    /// The surprise allowed, which starts at twice the target.
    fn allowed(&self, mu: Option<f64>) -> f64 {
        mu.unwrap_or(2.0 * self.tau)
    }

    /// The surprise allowed after a token that had this probability after the cut.
    pub(crate) fn mu_after(&self, mu: Option<f64>, probability: f32) -> f64 {
        self.allowed(mu) - self.eta * (-f64::from(probability).log2() - self.tau)
    }

    pub(crate) fn warp(&self, candidates: &mut Candidates, mu: Option<f64>) {
        let mu = self.allowed(mu);
        candidates.drop_banned();
        candidates.softmax();
        candidates.rank(|score| -score);
        let kept = match self.estimated_from {
            Some(m) => zipf_rank(candidates, m, mu),
            None => unsurprising(candidates, mu),
        };
        let kept = kept.max(1);
        candidates.keep_ranked(|rank, _| rank < kept);
    }
}

/// The rank at which a Zipf distribution with the estimated exponent reaches `mu`.
fn zipf_rank(candidates: &Candidates, m: usize, mu: f64) -> usize {
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
    let k = (epsilon * mu.exp2() / (1.0 - tokens.powf(-epsilon))).powf(1.0 / exponent);
    // A flat or degenerate distribution has no exponent; the cast turns NaN into 0.
    k as usize
}

/// How many tokens are no more surprising than `mu`.
fn unsurprising(candidates: &Candidates, mu: f64) -> usize {
    let surprises = candidates.ranked_probs().map(|p| -f64::from(p).log2());
    surprises.take_while(|&surprise| surprise <= mu).count()
}
