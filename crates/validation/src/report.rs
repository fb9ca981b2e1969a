//! What a validation found: a table for people, JSON for programs.

use std::{collections::BTreeMap, fmt};

use mlxgk_reports::Table;
use serde_json::{Map, Value, json};

/// Where a cell was steered to.
///
/// ```
/// use mlxgk_validation::Direction;
///
/// assert_eq!(Direction::Negated.as_str(), "negated");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Direction {
    /// Nowhere.
    Base,
    /// Along the vectors.
    Steered,
    /// Against them.
    Negated,
    /// Along random vectors of the same norms.
    Random,
}

impl Direction {
    /// The name in the table and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Steered => "steered",
            Self::Negated => "negated",
            Self::Random => "random",
        }
    }
}

/// What is measured in a cell. Shares are in 0..=1.
///
/// See the example of [`Report`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Measure {
    /// Share of answers in which the wanted voice is heard.
    Words,
    /// Share of answers that are not the unsteered answer.
    Differs,
    /// Share of answers that look degenerate.
    Suspect,
    /// Share of answers that were drawn twice.
    Resampled,
    /// Share of answers that come out the same in a second run.
    Same,
    /// Mean KL(steered ‖ base) per token of the unsteered answers, in nats.
    Kl,
    /// Share of those tokens at which both models would choose the same.
    Top1,
    /// Mean projection on the vector over the answers, less that of the unsteered answers.
    Shift,
    /// Of the answers, under the unsteered model.
    Perplexity,
    /// Distinct words per word.
    Distinct1,
    /// Distinct pairs of neighbouring words per pair.
    Distinct2,
}

impl Measure {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 11] = [
        Self::Words,
        Self::Differs,
        Self::Suspect,
        Self::Resampled,
        Self::Same,
        Self::Kl,
        Self::Top1,
        Self::Shift,
        Self::Perplexity,
        Self::Distinct1,
        Self::Distinct2,
    ];

    /// The name in the table, the name in JSON, and the digits after the point; `None` for shares,
    /// which the table has in percent.
    fn spelling(self) -> (&'static str, &'static str, Option<usize>) {
        match self {
            Self::Words => ("words", "words", None),
            Self::Differs => ("differs", "differs", None),
            Self::Suspect => ("suspect", "suspect", None),
            Self::Resampled => ("resampled", "resampled", None),
            Self::Same => ("same", "same", None),
            Self::Kl => ("KL", "kl", Some(3)),
            Self::Top1 => ("top-1", "top_1", None),
            Self::Shift => ("shift", "projection_shift", Some(2)),
            Self::Perplexity => ("ppl", "perplexity", Some(2)),
            Self::Distinct1 => ("d-1", "distinct_1", Some(2)),
            Self::Distinct2 => ("d-2", "distinct_2", Some(2)),
        }
    }

    /// As the table has it: with the spread, where there is one.
    fn shown(self, value: Option<f64>, spread: Option<f64>) -> String {
        let Some(value) = value else { return "-".to_owned() };
        let (scale, digits, unit) = match self.spelling().2 {
            None => (100.0, 1, " %"),
            Some(digits) => (1.0, digits, ""),
        };
        let spread = spread.map_or_else(String::new, |it| format!(" ± {:.digits$}", scale * it));
        format!("{:.digits$}{spread}{unit}", scale * value)
    }
}

/// One line of the table: all prompts and seeds at one direction and alpha.
///
/// See the example of [`Report`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Cell {
    /// Where to.
    pub direction: Direction,
    /// How strongly.
    pub alpha: f64,
    /// How many answers.
    pub answers: usize,
    /// How many random directions they are of; 1 for the other directions.
    pub draws: usize,
    /// The first answer.
    pub example: String,
    /// The values of one draw each.
    values: Vec<BTreeMap<Measure, f64>>,
}

impl Cell {
    pub(crate) fn new(
        (direction, alpha): (Direction, f64),
        answers: usize,
        example: String,
        values: Vec<BTreeMap<Measure, f64>>,
    ) -> Self {
        Self { direction, alpha, answers, draws: values.len(), example, values }
    }

    fn drawn(&self, measure: Measure) -> Vec<f64> {
        self.values.iter().filter_map(|it| it.get(&measure).copied()).collect()
    }

    /// The value of a measure: of several draws, the mean. `None` where it was not measured.
    pub fn get(&self, measure: Measure) -> Option<f64> {
        let drawn = self.drawn(measure);
        (!drawn.is_empty()).then(|| drawn.iter().sum::<f64>() / drawn.len() as f64)
    }

    /// How far the draws lie apart: their standard deviation (n - 1). `None` for a single one.
    pub fn spread(&self, measure: Measure) -> Option<f64> {
        let (drawn, mean) = (self.drawn(measure), self.get(measure)?);
        let squares: f64 = drawn.iter().map(|it| (it - mean).powi(2)).sum();
        (drawn.len() > 1).then(|| (squares / (drawn.len() - 1) as f64).sqrt())
    }
}

/// The whole table.
///
/// ```
/// use mlx_genkit::{
///     ComputeDtype, HookPoint, Model, Prompt,
///     steering::{Injection, Steering, SteeringVectors},
/// };
/// use mlxgk_validation::{Direction, Measure, Options, validate};
///
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// let vector = vec![1.0; model.decoder().hidden_size()];
/// let vectors = SteeringVectors::new([(HookPoint::ResidPost(2), vector)])?;
/// let mut options = Options::new(vec![Prompt::from("The sea is")]);
/// options.alphas = vec![1.0];
/// options.controls = false;
/// options.config.max_new_tokens = Some(4);
/// let steering = Steering::from(Injection::new(vectors, 0.5));
/// let report = validate(&model, &steering, &options, |_| ())?;
///
/// let [base, steered] = &report.cells[..] else { panic!("there are two cells") };
/// assert_eq!((base.direction, steered.direction), (Direction::Base, Direction::Steered));
/// assert!(steered.get(Measure::Kl).unwrap() > 0.0);
/// println!("{report}");
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// Prompts per seed.
    pub prompts: usize,
    /// Runs per cell.
    pub seeds: usize,
    /// The voice whose words are counted.
    pub wanted: Option<String>,
    /// The unsteered cell first, then by direction and alpha.
    pub cells: Vec<Cell>,
}

impl Report {
    /// The table; the column of words only where some are counted.
    pub(crate) fn table(&self) -> Table {
        let counted = |it: &Measure| *it != Measure::Words || self.wanted.is_some();
        let shown: Vec<Measure> = Measure::ALL.into_iter().filter(counted).collect();
        let names = shown.iter().map(|it| it.spelling().0);
        let row = |cell: &Cell| {
            let value = |it: &Measure| it.shown(cell.get(*it), cell.spread(*it));
            let place = [cell.direction.as_str().to_owned(), cell.alpha.to_string()];
            place.into_iter().chain(shown.iter().map(value)).collect()
        };
        let head = ["direction", "alpha"].into_iter().chain(names);
        Table::new(head, self.cells.iter().map(row).collect())
    }

    /// The report for programs: numbers as they are, shares in 0..=1. What was not measured is null;
    /// `spread` holds the standard deviations over the random directions.
    pub fn json(&self) -> Value {
        let object = |value: &dyn Fn(Measure) -> Option<f64>| -> Map<String, Value> {
            let entry = |it: Measure| (it.spelling().1.to_owned(), json!(value(it)));
            Measure::ALL.into_iter().map(entry).collect()
        };
        let cells: Vec<Value> = self
            .cells
            .iter()
            .map(|cell| {
                let mut all = Map::new();
                all.insert("direction".to_owned(), json!(cell.direction.as_str()));
                all.insert("alpha".to_owned(), json!(cell.alpha));
                all.insert("answers".to_owned(), json!(cell.answers));
                all.extend(object(&|it| cell.get(it)));
                let spread = (cell.draws > 1).then(|| object(&|it| cell.spread(it)));
                all.insert("draws".to_owned(), json!(cell.draws));
                all.insert("spread".to_owned(), json!(spread));
                all.insert("example".to_owned(), json!(cell.example));
                Value::Object(all)
            })
            .collect();
        json!({
            "model": self.model,
            "prompts": self.prompts,
            "seeds": self.seeds,
            "words": self.wanted,
            "cells": cells,
        })
    }
}

/// The table, columns aligned.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.table().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_have_a_mean_and_a_spread() {
        let values = |shares: &[f64]| -> Vec<BTreeMap<Measure, f64>> {
            let one = |it: &f64| BTreeMap::from([(Measure::Words, *it), (Measure::Kl, 2.0 * it)]);
            shares.iter().map(one).collect()
        };
        let at = (Direction::Random, 1.5);
        let cell = Cell::new(at, 60, "A <b> & \"c\" 'd'".to_owned(), values(&[0.1, 0.2, 0.3]));
        assert_eq!((cell.draws, cell.get(Measure::Shift)), (3, None));
        assert!((cell.get(Measure::Words).unwrap() - 0.2).abs() < 1e-12);
        assert!((cell.spread(Measure::Words).unwrap() - 0.1).abs() < 1e-12);
        let one = Cell::new((Direction::Base, 0.0), 20, String::new(), values(&[0.25]));
        assert_eq!((one.get(Measure::Words), one.spread(Measure::Words)), (Some(0.25), None));
        let wanted = Some("glad \" ' voice".to_owned());
        let report =
            Report { model: "m".into(), prompts: 20, seeds: 1, wanted, cells: vec![one, cell] };
        let table = report.to_string();
        assert!(table.contains("20.0 ± 10.0 %") && table.contains("0.400 ± 0.200"), "{table}");
        assert!(table.lines().nth(1).unwrap().contains("25.0 %"), "{table}");
        let document = report.json();
        assert!((document["cells"][1]["spread"]["kl"].as_f64().unwrap() - 0.2).abs() < 1e-12);
        assert_eq!(document["cells"][0]["spread"], Value::Null);
        let page = report.html();
        assert!(page.contains("A &lt;b&gt; &amp; &quot;c&quot; &#39;d&#39;"), "{page}");
        assert!(page.contains("glad &quot; &#39; voice"), "{page}");
    }
}
