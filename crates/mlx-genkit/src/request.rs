//! What a caller asks for.

use mlxgk_generation_config::{GenerationConfig, GenerationMode, Kwargs, Sources};
use mlxgk_logits_processors::LogitsProcessor;
use mlxgk_mlx_models::ResidualHook;

use crate::{Model, Prompt, Result};

/// Where the random numbers of a sampled request come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seed {
    /// torch's CPU generator: the tokens that HF gives after `torch.manual_seed`.
    Torch(u64),
    /// A fast generator with a stream per row, so that a row does not depend on its neighbours.
    Fast(u64),
}

impl Seed {
    /// A fast stream that differs from run to run.
    pub fn random() -> Self {
        Self::Fast(rand::random())
    }
}

/// Prompts to continue, and how.
///
/// Fields of the configuration are merged as in HF: [`overrides`](Self::overrides), then
/// [`config`](Self::config), then the model's own, then HF's defaults.
pub struct Request<'a> {
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) overrides: Kwargs,
    pub(crate) config: GenerationConfig,
    pub(crate) processors: Vec<Box<dyn LogitsProcessor>>,
    pub(crate) seed: Seed,
    pub(crate) hook: Option<&'a mut dyn ResidualHook>,
}

impl<'a> Request<'a> {
    /// A request for one prompt, with the model's own settings and a random seed.
    pub fn new(prompt: impl Into<Prompt>) -> Self {
        Self::batch([prompt.into()])
    }

    /// A request for several prompts, which run as one left-padded batch.
    pub fn batch(prompts: impl IntoIterator<Item = Prompt>) -> Self {
        Self {
            prompts: prompts.into_iter().collect(),
            overrides: Kwargs::from(GenerationConfig::default()),
            config: GenerationConfig::default(),
            processors: Vec::new(),
            seed: Seed::random(),
            hook: None,
        }
    }

    /// The strategy that the fields ask for, once they are merged with the model's own.
    ///
    /// # Errors
    /// When the fields cannot be merged.
    pub fn mode(&self, model: &Model) -> Result<GenerationMode> {
        let (kwargs, passed) = (&self.overrides, &self.config);
        let sources = Sources { kwargs, passed, model: model.generation_config() };
        Ok(sources.merge()?.config.generation_mode(false))
    }

    /// The configuration: HF's `generation_config` argument.
    #[must_use]
    pub fn config(self, config: GenerationConfig) -> Self {
        Self { config, ..self }
    }

    /// Fields that win over the configuration: HF's keyword arguments.
    #[must_use]
    pub fn overrides(self, overrides: impl Into<Kwargs>) -> Self {
        Self { overrides: overrides.into(), ..self }
    }

    /// Processors of the caller's own: HF's `logits_processor` argument.
    ///
    /// One with the name of a processor that the configuration asks for takes its place; the others
    /// stand before the warpers.
    ///
    /// ```
    /// use mlx_genkit::{
    ///     ComputeDtype, Model, Request, generate,
    ///     logits_processors::{Context, Error, LogitsProcessor},
    /// };
    ///
    /// #[derive(Debug)]
    /// struct OnlyToken(usize);
    ///
    /// impl LogitsProcessor for OnlyToken {
    ///     fn name(&self) -> &'static str {
    ///         "OnlyToken"
    ///     }
    ///
    ///     fn process(&self, _: &Context<'_>, scores: &mut [f32]) -> Result<(), Error> {
    ///         for (id, score) in scores.iter_mut().enumerate() {
    ///             if id != self.0 {
    ///                 *score = f32::NEG_INFINITY;
    ///             }
    ///         }
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let model = Model::bundled(ComputeDtype::Auto)?;
    /// let request = Request::new(vec![5, 6]).processors(vec![Box::new(OnlyToken(42))]);
    /// let sequence = &generate(&model, request)?.sequences[0];
    /// assert_eq!(sequence.tokens, [42; 20]);
    /// # Ok::<(), mlx_genkit::Error>(())
    /// ```
    #[must_use]
    pub fn processors(self, processors: Vec<Box<dyn LogitsProcessor>>) -> Self {
        Self { processors, ..self }
    }

    /// The random stream.
    #[must_use]
    pub fn seed(self, seed: Seed) -> Self {
        Self { seed, ..self }
    }

    /// A hook on the residual stream, called in every forward pass.
    #[must_use]
    pub fn hook(self, hook: &'a mut dyn ResidualHook) -> Self {
        Self { hook: Some(hook), ..self }
    }
}

impl std::fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("prompts", &self.prompts)
            .field("overrides", &self.overrides)
            .field("config", &self.config)
            .field("processors", &self.processors)
            .field("seed", &self.seed)
            .field("hook", &self.hook.is_some())
            .finish()
    }
}
