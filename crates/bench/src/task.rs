//! What the measuring program is asked to do, and what it answers: one JSON object each.
//!
//! The other systems' programs, `xtask/bench/*.py`, take the same tasks and give the same answers.

use std::path::PathBuf;
use std::time::Instant;

use mlx_genkit::{
    ComputeDtype, Generation, GenerationConfig, Model, Prompt, Request, Seed,
    generation_config::Kwargs,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    Draws, Masks, Result, models, pauses, peak_bytes, sampling, shapes::Shape, speeds, time,
    training::train,
};

/// One thing to measure, in a process of its own.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "task", rename_all = "snake_case", deny_unknown_fields)]
pub enum Task {
    /// Writes the models and scores that the other tasks read, and says where they are.
    Prepare {
        /// Where to.
        folder: PathBuf,
    },
    /// Writes the model of an architecture that is measured by itself, and says where it is.
    Random {
        /// Where to.
        folder: PathBuf,
        /// Its shape.
        shape: Architecture,
    },
    /// Continues a prompt greedily.
    Generate {
        /// The model folder.
        model: PathBuf,
        /// The precision to compute in.
        dtype: Precision,
        /// A prompt to continue.
        prompt: Vec<u32>,
        /// By how many tokens.
        new_tokens: usize,
        /// A longer prompt, of which the first new token alone is waited for.
        prefill: Vec<u32>,
        /// How often; the medians count.
        repeats: usize,
    },
    /// Answers a request as a whole, in whatever mode its fields ask for.
    Request {
        /// The model folder; it is computed in fp32.
        model: PathBuf,
        /// Fields of HF's generation config.
        fields: Value,
        /// Equally long prompts, one batch.
        prompts: Vec<Vec<u32>>,
        /// How often; the median counts.
        repeats: usize,
    },
    /// Continues eight prompts side by side, by `generate` and in batches that requests join, and lets a long
    /// prompt join a running row.
    Batches {
        /// The model folder; it is computed in fp32.
        model: PathBuf,
        /// How often; the medians count.
        rounds: usize,
    },
    /// Continues a prompt greedily for a long time, and says what a token costs as the text grows.
    Growth {
        /// The model folder; it is computed in fp32.
        model: PathBuf,
        /// The prompt.
        prompt: Vec<u32>,
        /// By how many tokens.
        new_tokens: usize,
        /// Tokens per point of the curve.
        every: usize,
    },
    /// Trains an adapter on one batch, of which every token is predicted.
    Train {
        /// The model folder; it is computed in fp32.
        model: PathBuf,
        /// The folder, in PEFT's format, with the adapter that is trained. Where there is none, a new one
        /// of rank 8 for all products is written first.
        adapter: PathBuf,
        /// Rows of token ids.
        rows: Vec<Vec<u32>>,
        /// How many steps; the median counts, without the first.
        steps: usize,
    },
    /// Draws tokens from given scores.
    Draw {
        /// Fields of HF's generation config.
        fields: Value,
        /// Whose random numbers.
        rng: Generator,
        /// Rows of scores: fp32, `vocab` each.
        scores: PathBuf,
        /// Scores per row.
        vocab: usize,
        /// Tokens so far.
        history: Vec<u32>,
        /// How many draws.
        draws: usize,
    },
    /// Masks what a JSON schema does not allow.
    Mask {
        /// How many masks.
        masks: usize,
    },
}

/// A precision under torch's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// fp32.
    Float32,
    /// bf16.
    Bfloat16,
}

/// An architecture that is measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// Qwen3-0.6B, which the others are compared with.
    Dense,
    /// Gated delta rules beside attention: Qwen3.5-0.8B.
    Hybrid,
    /// A mixture of experts with the ratios of Qwen3-30B-A3B.
    Mixture,
}

/// A generator to draw from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Generator {
    /// The fast one.
    Fast,
    /// torch's.
    Torch,
}

impl Task {
    /// Does it and says what was measured.
    ///
    /// # Errors
    /// When a model cannot be loaded or run, or a file not be written.
    pub fn run(&self) -> Result<Value> {
        match self {
            Self::Prepare { folder } => {
                std::fs::create_dir_all(folder)?;
                let scores = folder.join("scores.f32");
                let bytes: Vec<u8> =
                    sampling::scores().into_iter().flat_map(f32::to_le_bytes).collect();
                std::fs::write(&scores, bytes)?;
                Ok(json!({
                    "large": models::random_qwen3(folder)?,
                    "bundled": models::endless_bundled(folder)?,
                    "scores": scores,
                    "vocab": sampling::VOCAB,
                    "history": sampling::history(),
                    "usual": sampling::usual(),
                    "nucleus": sampling::nucleus(),
                }))
            }
            Self::Random { folder, shape } => {
                std::fs::create_dir_all(folder)?;
                let (name, shape) = match shape {
                    Architecture::Dense => (models::DENSE, Shape::dense()),
                    Architecture::Hybrid => ("qwen3.5-0.8b-shape", Shape::hybrid()),
                    Architecture::Mixture => ("moe", Shape::mixture()),
                };
                Ok(json!({
                    "model": models::random(folder, name, &shape)?,
                    // Weights of two bytes, as they are held.
                    "active_bytes": 2 * shape.active_parameters(),
                }))
            }
            Self::Generate { model, dtype, prompt, new_tokens, prefill, repeats } => {
                let dtype = match dtype {
                    Precision::Float32 => ComputeDtype::Float32,
                    Precision::Bfloat16 => ComputeDtype::Bfloat16,
                };
                let model = Model::load(model, dtype)?;
                // The first request pays for threads and memory that the later ones find ready.
                time(&model, prompt, 2)?;
                let mut tokens = Vec::new();
                let (mut decode, mut first) = (Vec::new(), Vec::new());
                for _ in 0..*repeats {
                    let timed = time(&model, prompt, *new_tokens)?;
                    decode.push(timed.decoded_per_second());
                    tokens = timed.tokens;
                    let timed = time(&model, prefill, 1)?;
                    first.push(prefill.len() as f64 / timed.first.as_secs_f64());
                }
                Ok(json!({
                    "decode_tokens_per_second": median(decode),
                    "prefill_tokens_per_second": median(first),
                    "tokens": tokens,
                    "weight_bytes": model.decoder().footprint().bytes,
                    "peak_bytes": peak_bytes()?,
                }))
            }
            Self::Request { model, fields, prompts, repeats } => {
                let model = Model::load(model, ComputeDtype::Float32)?;
                answer(&model, fields, prompts)?;
                let mut rates = Vec::new();
                let mut last = None;
                for _ in 0..*repeats {
                    let begun = Instant::now();
                    let generation = answer(&model, fields, prompts)?;
                    let seconds = begun.elapsed().as_secs_f64();
                    rates.push(generation.generated_tokens() as f64 / seconds);
                    last = Some(generation);
                }
                let sequences = last.iter().flat_map(|it| &it.sequences);
                Ok(json!({
                    "tokens_per_second": median(rates),
                    "tokens": sequences.flat_map(|it| &it.tokens).collect::<Vec<_>>(),
                    "acceptance": last.and_then(|it| it.acceptance).map(|it| it.rate()),
                }))
            }
            Self::Batches { model, rounds } => {
                let model = Model::load(model, ComputeDtype::Float32)?;
                let [generate, continuous, steered] = speeds(&model, *rounds)?;
                let milliseconds = |in_chunks| -> Result<Vec<f64>> {
                    let pauses = pauses(&model, in_chunks)?;
                    Ok(pauses.iter().map(|it| it.as_secs_f64() * 1e3).collect())
                };
                Ok(json!({
                    "generate_tokens_per_second": generate,
                    "continuous_tokens_per_second": continuous,
                    "steered_tokens_per_second": steered,
                    "milliseconds_while_a_prompt_joins": milliseconds(true)?,
                    "milliseconds_beside_a_prompt_read_as_a_whole": milliseconds(false)?,
                }))
            }
            Self::Growth { model, prompt, new_tokens, every } => {
                let model = Model::load(model, ComputeDtype::Float32)?;
                time(&model, prompt, 2)?;
                growth(&model, prompt, *new_tokens, *every)
            }
            Self::Train { model, adapter, rows, steps } => train(model, adapter, rows, *steps),
            Self::Draw { fields, rng, scores, vocab, history, draws } => {
                let seed = match rng {
                    Generator::Fast => Seed::Fast(0),
                    Generator::Torch => Seed::Torch(0),
                };
                let scores = std::fs::read(scores)?;
                let scores =
                    scores.as_chunks().0.iter().map(|it| f32::from_le_bytes(*it)).collect();
                let mut request = Draws::new(fields, seed, scores, *vocab, history.clone())?;
                let draws = each(10, *draws, || request.step().map(drop))?;
                Ok(json!({"microseconds": median(draws)}))
            }
            Self::Mask { masks } => {
                let mut request = Masks::new()?;
                // Masks differ much from place to place, so it is the average that counts.
                let times = each(200, *masks, || request.step())?;
                Ok(json!({"microseconds": times.iter().sum::<f64>() / times.len() as f64}))
            }
        }
    }
}

/// Answers `prompts`, one batch, with fields of HF's generation config.
fn answer(model: &Model, fields: &Value, prompts: &[Vec<u32>]) -> Result<Generation> {
    let prompts = prompts.iter().map(|ids| Prompt::Ids(ids.clone()));
    Ok(model.generate(Request::batch(prompts).overrides(Kwargs::from_json(fields)?))?)
}

/// One point for `every` tokens: tokens so far, microseconds per token, bytes that MLX holds.
fn growth(model: &Model, prompt: &[u32], new_tokens: usize, every: usize) -> Result<Value> {
    let config = GenerationConfig {
        do_sample: Some(false),
        max_new_tokens: Some(new_tokens),
        ..Default::default()
    };
    let request = Request::new(prompt.to_vec()).config(config);
    let (mut points, mut since) = (Vec::new(), Instant::now());
    for (index, piece) in model.stream(request)?.enumerate() {
        piece?;
        if index == 0 {
            since = Instant::now();
        } else if index % every == 0 {
            let tokens = prompt.len() + index;
            let microseconds = since.elapsed().as_secs_f64() * 1e6 / every as f64;
            let bytes = mlx_genkit::mlx_rs::memory::active_memory()?;
            points.push(json!([tokens, microseconds, bytes]));
            since = Instant::now();
        }
    }
    Ok(json!({"points": points}))
}

/// The microseconds of each of `count` steps, after some that are not counted.
fn each(before: usize, count: usize, mut step: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    for _ in 0..before {
        step()?;
    }
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let begun = Instant::now();
        step()?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}

/// The middle value; 0 of none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(Vec::new()), 0.0);
    }

    #[test]
    fn a_task_with_a_field_too_many_is_refused() {
        let task = r#"{"task": "prepare", "folder": "x", "models": 2}"#;
        assert!(serde_json::from_str::<Task>(task).is_err());
    }

    #[test]
    fn draws_from_a_file_are_timed() {
        let folder = tempfile::tempdir().unwrap();
        let scores = folder.path().join("scores.f32");
        let row: Vec<u8> = (0..2 * 64).flat_map(|it| (it as f32).sin().to_le_bytes()).collect();
        std::fs::write(&scores, row).unwrap();
        let task = json!({
            "task": "draw", "fields": sampling::usual(), "rng": "torch", "scores": scores,
            "vocab": 64, "history": [3, 1, 4, 1], "draws": 3,
        });
        let measured = serde_json::from_value::<Task>(task).unwrap().run().unwrap();
        assert!(measured["microseconds"].as_f64().is_some_and(f64::is_finite), "{measured}");
    }
}
