//! What only the model's inside tells: where it looks, and what it would have said.

use std::ops::Range;

use mlx_genkit::{
    Error, ErrorKind, GenerationConfig, Model, NoHook, Request, Result,
    kv_cache::{KvCache, LayerSpec},
};
use mlx_rs::{Array, ops::logsumexp_axis};

use crate::{
    Example,
    thread::Thread,
    transcript::{Source, term_tokens},
};

/// Tokens whose distributions, or attention weights, are held at a time.
const CHUNK: usize = 32;

/// What the model's inside tells of an output.
///
/// ```
/// use mlx_genkit::{ComputeDtype, Model};
/// use mlxgk_isolation::{Condition, Example, Options, TurnFormat, run};
///
/// # let kitchen = r#"{
/// #     "id": "kitchen",
/// #     "semantic_clusters": {
/// #         "cluster_1": {"task_type": "cooking", "terminology": ["oven", "dough"]},
/// #         "cluster_2": {"task_type": "accounts", "terminology": ["rent", "budget"]},
/// #         "cluster_3": {"task_type": "synthesis"}
/// #     },
/// #     "turns": [
/// #         {"turn_id": 1, "cluster": 1, "content": "The oven is new."},
/// #         {"turn_id": 2, "cluster": 2, "content": "The rent goes up in May."},
/// #         {"turn_id": 3, "cluster": 3, "query": "Can we go on baking?"}
/// #     ]
/// # }"#;
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// let mut options = Options::new(TurnFormat::of(&model));
/// options.conditions = vec![Condition::Sequential, Condition::Semantic];
/// options.internals = true;
/// options.config.max_new_tokens = Some(2);
/// let examples = [Example::from_json(kitchen)?];
/// let report = run(&model, &examples, &options, |_| ())?;
/// let [sequential, semantic] = &report.examples[0].conditions[..] else { panic!("two were run") };
/// let attention = |it: &mlxgk_isolation::ConditionResult| {
///     it.outputs[0].internals.as_ref().and_then(|it| it.attention).unwrap()
/// };
/// // In a cache of its own a cluster cannot look at another's turns.
/// assert!(attention(sequential).other > 0.0 && attention(semantic).other == 0.0);
/// assert!(semantic.outputs[0].internals.as_ref().unwrap().kl > Some(0.0));
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Internals {
    /// What the tokens of the output were chosen by looking at; `None` where attention is not to be seen.
    pub attention: Option<AttentionShare>,
    /// KL(here ‖ sequential) per token of the output, in nats: how far the next-token distributions are from
    /// those behind a cache with all turns, with the same messages and prompt. `None` for the sequential
    /// condition, and where it was not run before.
    pub kl: Option<f64>,
    /// The mean log-probability per token of the other specialists' terms as the output's beginning, in nats;
    /// `None` where they have none.
    pub term_logprob: Option<f64>,
}

/// Attention by what it falls on, averaged over layers, heads and the output's tokens. The sum is 1, or less in
/// models with attention sinks.
///
/// See the example of [`Internals`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct AttentionShare {
    /// The cluster's own turns, and the model's answers to them.
    pub own: f64,
    /// Turns and answers of other clusters.
    pub other: f64,
    /// Outputs that were handed on.
    pub messages: f64,
    /// All else: what all are told, the prompt, the words of the template, the output itself.
    pub rest: f64,
}

/// Looks into a model.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    model: &'a Model,
    /// The layers whose attention is seen; empty where it is not to be seen.
    layers: Vec<usize>,
    /// What could not be looked at, and why.
    pub(crate) notes: Vec<String>,
}

impl<'a> Reader<'a> {
    /// Tries whether attention can be seen.
    pub(crate) fn new(model: &'a Model) -> Result<Self> {
        let has_attention = |it: &usize| model.decoder().layers()[*it] != LayerSpec::State;
        let layers: Vec<usize> =
            (0..model.decoder().layers().len()).filter(has_attention).collect();
        let request = Request::new([0_u32, 0]).config(greedy()).attentions(layers.iter().copied());
        match model.generate(request) {
            Ok(_) => Ok(Self { model, layers, notes: Vec::new() }),
            Err(e) if e.kind() == ErrorKind::Request => {
                let notes = vec![format!("attention was not measured: {e}")];
                Ok(Self { model, layers: Vec::new(), notes })
            }
            Err(e) => Err(e),
        }
    }

    /// Reads an output again behind the text it was written behind, and behind `other`.
    pub(crate) fn read(
        &self,
        (example, labels, cluster): (&Example, &[usize], usize),
        context: &Thread<'_>,
        output: &[u32],
        other: Option<&Thread<'_>>,
    ) -> Result<Internals> {
        let Some((_, fed)) = output.split_last() else {
            return Ok(Internals { attention: None, kl: None, term_logprob: None });
        };
        let here = Behind::new(self.model, context)?;
        let sources = sources(context, labels, cluster);
        let attention = match &self.layers[..] {
            [] => None,
            layers => Some(here.attention(self.model, fed, layers, &sources)?),
        };
        let kl = match other {
            None => None,
            Some(other) => Some(here.kl(self.model, fed, Behind::new(self.model, other)?)?),
        };
        let terms = other_terms(example, cluster);
        let term_logprob = match terms.is_empty() {
            true => None,
            false => Some(here.term_logprob(self.model, &terms)?),
        };
        Ok(Internals { attention, kl, term_logprob })
    }
}

/// The terms of the specialists other than this cluster.
fn other_terms(example: &Example, cluster: usize) -> Vec<&str> {
    let others = example.specialists().into_iter().filter(|it| *it != cluster);
    others.flat_map(|it| &example.clusters[it].terms).map(String::as_str).collect()
}

/// What attention can fall on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Own,
    Other,
    Message,
}

/// The stretches of a text that turns and messages take up.
fn sources(context: &Thread<'_>, labels: &[usize], cluster: usize) -> Vec<(Kind, Range<usize>)> {
    let segments = context.transcript.segments.iter();
    let found = segments.filter_map(|(source, range)| {
        let kind = match *source {
            Source::Turn(at) | Source::Answer(at) if labels[at] == cluster => Kind::Own,
            Source::Turn(_) | Source::Answer(_) => Kind::Other,
            Source::Message(_) => Kind::Message,
            _ => return None,
        };
        Some((kind, range.clone()))
    });
    found.collect()
}

/// A text whose last token was not fed yet.
struct Behind {
    tokens: Vec<u32>,
    /// Holds all tokens but the last.
    cache: KvCache,
}

impl Behind {
    fn new(model: &Model, thread: &Thread<'_>) -> Result<Self> {
        let tokens = thread.transcript.tokens.clone();
        let most = &tokens[..tokens.len().saturating_sub(1)];
        let request = Request::new(most).config(thread.config().clone());
        let request = match &thread.cache {
            Some(cache) => request.cache(cache.fork()),
            None => request,
        };
        let cache = model.read(request)?;
        Ok(Self { tokens, cache })
    }

    /// The text's last token, and those that follow it.
    fn after_last(&self, fed: &[u32]) -> Vec<u32> {
        self.tokens.last().into_iter().chain(fed).copied().collect()
    }

    fn attention(
        &self,
        model: &Model,
        fed: &[u32],
        layers: &[usize],
        sources: &[(Kind, Range<usize>)],
    ) -> Result<AttentionShare> {
        let mut share = AttentionShare::default();
        let mut rows = 0.0;
        let all = [&self.tokens, fed].concat();
        let mut cache = self.cache.fork();
        while cache.len() < all.len() {
            let part = &all[..all.len().min(cache.len() + CHUNK)];
            let request = Request::new(part).config(greedy()).cache(cache.fork());
            let generation = model.generate(request.attentions(layers.iter().copied()))?;
            let attentions = generation.sequences.first().and_then(|it| it.attentions.as_ref());
            for weights in attentions.iter().flat_map(|it| &it.steps[..1]).flatten() {
                for head in 0..weights.heads {
                    for position in 0..weights.positions {
                        let Some(row) = weights.row(head, position) else { continue };
                        share.add(row, sources);
                        rows += 1.0;
                    }
                }
            }
            cache = model.read(Request::new(part).config(greedy()).cache(cache))?;
        }
        Ok(share.over(rows))
    }

    fn kl(&self, model: &Model, fed: &[u32], other: Self) -> Result<f64> {
        let (here, there) = (self.after_last(fed), other.after_last(fed));
        let (mut own, mut others) = (self.cache.fork(), other.cache);
        let mut sum = 0.0;
        for (a, b) in here.chunks(CHUNK).zip(there.chunks(CHUNK)) {
            let (p, q) = (logprobs(model, a, &mut own)?, logprobs(model, b, &mut others)?);
            sum += item(&p.exp()?.multiply(p.subtract(q)?)?.sum(false)?)?;
        }
        Ok(sum / here.len() as f64)
    }

    fn term_logprob(&self, model: &Model, terms: &[&str]) -> Result<f64> {
        let mut cache = self.cache.fork();
        let mark = cache.mark();
        let mut sum = 0.0;
        for term in terms {
            let term = term_tokens(model, term)?;
            let fed = self.after_last(&term[..term.len().saturating_sub(1)]);
            let logprobs = logprobs(model, &fed, &mut cache)?;
            let ids = Array::from_slice(&term, &[1, term.len() as i32, 1]);
            sum += item(&logprobs.take_along_axis(&ids, -1)?.mean(false)?)?;
            cache.roll_back_to(&mark)?;
        }
        Ok(sum / terms.len() as f64)
    }
}

impl AttentionShare {
    /// Adds what one head of one position gives to each column.
    fn add(&mut self, row: &[f32], sources: &[(Kind, Range<usize>)]) {
        let sum = |row: &[f32]| row.iter().map(|&it| f64::from(it)).sum::<f64>();
        let mut rest = sum(row);
        for (kind, range) in sources {
            let mass = row.get(range.clone()).map_or(0.0, sum);
            rest -= mass;
            match kind {
                Kind::Own => self.own += mass,
                Kind::Other => self.other += mass,
                Kind::Message => self.messages += mass,
            }
        }
        self.rest += rest;
    }

    fn over(self, rows: f64) -> Self {
        let Self { own, other, messages, rest } = self;
        let [own, other, messages, rest] = [own, other, messages, rest].map(|it| it / rows);
        Self { own, other, messages, rest }
    }
}

/// Log-probabilities of whatever could follow each of the tokens, fp32 `[1, tokens, vocabulary]`.
fn logprobs(model: &Model, tokens: &[u32], cache: &mut KvCache) -> Result<Array> {
    let logits = model.decoder().forward(&[tokens], cache, &mut NoHook)?;
    let sum = logsumexp_axis(&logits, -1, true)?;
    Ok(logits.subtract(sum)?)
}

fn item(array: &Array) -> Result<f64> {
    let value = array.try_item_exact::<f32>();
    value.map(f64::from).map_err(|e| Error::new(ErrorKind::Run, e.to_string()))
}

/// One token, whatever the model's own configuration says.
fn greedy() -> GenerationConfig {
    GenerationConfig {
        max_new_tokens: Some(1),
        do_sample: Some(false),
        ..GenerationConfig::default()
    }
}
