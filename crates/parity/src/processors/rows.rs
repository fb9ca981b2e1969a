//! The rows of a case: their scores, drawn or stored, and what must come out.

use mlxgk_logits_processors::{Context, LogitsProcessor, Row, guide};
use mlxgk_torch::TorchRng;
use serde::Deserialize;
use serde_json::Value;

use super::TOLERANCE;
use crate::Outcome;

/// One batch through one processor.
#[derive(Debug, Deserialize)]
pub(super) struct Batch {
    pub(super) parameters: Value,
    pub(super) vocab: usize,
    /// The share of scores that are banned beforehand.
    banned: f32,
    seed: u64,
    /// Row and token of further bans.
    #[serde(default)]
    also_banned: Vec<(usize, usize)>,
    rows: Vec<CaseRow>,
}

#[derive(Debug, Deserialize)]
struct CaseRow {
    tokens: Vec<u32>,
    prompt_len: usize,
    padding: usize,
    row: usize,
    scores: Option<Vec<Number>>,
    unconditional: Option<Vec<Number>>,
    expected: Expected,
}

/// The result in full, or of a large row only a part.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Expected {
    Full(Vec<Number>),
    /// Everything else stays, bit for bit.
    Changed {
        changed: Vec<(usize, Number)>,
    },
    /// Of the rest only this is known: how many are banned and what the others sum to.
    Sampled {
        sampled: Vec<(usize, Number)>,
        banned: usize,
        sum: f64,
    },
}

/// A number, or the name of one that JSON lacks.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "Value")]
pub(super) struct Number(pub(super) f32);

impl TryFrom<Value> for Number {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match &value {
            Value::Number(it) => it.as_f64().map(|it| Self(it as f32)),
            Value::String(it) => it.parse().ok().map(Self),
            _ => None,
        }
        .ok_or_else(|| format!("{value} is not a number"))
    }
}

impl Batch {
    /// The case's place in its file, and what it is about.
    pub(super) fn title(&self, at: usize) -> String {
        format!("{at:03} vocabulary {}, {}", self.vocab, self.parameters)
    }

    /// Runs the processor over all rows at once.
    pub(super) fn check(&self, processor: &dyn LogitsProcessor) -> Outcome {
        let before = self.scores();
        let mut after = before.clone();
        let mut rows: Vec<_> = self.rows.iter().zip(&mut after).map(CaseRow::with).collect();
        processor.process_rows(&mut rows).map_err(|it| it.to_string())?;
        self.compare(&before, &after)
    }

    /// The same for guidance, which is a function and not a processor.
    pub(super) fn check_guidance(&self) -> Outcome {
        let before = self.scores();
        let drawn = self.draw(self.seed + 1, 0.0);
        let mut after = before.clone();
        let scale = self.parameters["guidance_scale"].as_f64().unwrap_or(f64::NAN);
        for ((row, drawn), scores) in self.rows.iter().zip(drawn).zip(&mut after) {
            let unconditional = row.unconditional.as_deref().map_or(drawn, floats);
            guide(scores, &unconditional, scale).map_err(|it| it.to_string())?;
        }
        self.compare(&before, &after)
    }

    fn compare(&self, before: &[Vec<f32>], after: &[Vec<f32>]) -> Outcome {
        let mut worst = 0.0;
        for (at, row) in self.rows.iter().enumerate() {
            let error = row.expected.compare(&before[at], &after[at]);
            worst = f64::max(worst, error.map_err(|it| format!("row {at}: {it}"))?);
        }
        Ok(worst)
    }

    fn scores(&self) -> Vec<Vec<f32>> {
        let mut scores = self.draw(self.seed, self.banned);
        for &(row, token) in &self.also_banned {
            scores[row][token] = f32::NEG_INFINITY;
        }
        for (row, scores) in self.rows.iter().zip(&mut scores) {
            if let Some(stored) = &row.scores {
                *scores = floats(stored);
            }
        }
        scores
    }

    /// The scores of `draw_scores` in the recording script.
    fn draw(&self, seed: u64, banned: f32) -> Vec<Vec<f32>> {
        let mut rng = TorchRng::new(seed);
        let mut draw = || (0..self.vocab).map(|_| rng.uniform_f32()).collect::<Vec<_>>();
        let mut scores: Vec<_> = self.rows.iter().map(|_| draw()).collect();
        for row in &mut scores {
            for (score, ban) in row.iter_mut().zip(draw()) {
                *score = if ban < banned { f32::NEG_INFINITY } else { (*score - 0.5) * 16.0 };
            }
        }
        scores
    }
}

impl CaseRow {
    fn with<'a>((row, scores): (&'a Self, &'a mut Vec<f32>)) -> Row<'a> {
        let Self { prompt_len, padding, row: at, .. } = *row;
        let context = Context { padding, row: at, ..Context::new(&row.tokens, prompt_len) };
        Row { context, scores }
    }
}

impl Expected {
    /// The worst relative error of a kept score, or what is wrong.
    fn compare(&self, before: &[f32], after: &[f32]) -> Result<f64, String> {
        match self {
            Self::Full(expected) => {
                if expected.len() != after.len() {
                    return Err(format!("{} scores, not {}", after.len(), expected.len()));
                }
                let pairs = expected.iter().enumerate().map(|(at, it)| (at, it.0));
                worst(pairs, after)
            }
            Self::Changed { changed } => {
                let mut expected = before.to_vec();
                let error = worst(changed.iter().map(|&(at, it)| (at, it.0)), after)?;
                changed.iter().for_each(|&(at, _)| expected[at] = after[at]);
                let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a == b;
                match (0..after.len()).find(|&at| !same(expected[at], after[at])) {
                    Some(at) => Err(format!(
                        "token {at} should have kept {}, but has {}",
                        before[at], after[at]
                    )),
                    None => Ok(error),
                }
            }
            Self::Sampled { sampled, banned, sum } => {
                let error = worst(sampled.iter().map(|&(at, it)| (at, it.0)), after)?;
                let gone = after.iter().filter(|it| **it == f32::NEG_INFINITY).count();
                let finite = after.iter().filter(|it| it.is_finite());
                let (total, size) = finite.fold((0.0, 0.0), |(total, size), &it| {
                    (total + f64::from(it), size + f64::from(it).abs())
                });
                if gone != *banned {
                    return Err(format!("{gone} tokens are banned, not {banned}"));
                }
                let apart = (total - sum).abs() / size.max(f64::MIN_POSITIVE);
                if apart > TOLERANCE {
                    return Err(format!("the scores sum to {total}, not {sum}"));
                }
                Ok(error.max(apart))
            }
        }
    }
}

/// The worst relative error over the expected scores: a ban must be one, a number near.
fn worst(expected: impl Iterator<Item = (usize, f32)>, after: &[f32]) -> Result<f64, String> {
    let mut worst = 0.0f64;
    for (at, expected) in expected {
        let got = *after.get(at).ok_or_else(|| format!("there is no token {at}"))?;
        if got == expected || (got.is_nan() && expected.is_nan()) {
            continue;
        }
        let error = f64::from(got - expected).abs() / f64::from(expected).abs();
        if error.is_nan() || error > TOLERANCE {
            return Err(format!("token {at} has {got}, not {expected} (error {error:.1e})"));
        }
        worst = worst.max(error);
    }
    Ok(worst)
}

fn floats(numbers: &[Number]) -> Vec<f32> {
    numbers.iter().map(|it| it.0).collect()
}
