//! What is measured, what is aimed at, and what came out.

use std::collections::BTreeMap;

use serde_json::Value;

use super::median;
use super::system::System;
use crate::failure::{Failure, Result};

/// One number per system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Measure {
    Decode,
    Prefill,
    DecodeBundled,
    Beams,
    Batch,
    BatchLarge,
    Repetitive,
    Lookup,
    FirstToken,
    PeakMemory,
    DrawUsual,
    DrawUsualTorch,
    DrawNucleus,
    Mask,
}

impl Measure {
    pub(super) const ALL: [Self; 14] = [
        Self::Decode,
        Self::Prefill,
        Self::DecodeBundled,
        Self::Beams,
        Self::Batch,
        Self::BatchLarge,
        Self::Repetitive,
        Self::Lookup,
        Self::FirstToken,
        Self::PeakMemory,
        Self::DrawUsual,
        Self::DrawUsualTorch,
        Self::DrawNucleus,
        Self::Mask,
    ];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Decode => "decoding, 0.6B shape",
            Self::Prefill => "prefill of 256, 0.6B shape",
            Self::DecodeBundled => "decoding, bundled model",
            Self::Beams => "search with 4 beams, bundled model",
            Self::Batch => "batch of 8, bundled model",
            Self::BatchLarge => "batch of 8, 0.6B shape",
            Self::Repetitive => "repetitive text, bundled model",
            Self::Lookup => "the same with prompt lookup",
            Self::FirstToken => "first token, bundled model",
            Self::PeakMemory => "peak memory, 0.6B shape",
            Self::DrawUsual => "draw: penalty, n-gram, top-k, top-p",
            Self::DrawUsualTorch => "the same from torch's generator",
            Self::DrawNucleus => "draw: top-p alone",
            Self::Mask => "mask of a JSON schema",
        }
    }

    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Decode
            | Self::Prefill
            | Self::DecodeBundled
            | Self::Beams
            | Self::Batch
            | Self::BatchLarge
            | Self::Repetitive
            | Self::Lookup => "tokens/s",
            Self::FirstToken => "ms",
            Self::PeakMemory => "MB",
            Self::DrawUsual | Self::DrawUsualTorch | Self::DrawNucleus | Self::Mask => "µs",
        }
    }

    /// Whether a higher number is the better one.
    pub(super) fn is_rate(self) -> bool {
        self.unit() == "tokens/s"
    }

    /// How many times as good as the other system we mean to be.
    pub(super) fn goal_against(self, other: System) -> Option<f64> {
        match (self, other) {
            (Self::Decode, System::Transformers) => Some(1.3),
            (Self::Decode, System::MlxLmBf16) => Some(15.0),
            (Self::Prefill, System::Transformers) => Some(0.6),
            (Self::Prefill, System::MlxLmBf16) => Some(30.0),
            (Self::DecodeBundled, System::Transformers) => Some(1.3),
            (Self::DecodeBundled, System::MlxLm) => Some(1.0),
            (Self::Beams, System::Transformers) => Some(1.5),
            (Self::Batch, System::Transformers) => Some(1.2),
            _ => None,
        }
    }
}

/// How many times as fast as our own plain decoding prompt lookup is meant to be.
const LOOKUP_GOAL: f64 = 1.5;

/// What was measured so far.
#[derive(Debug, Default)]
pub(super) struct Results {
    values: BTreeMap<(Measure, System), Vec<f64>>,
    /// Megabytes of the large model's weights as we hold them.
    weights: Option<f64>,
    /// Our own tokens per model, which the other systems must have chosen too.
    tokens: BTreeMap<&'static str, Vec<Value>>,
    notes: Vec<String>,
}

impl Results {
    pub(super) fn add(&mut self, measure: Measure, system: System, value: &Value) -> Result<()> {
        let Some(value) = value.as_f64().filter(|it| it.is_finite() && *it > 0.0) else {
            let (system, title) = (system.name(), measure.title());
            return Err(Failure::new(format!("{system} answered {value} to \"{title}\"")));
        };
        self.values.entry((measure, system)).or_default().push(value);
        Ok(())
    }

    pub(super) fn set_weights(&mut self, bytes: &Value) {
        self.weights = bytes.as_f64().map(|it| it / 1e6).or(self.weights);
    }

    /// Holds a system's greedy tokens against ours: who computes something else is not compared.
    /// Our own come first; in bf16 other tokens are right.
    pub(super) fn compare_tokens(&mut self, model: &'static str, system: System, tokens: &Value) {
        let tokens = tokens.as_array().map_or(&[][..], Vec::as_slice);
        if system == System::Ours {
            self.tokens.insert(model, tokens.to_vec());
            return;
        }
        let ours = self.tokens.get(model).map_or(&[][..], Vec::as_slice);
        let differs = ours.iter().zip(tokens).position(|(ours, theirs)| ours != theirs);
        if let Some(at) = differs.filter(|_| system.dtype() == "float32") {
            let name = system.name();
            let note = format!("Note: on {model}, {name} chose another token at {at}.");
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
    }

    /// What a reader of the numbers must know.
    pub(super) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The median over the rounds.
    pub(super) fn value(&self, measure: Measure, system: System) -> Option<f64> {
        self.values.get(&(measure, system)).map(|it| median(it))
    }

    /// How many times as good as another system we are.
    pub(super) fn ratio(&self, measure: Measure, other: System) -> Option<f64> {
        let (ours, theirs) = (self.value(measure, System::Ours)?, self.value(measure, other)?);
        Some(if measure.is_rate() { ours / theirs } else { theirs / ours })
    }

    /// How many times as fast as plain decoding we are with prompt lookup.
    pub(super) fn lookup_gain(&self) -> Option<f64> {
        let ours = |measure| self.value(measure, System::Ours);
        Some(ours(Measure::Lookup)? / ours(Measure::Repetitive)?)
    }

    /// The most that our own number may be, where the goal is a number.
    pub(super) fn limit(&self, measure: Measure) -> Option<f64> {
        match measure {
            Measure::FirstToken | Measure::DrawUsual => Some(150.0),
            Measure::DrawUsualTorch => Some(1500.0),
            Measure::DrawNucleus => Some(600.0),
            Measure::Mask => Some(50.0),
            Measure::PeakMemory => self.weights.map(|it| 1.15 * it + 150.0),
            _ => None,
        }
    }

    /// One sentence per goal that was missed.
    pub(super) fn missed_goals(&self) -> Vec<String> {
        let mut missed = Vec::new();
        if let Some(gain) = self.lookup_gain().filter(|it| *it < LOOKUP_GOAL) {
            missed.push(format!(
                "prompt lookup: {gain:.2} of plain decoding, the goal is {LOOKUP_GOAL}"
            ));
        }
        for measure in Measure::ALL {
            let title = measure.title();
            for other in [System::Transformers, System::MlxLm, System::MlxLmBf16] {
                let goal = measure.goal_against(other);
                if let (Some(goal), Some(ratio)) = (goal, self.ratio(measure, other))
                    && ratio < goal
                {
                    let other = other.name();
                    missed.push(format!("{title}: {ratio:.2} of {other}, the goal is {goal}"));
                }
            }
            let value = self.value(measure, System::Ours);
            if let (Some(limit), Some(value)) = (self.limit(measure), value)
                && value > limit
            {
                let unit = measure.unit();
                missed.push(format!("{title}: {value:.0} {unit}, the goal is {limit:.0}"));
            }
        }
        missed
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rates_and_times_are_both_compared_as_times_as_fast() {
        let mut results = Results::default();
        for (system, rate, time) in [(System::Ours, 8.0, 100.0), (System::Transformers, 4.0, 300.0)]
        {
            results.add(Measure::Decode, system, &json!(rate)).unwrap();
            results.add(Measure::DrawUsual, system, &json!(time)).unwrap();
        }
        assert_eq!(results.ratio(Measure::Decode, System::Transformers), Some(2.0));
        assert_eq!(results.ratio(Measure::DrawUsual, System::Transformers), Some(3.0));
        assert_eq!(results.ratio(Measure::Decode, System::MlxLm), None);
        assert_eq!(results.missed_goals(), Vec::<String>::new());
    }

    #[test]
    fn a_missed_goal_is_named_with_its_numbers() {
        let mut results = Results::default();
        results.add(Measure::Decode, System::Ours, &json!(5.0)).unwrap();
        results.add(Measure::Decode, System::Transformers, &json!(4.0)).unwrap();
        results.add(Measure::DrawNucleus, System::Ours, &json!(601.0)).unwrap();
        results.set_weights(&json!(1e9));
        results.add(Measure::PeakMemory, System::Ours, &json!(1301.0)).unwrap();
        let missed = results.missed_goals();
        assert_eq!(missed.len(), 3, "{missed:?}");
        assert!(missed[0].contains("1.25 of transformers, the goal is 1.3"), "{missed:?}");
    }

    #[test]
    fn the_median_counts_and_nonsense_is_refused() {
        let mut results = Results::default();
        for value in [1.0, 9.0, 2.0] {
            results.add(Measure::Prefill, System::Ours, &json!(value)).unwrap();
        }
        assert_eq!(results.value(Measure::Prefill, System::Ours), Some(2.0));
        assert!(results.add(Measure::Prefill, System::Ours, &json!(null)).is_err());
    }

    #[test]
    fn other_tokens_are_noted_except_in_bf16() {
        let mut results = Results::default();
        results.compare_tokens("m", System::Ours, &json!([1, 2, 3]));
        results.compare_tokens("m", System::MlxLm, &json!([1, 2]));
        results.compare_tokens("m", System::TransformersBf16, &json!([1, 5]));
        assert!(results.notes().is_empty());
        results.compare_tokens("m", System::Transformers, &json!([1, 5]));
        assert_eq!(results.notes().len(), 1);
    }
}
