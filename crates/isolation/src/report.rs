//! What a run found: a table for people, JSON for programs, a page with plots.

use std::fmt;

use mlxgk_reports::{Bar, Page, Table, bars};
use serde_json::{Map, Value, json};

use crate::{
    CacheSize, Condition, ConditionResult, ExampleResult, Measure, Options, Output, Paired, Said,
    measure::{Outcome, mean},
    paired,
};

/// What a run found.
///
/// ```
/// use mlx_genkit::{ComputeDtype, Model};
/// use mlxgk_isolation::{Condition, Example, Measure, Options, TurnFormat, run};
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
/// options.config.max_new_tokens = Some(2);
/// let examples = [Example::from_json(kitchen)?];
/// let report = run(&model, &examples, &options, |_| ())?;
/// for found in &report.examples[0].conditions {
///     println!("{}: {:?}", found.condition, found.outputs[0].said.text);
///     println!("{} tokens in {} caches", found.read_tokens, found.caches.len());
/// }
/// // One cache for all turns, or one for each cluster.
/// let caches = report.examples[0].conditions.iter().map(|it| it.caches.len());
/// assert_eq!(caches.collect::<Vec<_>>(), [1, 3]);
/// assert!(report.mean(Condition::Semantic, Measure::CacheTokens) > Some(0.0));
/// println!("{report}");
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// The seed.
    pub seed: u64,
    /// How turns became text: `raw` or `chat`.
    pub format: &'static str,
    /// How turns were put into clusters.
    pub labels: &'static str,
    /// New tokens per output at most.
    pub max_new_tokens: Option<usize>,
    /// The conditions, in their order.
    pub conditions: Vec<Condition>,
    /// What came of each example.
    pub examples: Vec<ExampleResult>,
    /// What could not be measured, and why.
    pub notes: Vec<String>,
}

/// Two conditions over the same examples.
///
/// ```
/// use mlx_genkit::{ComputeDtype, Model};
/// use mlxgk_isolation::{Condition, Example, Measure, Options, TurnFormat, run};
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
/// options.config.max_new_tokens = Some(1);
/// let examples = [Example::from_json(kitchen)?];
/// // Two examples are the fewest that can be compared; the same one twice will do here.
/// let examples = [examples[0].clone(), examples[0].clone()];
/// let report = run(&model, &examples, &options, |_| ())?;
/// let compared = report.comparisons();
/// let tokens = compared.iter().find(|it| it.measure == Measure::CacheTokens).unwrap();
/// assert_eq!((tokens.condition, tokens.against), (Condition::Semantic, Condition::Sequential));
/// // Two examples show nothing: chance gives as large a difference every other time.
/// assert_eq!((tokens.paired.n, tokens.paired.p), (2, 0.5));
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Comparison {
    /// The first.
    pub condition: Condition,
    /// What it is compared with.
    pub against: Condition,
    /// By what.
    pub measure: Measure,
    /// How far they are apart.
    pub paired: Paired,
}

/// Columns of the table of means that a terminal shows; the page and JSON have all.
const SHOWN: [Measure; 14] = [
    Measure::Leakage,
    Measure::Cosine,
    Measure::Jaccard,
    Measure::Bleeding,
    Measure::Attention,
    Measure::Kl,
    Measure::TermLogprob,
    Measure::Coverage,
    Measure::NovelTrigrams,
    Measure::Perplexity,
    Measure::CacheTokens,
    Measure::ReadTokens,
    Measure::Prefill,
    Measure::Decode,
];

/// What the terminal compares conditions by.
const COMPARED: [Measure; 6] = [
    Measure::Leakage,
    Measure::Cosine,
    Measure::Jaccard,
    Measure::Attention,
    Measure::TermLogprob,
    Measure::Coverage,
];

impl Report {
    pub(crate) fn new(
        model: String,
        options: &Options,
        examples: Vec<ExampleResult>,
        notes: Vec<String>,
    ) -> Self {
        Self {
            model,
            seed: options.seed,
            format: options.format.as_str(),
            labels: options.labels.as_str(),
            max_new_tokens: options.config.max_new_tokens,
            conditions: options.conditions.clone(),
            examples,
            notes,
        }
    }

    /// The values of a measure under a condition, one per example where it was measured.
    fn values(&self, condition: Condition, measure: Measure) -> Vec<Option<f64>> {
        let of = |it: &ExampleResult| {
            let found = it.conditions.iter().find(|it| it.condition == condition)?;
            found.measures.get(&measure).copied()
        };
        self.examples.iter().map(of).collect()
    }

    /// The mean of a measure over the examples that have it.
    pub fn mean(&self, condition: Condition, measure: Measure) -> Option<f64> {
        mean(self.values(condition, measure).into_iter().flatten())
    }

    /// Each condition against `sequential`, or against the first where that was not run, by every measure that
    /// two examples have under both.
    pub fn comparisons(&self) -> Vec<Comparison> {
        let first = self.conditions.first().copied();
        let sequential = self.conditions.iter().copied().find(|it| *it == Condition::Sequential);
        let Some(against) = sequential.or(first) else { return Vec::new() };
        let mut all = Vec::new();
        for &condition in self.conditions.iter().filter(|it| **it != against) {
            for measure in Measure::ALL {
                let (a, b) = (self.values(condition, measure), self.values(against, measure));
                let both = a.into_iter().zip(b).filter_map(|(a, b)| Some((a?, b?)));
                let (a, b): (Vec<f64>, Vec<f64>) = both.unzip();
                if let Some(paired) = paired(&a, &b, self.seed) {
                    all.push(Comparison { condition, against, measure, paired });
                }
            }
        }
        all
    }

    /// The share of turns whose label is the file's; `None` where no file says any.
    pub fn agreement(&self) -> Option<f64> {
        let labels = self.examples.iter().flat_map(|it| it.example.turns.iter().zip(&it.labels));
        mean(labels.filter_map(|(turn, label)| Some(f64::from(u8::from(turn.cluster? == *label)))))
    }

    fn means(&self, shown: &[Measure]) -> Table {
        let row = |&condition: &Condition| {
            let cell = |it: &Measure| match self.mean(condition, *it) {
                None => "-".to_owned(),
                Some(value) => format!("{value:.*}", it.heading().1),
            };
            [condition.to_string()].into_iter().chain(shown.iter().map(cell)).collect()
        };
        let head = ["condition"].into_iter().chain(shown.iter().map(|it| it.heading().0));
        Table::new(head, self.conditions.iter().map(row).collect())
    }

    /// One line per condition: mean difference, and p in brackets.
    fn differences(&self, comparisons: &[Comparison]) -> Option<Table> {
        let against = comparisons.first()?.against;
        let row = |&condition: &Condition| {
            let cell = |measure: &Measure| {
                let found = comparisons
                    .iter()
                    .find(|it| it.condition == condition && it.measure == *measure);
                found.map_or("-".to_owned(), |it| {
                    let digits = measure.heading().1;
                    format!("{:+.digits$} ({:.4})", it.paired.mean_difference, it.paired.p)
                })
            };
            [condition.to_string()].into_iter().chain(COMPARED.iter().map(cell)).collect()
        };
        let head = [format!("less {against} (p)")]
            .into_iter()
            .chain(COMPARED.iter().map(|it| it.heading().0.to_owned()));
        let others = self.conditions.iter().filter(|it| **it != against);
        Some(Table::new(head, others.map(row).collect()))
    }

    /// The report for programs: numbers as they are, shares in 0..=1, what was not measured null.
    pub fn json(&self) -> Value {
        let all = |value: &dyn Fn(Measure) -> Option<f64>| -> Map<String, Value> {
            Measure::ALL.iter().map(|&it| (it.as_str().to_owned(), json!(value(it)))).collect()
        };
        let summary: Map<String, Value> = self
            .conditions
            .iter()
            .map(|&it| (it.to_string(), Value::Object(all(&|measure| self.mean(it, measure)))))
            .collect();
        let comparisons: Vec<Value> = self
            .comparisons()
            .iter()
            .map(|it| {
                json!({
                    "condition": it.condition.as_str(),
                    "against": it.against.as_str(),
                    "measure": it.measure.as_str(),
                    "n": it.paired.n,
                    "mean_difference": it.paired.mean_difference,
                    "interval_95": [it.paired.interval.0, it.paired.interval.1],
                    "p": it.paired.p,
                    "effect_size": it.paired.effect_size,
                })
            })
            .collect();
        let examples: Vec<Value> = self.examples.iter().map(|it| example_json(it, &all)).collect();
        json!({
            "framework": "mlx-genkit",
            "model": self.model,
            "seed": self.seed,
            "format": self.format,
            "labels": self.labels,
            "label_agreement": self.agreement(),
            "max_new_tokens": self.max_new_tokens,
            "notes": self.notes,
            "summary": summary,
            "comparisons": comparisons,
            "examples": examples,
        })
    }

    /// The report as a page: means, differences, a plot per measure, and the outputs of one example.
    pub fn html(&self) -> String {
        let mut page = Page::new("KV-cache isolation");
        page.text(&format!(
            "{}; {} example(s), seed {}, {} turns, labels {}.",
            self.model,
            self.examples.len(),
            self.seed,
            self.format,
            self.labels
        ));
        for note in &self.notes {
            page.text(note);
        }
        page.heading("Means").table(&self.means(&Measure::ALL));
        page.text("Bars are means over examples; the line over a bar is the 95 % interval of its \
                   difference from the first condition of the comparison, drawn around that one's mean.");
        let comparisons = self.comparisons();
        for measure in Measure::ALL {
            let bar = |&condition: &Condition| {
                let value = self.mean(condition, measure)?;
                let bar = Bar::new(condition.as_str(), value);
                let compared = comparisons
                    .iter()
                    .find(|it| it.condition == condition && it.measure == measure);
                let Some(it) = compared else { return Some(bar.colour("#888")) };
                let base = self.mean(it.against, measure)?;
                let (low, high) = it.paired.interval;
                Some(bar.interval(base + low, base + high))
            };
            let all: Vec<Bar> = self.conditions.iter().filter_map(bar).collect();
            page.svg(&bars(measure.title(), &all));
        }
        let row = |it: &Comparison| {
            let (digits, paired) = (it.measure.heading().1.max(3), it.paired);
            let (low, high) = paired.interval;
            vec![
                it.condition.to_string(),
                it.measure.title().to_owned(),
                paired.n.to_string(),
                format!("{:+.digits$}", paired.mean_difference),
                format!("{low:+.digits$} to {high:+.digits$}"),
                format!("{:.4}", paired.p),
                paired.effect_size.map_or("-".to_owned(), |it| format!("{it:+.2}")),
            ]
        };
        if let Some(first) = comparisons.first() {
            page.heading(&format!("Differences from {}", first.against));
            let head = ["condition", "measure", "n", "mean", "95 % interval", "p", "d"];
            page.table(&Table::new(head, comparisons.iter().map(row).collect()));
        }
        if let Some(found) = self.examples.first() {
            page.heading(&format!("Outputs of {}", found.example.id));
            for it in &found.conditions {
                for (cluster, output) in found.example.clusters.iter().zip(&it.outputs) {
                    let who = format!("{}, {}: {}", it.condition, cluster.name, cluster.focus);
                    page.quote(&who, &output.text());
                }
            }
        }
        page.to_string()
    }
}

/// The measures that have a value, by name.
type AllMeasures<'a> = dyn Fn(&dyn Fn(Measure) -> Option<f64>) -> Map<String, Value> + 'a;

fn example_json(found: &ExampleResult, all: &AllMeasures<'_>) -> Value {
    let example = &found.example;
    let names: Vec<&str> = example.clusters.iter().map(|it| it.name.as_str()).collect();
    let labels = example.turns.iter().zip(&found.labels);
    let labels: Map<String, Value> =
        labels.map(|(turn, &it)| (turn.id.to_string(), json!(names[it]))).collect();
    let by_cluster = |it: &ConditionResult, value: &dyn Fn(&Output) -> Value| {
        let outputs = names.iter().zip(&it.outputs);
        outputs.map(|(name, it)| ((*name).to_owned(), value(it))).collect::<Map<_, _>>()
    };
    let condition = |it: &ConditionResult| {
        let (outputs, caches) = (&it.outputs, &it.caches);
        let leakage = Outcome { example, outputs, caches }.leakage();
        let leakage = leakage.into_iter().map(|(owner, writer, share)| {
            json!({"terms_of": names[owner], "in": names[writer], "share": share})
        });
        let sizes: Map<String, Value> =
            caches.iter().map(|it| (it.name.clone(), json!(it.tokens))).collect();
        json!({
            "outputs": by_cluster(it, &|it| json!(it.said.text)),
            "cache_sizes": sizes,
            "total_tokens": caches.iter().map(|it| it.tokens).sum::<usize>(),
            "read_tokens": it.read_tokens,
            "time": it.prefill + it.decode,
            "caches": caches.iter().map(cache).collect::<Vec<_>>(),
            "details": by_cluster(it, &output),
            "leakage": leakage.collect::<Vec<_>>(),
            "measures": all(&|measure| it.measures.get(&measure).copied()),
        })
    };
    let results: Map<String, Value> =
        found.conditions.iter().map(|it| (it.condition.to_string(), condition(it))).collect();
    json!({
        "example_id": example.id,
        "domain": example.domain,
        "labels": labels,
        "results": results,
    })
}

fn cache(it: &CacheSize) -> Value {
    let turn = |(id, range): &(u64, std::ops::Range<usize>)| json!({"turn_id": id, "start": range.start, "end": range.end});
    json!({
        "name": it.name,
        "tokens": it.tokens,
        "live_bytes": it.live_bytes,
        "allocated_bytes": it.allocated_bytes,
        "window": it.window,
        "turns": it.turns.iter().map(turn).collect::<Vec<_>>(),
    })
}

fn output(it: &Output) -> Value {
    let mut all = said(&it.said);
    let answers = it.answers.iter().map(|(turn, it)| {
        let mut answer = said(it);
        answer["turn_id"] = json!(turn);
        answer["text"] = json!(it.text);
        answer
    });
    all["answers"] = answers.collect();
    all["perplexity"] = json!(it.perplexity);
    let internals = it.internals.as_ref();
    let attention = internals.and_then(|it| it.attention).map(
        |it| json!({"own": it.own, "other": it.other, "messages": it.messages, "rest": it.rest}),
    );
    all["attention"] = json!(attention);
    all["kl_from_sequential"] = json!(internals.and_then(|it| it.kl));
    all["other_terms_logprob"] = json!(internals.and_then(|it| it.term_logprob));
    all
}

fn said(it: &Said) -> Value {
    json!({
        "tokens": it.tokens,
        "finish_reason": it.finish_reason.as_str(),
        "context_tokens": it.context,
        "cached_tokens": it.cached,
        "prefill_seconds": it.prefill,
        "decode_seconds": it.decode,
    })
}

/// The means, and how far conditions are from the first one.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.means(&SHOWN).fmt(f)?;
        if let Some(table) = self.differences(&self.comparisons()) {
            write!(f, "\n\n{table}")?;
        }
        for note in &self.notes {
            write!(f, "\n\n{note}")?;
        }
        Ok(())
    }
}
