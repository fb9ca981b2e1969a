//! A run from the data to the files it leaves.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use mlx_genkit::{
    HookPoint, Model, NoHook, ResidualHook,
    mlx_rs::Array,
    steering::SteeringVectors,
    training::{
        Batch, Example, Objective, Order, Row, SOFT_PROMPT, SoftPrompt, StepReport, Trainee,
        Trainer, losses::Dpo, pack, save_adapter,
    },
};
use mlx_rs::Dtype;
use serde_json::{Value, json};

use super::{Method, TrainArgs, metrics::Metrics};
use crate::{
    failure::{Failure, Result},
    files::write_text,
    flags::Format,
    load,
    progress::StepBar,
    terminal,
};

const CHECKPOINT: &str = "checkpoint.safetensors";

/// Rows ready to be trained on: sequences, or pairs of them one after the other.
struct Data {
    examples: Vec<Example>,
    /// Sequences that belong together: 1, or 2 for a preference.
    together: usize,
}

/// The subcommand.
pub(crate) fn run(args: &TrainArgs) -> Result<()> {
    args.check()?;
    let (mut model, _) = load::load(&args.model)?;
    let (train, valid) = paths(args)?;
    let data = read(&train, args, &model)?;
    let held_out = valid.map(|it| read(&it, args, &model)).transpose()?;
    if held_out.as_ref().is_some_and(|it| it.together != data.together) {
        return Err(Failure::usage("the held-out data must be of the same kind as the data"));
    }
    if args.saving.patience.is_some() && held_out.is_none() {
        return Err(Failure::usage("--patience needs held-out data: add --valid FILE"));
    }
    let order = Order::new(data.lengths(), args.batch_size, args.seed);
    let config = args.config(order.batches(), &model)?;
    if args.out.join(CHECKPOINT).exists() && !args.saving.resume {
        return Err(Failure::usage(format_args!(
            "{} holds a run already: add --resume to continue it, or choose another --out",
            args.out.display()
        )));
    }
    let base = args.model.model.clone().unwrap_or_else(|| "the bundled model".to_owned());
    let folder = match args.method {
        Method::Full => Some(load::folder(&args.model)?),
        _ => None,
    };
    let hook = args.steering.hook(&model)?;
    let trainee = args.trainee(&mut model)?;
    if let Some(folder) = &folder {
        trainee.check_model(folder.path()).map_err(mlx_genkit::Error::from)?;
    }
    // Not before all that may be refused has been.
    fs::create_dir_all(&args.out)
        .map_err(|e| Failure::other(format_args!("cannot make {}: {e}", args.out.display())))?;
    let references = data.references(&trainee, args.batch_size)?;
    let steps = config.steps;
    let trainer = Trainer::new(trainee, config).map_err(mlx_genkit::Error::from)?;
    let mut run = Run {
        args,
        base,
        folder,
        hook: hook.map_or_else(|| Box::new(NoHook) as Box<dyn ResidualHook>, |it| Box::new(it)),
        data,
        references,
        held_out,
        order,
        trainer,
        best: None,
        misses: 0,
        epoch: (u64::MAX, Vec::new()),
    };
    run.train(steps)
}

/// The files of training and held-out data.
fn paths(args: &TrainArgs) -> Result<(PathBuf, Option<PathBuf>)> {
    if !args.data.is_dir() {
        return Ok((args.data.clone(), args.valid.clone()));
    }
    let valid = args.data.join("valid.jsonl");
    let valid = args.valid.clone().or_else(|| valid.is_file().then_some(valid));
    Ok((args.data.join("train.jsonl"), valid))
}

fn read(path: &Path, args: &TrainArgs, model: &Model) -> Result<Data> {
    let ends = model.generation_config().eos_token_id.as_ref();
    let ends: Vec<u32> = ends
        .map(|it| it.as_slice().iter().filter_map(|&it| u32::try_from(it).ok()).collect())
        .unwrap_or_default();
    let mut encoder = model.encoder(&ends)?;
    if args.method == Method::SoftPrompt {
        encoder.context = encoder.context.saturating_sub(args.adapter.virtual_tokens);
    }
    let rows = encoder.read(path).map_err(|e| Failure::usage(e.to_string()))?;
    let (mut examples, mut together) = (Vec::new(), 1);
    for row in rows {
        match row {
            Row::Preference { chosen, rejected } => {
                together = 2;
                examples.extend([chosen, rejected]);
            }
            Row::Example(example) => examples.push(example),
            _ => {}
        }
    }
    if let Some(width) = args.pack {
        if together > 1 {
            return Err(Failure::usage("--pack is not available with preferences"));
        }
        if width > encoder.context {
            let context = encoder.context;
            return Err(Failure::usage(format_args!(
                "--pack {width} is more than the {context} of the context"
            )));
        }
        examples = pack(&examples, width);
    }
    Ok(Data { examples, together })
}

impl Data {
    /// Tokens of each row; of a preference, those of the longer side.
    fn lengths(&self) -> Vec<usize> {
        let longest = |it: &[Example]| it.iter().map(|it| it.tokens.len()).max().unwrap_or(0);
        self.examples.chunks(self.together).map(longest).collect()
    }

    fn tokens(&self) -> usize {
        self.examples.iter().map(|it| it.tokens.len()).sum()
    }

    fn batch(&self, rows: &[usize]) -> Result<Batch> {
        let of = |&row: &usize| &self.examples[row * self.together..][..self.together];
        let examples: Vec<Example> = rows.iter().flat_map(of).cloned().collect();
        Ok(Batch::new(&examples).map_err(mlx_genkit::Error::from)?)
    }

    /// Of preferences, how likely the model finds each answer before it is trained.
    fn references(&self, trainee: &Trainee<'_>, batch_size: usize) -> Result<Vec<f32>> {
        if self.together == 1 {
            return Ok(Vec::new());
        }
        let rows: Vec<usize> = (0..self.examples.len() / 2).collect();
        let bar = StepBar::new(rows.len().div_ceil(batch_size), "batches of references");
        let mut sums = Vec::new();
        for rows in rows.chunks(batch_size) {
            let batch = self.batch(rows)?;
            sums.extend(row_sums(&batch, &logprobs(trainee, &batch)?));
            bar.advance();
        }
        Ok(sums)
    }
}

fn logprobs(trainee: &Trainee<'_>, batch: &Batch) -> Result<Vec<f32>> {
    Ok(trainee.logprobs(batch, &mut NoHook).map_err(mlx_genkit::Error::from)?)
}

fn row_sums(batch: &Batch, of_tokens: &[f32]) -> Vec<f32> {
    let mut sums = vec![0.0; batch.rows()];
    batch.row_of().zip(of_tokens).for_each(|(row, it)| sums[row] += it);
    sums
}

struct Run<'a, 'm> {
    args: &'a TrainArgs,
    base: String,
    /// The model's files, where its weights are trained.
    folder: Option<load::Folder>,
    /// Steering under which the steps are made.
    hook: Box<dyn ResidualHook>,
    data: Data,
    /// Log-probabilities of all answers before training, where they are pairs.
    references: Vec<f32>,
    held_out: Option<Data>,
    order: Order,
    trainer: Trainer<'m>,
    /// The best held-out loss.
    best: Option<f64>,
    /// Measurements since.
    misses: u64,
    /// The batches of the epoch at hand.
    epoch: (u64, Vec<Vec<usize>>),
}

impl Run<'_, '_> {
    fn train(&mut self, steps: u64) -> Result<()> {
        let (saving, out) = (&self.args.saving, self.args.out.clone());
        let checkpoint = out.join(CHECKPOINT);
        if saving.resume {
            let own = self.trainer.resume(&checkpoint).map_err(mlx_genkit::Error::from)?;
            if own["data"] != self.data_mark() {
                return Err(Failure::usage(format_args!(
                    "{} is of a run on other data or batches",
                    checkpoint.display()
                )));
            }
            self.best = own["best"].as_u64().map(f64::from_bits);
            self.misses = own["misses"].as_u64().unwrap_or(0);
        }
        let first = self.trainer.step();
        let before = self.first_losses()?;
        let mut metrics = Metrics::open(out.join("metrics.jsonl"), first)?;
        let bar = StepBar::new(steps as usize, "steps");
        bar.set(first as usize, steps as usize);
        let (begun, mut tokens) = (Instant::now(), 0);
        let (mut last, mut stopped) = (None, false);
        while self.trainer.step() < steps && !stopped {
            let report = self.step()?;
            tokens += report.tokens;
            let rate = tokens as f64 / begun.elapsed().as_secs_f64().max(1e-9);
            metrics.add(json!({
                "step": report.step,
                "loss": report.loss,
                "tokens": report.tokens,
                "learning_rate": report.learning_rate,
                "grad_norm": report.grad_norm,
                "skipped": report.skipped,
                "tokens_per_second": rate.round(),
            }))?;
            bar.say(format!("steps, loss {:.3}, {rate:.0} tokens/s", report.loss));
            bar.advance();
            let (step, ended) = (report.step, report.step == steps);
            last = Some(report);
            let measures =
                self.held_out.is_some() && (ended || step.is_multiple_of(saving.eval_every.max(1)));
            let saves = ended || step.is_multiple_of(saving.save_every.max(1));
            if measures || saves {
                self.check_loss(before)?;
            }
            if measures {
                stopped = self.measure(step, &mut metrics)?;
            }
            if saves || stopped {
                self.save(&checkpoint)?;
                write_text(&out.join("loss.svg"), &metrics.plot())?;
            }
        }
        drop(bar);
        if self.held_out.is_none() {
            self.write()?;
        }
        self.say(last.as_ref(), begun)
    }

    fn step(&mut self) -> Result<StepReport> {
        let accumulate = self.args.accumulate as u64;
        let from = self.trainer.step() * accumulate;
        let mut parts = Vec::new();
        for place in from..from + accumulate {
            let rows = self.rows_at(place);
            parts.push((self.data.batch(&rows)?, rows));
        }
        let outcome = if self.data.together == 1 {
            let batches: Vec<Batch> = parts.into_iter().map(|it| it.0).collect();
            let smoothing = self.args.optimizer.label_smoothing;
            self.trainer.train_step(&batches, smoothing, &mut *self.hook)
        } else {
            let losses: Vec<_> =
                parts.iter().map(|(batch, rows)| self.preference(batch, rows)).collect();
            let parts: Vec<_> = parts
                .iter()
                .zip(&losses)
                .map(|((batch, _), loss)| (batch, Objective::LogProbs(loss)))
                .collect();
            self.trainer.train_step_with(&parts, &mut *self.hook)
        };
        Ok(outcome.map_err(mlx_genkit::Error::from)?)
    }

    /// The rows of batch number `place`, counted through all epochs.
    fn rows_at(&mut self, place: u64) -> Vec<usize> {
        let batches = self.order.batches() as u64;
        let epoch = place / batches;
        if self.epoch.0 != epoch {
            self.epoch = (epoch, self.order.epoch(epoch));
        }
        self.epoch.1[(place % batches) as usize].clone()
    }

    /// DPO of a batch of pairs, chosen and rejected in turn.
    fn preference(
        &self,
        batch: &Batch,
        rows: &[usize],
    ) -> impl Fn(&Array) -> mlx_genkit::training::Result<Array> + use<> {
        let sums = batch.row_sums();
        let side = |which: usize| -> Vec<f32> {
            rows.iter().map(|row| self.references[2 * row + which]).collect()
        };
        let (chosen, rejected, count) = (side(0), side(1), rows.len() as i32);
        let dpo = Dpo {
            beta: self.args.optimizer.beta,
            label_smoothing: self.args.optimizer.label_smoothing,
            ..Dpo::default()
        };
        move |logprobs| {
            let policy = sums.matmul(logprobs)?.reshape(&[count, 2])?.split_equal(2, 1)?;
            let of = |it: &Array| it.squeeze_axes(&[1]);
            let policy = [of(&policy[0])?, of(&policy[1])?];
            let reference = [&chosen, &rejected].map(|it| Array::from_slice(it, &[count]));
            Ok(dpo.loss([&policy[0], &policy[1]], [&reference[0], &reference[1]])?)
        }
    }

    /// Measures the held-out loss; writes the adapter where it is the best so far. Returns whether the
    /// run is to stop.
    fn measure(&mut self, step: u64, metrics: &mut Metrics) -> Result<bool> {
        let Some(held_out) = &self.held_out else { return Ok(false) };
        let rows: Vec<usize> = (0..held_out.examples.len() / held_out.together).collect();
        let batches: Vec<Batch> = rows
            .chunks(self.args.batch_size)
            .map(|it| held_out.batch(it))
            .collect::<Result<_>>()?;
        let loss = self.trainer.with_averages(|trainee| {
            let (mut sum, mut count) = (0.0, 0);
            for batch in &batches {
                let found = trainee.logprobs(batch, &mut NoHook)?;
                sum -= found.iter().map(|&it| f64::from(it)).sum::<f64>();
                count += found.len();
            }
            Ok(sum / count.max(1) as f64)
        });
        let loss = loss.map_err(mlx_genkit::Error::from)?;
        if !loss.is_finite() {
            return Err(diverged(step, "held-out loss", loss));
        }
        metrics.add(json!({ "step": step, "eval_loss": loss, "perplexity": loss.exp() }))?;
        if self.best.is_none_or(|best| loss < best) {
            self.best = Some(loss);
            self.misses = 0;
            self.write()?;
            return Ok(false);
        }
        self.misses += 1;
        Ok(self.args.saving.patience.is_some_and(|it| self.misses >= it))
    }

    /// The loss of the first batch of the run, by the parameters and by what of them is kept: their averages
    /// may hide what has become of them.
    fn first_losses(&mut self) -> Result<[f64; 2]> {
        let rows = self.rows_at(0);
        let batch = self.data.batch(&rows)?;
        let preference = (self.data.together > 1).then(|| self.preference(&batch, &rows));
        let hook = &mut *self.hook;
        let mut loss = |trainee: &Trainee<'_>| -> mlx_genkit::training::Result<f64> {
            let found = trainee.logprobs(&batch, hook)?;
            match &preference {
                Some(loss) => {
                    let found = Array::from_slice(&found, &[found.len() as i32]);
                    Ok(values(&loss(&found)?)?.iter().map(|&it| f64::from(it)).sum())
                }
                None => {
                    let sum: f64 = found.iter().map(|&it| f64::from(it)).sum();
                    Ok(-sum / found.len().max(1) as f64)
                }
            }
        };
        let own = loss(self.trainer.trainee()).map_err(mlx_genkit::Error::from)?;
        if self.trainer.ema().is_none() {
            return Ok([own; 2]);
        }
        let kept = self.trainer.with_averages(loss).map_err(mlx_genkit::Error::from)?;
        Ok([own, kept])
    }

    /// Refuses to keep parameters with which the first batch's loss, which was `before`, is above that and
    /// above that of a guess among all tokens, or is that of a guess: numbers that overflow leave all tokens
    /// equally likely.
    fn check_loss(&mut self, before: [f64; 2]) -> Result<()> {
        let losses = self.first_losses()?;
        let guess = (self.trainer.trainee().decoder().vocab_size() as f64).ln();
        let is_guess = |loss: f64| (loss - guess).abs() < 1e-5 * guess;
        let has_grown = |(&loss, before): (&f64, f64)| {
            loss.is_nan() || loss > guess.max(before) || (is_guess(loss) && !is_guess(before))
        };
        match losses.iter().zip(before).find(|it| has_grown(*it)) {
            Some((&loss, _)) => Err(diverged(self.trainer.step(), "first batch's loss", loss)),
            None => Ok(()),
        }
    }

    /// What says that a checkpoint is of the same data.
    fn data_mark(&self) -> Value {
        json!({
            "rows": self.data.examples.len(),
            "tokens": self.data.tokens(),
            "batch_size": self.args.batch_size,
            "accumulate": self.args.accumulate,
            "seed": self.args.seed,
        })
    }

    fn save(&self, path: &Path) -> Result<()> {
        let own = json!({
            "data": self.data_mark(),
            "best": self.best.map(f64::to_bits),
            "misses": self.misses,
        });
        Ok(self.trainer.save(path, &own).map_err(mlx_genkit::Error::from)?)
    }

    /// Writes what was learned, or its average, where others can load it.
    fn write(&mut self) -> Result<()> {
        let (args, base) = (self.args, self.base.clone());
        let written = self.trainer.with_averages(|trainee| {
            match args.method {
                Method::Lora | Method::Dora => {
                    save_adapter(trainee.decoder(), &args.out, args.adapter_format(), &base)?;
                }
                Method::SoftPrompt => {
                    let place =
                        trainee.names().iter().position(|it| it == SOFT_PROMPT).unwrap_or(0);
                    SoftPrompt::new(&trainee.masters()[place])?.save(&args.out, &base)?;
                }
                Method::Vector => return Ok(Some(vectors(trainee)?)),
                Method::Full => {
                    if let Some(folder) = &self.folder {
                        trainee.save_model(folder.path(), &args.out.join("model"))?;
                    }
                }
            }
            Ok(None)
        });
        let Some(vectors) = written.map_err(mlx_genkit::Error::from)? else { return Ok(()) };
        let vectors = SteeringVectors::new(vectors).map_err(mlx_genkit::Error::from)?;
        let vectors = vectors.note("method", "gradient").note("model", self.base.as_str());
        let path = args.out.join("vector.safetensors");
        Ok(vectors.save(path).map_err(mlx_genkit::Error::from)?)
    }

    fn say(&self, last: Option<&StepReport>, begun: Instant) -> Result<()> {
        let steps = self.trainer.step();
        let (trained, seconds) = (self.trainer.trainee().count(), begun.elapsed().as_secs_f64());
        let out = self.args.out.display().to_string();
        let loss = last.map(|it| it.loss);
        if self.args.output.format == Format::Json {
            let document = json!({
                "out": out, "steps": steps, "parameters": trained, "loss": loss,
                "eval_loss": self.best, "seconds": seconds,
            });
            return Ok(terminal::line(document)?);
        }
        let loss = loss.map(|it| format!(", loss {it:.3}")).unwrap_or_default();
        let held_out =
            self.best.map(|it| format!(", held out {it:.3} (perplexity {:.2})", it.exp()));
        let held_out = held_out.unwrap_or_default();
        terminal::line(format_args!(
            "{steps} steps on {trained} parameters in {seconds:.0} s{loss}{held_out}: {out}"
        ))?;
        Ok(())
    }
}

/// The error about a run that went wrong; what was written before is left as it is.
fn diverged(step: u64, what: &str, loss: f64) -> Failure {
    Failure::other(format_args!(
        "training has diverged: after step {step} the {what} is {loss:.3e}; the checkpoint before it is \
         kept, and a lower --learning-rate may help"
    ))
}

/// The vectors under training, by place.
fn vectors(trainee: &Trainee<'_>) -> mlx_genkit::training::Result<Vec<(HookPoint, Vec<f32>)>> {
    let mut found = Vec::new();
    for (name, master) in trainee.names().iter().zip(trainee.masters()) {
        let layer = name.strip_prefix("resid_post.").and_then(|it| it.parse().ok());
        if let Some(layer) = layer {
            found.push((HookPoint::ResidPost(layer), values(master)?));
        }
    }
    Ok(found)
}

/// The numbers of an array of floats.
fn values(array: &Array) -> mlx_genkit::training::Result<Vec<f32>> {
    use mlx_genkit::training::{Error, ErrorKind};
    let wide = array.as_dtype(Dtype::Float32)?.contiguous()?;
    wide.to_vec_exact().map_err(|e| Error::new(ErrorKind::Run, e.to_string()))
}
