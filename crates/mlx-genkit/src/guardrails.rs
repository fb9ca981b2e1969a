//! Guardrails as part of a request: what looks degenerate, or is the unsteered answer, is drawn once more.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use mlxgk_decoding_strategies::{FinishReason, StoppingCriterion};
use mlxgk_kv_cache::KvCache;
use mlxgk_logits_processors::{Context, LogitsProcessor, Result as Processed};
use mlxgk_mlx_models::SharedHook;
use mlxgk_samplers::Seed;
use mlxgk_steering::Guard;

use crate::{AssistedRequest, Error, ErrorKind, Generation, Model, Request, Result, Sequence};

/// Has sequences drawn a second time that look degenerate (LaTeX-like tokens, long runs of digits, control
/// characters, loops: [`suspicions`](mlxgk_steering::suspicions)) or equal the unsteered ones. The second
/// draw stands, whatever it is; [`Sequence::verdict`] says what happened.
///
/// Where nothing is drawn, a second run would say the same: sequences are then looked at only.
///
/// ```
/// use mlx_genkit::{ComputeDtype, GenerationConfig, Guardrails, Model, Request, Seed};
///
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// let config = GenerationConfig { do_sample: Some(true), ..Default::default() };
/// let request = || Request::new("The sea is").config(config.clone()).seed(Seed::Fast(1));
/// let first = model.generate(request())?.sequences[0].tokens.clone();
/// // Another answer is wanted than that one.
/// let guardrails = Guardrails::new().differing_from([first.clone()]);
/// let sequence = &model.generate(request().guardrails(guardrails))?.sequences[0];
/// assert_ne!(sequence.tokens, first);
/// assert!(sequence.verdict.as_ref().unwrap().resampled.is_some());
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guardrails {
    base: Option<Vec<Vec<u32>>>,
    seed: Option<Seed>,
}

impl Guardrails {
    /// Looks at each sequence, and draws those once more that look degenerate.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Draws those once more, too, that are the same tokens as theirs in `base`: the unsteered answers, in the
    /// order of [`Generation::sequences`].
    #[must_use]
    pub fn differing_from(self, base: impl IntoIterator<Item = Vec<u32>>) -> Self {
        Self { base: Some(base.into_iter().collect()), ..self }
    }

    /// The random stream of the second draw; without, it follows from the request's.
    #[must_use]
    pub fn seed(self, seed: Seed) -> Self {
        Self { seed: Some(seed), ..self }
    }
}

/// Serves a request under its guardrails. The cache is that of the last run, where there is one to resume.
pub(crate) fn run<'a>(
    model: &'a Model,
    request: AssistedRequest<'a>,
    guardrails: &Guardrails,
) -> Result<(Generation, Option<KvCache>)> {
    let mut parts = Parts::new(request);
    let whole = model.plan(parts.request(None))?;
    let copies = whole.resolved.num_return_sequences;
    let count = whole.prompts.len() * copies;
    let resamples = whole.resolved.config.do_sample == Some(true);
    let base = guardrails.base.as_ref();
    let base: Option<Vec<&[u32]>> = base.map(|it| it.iter().map(Vec::as_slice).collect());
    if let Some(base) = base.as_ref().filter(|it| it.len() != count) {
        let found = base.len();
        let what = format!("{found} sequences to differ from for {count} that are asked for");
        return Err(Error::new(ErrorKind::Request, what));
    }
    let (Seed::Torch(seed) | Seed::Fast(seed)) = parts.seed;
    let guard = Guard { seed, resamples, base: base.as_deref() };
    let (mut whole, mut last) = (Some(whole), None);
    let answers = guard.draw(
        count,
        |it: &Sequence| (&it.text, &it.tokens),
        |asked, seed| {
            let prompts: Vec<usize> =
                asked.iter().map(|it| it / copies).collect::<BTreeSet<_>>().into_iter().collect();
            let plan = match whole.take() {
                Some(plan) => plan,
                None => {
                    parts.seed = guardrails.seed.unwrap_or(match parts.seed {
                        Seed::Torch(_) => Seed::Torch(seed),
                        Seed::Fast(_) => Seed::Fast(seed),
                    });
                    model.plan(parts.request(Some(&prompts)))?
                }
            };
            let (mut generation, cache) = plan.run()?;
            let drawn = std::mem::take(&mut generation.sequences).into_iter().enumerate();
            let drawn = drawn.filter_map(|(at, mut sequence)| {
                sequence.prompt_index = prompts[at / copies];
                let index = sequence.prompt_index * copies + at % copies;
                asked.contains(&index).then_some(sequence)
            });
            let drawn = drawn.collect();
            last = Some(match last.take() {
                None => (generation, cache),
                Some((first, _)) => (first_and_second(first, &generation), cache),
            });
            Ok::<_, Error>(drawn)
        },
    )?;
    let Some((mut generation, cache)) = last else {
        return Err(Error::new(ErrorKind::Request, "there is no prompt"));
    };
    generation.sequences = answers
        .into_iter()
        .map(|it| {
            let (mut sequence, verdict) = it.split();
            sequence.verdict = Some(verdict);
            sequence
        })
        .collect();
    Ok((generation, cache))
}

/// What the first run says, with the time of both.
fn first_and_second(mut first: Generation, second: &Generation) -> Generation {
    first.prefill += second.prefill;
    first.decode += second.decode;
    first
}

/// A request of which several can be made: what cannot be cloned is shared.
struct Parts<'a> {
    request: AssistedRequest<'a>,
    seed: Seed,
    hook: Option<SharedHook<'a>>,
    processors: Vec<Arc<dyn LogitsProcessor>>,
    criteria: Vec<Criterion>,
}

impl<'a> Parts<'a> {
    fn new(mut request: AssistedRequest<'a>) -> Self {
        let it = &mut request.request;
        let hook = it.hook.take().map(|it| Arc::new(Mutex::new(it)) as SharedHook<'a>);
        let processors = std::mem::take(&mut it.processors).into_iter().map(Arc::from).collect();
        let criteria = std::mem::take(&mut it.criteria);
        let criteria = criteria.into_iter().map(|it| Criterion(Arc::new(Mutex::new(it))));
        Self { seed: it.seed, hook, processors, criteria: criteria.collect(), request }
    }

    /// The request for all prompts, or for some of them, by index.
    fn request(&self, prompts: Option<&[usize]>) -> AssistedRequest<'a> {
        let AssistedRequest { request: it, assistant } = &self.request;
        let boxed = |it: &Arc<dyn LogitsProcessor>| {
            Box::new(Processor(Arc::clone(it))) as Box<dyn LogitsProcessor>
        };
        let chosen = |all: &[crate::Prompt]| match prompts {
            Some(prompts) if all.len() == it.prompts.len() => {
                prompts.iter().map(|&at| all[at].clone()).collect()
            }
            _ => all.to_vec(),
        };
        let criterion = |it: &Criterion| Box::new(it.clone()) as Box<dyn StoppingCriterion>;
        let request = Request {
            prompts: chosen(&it.prompts),
            overrides: it.overrides.clone(),
            config: it.config.clone(),
            processors: self.processors.iter().map(boxed).collect(),
            seed: self.seed,
            hook: self.hook.clone().map(|it| Box::new(it) as _),
            steering: it.steering.clone(),
            adapters: match prompts {
                Some(prompts) if it.adapters.len() == it.prompts.len() => {
                    prompts.iter().map(|&at| it.adapters[at].clone()).collect()
                }
                _ => it.adapters.clone(),
            },
            criteria: self.criteria.iter().map(criterion).collect(),
            negative_prompts: chosen(&it.negative_prompts),
            cache: it.cache.as_ref().map(KvCache::fork),
            soft_prompt: it.soft_prompt.clone(),
            prefixes: it.prefixes.clone(),
            trim_stop: it.trim_stop,
            shown: it.shown.clone(),
            logprobs: it.logprobs,
            hidden_states: it.hidden_states.clone(),
            attentions: it.attentions.clone(),
            guardrails: None,
            choose_on_device: it.choose_on_device,
        };
        AssistedRequest { request, assistant: assistant.clone() }
    }
}

/// A processor that serves both draws.
#[derive(Debug)]
struct Processor(Arc<dyn LogitsProcessor>);

impl LogitsProcessor for Processor {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn stage(&self) -> mlxgk_logits_processors::Stage {
        self.0.stage()
    }

    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Processed<()> {
        self.0.process(context, scores)
    }

    fn process_rows(&self, rows: &mut [mlxgk_logits_processors::Row<'_>]) -> Processed<()> {
        self.0.process_rows(rows)
    }

    fn forced_tokens(&self, context: &Context<'_>) -> Processed<Vec<u32>> {
        self.0.forced_tokens(context)
    }
}

/// A criterion that serves both draws.
#[derive(Clone)]
struct Criterion(Arc<Mutex<Box<dyn StoppingCriterion>>>);

impl StoppingCriterion for Criterion {
    fn ends(&mut self, context: &Context<'_>) -> Processed<Option<FinishReason>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ends(context)
    }
}
