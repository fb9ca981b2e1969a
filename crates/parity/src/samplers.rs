//! The samplers: transformers' warpers, torch's draws.
//!
//! The scores are made from a seed on both sides; what a warper left is compared by a hash of its
//! ids and score bits. See `xtask/record/samplers.py`.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use mlxgk_logits_processors::{Context, LogitsProcessor};
use mlxgk_samplers::{
    EpsilonCutoff, EtaCutoff, MinP, Sampler, SamplerState, Temperature, TopH, TopK, TopP, TorchRng,
    Typical, WarperConfig,
};
use serde::Deserialize;

use crate::{Case, Outcome, files};

/// The cases of every `*.json` of `folder`.
pub(crate) fn cases(folder: &Path) -> Vec<Case> {
    files::suites(folder, |path, suite| {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        match &*stem {
            "warpers" | "ties" => {
                let cases: Vec<Warped> = files::read_cases(path)?;
                Ok(cases.into_iter().flat_map(|it| it.cases(suite)).collect())
            }
            "draws" | "several" => {
                let several = stem == "several";
                let case = |it: Draws| {
                    let name = format!("{}, torch seed {}", it.setting, it.seed);
                    Case::new(suite, name, move || it.check(several).map(|()| 0.0))
                };
                Ok(files::read_cases(path)?.into_iter().map(case).collect())
            }
            "generator" => {
                let case = |it: Generated| {
                    let name = format!("{}({}), seed {}", it.kind, it.size, it.seed);
                    Case::new(suite, name, move || it.check().map(|()| 0.0))
                };
                Ok(files::read_cases(path)?.into_iter().map(case).collect())
            }
            other => {
                Err(format!("{other}.json is none of warpers, ties, draws, several, generator"))
            }
        }
    })
}

/// How a distribution is made: the scores and the warpers on them.
#[derive(Deserialize)]
struct Setting {
    warpers: BTreeMap<String, f64>,
    keep: usize,
    scores: Scores,
}

#[derive(Deserialize)]
struct Scores {
    seed: u64,
    rows: usize,
    vocab: usize,
    shape: String,
    scale: f32,
    banned: f32,
}

#[derive(Deserialize)]
struct Warped {
    #[serde(flatten)]
    setting: Setting,
    /// Per row, how many tokens are kept, and the hash of their ids and scores.
    kept: Vec<(usize, String)>,
}

#[derive(Deserialize)]
struct Draws {
    #[serde(flatten)]
    setting: Setting,
    seed: u64,
    first: Vec<Vec<u32>>,
    steps: usize,
    hash: String,
}

#[derive(Deserialize)]
struct Generated {
    kind: String,
    size: u32,
    seed: u64,
    hash: String,
}

impl Warped {
    /// The warpers one after the other, each on the whole row, and fused into a chain.
    fn cases(self, suite: &str) -> [Case; 2] {
        let it = Arc::new(self);
        let [alone, fused] = [Arc::clone(&it), Arc::clone(&it)];
        [
            Case::new(suite, format!("{}, one by one", it.setting), move || {
                let rows = alone.setting.scores.rows();
                let rows = rows.map(|row| alone.setting.warp_one_by_one(row));
                same_rows(rows.zip(&alone.kept))
            }),
            Case::new(suite, format!("{}, fused", it.setting), move || {
                let mut sampler = fused.setting.sampler()?;
                let rows = fused.setting.scores.rows().map(|mut row| {
                    let state = SamplerState::default();
                    let warped = sampler.warp(&mut row, &state, &mut TorchRng::new(0));
                    warped.map(|()| row).map_err(|it| it.to_string())
                });
                same_rows(rows.zip(&fused.kept))
            }),
        ]
    }
}

impl Scores {
    /// The rows of scores, from torch's uniform numbers.
    fn rows(&self) -> impl Iterator<Item = Vec<f32>> {
        let mut rng = TorchRng::new(self.seed);
        let n = self.rows * self.vocab;
        let draws: Vec<f32> = (0..5 * n).map(|_| rng.uniform_f32()).collect();
        (0..self.rows).map(move |row| {
            let score = |at: usize| {
                let draw = |which: usize| draws[which * n + row * self.vocab + at];
                let bell = draw(0) + draw(1) + draw(2) + draw(3) - 2.0;
                let shaped = match self.shape.as_str() {
                    "steps" => (bell * 4.0).floor(),
                    "heavy" => bell * bell * bell,
                    _ => bell,
                };
                if draw(4) < self.banned { f32::NEG_INFINITY } else { shaped * self.scale }
            };
            (0..self.vocab).map(score).collect()
        })
    }
}

impl Setting {
    fn config(&self) -> Result<WarperConfig, String> {
        let mut config = WarperConfig { min_tokens_to_keep: self.keep, ..WarperConfig::default() };
        for (name, &value) in &self.warpers {
            match name.as_str() {
                "temperature" => config.temperature = Some(value),
                "top_h" => config.top_h = Some(value),
                "top_k" => config.top_k = Some(value as usize),
                "top_p" => config.top_p = Some(value),
                "min_p" => config.min_p = Some(value),
                "typical_p" => config.typical_p = Some(value),
                "epsilon_cutoff" => config.epsilon_cutoff = Some(value),
                "eta_cutoff" => config.eta_cutoff = Some(value),
                other => return Err(format!("unknown warper {other}")),
            }
        }
        Ok(config)
    }

    fn sampler(&self) -> Result<Sampler, String> {
        self.config()?.chain().map(|it| it.sampler()).map_err(|it| it.to_string())
    }

    /// The row after each warper in HF's order, every one on the whole row.
    fn warp_one_by_one(&self, mut row: Vec<f32>) -> Result<Vec<f32>, String> {
        let config = self.config()?;
        let n = config.min_tokens_to_keep;
        let make = || -> mlxgk_samplers::Result<Vec<Box<dyn LogitsProcessor>>> {
            let mut list: Vec<Box<dyn LogitsProcessor>> = Vec::new();
            if let Some(it) = config.temperature {
                list.push(Box::new(Temperature::new(it)?));
            }
            if let Some(it) = config.top_h {
                list.push(Box::new(TopH::new(it)?));
            }
            if let Some(it) = config.top_k {
                list.push(Box::new(TopK::new(it)?.min_tokens_to_keep(n)?));
            }
            if let Some(it) = config.top_p {
                list.push(Box::new(TopP::new(it)?.min_tokens_to_keep(n)?));
            }
            if let Some(it) = config.min_p {
                list.push(Box::new(MinP::new(it)?.min_tokens_to_keep(n)?));
            }
            if let Some(it) = config.typical_p {
                list.push(Box::new(Typical::new(it)?.min_tokens_to_keep(n)?));
            }
            if let Some(it) = config.epsilon_cutoff {
                list.push(Box::new(EpsilonCutoff::new(it)?.min_tokens_to_keep(n)?));
            }
            if let Some(it) = config.eta_cutoff {
                list.push(Box::new(EtaCutoff::new(it)?.min_tokens_to_keep(n)?));
            }
            Ok(list)
        };
        for warper in make().map_err(|it| it.to_string())? {
            warper.process(&Context::new(&[], 0), &mut row).map_err(|it| it.to_string())?;
        }
        Ok(row)
    }
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Scores { seed, vocab, shape, scale, banned, .. } = &self.scores;
        write!(f, "{:?}, keep {}, ", self.warpers, self.keep)?;
        write!(f, "{shape} {scale} of {vocab}, {banned} banned, seed {seed}")
    }
}

impl Draws {
    fn check(&self, several: bool) -> Result<(), String> {
        let rows: Vec<Vec<f32>> = self.setting.scores.rows().collect();
        let (mut sampler, mut state) = (self.setting.sampler()?, SamplerState::default());
        let mut rng = TorchRng::new(self.seed);
        let width = self.first.first().map_or(0, Vec::len);
        let mut tokens = Vec::new();
        for step in 0..self.steps {
            for row in &rows {
                if several {
                    let drawn = sampler.sample_n(row, width, &state, &mut rng);
                    tokens.extend_from_slice(drawn.map_err(|it| it.to_string())?);
                } else {
                    let token = sampler.sample(row, &mut state, &mut rng);
                    tokens.push(token.map_err(|it| it.to_string())?);
                }
            }
            let ours = &tokens[(step * width).min(tokens.len())..];
            if let Some(expected) = self.first.get(step)
                && ours != expected
            {
                return Err(format!("step {step} drew {ours:?}, torch {expected:?}"));
            }
        }
        same_hash(&tokens, &self.hash)
    }
}

impl Generated {
    fn check(&self) -> Result<(), String> {
        let mut rng = TorchRng::new(self.seed);
        let words: Vec<u32> = match self.kind.as_str() {
            "rand" => (0..self.size).map(|_| rng.uniform_f32().to_bits()).collect(),
            "exponential" => (0..self.size).map(|_| rng.exponential_f32().to_bits()).collect(),
            "randperm" => rng.randperm(self.size),
            "randint" => (0..300).map(|_| rng.randint(u64::from(self.size)) as u32).collect(),
            other => return Err(format!("unknown draw {other}")),
        };
        same_hash(&words, &self.hash)
    }
}

fn same_rows<'a>(
    rows: impl Iterator<Item = (Result<Vec<f32>, String>, &'a (usize, String))>,
) -> Outcome {
    for (at, (row, (count, hash))) in rows.enumerate() {
        let row = row?;
        let kept = row.iter().enumerate().filter(|&(_, &score)| score > f32::NEG_INFINITY);
        let ours = digest(kept.clone().map(|(id, score)| (id as u64, score.to_bits())));
        let n = kept.clone().count();
        if n == *count && ours == *hash {
            continue;
        }
        // The fixture has no more than their number and a hash.
        let some: Vec<(usize, f32)> = kept.map(|(id, &score)| (id, score)).take(8).collect();
        return Err(format!(
            "row {at}: {n} tokens are kept, hash {ours}; transformers keeps {count}, hash {hash}; ours \
             begin with {some:?}"
        ));
    }
    Ok(0.0)
}

fn same_hash(words: &[u32], hash: &str) -> Result<(), String> {
    let ours = digest(words.iter().enumerate().map(|(at, &word)| (at as u64, word)));
    if ours == hash {
        return Ok(());
    }
    let (few, all) = (&words[..words.len().min(8)], words.len());
    Err(format!("{all} values have the hash {ours}, not {hash}; ours begin with {few:?}"))
}

/// The recorder's hash of pairs.
fn digest(pairs: impl Iterator<Item = (u64, u32)>) -> String {
    let sum = pairs.fold(0u64, |sum, (key, value)| {
        let mixed = (key << 32 | u64::from(value)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = mixed ^ (mixed >> 29);
        sum.wrapping_add(mixed.wrapping_mul(mixed))
    });
    format!("{sum:016x}")
}
