//! A run: steps, and checkpoints that it continues from to the bit.

use std::{collections::HashMap, path::Path};

use mlx_rs::{Array, Dtype, error::Result as MlxResult, transforms::eval};
use mlxgk_mlx_models::{AdapterDropout, ResidualHook};
use serde_json::{Value, json};

use crate::{
    Batch, Ema, Error, ErrorKind, GradientOptions, LossScaler, Objective, OptimizerKind,
    ParameterGroup, Result, Schedule, Trainee, clip_global_norm,
    files::{self, failed},
    optimizers::Optimizers,
};

/// How a run goes. Which precision it computes in is the model's, chosen when it is loaded; parameters
/// under training have fp32 masters in any case.
///
/// ```
/// use mlxgk_training::{Decay, OptimizerKind, Schedule, TrainingConfig};
///
/// let mut config = TrainingConfig::new(1000, 1e-4);
/// config.schedule = Schedule { warmup: 100, decay: Decay::Cosine };
/// config.ema_decay = Some(0.999);
/// assert!(matches!(config.optimizer, OptimizerKind::AdamW { .. }));
/// assert_eq!(config.max_grad_norm, Some(1.0));
/// assert_eq!(config.learning_rate * config.schedule.factor(50, config.steps), 0.5e-4);
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TrainingConfig {
    /// How many steps the run has; the schedule depends on it.
    pub steps: u64,
    /// The learning rate where the schedule's factor is 1.
    pub learning_rate: f64,
    /// How it changes.
    pub schedule: Schedule,
    /// The optimizer.
    pub optimizer: OptimizerKind,
    /// Parameters with an optimizer and a learning rate of their own: of those that a parameter matches,
    /// the first has it.
    pub groups: Vec<ParameterGroup>,
    /// The bound on the norm of all gradients together.
    pub max_grad_norm: Option<f32>,
    /// Loss scaling, for models that compute in f16.
    pub scaler: LossScaler,
    /// The decay of an average of the parameters, with a warm-up; `None` for no average.
    pub ema_decay: Option<f64>,
    /// Blocks whose activations are held at a time; `None` holds all.
    pub checkpoint_layers: Option<usize>,
    /// Predicted tokens whose logits are held at a time; `None` for as many as take 128 MiB.
    pub logits_chunk: Option<usize>,
    /// PEFT's `lora_dropout`: how likely an adapter does not see a number that it is given; 0 for none.
    pub lora_dropout: f32,
    /// What dropout is drawn from. A step's draws follow from it and the step's number alone.
    pub seed: u64,
}

impl TrainingConfig {
    /// AdamW at `learning_rate`, constant, with norms clipped at 1.
    pub fn new(steps: u64, learning_rate: f64) -> Self {
        Self {
            steps,
            learning_rate,
            schedule: Schedule::default(),
            optimizer: OptimizerKind::default(),
            groups: Vec::new(),
            max_grad_norm: Some(1.0),
            scaler: LossScaler::default(),
            ema_decay: None,
            checkpoint_layers: None,
            logits_chunk: None,
            lora_dropout: 0.0,
            seed: 0,
        }
    }
}

/// What a step did.
///
/// See the example of [`Trainer`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct StepReport {
    /// Its number, from 1.
    pub step: u64,
    /// The mean loss per predicted token; of other objectives than cross-entropy, per batch.
    pub loss: f64,
    /// How many tokens were predicted.
    pub tokens: usize,
    /// The learning rate.
    pub learning_rate: f64,
    /// The norm of all gradients together, before clipping.
    pub grad_norm: f32,
    /// The loss scale it was taken with.
    pub scale: f32,
    /// Whether nothing was changed, because a gradient was not finite.
    pub skipped: bool,
}

/// A run under way.
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
/// use mlxgk_training::{Batch, Example, LoraConfig, Trainee, Trainer, TrainingConfig, attach_lora};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let mut model = Decoder::load(folder, ComputeDtype::Float32)?;
/// attach_lora(&mut model, &LoraConfig::default())?;
/// let trainee = Trainee::new(&mut model).adapters()?;
/// let mut trainer = Trainer::new(trainee, TrainingConfig::new(8, 1e-2))?;
/// let batches = [Batch::new(&[Example::completion(&[5, 9], &[14, 7])])?];
/// let first = trainer.train_step(&batches, 0.0, &mut NoHook)?;
/// let mut last = first;
/// for _ in 1..8 {
///     last = trainer.train_step(&batches, 0.0, &mut NoHook)?;
/// }
/// assert_eq!((first.step, first.tokens, last.step), (1, 2, 8));
/// assert!(last.loss < first.loss);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Trainer<'m> {
    trainee: Trainee<'m>,
    config: TrainingConfig,
    optimizers: Optimizers,
    ema: Option<Ema>,
    /// Steps made, skipped ones among them.
    step: u64,
}

impl<'m> Trainer<'m> {
    /// A run that begins.
    ///
    /// # Errors
    /// When a setting is out of its range, or nothing is to be trained.
    pub fn new(trainee: Trainee<'m>, config: TrainingConfig) -> Result<Self> {
        if trainee.masters().is_empty() {
            return Err(Error::config("nothing is chosen to be trained"));
        }
        if let Some(most) = config.max_grad_norm.filter(|it| it.is_nan() || *it <= 0.0) {
            return Err(Error::config(format!("the bound on norms is {most}, must be above 0")));
        }
        if !(0.0..1.0).contains(&config.lora_dropout) {
            let rate = config.lora_dropout;
            return Err(Error::config(format!(
                "lora_dropout is {rate}, must be at least 0 and below 1"
            )));
        }
        config.schedule.check(config.steps)?;
        let optimizers = Optimizers::new(
            config.optimizer,
            config.learning_rate,
            &config.groups,
            trainee.names(),
            trainee.masters(),
        )?;
        let average = |decay| Ema::new(trainee.masters(), decay, true);
        let ema = config.ema_decay.map(average).transpose()?;
        Ok(Self { trainee, config, optimizers, ema, step: 0 })
    }

    /// One step of cross-entropy over micro-batches, whose gradients are added up: every predicted token
    /// of all of them counts alike, as if they were one batch.
    ///
    /// # Errors
    /// When a batch does not fit the model, no token is predicted, the loss, a parameter's norm after the
    /// step or (without dynamic scaling) a gradient is not finite, or the model fails. The parameters are
    /// then as they were.
    pub fn train_step(
        &mut self,
        batches: &[Batch],
        label_smoothing: f32,
        hook: &mut dyn ResidualHook,
    ) -> Result<StepReport> {
        let tokens: usize = batches.iter().map(Batch::supervised).sum();
        if tokens == 0 {
            return Err(Error::data("the batch has no token to be predicted"));
        }
        let objective = Objective::CrossEntropy { smoothing: label_smoothing };
        let parts: Vec<(&Batch, Objective<'_>)> =
            batches.iter().map(|it| (it, objective)).collect();
        self.step_by(&parts, 1.0 / tokens as f32, hook)
    }

    /// One step of other objectives, each a scalar of a batch's log-probabilities; their mean is
    /// minimized.
    ///
    /// # Errors
    /// As [`train_step`](Self::train_step).
    pub fn train_step_with(
        &mut self,
        parts: &[(&Batch, Objective<'_>)],
        hook: &mut dyn ResidualHook,
    ) -> Result<StepReport> {
        if parts.is_empty() {
            return Err(Error::data("there is no batch to be trained on"));
        }
        self.step_by(parts, 1.0 / parts.len() as f32, hook)
    }

    fn step_by(
        &mut self,
        parts: &[(&Batch, Objective<'_>)],
        weight: f32,
        hook: &mut dyn ResidualHook,
    ) -> Result<StepReport> {
        let scale = self.config.scaler.scale();
        let (mut loss, mut tokens, mut sums) = (0.0, 0, Vec::new());
        for (number, &(batch, objective)) in parts.iter().enumerate() {
            let options = GradientOptions {
                objective,
                scale: scale * weight,
                checkpoint_layers: self.config.checkpoint_layers,
                logits_chunk: self.config.logits_chunk,
                dropout: self.dropout(number as u64),
            };
            let found = self.trainee.gradients(batch, options, hook)?;
            loss += found.loss * f64::from(weight);
            tokens += found.tokens;
            sums = added(&sums, &found.values)?;
        }
        let unscale = Array::from_f32(1.0 / scale);
        let gradients: Vec<Array> =
            sums.iter().map(|it| it.multiply(&unscale)).collect::<MlxResult<_>>()?;
        let (gradients, grad_norm) = clip_global_norm(gradients, self.config.max_grad_norm)?;
        let factor = self.config.schedule.factor(self.step, self.config.steps);
        let learning_rate = self.config.learning_rate * factor;
        let skipped = !grad_norm.is_finite();
        if !self.config.scaler.is_dynamic() && (skipped || !loss.is_finite()) {
            return Err(self.not_finite(loss, &gradients));
        }
        self.config.scaler.update(skipped);
        if skipped && self.config.scaler.scale() < LEAST_SCALE {
            return Err(self.not_finite(loss, &gradients));
        }
        if !skipped {
            let (masters, names) = (self.trainee.masters(), self.trainee.names());
            let masters = self.optimizers.step(masters, &gradients, factor, names)?;
            self.trainee.set_masters(&masters)?;
            if let Some(ema) = &mut self.ema {
                ema.update(self.trainee.masters())?;
            }
        }
        self.step += 1;
        Ok(StepReport { step: self.step, loss, tokens, learning_rate, grad_norm, scale, skipped })
    }

    /// What adapters do not see in a micro-batch of the step to come.
    fn dropout(&self, number: u64) -> Option<AdapterDropout> {
        let rate = self.config.lora_dropout;
        // Odd factors, so that neighbours share no seed.
        let seed = (self.config.seed)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .wrapping_add(self.step.wrapping_mul(0xbf58_476d_1ce4_e5b9))
            .wrapping_add(number.wrapping_mul(0x94d0_49bb_1331_11eb));
        (rate > 0.0).then_some(AdapterDropout { rate, seed })
    }

    /// Says what was not finite.
    fn not_finite(&self, loss: f64, gradients: &[Array]) -> Error {
        let step = self.step + 1;
        let is_finite = |it: &Array| {
            crate::head::host(it).is_ok_and(|values| values.iter().all(|it| it.is_finite()))
        };
        let culprit = gradients.iter().position(|it| !is_finite(it));
        let what = match culprit {
            Some(index) => format!(
                "step {step}: the gradient of `{}` is not finite (the loss is {loss}); a lower learning \
                 rate or fp32 may help",
                self.trainee.names()[index]
            ),
            None => format!("step {step}: the loss is {loss}"),
        };
        Error::new(ErrorKind::NotFinite, what)
    }

    /// Steps made.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// What is trained.
    pub fn trainee(&self) -> &Trainee<'m> {
        &self.trainee
    }

    /// The loss scaling, as it stands.
    pub fn scaler(&self) -> &LossScaler {
        &self.config.scaler
    }

    /// The average of the parameters, where there is one.
    pub fn ema(&self) -> Option<&Ema> {
        self.ema.as_ref()
    }

    /// Runs `f` with the averages in the model's place of the parameters, and puts those back.
    ///
    /// # Errors
    /// The first error of `f` or of MLX. Without an average `f` sees the parameters.
    pub fn with_averages<T>(&mut self, f: impl FnOnce(&Trainee<'m>) -> Result<T>) -> Result<T> {
        let Some(ema) = &self.ema else { return f(&self.trainee) };
        let own = self.trainee.masters().to_vec();
        self.trainee.set_masters(ema.averages())?;
        let outcome = f(&self.trainee);
        self.trainee.set_masters(&own)?;
        outcome
    }

    /// Ends the run.
    pub fn finish(self) -> Trainee<'m> {
        self.trainee
    }

    /// Writes all that the run needs to continue: parameters, the optimizer's memory, averages, loss
    /// scale, step, and `own`, what the caller has to remember (where it stands in its data). The file
    /// is there as a whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written; one that was there is then as it was.
    pub fn save(&self, path: impl AsRef<Path>, own: &Value) -> Result<()> {
        let (steps, kept) = self.optimizers.state();
        let (scale, clean) = self.config.scaler.state();
        let mut arrays = Vec::new();
        for (index, name) in self.trainee.names().iter().enumerate() {
            arrays.push((format!("master.{name}"), self.trainee.masters()[index].clone()));
            for (place, array) in kept[index].iter().enumerate() {
                arrays.push((format!("optimizer.{place}.{name}"), array.clone()));
            }
            if let Some(ema) = &self.ema {
                arrays.push((format!("average.{name}"), ema.averages()[index].clone()));
            }
        }
        let state = json!({
            "step": self.step,
            "optimizer_steps": steps,
            // As bits: a number in decimals might come back as another.
            "scale": scale.to_bits(),
            "clean": clean,
            "averaged": self.ema.as_ref().map(Ema::updates),
            "config": self.fingerprint(),
            "own": own,
        });
        let metadata = HashMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("state".to_owned(), state.to_string()),
        ]);
        files::write(path.as_ref(), &arrays, metadata)
    }

    /// Continues where [`save`](Self::save) stood; returns what the caller had to remember.
    ///
    /// # Errors
    /// When the file is missing, damaged, or of a run with other parameters or another optimizer. The
    /// run is then as it was.
    pub fn resume(&mut self, path: impl AsRef<Path>) -> Result<Value> {
        let path = path.as_ref();
        let files::Tensors { mut arrays, metadata } = files::read(path, u64::MAX)?;
        if metadata.get("format").map(String::as_str) != Some(FORMAT) {
            return Err(failed(path, "is not a checkpoint of a training run"));
        }
        let state: Value = metadata
            .get("state")
            .and_then(|it| serde_json::from_str(it).ok())
            .ok_or_else(|| failed(path, "does not hold the step that the run has reached"))?;
        if state["config"] != self.fingerprint() {
            let (then, now) = (&state["config"], self.fingerprint());
            let what = format!("is of a run with other settings: {then}, and now {now}");
            return Err(failed(path, what));
        }
        let number = |name: &str| {
            state[name].as_u64().ok_or_else(|| failed(path, format_args!("lacks {name}")))
        };
        let steps = number("optimizer_steps")?;
        let mut take = |name: String, wanted: &[i32]| match arrays.remove(&name) {
            Some(array) if array.shape() == wanted => Ok(array),
            Some(array) => {
                let found = array.shape();
                Err(failed(path, format_args!("`{name}` is {found:?}, expected {wanted:?}")))
            }
            None => Err(failed(path, format_args!("lacks `{name}`"))),
        };
        let (mut masters, mut kept, mut averages) = (Vec::new(), Vec::new(), Vec::new());
        let trained = self.trainee.names().iter().zip(self.trainee.masters());
        for (index, (name, master)) in trained.enumerate() {
            masters.push(take(format!("master.{name}"), master.shape())?);
            let mut own = Vec::new();
            if steps > 0 {
                let shapes = self.optimizers.kept_shapes(index, master.shape());
                for (place, shape) in shapes.iter().enumerate() {
                    own.push(take(format!("optimizer.{place}.{name}"), shape)?);
                }
            }
            kept.push(own);
            if self.ema.is_some() {
                averages.push(take(format!("average.{name}"), master.shape())?);
            }
        }
        let step = number("step")?;
        let scale = f32::from_bits(number("scale")? as u32);
        let clean = number("clean")?;
        let averaged = if self.ema.is_some() { number("averaged")? } else { 0 };
        self.trainee.set_masters(&masters)?;
        self.optimizers.set_state(steps, &kept);
        self.config.scaler.set_state((scale, clean));
        if let Some(ema) = &mut self.ema {
            ema.set_state(averaged, averages);
        }
        self.step = step;
        Ok(state["own"].clone())
    }

    /// What a run has to have in common with one that it continues.
    fn fingerprint(&self) -> Value {
        let config = &self.config;
        let mut fingerprint = json!({
            "steps": config.steps,
            "learning_rate": config.learning_rate,
            "schedule": format!("{:?}", config.schedule),
            "optimizer": format!("{:?}", config.optimizer),
            "max_grad_norm": config.max_grad_norm,
            "ema_decay": config.ema_decay,
            // The seed is for that alone.
            "lora_dropout": (config.lora_dropout > 0.0).then_some((config.lora_dropout, config.seed)),
            "dtype": format!("{:?}", self.trainee.decoder().dtype()),
            "parameters": self.trainee.count(),
        });
        // Checkpoints of runs without groups do not speak of them.
        if !config.groups.is_empty() {
            fingerprint["groups"] = format!("{:?}", config.groups).into();
        }
        fingerprint
    }
}

/// A loss scale below this does not come from gradients that were too large.
const LEAST_SCALE: f32 = 1.0 / 65_536.0;

const FORMAT: &str = "mlxgk-training";

/// Gradients of one more micro-batch added to those before, in fp32.
fn added(sums: &[Array], values: &[Array]) -> Result<Vec<Array>> {
    let wide = |it: &Array| it.as_dtype(Dtype::Float32);
    let sums: Vec<Array> = match sums.is_empty() {
        true => values.iter().map(wide).collect::<MlxResult<_>>()?,
        false => {
            let pairs = sums.iter().zip(values);
            pairs.map(|(sum, it)| sum.add(wide(it)?)).collect::<MlxResult<_>>()?
        }
    };
    eval(&sums)?;
    Ok(sums)
}
