//! A run, from the documents to the folder of the model.

use std::fs;
use std::path::Path;
use std::time::Instant;

use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
use mlxgk_tokenizer_bridge::Tokenizer;
use mlxgk_training::{
    AdjustLr, Batch, Decay, Muon, OptimizerKind, ParameterGroup, Schedule, Trainee, Trainer,
    TrainingConfig,
};
use serde_json::{Value, json};

use crate::log::{Log, Row};
use crate::tokenizer::{END, train_tokenizer};
use crate::{Plan, Result, rows::Rows, weights};

/// Steps between two rows of the table, and between two measurements of the held-out loss.
const LOG_EVERY: u64 = 50;
const MEASURE_EVERY: u64 = 200;
/// Held-out rows.
const HELD_OUT_ROWS: usize = 16;

/// Refuses what cannot be counted in.
fn check(plan: &Plan) -> Result<()> {
    let (short, long) = (plan.short.row_tokens as u64, plan.long.row_tokens as u64);
    let batch = plan.batch_tokens as u64;
    for (name, number) in [
        ("tokens", plan.tokens),
        ("batch_tokens", batch),
        ("short.row_tokens", short),
        ("long.row_tokens", long),
        ("long_every", plan.long_every),
        ("save_every", plan.save_every),
    ] {
        if number == 0 {
            return Err(format!("{name} must be at least 1").into());
        }
    }
    for (name, row) in [("short", short), ("long", long)] {
        if !batch.is_multiple_of(row) {
            let what =
                format!("batch_tokens ({batch}) must be a multiple of {name}.row_tokens ({row})");
            return Err(what.into());
        }
    }
    Ok(())
}

/// Trains a model, and says now and then how far it is.
///
/// # Errors
/// When a file is missing or wrong, the documents end before the run does, or a step fails.
pub fn run(plan: &Plan, mut say: impl FnMut(&str)) -> Result<()> {
    check(plan)?;
    let initial = plan.out.join("initial");
    let checkpoint = plan.out.join("checkpoint.safetensors");
    if !plan.resume {
        if checkpoint.exists() {
            let out = plan.out.display();
            return Err(
                format!("{out} holds a run already: resume it, or choose another folder").into()
            );
        }
        begin(plan, &initial)?;
    }
    let tokenizer = Tokenizer::from_folder(&initial)?;
    let end = tokenizer.token_to_id(END).ok_or("tokenizer.json: has no token for the end")?;
    let mut model = Decoder::load(&initial, ComputeDtype::Float32)?;
    let trainee = Trainee::new(&mut model).weights(&[], &[])?;
    trainee.check_model(&initial)?;
    say(&format!("{} parameters", trainee.count()));
    let steps = plan.tokens.div_ceil(plan.batch_tokens as u64);
    let mut trainer = Trainer::new(trainee, config(plan, steps))?;
    let own = match plan.resume {
        true => trainer.resume(&checkpoint)?,
        false => Value::Null,
    };
    let read = |name: &str| own[name].as_u64().unwrap_or(0) as usize;
    let rows = |file: &Path, length, read| Rows::open(file, &tokenizer, end, length, read);
    let mut short = rows(&plan.short.file, plan.short.row_tokens, read("short"))?;
    let mut long = rows(&plan.long.file, plan.long.row_tokens, read("long"))?;
    let held_out = rows(&plan.held_out, plan.short.row_tokens, 0)?.batch(HELD_OUT_ROWS)?;
    let mut log = Log::open(plan.out.join("loss.csv"), trainer.step())?;
    let before = own["seconds"].as_f64().unwrap_or(0.0);
    let begun = Instant::now();
    while trainer.step() < steps {
        let is_long = (trainer.step() + 1).is_multiple_of(plan.long_every);
        let source = if is_long { &mut long } else { &mut short };
        let batch = source.batch(plan.batch_tokens / source.length())?;
        let report = trainer.train_step(&[batch], 0.0, &mut NoHook)?;
        let step = report.step;
        let is_last = step == steps;
        let at = |every: u64| is_last || step.is_multiple_of(every);
        if step == 1 || at(LOG_EVERY) {
            let seconds = before + begun.elapsed().as_secs_f64();
            let held_out = match at(MEASURE_EVERY) {
                true => Some(loss(&trainer, &held_out)?),
                false => None,
            };
            let tokens = step * plan.batch_tokens as u64;
            let learning_rate = report.learning_rate;
            log.add(Row { step, tokens, seconds, learning_rate, loss: report.loss, held_out })?;
            let (rate, loss) = (tokens as f64 / seconds.max(1e-9), report.loss);
            let held_out = held_out.map_or_else(String::new, |it| format!(", held out {it:.3}"));
            say(&format!("step {step} of {steps}, {rate:.0} tokens/s, loss {loss:.3}{held_out}"));
        }
        if at(plan.save_every) {
            let seconds = before + begun.elapsed().as_secs_f64();
            let own = json!({ "short": short.read(), "long": long.read(), "seconds": seconds });
            trainer.save(&checkpoint, &own)?;
        }
    }
    say(&format!(
        "trained on {} documents in short rows and {} in long ones",
        short.read(),
        long.read()
    ));
    Ok(trainer.finish().save_model(&initial, &plan.out.join("model"))?)
}

/// Writes the folder that the run begins with.
fn begin(plan: &Plan, initial: &Path) -> Result<()> {
    fs::create_dir_all(initial)?;
    for entry in fs::read_dir(&plan.base)? {
        let path = entry?.path();
        let is_settings = path.extension().is_some_and(|it| it == "json" || it == "jinja");
        if let (true, Some(name)) = (is_settings, path.file_name()) {
            fs::copy(&path, initial.join(name))?;
        }
    }
    let config: Value = serde_json::from_slice(&fs::read(initial.join("config.json"))?)?;
    let vocabulary = config["vocab_size"].as_u64().ok_or("config.json: has no `vocab_size`")?;
    let tokenizer = train_tokenizer(&plan.tokenizer, vocabulary as usize)?;
    tokenizer.save(initial.join("tokenizer.json"), true)?;
    Ok(fs::write(initial.join("model.safetensors"), weights::initial(&config, plan.seed)?)?)
}

/// Muon for the matrices of the blocks, which needs fewer tokens than AdamW; AdamW for the rest.
fn config(plan: &Plan, steps: u64) -> TrainingConfig {
    let mut config = TrainingConfig::new(steps, plan.learning_rate);
    config.schedule = Schedule { warmup: plan.warmup.min(steps), decay: Decay::Cosine };
    config.optimizer = OptimizerKind::AdamW { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.0 };
    config.groups = vec![ParameterGroup {
        names: r"layers\..*_proj\.".to_owned(),
        optimizer: OptimizerKind::Muon(Muon {
            adjust_lr: AdjustLr::MatchRmsAdamw,
            ..Muon::default()
        }),
        learning_rate: plan.muon_learning_rate,
    }];
    config
}

/// The mean loss per token of a batch.
fn loss(trainer: &Trainer<'_>, batch: &Batch) -> Result<f64> {
    let found = trainer.trainee().logprobs(batch, &mut NoHook)?;
    let sum: f64 = found.iter().map(|&it| f64::from(it)).sum();
    Ok(-sum / found.len().max(1) as f64)
}
