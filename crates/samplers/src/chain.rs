//! Which warpers run, in which order: the settings of a sampler.

use std::sync::Arc;

use mlxgk_logits_processors::{Error, ErrorKind, LogitsProcessor, Result};

use crate::sampler::Sampler;
use crate::warpers::{
    Custom, CustomWarper, DynamicTemperature, EpsilonCutoff, EtaCutoff, MinP, Mirostat,
    Temperature, TopH, TopK, TopNSigma, TopP, Typical, Xtc,
};

/// One step of a [`SamplerChain`].
///
/// ```
/// use mlxgk_samplers::{MinP, SamplerChain, Temperature, Warper};
///
/// let chain = SamplerChain::new(vec![
///     Warper::MinP(MinP::new(0.05)?),
///     Warper::Temperature(Temperature::new(1.5)?),
/// ])?;
/// let names: Vec<_> = chain.warpers().iter().map(Warper::name).collect();
/// assert_eq!(names, ["MinPLogitsWarper", "TemperatureLogitsWarper"]);
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
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
    /// A caller's own; see [`CustomWarper`].
    Custom(Custom),
}

impl Warper {
    /// A caller's own warper as a step of a chain.
    pub fn custom(warper: impl CustomWarper + 'static) -> Self {
        Self::Custom(Custom::new(warper))
    }

    /// Its name: HF's class where HF has it.
    ///
    /// ```
    /// use mlxgk_samplers::{TopK, Warper};
    ///
    /// assert_eq!(Warper::TopK(TopK::new(2)?).name(), "TopKLogitsWarper");
    /// # Ok::<(), mlxgk_samplers::Error>(())
    /// ```
    pub fn name(&self) -> &str {
        match self {
            Self::Temperature(it) => it.name(),
            Self::DynamicTemperature(it) => it.name(),
            Self::TopH(it) => it.name(),
            Self::TopK(it) => it.name(),
            Self::TopP(it) => it.name(),
            Self::MinP(it) => it.name(),
            Self::Typical(it) => it.name(),
            Self::Epsilon(it) => it.name(),
            Self::Eta(it) => it.name(),
            Self::TopNSigma(it) => it.name(),
            Self::Xtc(_) => "Xtc",
            Self::Mirostat(_) => "Mirostat",
            Self::Custom(it) => it.name(),
        }
    }
}

/// Warpers in the order of application; without any, a plain multinomial draw.
///
/// These are settings: immutable, cheap to clone, shared by threads and rows. A
/// [`Sampler`] applies them.
///
/// ```
/// use mlxgk_samplers::{SamplerChain, Temperature, TopK, Warper};
///
/// let chain = SamplerChain::new(vec![
///     Warper::Temperature(Temperature::new(0.7)?),
///     Warper::TopK(TopK::new(2)?),
/// ])?;
/// assert_eq!(chain.warpers().len(), 2);
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SamplerChain {
    warpers: Arc<[Warper]>,
}

impl SamplerChain {
    /// A chain of the given warpers.
    ///
    /// # Errors
    /// When Mirostat is not the last of them: it learns from the draw that follows it.
    pub fn new(warpers: Vec<Warper>) -> Result<Self> {
        let early = warpers.iter().rev().skip(1).any(|it| matches!(it, Warper::Mirostat(_)));
        if early {
            let rule = "the last warper, since it learns from the draw";
            let message = format!("`mirostat` must be {rule}, but another follows it");
            return Err(Error::about("mirostat", ErrorKind::Parameter, message));
        }
        Ok(Self { warpers: warpers.into() })
    }

    /// The warpers, in order.
    pub fn warpers(&self) -> &[Warper] {
        &self.warpers
    }

    /// What applies the chain, with the buffers that this takes: one per thread.
    pub fn sampler(&self) -> Sampler {
        Sampler::new(self.clone())
    }
}
