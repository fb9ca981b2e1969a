//! The samplers: transformers' warpers, torch's draws.
//!
//! The scores are made from a seed on both sides; what a warper left is compared by a hash of its
//! ids and score bits. See `xtask/record/samplers.py`.

use std::collections::BTreeMap;
use std::path::Path;

use mlxgk_logits_processors::{Context, LogitsProcessor};
use mlxgk_samplers::{
    EpsilonCutoff, EtaCutoff, MinP, Sampler, SamplerState, Temperature, TopH, TopK, TopP, TorchRng,
    Typical, WarperConfig,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::Report;

/// Compares with every file of `folder`.
///
/// # Errors
/// When a file is missing or is not what the recorder writes.
pub fn check(folder: &Path) -> Result<Report, String> {
    let mut report = Report::default();
    for case in read::<Warped>(folder, "warpers.json")? {
        let name = case.setting.to_string();
        let rows: Vec<Vec<f32>> = case.setting.scores.rows().collect();
        let one_by_one = rows.iter().map(|row| case.setting.warp_one_by_one(row.clone()));
        report.book("samplers/warpers", &name, 0.0, same_rows(one_by_one.zip(&case.kept)));
        let mut sampler = case.setting.sampler()?;
        let fused = rows.into_iter().map(|mut row| {
            let state = SamplerState::default();
            let warped = sampler.warp(&mut row, &state, &mut TorchRng::new(0));
            warped.map(|()| row).map_err(|it| it.to_string())
        });
        report.book("samplers/chains", &name, 0.0, same_rows(fused.zip(&case.kept)));
    }
    for (file, several) in [("draws.json", false), ("several.json", true)] {
        for case in read::<Draws>(folder, file)? {
            let outcome = case.check(several);
            report.book(&format!("samplers/{file}"), &case.setting.to_string(), 0.0, outcome);
        }
    }
    for case in read::<Generated>(folder, "generator.json")? {
        let name = format!("{}({}), seed {}", case.kind, case.size, case.seed);
        report.book("samplers/generator.json", &name, 0.0, case.check());
    }
    Ok(report)
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
                let shaped = if self.shape == "bell" { bell } else { bell * bell * bell };
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
                other => return Err(format!("no warper is named {other}")),
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
            other => return Err(format!("no draw is named {other}")),
        };
        same_hash(&words, &self.hash)
    }
}

fn same_rows<'a>(
    rows: impl Iterator<Item = (Result<Vec<f32>, String>, &'a (usize, String))>,
) -> Result<(), String> {
    for (row, (count, hash)) in rows {
        let row = row?;
        let kept = row.iter().enumerate().filter(|&(_, &score)| score > f32::NEG_INFINITY);
        let n = kept.clone().count();
        if n != *count {
            return Err(format!("{n} tokens are kept, transformers keeps {count}"));
        }
        if digest(kept.map(|(id, score)| (id as u64, score.to_bits()))) != *hash {
            return Err(format!("{n} tokens are kept, but not the ids or scores of transformers"));
        }
    }
    Ok(())
}

fn same_hash(words: &[u32], hash: &str) -> Result<(), String> {
    let ours = digest(words.iter().enumerate().map(|(at, &word)| (at as u64, word)));
    if ours == hash { Ok(()) } else { Err("a value beyond the first few differs".to_owned()) }
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

#[derive(Deserialize)]
struct Cases<T> {
    cases: Vec<T>,
}

fn read<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<Vec<T>, String> {
    let path = folder.join(name);
    let text = std::fs::read_to_string(&path).map_err(|it| format!("{}: {it}", path.display()))?;
    let cases: Cases<T> =
        serde_json::from_str(&text).map_err(|it| format!("{}: {it}", path.display()))?;
    Ok(cases.cases)
}
