//! The experiment: every example under every condition.

use std::time::Duration;

use mlx_genkit::{GenerationConfig, Model, Result, steering::derive_seed};
use mlxgk_torch::SplitMix64;

use crate::{
    Condition, Example, Labels, Report, TurnFormat,
    example::refused,
    internals::{Internals, Reader},
    measure::{Outcome, measures},
    statistics::below,
    thread::{CacheSize, Said, Thread},
    transcript::Source,
};

/// What is run, and how.
///
/// ```
/// use mlxgk_isolation::{Condition, Labels, Options, TurnFormat};
///
/// let options = Options::new(TurnFormat::Raw);
/// assert_eq!(options.conditions, Condition::ALL);
/// assert_eq!((options.labels, options.seed), (Labels::Given, 0));
/// assert_eq!((options.config.temperature, options.config.top_p), (Some(0.7), Some(0.9)));
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// The conditions.
    pub conditions: Vec<Condition>,
    /// How turns become one text.
    pub format: TurnFormat,
    /// How turns are put into clusters.
    pub labels: Labels,
    /// What the random numbers of every output are derived from, with the example's place, the condition and
    /// the cluster.
    pub seed: u64,
    /// How outputs are drawn; one sequence each, without beams.
    pub config: GenerationConfig,
    /// Whether to look into the model, too: at attention, and at distributions over next tokens.
    pub internals: bool,
}

impl Options {
    /// All conditions, the labels given, seed 0, temperature 0.7 and top-p 0.9, 64 new tokens per output.
    pub fn new(format: TurnFormat) -> Self {
        Self {
            conditions: Condition::ALL.to_vec(),
            format,
            labels: Labels::Given,
            seed: 0,
            config: GenerationConfig {
                do_sample: Some(true),
                temperature: Some(0.7),
                top_p: Some(0.9),
                top_k: Some(0),
                max_new_tokens: Some(64),
                ..GenerationConfig::default()
            },
            internals: true,
        }
    }
}

/// How far a run is, in examples times conditions.
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
/// options.conditions = vec![Condition::Semantic, Condition::NoMessages];
/// options.config.max_new_tokens = Some(1);
/// let examples = [Example::from_json(kitchen)?];
/// let mut seen = Vec::new();
/// run(&model, &examples, &options, |it| seen.push((it.done, it.of)))?;
/// assert_eq!(seen, [(1, 2), (2, 2)]);
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Those done.
    pub done: usize,
    /// Those there are in all.
    pub of: usize,
}

/// What came of one example.
///
/// See the example of [`Report`](crate::Report).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ExampleResult {
    /// The example.
    pub example: Example,
    /// The cluster of each turn, as the run had them.
    pub labels: Vec<usize>,
    /// What came of each condition, in the order of the options.
    pub conditions: Vec<ConditionResult>,
}

/// What came of an example under one condition.
///
/// See the example of [`Report`](crate::Report).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ConditionResult {
    /// The condition.
    pub condition: Condition,
    /// Each cluster's output, in the order of the example.
    pub outputs: Vec<Output>,
    /// The caches that outputs were written from.
    pub caches: Vec<CacheSize>,
    /// Tokens read, each as often as it was.
    pub read_tokens: usize,
    /// Seconds in which they were read.
    pub prefill: f64,
    /// Seconds in which answers and outputs were written.
    pub decode: f64,
    /// What was measured.
    pub measures: crate::Values,
}

/// What the model wrote for a cluster.
///
/// See the example of [`Report`](crate::Report).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Output {
    /// Its output.
    pub said: Said,
    /// The model's answers to its turns before, with the turns' numbers.
    pub answers: Vec<(u64, Said)>,
    /// The output's perplexity as a text of its own; `None` for fewer than two tokens.
    pub perplexity: Option<f64>,
    /// What the model looked at; `None` where that was not asked for.
    pub internals: Option<Internals>,
}

impl Output {
    /// All that the cluster wrote.
    pub fn text(&self) -> String {
        let answers = self.answers.iter().map(|it| it.1.text.as_str());
        answers.chain([self.said.text.as_str()]).collect::<Vec<_>>().join("\n")
    }
}

/// Runs the experiment. `progress` is called after every condition of every example.
///
/// # Errors
/// When there is no example or condition, a text does not fit into the model's context, the labels cannot be had,
/// or the model fails.
pub fn run(
    model: &Model,
    examples: &[Example],
    options: &Options,
    mut progress: impl FnMut(Progress),
) -> Result<Report> {
    if examples.is_empty() {
        return Err(refused("there is no example to run"));
    }
    if options.conditions.is_empty() {
        return Err(refused("there is no condition to run"));
    }
    model.tokenizer()?;
    let reader = options.internals.then(|| Reader::new(model)).transpose()?;
    let mut results = Vec::with_capacity(examples.len());
    let of = examples.len() * options.conditions.len();
    for (at, example) in examples.iter().enumerate() {
        let within = |e: mlx_genkit::Error| {
            mlx_genkit::Error::new(e.kind(), format!("example {}: {e}", example.id))
        };
        let labels = options.labels.label(example, model)?;
        let seed = derive_seed(options.seed, at as u64);
        let run = Run { model, example, options, labels: &labels, seed, reader: reader.as_ref() };
        let mut unified = None;
        let mut conditions = Vec::with_capacity(options.conditions.len());
        for (index, &condition) in options.conditions.iter().enumerate() {
            let found = run.condition(condition, &mut unified).map_err(within)?;
            conditions.push(found);
            progress(Progress { done: at * options.conditions.len() + index + 1, of });
        }
        results.push(ExampleResult { example: example.clone(), labels, conditions });
    }
    let notes = reader.map(|it| it.notes).unwrap_or_default();
    Ok(Report::new(model.name().to_owned(), options, results, notes))
}

/// One example.
struct Run<'a> {
    model: &'a Model,
    example: &'a Example,
    options: &'a Options,
    /// What clusters the measures speak of.
    labels: &'a [usize],
    seed: u64,
    reader: Option<&'a Reader<'a>>,
}

/// An output in the making.
struct Written<'a> {
    said: Said,
    /// The text that it was written behind.
    context: Thread<'a>,
}

/// A condition in the making.
struct Making<'a> {
    condition: Condition,
    /// The cluster whose cache each turn goes into.
    partition: Vec<usize>,
    written: Vec<Option<Written<'a>>>,
    answers: Vec<Vec<(u64, Said)>>,
    caches: Vec<CacheSize>,
    read: usize,
    reading: Duration,
}

impl<'a> Making<'a> {
    /// Counts what a text has cost, at its end.
    fn settle(&mut self, thread: &Thread<'a>) {
        self.read += thread.read;
        self.reading += thread.reading;
    }
}

impl<'a> Run<'a> {
    /// `unified` keeps the text of the sequential condition for the others to be compared with.
    fn condition(
        &self,
        condition: Condition,
        unified: &mut Option<Thread<'a>>,
    ) -> Result<ConditionResult> {
        let partition = match condition {
            Condition::RandomPartition => self.shuffled(),
            _ => self.labels.to_vec(),
        };
        let count = self.example.clusters.len();
        let mut making = Making {
            condition,
            partition,
            written: (0..count).map(|_| None).collect(),
            answers: vec![Vec::new(); count],
            caches: Vec::new(),
            read: 0,
            reading: Duration::ZERO,
        };
        if condition.is_unified() {
            let thread = self.unified(&mut making)?;
            if condition == Condition::Sequential {
                *unified = Some(thread);
            }
        } else {
            self.partitioned(&mut making)?;
        }
        self.finish(making, unified.as_ref())
    }

    /// All turns in one text, from which every output is written.
    fn unified(&self, making: &mut Making<'a>) -> Result<Thread<'a>> {
        let mut thread = self.begun(true)?;
        if making.condition == Condition::Prompted {
            thread.say(Source::Instruction, "user", "", &self.instruction())?;
        }
        for turn in 0..self.example.turns.len() {
            self.turn(&mut thread, turn, making)?;
        }
        let name = match making.condition {
            Condition::Prompted => "unified_with_prompt",
            Condition::TurnMarked => "turn_marked",
            _ => "unified",
        };
        making.caches.extend(thread.size(name, &self.turn_ids()));
        making.settle(&thread);
        for &cluster in self.example.order() {
            let mut context = thread.fork();
            self.messages(&mut context, cluster, making)?;
            self.output(context, cluster, making)?;
        }
        Ok(thread)
    }

    /// A text for each cluster.
    fn partitioned(&self, making: &mut Making<'a>) -> Result<()> {
        let condition = making.condition;
        let resets = condition == Condition::TurnReset;
        let keeps_cache = condition != Condition::Reprefill;
        let shared = match condition {
            Condition::SharedPrefix => Some(self.begun(keeps_cache)?),
            _ => None,
        };
        if let Some(shared) = &shared {
            making.settle(shared);
        }
        let begun = || match &shared {
            Some(shared) => Ok(shared.fork()),
            None => self.begun(keeps_cache),
        };
        for &cluster in self.example.order() {
            let turns: Vec<usize> =
                (0..making.partition.len()).filter(|&it| making.partition[it] == cluster).collect();
            let mut thread = begun()?;
            if !resets && condition != Condition::NoMessages {
                self.messages(&mut thread, cluster, making)?;
            }
            for (index, &turn) in turns.iter().enumerate() {
                if resets && index > 0 {
                    making.settle(&thread);
                    // With the cache of the turn before.
                    drop(thread);
                    thread = begun()?;
                }
                self.turn(&mut thread, turn, making)?;
                if resets {
                    let id = self.example.turns[turn].id;
                    making.caches.extend(thread.size(&format!("turn_{id}"), &self.turn_ids()));
                }
            }
            if !resets {
                let name = &self.example.clusters[cluster].name;
                making.caches.extend(thread.size(name, &self.turn_ids()));
            }
            making.settle(&thread);
            let mut context = thread.fork();
            drop(thread);
            if resets {
                self.messages(&mut context, cluster, making)?;
            }
            self.output(context, cluster, making)?;
        }
        Ok(())
    }

    /// A text that begins with what all clusters are told.
    fn begun(&self, keeps_cache: bool) -> Result<Thread<'a>> {
        let options = self.options;
        let mut thread = Thread::new(self.model, &options.config, options.format, keeps_cache);
        if let Some(system) = &self.example.system {
            thread.say(Source::System, "system", "", system)?;
        }
        Ok(thread)
    }

    /// Says a turn, and lets the model answer where it is to.
    fn turn(&self, thread: &mut Thread<'a>, at: usize, making: &mut Making<'a>) -> Result<()> {
        let turn = &self.example.turns[at];
        let mark = match making.condition {
            Condition::TurnMarked => format!("=== Turn {} ===\n", turn.id),
            _ => String::new(),
        };
        thread.say(Source::Turn(at), &turn.role, &mark, &turn.text)?;
        if turn.answer {
            let said = thread.answer(at, self.seed_of(making.condition, 1, turn.id))?;
            making.answers[making.partition[at]].push((turn.id, said));
        }
        Ok(())
    }

    /// Hands a cluster the outputs that it reads.
    fn messages(&self, thread: &mut Thread<'a>, cluster: usize, making: &Making<'a>) -> Result<()> {
        for &input in &self.example.clusters[cluster].inputs {
            if let Some(written) = &making.written[input] {
                let name = self.example.output_name(input);
                let text = format!("This is {name}:\n{}", written.said.text);
                thread.say(Source::Message(input), "user", "", &text)?;
            }
        }
        Ok(())
    }

    /// Asks for a cluster's output.
    fn output(
        &self,
        mut context: Thread<'a>,
        cluster: usize,
        making: &mut Making<'a>,
    ) -> Result<()> {
        let prompt = &self.example.clusters[cluster].prompt;
        context.transcript.write(Source::Prompt, "user", "", prompt)?;
        context.transcript.begin_answer()?;
        let said = context.output(self.seed_of(making.condition, 0, cluster as u64))?;
        making.settle(&context);
        making.written[cluster] = Some(Written { said, context });
        Ok(())
    }

    fn finish(&self, making: Making<'a>, unified: Option<&Thread<'a>>) -> Result<ConditionResult> {
        let Making { condition, written, answers, caches, read, reading, .. } = making;
        let texts: Vec<String> = written
            .iter()
            .map(|it| it.as_ref().map_or_else(String::new, |it| it.said.text.clone()))
            .collect();
        let (mut prefill, mut decode) = (reading.as_secs_f64(), 0.0);
        let mut outputs = Vec::with_capacity(written.len());
        for (cluster, (written, answers)) in written.into_iter().zip(answers).enumerate() {
            // The order of clusters holds each of them once.
            let Some(Written { said, context }) = written else { continue };
            let internals = match self.reader {
                None => None,
                Some(reader) => {
                    let other = match (unified, condition) {
                        (None, _) | (_, Condition::Sequential) => None,
                        (Some(unified), _) => {
                            Some(self.behind_unified(unified, &context, cluster, &texts)?)
                        }
                    };
                    Some(reader.read(
                        (self.example, self.labels, cluster),
                        &context,
                        &said.tokens,
                        other.as_ref(),
                    )?)
                }
            };
            for said in answers.iter().map(|it| &it.1).chain([&said]) {
                prefill += said.prefill;
                decode += said.decode;
            }
            let perplexity = perplexity(self.model, &said.tokens)?;
            outputs.push(Output { said, answers, perplexity, internals });
        }
        let outcome = Outcome { example: self.example, outputs: &outputs, caches: &caches };
        let measures = measures(&outcome, (read, prefill, decode));
        Ok(ConditionResult {
            condition,
            outputs,
            caches,
            read_tokens: read,
            prefill,
            decode,
            measures,
        })
    }

    /// The same messages and prompt behind the text that holds all turns.
    fn behind_unified(
        &self,
        unified: &Thread<'a>,
        context: &Thread<'a>,
        cluster: usize,
        texts: &[String],
    ) -> Result<Thread<'a>> {
        let mut other = unified.fork();
        for (source, _) in &context.transcript.segments {
            if let Source::Message(input) = *source {
                let text =
                    format!("This is {}:\n{}", self.example.output_name(input), texts[input]);
                other.transcript.write(Source::Message(input), "user", "", &text)?;
            }
        }
        let prompt = &self.example.clusters[cluster].prompt;
        other.transcript.write(Source::Prompt, "user", "", prompt)?;
        other.transcript.begin_answer()?;
        Ok(other)
    }

    /// The turns dealt out by chance, to clusters of the same sizes; another way than the labels', where there
    /// is one.
    fn shuffled(&self) -> Vec<usize> {
        let mut rng = SplitMix64::new(self.seed_of(Condition::RandomPartition, 2, 0));
        let mut labels = self.labels.to_vec();
        let varies = labels.iter().any(|it| *it != labels[0]);
        loop {
            // Fisher and Yates.
            for last in (1..labels.len()).rev() {
                labels.swap(last, below(&mut rng, last + 1));
            }
            if labels != self.labels || !varies {
                return labels;
            }
        }
    }

    /// What the prompted condition says first.
    fn instruction(&self) -> String {
        let mut text =
            "This conversation holds several tasks that have nothing to do with each other:"
                .to_owned();
        for (at, cluster) in self.example.clusters.iter().enumerate() {
            let about = [&cluster.focus, &cluster.task, &cluster.name];
            let about = about.into_iter().find(|it| !it.is_empty());
            text += &format!("\n{}. {}", at + 1, about.map_or("", String::as_str));
        }
        text + "\nKeep them apart. Write each output from its own task alone, and take no words or facts \
                from another task into it."
    }

    fn seed_of(&self, condition: Condition, what: u64, index: u64) -> u64 {
        [condition.stream(), what, index].into_iter().fold(self.seed, derive_seed)
    }

    fn turn_ids(&self) -> Vec<u64> {
        self.example.turns.iter().map(|it| it.id).collect()
    }
}

/// How the model finds a text by itself.
fn perplexity(model: &Model, tokens: &[u32]) -> Result<Option<f64>> {
    if tokens.len() < 2 {
        return Ok(None);
    }
    Ok(model.score(mlx_genkit::Request::new(tokens))?.perplexity())
}
