//! A chain from plain settings, in a named order.

use mlxgk_logits_processors::Result;

use crate::chain::{SamplerChain, Warper};
use crate::warpers::{
    DynamicTemperature, EpsilonCutoff, EtaCutoff, MinP, Mirostat, Temperature, TopH, TopK,
    TopNSigma, TopP, Typical, Xtc,
};

/// In which order the warpers of a [`WarperConfig`] run.
///
/// ```
/// use mlxgk_samplers::{Order, WarperConfig};
///
/// let config = WarperConfig { temperature: Some(3.0), min_p: Some(0.3), ..Default::default() };
/// let left = |order| {
///     let mut sampler = WarperConfig { order, ..config.clone() }.chain()?.sampler();
///     let scores = [0.6f32, 0.3, 0.1].map(f32::ln);
///     let state = Default::default();
///     let mut rng = mlxgk_samplers::FastRng::new(0, 0);
///     let left = sampler.distribution(&scores, &state, &mut rng)?;
///     Ok::<_, mlxgk_samplers::Error>(left.iter().filter(|(_, prob)| *prob > 0.0).count())
/// };
/// // Where the temperature comes first, the third token has more than 0.3 of the first one's
/// // probability; where it comes last, a sixth.
/// assert_eq!((left(Order::Hf)?, left(Order::LlamaCpp)?), (3, 2));
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Order {
    /// transformers: temperature, top-h, top-k, top-p, min-p, typical, epsilon, eta; after them
    /// top-n-sigma and XTC, which it does not have.
    #[default]
    Hf,
    /// mlx-lm: top-p, min-p, XTC, top-k, temperature; before XTC, what it does not have.
    MlxLm,
    /// llama.cpp: top-n-sigma, top-k, typical, top-p, min-p, XTC, temperature; before XTC, what it
    /// does not have.
    LlamaCpp,
}

/// The settings of all warpers; `None` leaves a warper out.
///
/// As in HF, a value that would change nothing leaves it out too: a temperature of 1, a top-k
/// of 0, a top-p or typical mass of 1, a cutoff of 0.
///
/// ```
/// use mlxgk_samplers::WarperConfig;
///
/// let config = WarperConfig { top_p: Some(0.9), temperature: Some(0.7), ..Default::default() };
/// assert_eq!(config.chain()?.warpers().len(), 2);
///
/// let wrong = WarperConfig { top_p: Some(1.5), ..Default::default() };
/// let error = wrong.chain().unwrap_err();
/// assert_eq!(error.to_string(), "`top_p` must be between 0 and 1, but is 1.5");
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct WarperConfig {
    /// In which order the warpers run.
    pub order: Order,
    /// The fewest tokens a warper leaves: 1, or in beam search one more than there are EOS tokens.
    pub min_tokens_to_keep: usize,
    /// See [`Temperature`].
    pub temperature: Option<f64>,
    /// See [`DynamicTemperature`]; 0 leaves the temperature as it is.
    pub dynatemp_range: Option<f64>,
    /// See [`DynamicTemperature`]; 1 by default.
    pub dynatemp_exponent: Option<f64>,
    /// See [`TopH`].
    pub top_h: Option<f64>,
    /// See [`TopK`].
    pub top_k: Option<usize>,
    /// See [`TopP`].
    pub top_p: Option<f64>,
    /// See [`MinP`].
    pub min_p: Option<f64>,
    /// See [`Typical`].
    pub typical_p: Option<f64>,
    /// See [`EpsilonCutoff`].
    pub epsilon_cutoff: Option<f64>,
    /// See [`EtaCutoff`].
    pub eta_cutoff: Option<f64>,
    /// See [`TopNSigma`]; 0 or less leaves it out.
    pub top_n_sigma: Option<f64>,
    /// See [`Xtc`].
    pub xtc_probability: Option<f64>,
    /// See [`Xtc`]; 0.1 by default.
    pub xtc_threshold: Option<f64>,
    /// See [`Xtc::spare`].
    pub xtc_special_tokens: Vec<u32>,
    /// See [`Mirostat`]; as in llama.cpp, it takes the place of all warpers but the temperature.
    pub mirostat: Option<Mirostat>,
}

impl Default for WarperConfig {
    fn default() -> Self {
        Self {
            order: Order::Hf,
            min_tokens_to_keep: 1,
            temperature: None,
            dynatemp_range: None,
            dynatemp_exponent: None,
            top_h: None,
            top_k: None,
            top_p: None,
            min_p: None,
            typical_p: None,
            epsilon_cutoff: None,
            eta_cutoff: None,
            top_n_sigma: None,
            xtc_probability: None,
            xtc_threshold: None,
            xtc_special_tokens: Vec::new(),
            mirostat: None,
        }
    }
}

impl WarperConfig {
    /// The chain these settings describe.
    ///
    /// # Errors
    /// When a setting is outside its range; the message names it.
    pub fn chain(&self) -> Result<SamplerChain> {
        let n = self.min_tokens_to_keep;
        let temperature = self.temperature()?;
        let top_h = self.top_h.map(TopH::new).transpose()?.map(Warper::TopH);
        let top_k = match self.top_k {
            None | Some(0) => None,
            Some(k) => Some(Warper::TopK(TopK::new(k)?.min_tokens_to_keep(n)?)),
        };
        let top_p = match self.top_p {
            None | Some(1.0) => None,
            Some(p) => Some(Warper::TopP(TopP::new(p)?.min_tokens_to_keep(n)?)),
        };
        let min_p = match self.min_p {
            None => None,
            Some(p) => Some(Warper::MinP(MinP::new(p)?.min_tokens_to_keep(n)?)),
        };
        let typical = match self.typical_p {
            None | Some(1.0) => None,
            Some(mass) => Some(Warper::Typical(Typical::new(mass)?.min_tokens_to_keep(n)?)),
        };
        let epsilon = match self.epsilon_cutoff {
            None | Some(0.0) => None,
            Some(epsilon) => {
                Some(Warper::Epsilon(EpsilonCutoff::new(epsilon)?.min_tokens_to_keep(n)?))
            }
        };
        let eta = match self.eta_cutoff {
            None | Some(0.0) => None,
            Some(epsilon) => Some(Warper::Eta(EtaCutoff::new(epsilon)?.min_tokens_to_keep(n)?)),
        };
        let top_n_sigma = match self.top_n_sigma {
            Some(n) if n > 0.0 || n.is_nan() => Some(Warper::TopNSigma(TopNSigma::new(n)?)),
            _ => None,
        };
        let xtc = self.xtc()?.map(Warper::Xtc);
        if let Some(mirostat) = self.mirostat {
            let mirostat = Some(Warper::Mirostat(mirostat));
            return SamplerChain::new([temperature, mirostat].into_iter().flatten().collect());
        }
        let order = match self.order {
            Order::Hf => {
                [temperature, top_h, top_k, top_p, min_p, typical, epsilon, eta, top_n_sigma, xtc]
            }
            Order::MlxLm => {
                [top_p, min_p, typical, epsilon, eta, top_h, top_n_sigma, xtc, top_k, temperature]
            }
            Order::LlamaCpp => {
                [top_n_sigma, top_k, typical, top_p, min_p, epsilon, eta, top_h, xtc, temperature]
            }
        };
        SamplerChain::new(order.into_iter().flatten().collect())
    }

    fn temperature(&self) -> Result<Option<Warper>> {
        let temperature = self.temperature.unwrap_or(1.0);
        match self.dynatemp_range {
            None | Some(0.0) if temperature == 1.0 => Ok(None),
            None | Some(0.0) => Ok(Some(Warper::Temperature(Temperature::new(temperature)?))),
            Some(range) => {
                let exponent = self.dynatemp_exponent.unwrap_or(1.0);
                let warper = DynamicTemperature::new(temperature, range, exponent)?;
                Ok(Some(Warper::DynamicTemperature(warper)))
            }
        }
    }

    fn xtc(&self) -> Result<Option<Xtc>> {
        match self.xtc_probability {
            None | Some(0.0) => Ok(None),
            Some(probability) => {
                let threshold = self.xtc_threshold.unwrap_or(0.1);
                let xtc = Xtc::new(probability, threshold)?;
                let xtc = xtc.min_tokens_to_keep(self.min_tokens_to_keep)?;
                Ok(Some(xtc.spare(self.xtc_special_tokens.clone())))
            }
        }
    }
}
