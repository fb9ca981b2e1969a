//! What a caller asks for.

use std::sync::Arc;

use mlx_rs::Array;
use mlxgk_decoding_strategies::StoppingCriterion;
use mlxgk_generation_config::{GenerationConfig, Kwargs};
use mlxgk_kv_cache::{KvCache, PrefixStore};
use mlxgk_logits_processors::LogitsProcessor;
use mlxgk_mlx_models::{AdapterChoice, ResidualHook};
use mlxgk_samplers::Seed;
use mlxgk_steering::Steering;
use mlxgk_training::SoftPrompt;

use crate::{Assistant, Guardrails, Prompt};

/// Prompts to continue, and how.
///
/// Fields of the configuration are merged as in HF: [`overrides`](Self::overrides), then
/// [`config`](Self::config), then the model's own, then HF's defaults.
///
/// ```
/// use mlx_genkit::{ComputeDtype, GenerationConfig, Model, Request, Seed};
///
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// let config = GenerationConfig { do_sample: Some(true), ..Default::default() };
/// let shorter = GenerationConfig { max_new_tokens: Some(5), ..Default::default() };
/// let request = || Request::new("The sea is").config(config.clone()).seed(Seed::Torch(7));
/// let sequence = model.generate(request().overrides(shorter))?.sequences.remove(0);
/// assert_eq!(sequence.tokens.len(), 5);
/// // The same seed draws the same tokens.
/// assert_eq!(model.generate(request())?.sequences[0].tokens[..5], sequence.tokens);
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
pub struct Request<'a> {
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) overrides: Kwargs,
    pub(crate) config: GenerationConfig,
    pub(crate) processors: Vec<Box<dyn LogitsProcessor>>,
    pub(crate) seed: Seed,
    pub(crate) hook: Option<Box<dyn ResidualHook + 'a>>,
    pub(crate) steering: Option<Arc<Steering>>,
    pub(crate) adapters: Vec<AdapterChoice>,
    pub(crate) criteria: Vec<Box<dyn StoppingCriterion>>,
    pub(crate) negative_prompts: Vec<Prompt>,
    pub(crate) cache: Option<KvCache>,
    pub(crate) soft_prompt: Option<Array>,
    pub(crate) prefixes: Option<PrefixStore>,
    pub(crate) trim_stop: bool,
    pub(crate) shown: Vec<u32>,
    pub(crate) logprobs: Option<usize>,
    pub(crate) hidden_states: Option<Vec<usize>>,
    pub(crate) attentions: Option<Vec<usize>>,
    pub(crate) guardrails: Option<Guardrails>,
    pub(crate) choose_on_device: bool,
}

impl<'a> Request<'a> {
    /// How many sequences a request can have at most: far more than any machine runs at once. Beyond it lies
    /// nothing but a typing error and its allocations.
    pub const MAX_SEQUENCES: usize = 65_536;

    /// A request for one prompt, with the model's own settings and a random seed.
    pub fn new(prompt: impl Into<Prompt>) -> Self {
        Self::batch([prompt])
    }

    /// A request for several prompts, which run as one left-padded batch. Where memory is short for that,
    /// prompts in greedy decoding run a part at a time, with the same tokens; what else is too large is
    /// refused.
    pub fn batch(prompts: impl IntoIterator<Item = impl Into<Prompt>>) -> Self {
        Self {
            prompts: prompts.into_iter().map(Into::into).collect(),
            overrides: Kwargs::from(GenerationConfig::default()),
            config: GenerationConfig::default(),
            processors: Vec::new(),
            seed: Seed::random(),
            hook: None,
            steering: None,
            adapters: Vec::new(),
            criteria: Vec::new(),
            negative_prompts: Vec::new(),
            cache: None,
            soft_prompt: None,
            prefixes: None,
            trim_stop: false,
            shown: Vec::new(),
            logprobs: None,
            hidden_states: None,
            attentions: None,
            guardrails: None,
            choose_on_device: false,
        }
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
    /// precede the warpers.
    ///
    /// ```
    /// use mlx_genkit::{
    ///     ComputeDtype, Model, Request,
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
    /// let sequence = &model.generate(request)?.sequences[0];
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

    /// A hook on the residual stream, called in every forward pass. It knows rows by their
    /// [ids](mlxgk_kv_cache::RowId): prompt · `num_return_sequences` + sequence, the rows that guidance
    /// moves away from after them; with beams, the prompt's number. To look into it afterwards, hand in
    /// an `Arc<Mutex<..>>` of it, or a `&mut` where the request does not outlive it.
    ///
    /// ```
    /// use std::sync::{Arc, Mutex};
    ///
    /// use mlx_genkit::{ComputeDtype, HookPoint, Model, Recording, Request};
    ///
    /// let model = Model::bundled(ComputeDtype::Auto)?;
    /// let recording = Arc::new(Mutex::new(Recording::new([HookPoint::FinalNorm])));
    /// model.generate(Request::new("Once").hook(Arc::clone(&recording)))?;
    /// let states = recording.lock().unwrap().states(HookPoint::FinalNorm)?;
    /// assert_eq!(states.unwrap().dim(0), 1);
    /// # Ok::<(), mlx_genkit::Error>(())
    /// ```
    #[must_use]
    pub fn hook(self, hook: impl ResidualHook + 'a) -> Self {
        Self { hook: Some(Box::new(hook)), ..self }
    }

    /// Steers the residual stream; the [hook](Self::hook), where there is one too, sees it steered. One
    /// steering serves any number of requests at a time.
    #[must_use]
    pub fn steering(self, steering: impl Into<Arc<Steering>>) -> Self {
        Self { steering: Some(steering.into()), ..self }
    }

    /// Runs the prompts under an adapter that the model has [by name](crate::Model::load_named_adapter), or
    /// the sum of several.
    ///
    /// ```
    /// use mlx_genkit::{AdapterChoice, ComputeDtype, Model, Request};
    ///
    /// # use mlx_genkit::training::{
    /// #     AdapterFormat, LoraConfig, attach_lora, clear_adapters, save_adapter,
    /// # };
    /// # let mut model = Model::bundled(ComputeDtype::Auto)?;
    /// # attach_lora(model.decoder_mut(), &LoraConfig::default())?;
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let pirate = folder.path();
    /// # save_adapter(model.decoder(), pirate, AdapterFormat::Peft, "bundled")?;
    /// # clear_adapters(model.decoder_mut());
    /// # let robot = pirate;
    /// model.load_named_adapter("pirate", pirate)?;
    /// model.load_named_adapter("robot", robot)?;
    /// let both = AdapterChoice::from("pirate").and("robot", 0.5);
    /// let generation = model.generate(Request::new("How is the sea?").adapter(both))?;
    /// println!("{}", generation.sequences[0].text);
    /// assert!(model.generate(Request::new("How?").adapter("poet")).is_err()); // there is none
    /// # Ok::<(), mlx_genkit::Error>(())
    /// ```
    #[must_use]
    pub fn adapter(self, choice: impl Into<AdapterChoice>) -> Self {
        self.adapters([choice])
    }

    /// As [`adapter`](Self::adapter), each prompt under its own (PEFT's `adapter_names`), all in one batch;
    /// one alone is for all prompts.
    ///
    /// ```
    /// use mlx_genkit::{ComputeDtype, Model, Request};
    ///
    /// # use mlx_genkit::training::{
    /// #     AdapterFormat, LoraConfig, attach_lora, clear_adapters, save_adapter,
    /// # };
    /// # let mut model = Model::bundled(ComputeDtype::Auto)?;
    /// # attach_lora(model.decoder_mut(), &LoraConfig::default())?;
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let pirate = folder.path();
    /// # save_adapter(model.decoder(), pirate, AdapterFormat::Peft, "bundled")?;
    /// # clear_adapters(model.decoder_mut());
    /// # model.load_named_adapter("pirate", pirate)?;
    /// let request = Request::batch(["How is the sea?", "How is the sea?"]);
    /// let answers = model.generate(request.adapters([Some("pirate"), None]))?.sequences;
    /// assert_eq!(answers.len(), 2); // the first of the pirate, the second of the model alone
    /// # Ok::<(), mlx_genkit::Error>(())
    /// ```
    #[must_use]
    pub fn adapters(self, choices: impl IntoIterator<Item = impl Into<AdapterChoice>>) -> Self {
        Self { adapters: choices.into_iter().map(Into::into).collect(), ..self }
    }

    /// A draft model that guesses ahead (HF's `assistant_model`), for one prompt at a time. Called last:
    /// a draft model is borrowed, so that the outcome, unlike a request, stays on its thread.
    ///
    /// ```
    /// use mlx_genkit::{ComputeDtype, Model, Request};
    ///
    /// let model = Model::bundled(ComputeDtype::Auto)?;
    /// let alone = model.generate(Request::new("Once upon a time"))?;
    /// // A model that assists itself is of no use, but always right.
    /// let helped = model.generate(Request::new("Once upon a time").assistant(&model))?;
    /// assert_eq!(alone.sequences[0].tokens, helped.sequences[0].tokens);
    /// assert_eq!(helped.acceptance.and_then(|it| it.rate()), Some(1.0));
    /// # Ok::<(), mlx_genkit::Error>(())
    /// ```
    #[must_use]
    pub fn assistant(self, assistant: impl Into<Assistant<'a>>) -> AssistedRequest<'a> {
        AssistedRequest { request: self, assistant: Some(assistant.into()) }
    }

    /// A reason of the caller's own to end a sequence, asked after each token (HF's
    /// `stopping_criteria`); may be called several times.
    ///
    /// ```
    /// use mlx_genkit::{
    ///     ComputeDtype, FinishReason, Model, Request, logits_processors::Context,
    /// };
    ///
    /// let model = Model::bundled(ComputeDtype::Auto)?;
    /// let third = |context: &Context<'_>| context.generated().len() == 3;
    /// let sequence = &model.generate(Request::new("Once").stop_when(third))?.sequences[0];
    /// assert_eq!(sequence.tokens.len(), 3);
    /// assert_eq!(sequence.finish_reason, FinishReason::Criterion);
    /// # Ok::<(), mlx_genkit::Error>(())
    /// ```
    #[must_use]
    pub fn stop_when(mut self, criterion: impl StoppingCriterion + 'static) -> Self {
        self.criteria.push(Box::new(criterion));
        self
    }

    /// What `guidance_scale` moves away from (HF's `negative_prompt_ids`): one for all prompts, or
    /// one for each. Without, it is each prompt's last token.
    #[must_use]
    pub fn negative_prompts(self, prompts: impl IntoIterator<Item = impl Into<Prompt>>) -> Self {
        Self { negative_prompts: prompts.into_iter().map(Into::into).collect(), ..self }
    }

    /// A cache of earlier requests to the same model: as much of the prompt as it holds is not fed
    /// again. For one prompt and one sequence (see [`Abilities`](crate::Abilities)), and under the steering
    /// that filled it ([`KvCache::steering`]).
    /// [`TokenStream::finish_with_cache`](crate::TokenStream::finish_with_cache) gives it back.
    ///
    /// ```
    /// use mlx_genkit::{ComputeDtype, Model, Request};
    ///
    /// let model = Model::bundled(ComputeDtype::Auto)?;
    /// let mut cache = model.decoder().new_cache(1);
    /// for prompt in ["Once upon a time", "Once upon a time, in a land far away"] {
    ///     let mut stream = model.stream(Request::new(prompt).cache(cache))?;
    ///     stream.by_ref().try_for_each(|it| it.map(drop))?;
    ///     cache = stream.finish_with_cache()?.1;
    /// }
    /// # Ok::<(), mlx_genkit::Error>(())
    /// ```
    #[must_use]
    pub fn cache(self, cache: KvCache) -> Self {
        Self { cache: Some(cache), ..self }
    }

    /// Puts a soft prompt before each prompt: embeddings that were learned in place of words. The
    /// processors do not see it; the context has to hold it, too.
    ///
    /// ```
    /// use mlx_genkit::{ComputeDtype, Model, Request, training::SoftPrompt};
    ///
    /// let model = Model::bundled(ComputeDtype::Auto)?;
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let pirate = folder.path();
    /// # SoftPrompt::random(model.decoder(), 4, 7)?.save(pirate, "bundled")?;
    /// let pirate = SoftPrompt::load(pirate)?;
    /// let answer = model.generate(Request::new("How is the sea?").soft_prompt(&pirate))?;
    /// println!("{} virtual tokens: {}", pirate.len(), answer.sequences[0].text);
    /// # Ok::<(), mlx_genkit::Error>(())
    /// ```
    #[must_use]
    pub fn soft_prompt(self, soft_prompt: &SoftPrompt) -> Self {
        Self { soft_prompt: Some(soft_prompt.embeddings().clone()), ..self }
    }

    /// A store of what prompts have in common: what it holds of this one's beginning is not read again, and
    /// what it does not hold is given to it. One store serves any number of models and requests, steered
    /// or not; [salted](PrefixStore::salted) handles share nothing.
    ///
    /// It serves single prompts. Left unused it is where there are several, with guidance, a KL budget, hidden
    /// states or longrope, beside a [cache](Self::cache) or soft prompt, and where a [hook](Self::hook) has no name, which
    /// means that it looks on and has to see every token.
    ///
    /// ```
    /// use mlx_genkit::{ComputeDtype, Model, Request, kv_cache::PrefixStore};
    ///
    /// let model = Model::bundled(ComputeDtype::Auto)?;
    /// let store = PrefixStore::new(256 << 20);
    /// let manual: Vec<u32> = (0..600).map(|it| it % 2000 + 100).collect();
    /// let mut found = Vec::new();
    /// for question in [[7, 8], [9, 10]] {
    ///     let prompt = [&manual[..], &question].concat();
    ///     let generation = model.generate(Request::new(prompt).prefix_store(&store))?;
    ///     found.push(generation.cached_tokens);
    /// }
    /// assert_eq!(found, [0, 576]);
    /// # Ok::<(), mlx_genkit::Error>(())
    /// ```
    #[must_use]
    pub fn prefix_store(self, store: &PrefixStore) -> Self {
        Self { prefixes: Some(store.clone()), ..self }
    }

    /// Ends the text before the stop string. The tokens keep it, as in HF.
    #[must_use]
    pub fn trim_stop(self, trim: bool) -> Self {
        Self { trim_stop: trim, ..self }
    }

    /// Special tokens that are part of the texts all the same, such as one that begins a call of a tool.
    #[must_use]
    pub fn show_special(self, tokens: Vec<u32>) -> Self {
        Self { shown: tokens, ..self }
    }

    /// Has tokens chosen on the device where it can: greedily, or drawn behind temperature, top-k and top-p
    /// from a [`Seed::Fast`], for a request without processors, records, guidance and hooks. The next pass
    /// is then under way before the host has read the token. Elsewhere, in a [`Batch`](crate::Batch) and for
    /// models that need the token at once the host chooses, as it does by default. The tokens are the same
    /// but for rounding: a draw that falls within the rounding error of a cumulative sum may differ, and of
    /// equal scores at the cut of a top-p all are kept.
    ///
    /// ```
    /// use mlx_genkit::{ComputeDtype, Model, Request};
    ///
    /// let model = Model::bundled(ComputeDtype::Auto)?;
    /// let request = || Request::new("Once upon a time");
    /// let on_device = model.generate(request().choose_on_device(true))?;
    /// assert_eq!(on_device.sequences, model.generate(request())?.sequences);
    /// # Ok::<(), mlx_genkit::Error>(())
    /// ```
    #[must_use]
    pub fn choose_on_device(self, on_device: bool) -> Self {
        Self { choose_on_device: on_device, ..self }
    }

    /// Has sequences drawn once more that look degenerate or equal the unsteered ones
    /// ([`Guardrails`]). They are looked at as a whole, so that such a request is for
    /// [`Model::generate`](crate::Model::generate), and neither streams nor joins a [`Batch`](crate::Batch).
    /// Hook, processors and criteria serve both draws.
    #[must_use]
    pub fn guardrails(self, guardrails: Guardrails) -> Self {
        Self { guardrails: Some(guardrails), ..self }
    }

    /// Records the log-probability of each token, and of the `top` likeliest, under the model's own
    /// logits.
    #[must_use]
    pub fn logprobs(self, top: usize) -> Self {
        Self { logprobs: Some(top), ..self }
    }

    /// Records the residual stream after these layers (HF's `output_hidden_states`, which keeps all of
    /// them), numbered as in [`HiddenStates`](crate::HiddenStates). A layer takes four bytes per
    /// token and unit of the stream's width.
    ///
    /// ```
    /// use mlx_genkit::{ComputeDtype, Model, Request};
    ///
    /// let model = Model::bundled(ComputeDtype::Auto)?;
    /// let request = Request::new("Once upon a time").hidden_states([3]);
    /// let sequence = &model.generate(request)?.sequences[0];
    /// let hidden = sequence.hidden_states.as_ref().unwrap();
    /// assert_eq!(hidden.steps.len(), sequence.tokens.len());
    /// // The first token was chosen from the whole prompt, the next from one token more.
    /// assert_eq!(hidden.steps[0][0].len(), 4 * hidden.hidden_size);
    /// assert_eq!(hidden.steps[1][0].len(), hidden.hidden_size);
    /// # Ok::<(), mlx_genkit::Error>(())
    /// ```
    #[must_use]
    pub fn hidden_states(self, layers: impl IntoIterator<Item = usize>) -> Self {
        Self { hidden_states: Some(layers.into_iter().collect()), ..self }
    }

    /// Records the attention weights of these layers, counted from 0 (HF's `output_attentions`, which
    /// keeps those of all). They are computed apart from the attention itself, whose result stays the same,
    /// and a token takes four bytes per head and token before it.
    ///
    /// ```
    /// use mlx_genkit::{ComputeDtype, Model, Request};
    ///
    /// let model = Model::bundled(ComputeDtype::Auto)?;
    /// let request = Request::new("Once upon a time").attentions([0]);
    /// let sequence = &model.generate(request)?.sequences[0];
    /// let first = &sequence.attentions.as_ref().unwrap().steps[0][0];
    /// assert_eq!((first.positions, first.columns), (4, 4));
    /// // The first token sees nothing but itself.
    /// assert_eq!(first.row(0, 0).unwrap(), [1.0, 0.0, 0.0, 0.0]);
    /// # Ok::<(), mlx_genkit::Error>(())
    /// ```
    #[must_use]
    pub fn attentions(self, layers: impl IntoIterator<Item = usize>) -> Self {
        Self { attentions: Some(layers.into_iter().collect()), ..self }
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
            .finish_non_exhaustive()
    }
}

/// A request, and the draft model that helps with it, if any does: what a [`Model`](crate::Model) is
/// asked.
///
/// ```
/// use mlx_genkit::{AssistedRequest, ComputeDtype, Model, Request};
///
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// for assistant in [None, Some(&model)] {
///     let mut request = AssistedRequest::from(Request::new("Once upon a time"));
///     if let Some(assistant) = assistant {
///         request = request.assistant(assistant);
///     }
///     let generation = model.generate(request)?;
///     assert_eq!(generation.acceptance.is_some(), assistant.is_some());
/// }
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug)]
pub struct AssistedRequest<'a> {
    pub(crate) request: Request<'a>,
    pub(crate) assistant: Option<Assistant<'a>>,
}

impl<'a> AssistedRequest<'a> {
    /// As [`Request::guardrails`].
    #[must_use]
    pub fn guardrails(self, guardrails: Guardrails) -> Self {
        Self { request: self.request.guardrails(guardrails), ..self }
    }

    /// Lets this draft model help.
    #[must_use]
    pub fn assistant(self, assistant: impl Into<Assistant<'a>>) -> Self {
        Self { assistant: Some(assistant.into()), ..self }
    }
}

impl<'a> From<Request<'a>> for AssistedRequest<'a> {
    fn from(request: Request<'a>) -> Self {
        Self { request, assistant: None }
    }
}
