//! `mlxgk train`: its flags, and what they mean to the library.

mod metrics;
mod run;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use mlx_genkit::{
    Model,
    steering::Layers,
    training::{
        Adafactor, AdapterFormat, Decay, LoraConfig, LossScaler, Muon, OptimizerKind, Schedule,
        SoftPrompt, TorchAdafactor, Trainee, TrainingConfig, attach_lora,
    },
};
use mlx_rs::Dtype;

use crate::{
    failure::{Failure, Result},
    flags::{ModelArgs, OutputArgs, SteerArgs},
};

pub(crate) use self::run::run;

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// Training data, one JSON object per line: a file, or a folder with train.jsonl and optionally
    /// valid.jsonl
    #[arg(long, value_name = "FILE|DIR")]
    data: PathBuf,
    /// Validation data
    #[arg(long, value_name = "FILE")]
    valid: Option<PathBuf>,
    /// The folder to write: the adapter, metrics.jsonl, loss.svg and the checkpoint
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What to train
    #[arg(long, value_enum, default_value = "lora")]
    method: Method,
    /// Epochs: passes over the data
    #[arg(long, value_name = "N", default_value = "1", conflicts_with = "steps")]
    epochs: u64,
    /// Optimizer steps, instead of epochs
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Batch size in rows
    #[arg(long, value_name = "N", default_value = "8")]
    batch_size: usize,
    /// Gradient accumulation: batches per optimizer step
    #[arg(long, value_name = "N", default_value = "1")]
    accumulate: usize,
    /// Pack short rows into rows of this many tokens, so that nothing is spent on padding
    #[arg(long, value_name = "TOKENS")]
    pack: Option<usize>,
    /// Seed of the data's order and of new parameters
    #[arg(short, long, value_name = "N", default_value = "0")]
    seed: u64,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    adapter: AdapterArgs,
    #[command(flatten)]
    optimizer: OptimizerArgs,
    #[command(flatten)]
    saving: SavingArgs,
    #[command(flatten)]
    steering: SteerArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    /// Low-rank adapters on the linear layers
    Lora,
    /// LoRA with learned magnitudes (weight-decomposed)
    Dora,
    /// Virtual tokens before every text
    SoftPrompt,
    /// Steering vectors
    Vector,
    /// The model's own weights; the model is written to the folder `model` in --out
    Full,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Optimizer")]
struct OptimizerArgs {
    /// Learning rate
    #[arg(long, visible_alias = "lr", value_name = "X", default_value = "1e-4")]
    learning_rate: f64,
    /// Learning-rate schedule after the warm-up
    #[arg(long, value_enum, default_value = "cosine")]
    schedule: ScheduleArg,
    /// Warm-up steps, in which the learning rate grows from 0
    #[arg(long, value_name = "N", default_value = "0")]
    warmup: u64,
    /// Optimizer, with torch's settings; adafactor is that of transformers, with a learning rate that is
    /// not relative
    #[arg(long, value_enum, default_value = "adamw")]
    optimizer: OptimizerArg,
    /// Momentum of sgd and muon; 0 and 0.95 by default
    #[arg(long, value_name = "X")]
    momentum: Option<f64>,
    /// Weight decay
    #[arg(long, value_name = "X", default_value = "0")]
    weight_decay: f64,
    /// Gradient clipping: the largest norm of all gradients together; 0 for none
    #[arg(long, value_name = "X", default_value = "1")]
    max_grad_norm: f32,
    /// Label smoothing
    #[arg(long, value_name = "X", default_value = "0")]
    label_smoothing: f32,
    /// Decay of an exponential moving average of the trained parameters, which is then saved instead
    #[arg(long, value_name = "DECAY")]
    ema: Option<f64>,
    /// DPO's beta: how strongly the model is kept close to the reference
    #[arg(long, value_name = "X", default_value = "0.1")]
    beta: f32,
    /// Gradient checkpointing: keep the activations of this many layers at a time, recompute the others
    #[arg(long, value_name = "N")]
    checkpoint_layers: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OptimizerArg {
    Adamw,
    Sgd,
    Adafactor,
    TorchAdafactor,
    Muon,
}

impl OptimizerArgs {
    fn kind(&self) -> Result<OptimizerKind> {
        let weight_decay = self.weight_decay;
        let takes_momentum = matches!(self.optimizer, OptimizerArg::Sgd | OptimizerArg::Muon);
        if self.momentum.is_some() && !takes_momentum {
            return Err(Failure::usage("--momentum needs --optimizer sgd or muon"));
        }
        Ok(match self.optimizer {
            OptimizerArg::Adamw => {
                OptimizerKind::AdamW { betas: [0.9, 0.999], eps: 1e-8, weight_decay }
            }
            OptimizerArg::Sgd => {
                let momentum = self.momentum.unwrap_or(0.0);
                OptimizerKind::Sgd { momentum, nesterov: false, weight_decay }
            }
            OptimizerArg::Adafactor => {
                OptimizerKind::Adafactor(Adafactor { weight_decay, ..Adafactor::default() })
            }
            OptimizerArg::TorchAdafactor => {
                let settings = TorchAdafactor { weight_decay, ..TorchAdafactor::default() };
                OptimizerKind::TorchAdafactor(settings)
            }
            OptimizerArg::Muon => {
                let settings = Muon::default();
                let momentum = self.momentum.unwrap_or(settings.momentum);
                OptimizerKind::Muon(Muon { momentum, weight_decay, ..settings })
            }
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScheduleArg {
    Constant,
    Linear,
    Cosine,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "What is trained")]
struct AdapterArgs {
    /// LoRA rank
    #[arg(long, value_name = "N", default_value = "8")]
    rank: usize,
    /// LoRA alpha; adapters are scaled by alpha / rank
    #[arg(long, value_name = "X", default_value = "16")]
    alpha: f32,
    /// LoRA dropout: how likely an adapter does not see a number that it is given, while it is trained
    #[arg(long, value_name = "X", default_value = "0")]
    lora_dropout: f32,
    /// Scale by alpha / √rank instead (rsLoRA)
    #[arg(long)]
    rank_stabilized: bool,
    /// Linear layers to adapt, by the end of their names, such as q_proj,v_proj; all in the blocks by
    /// default
    #[arg(long, value_name = "NAME,NAME,...", value_delimiter = ',')]
    targets: Vec<String>,
    /// Layers to train, counted from 0: 3, 2,5, 4..10 or 4..=9 (both 4 to 9); all by default
    #[arg(long, value_name = "LAYERS")]
    layers: Option<Layers>,
    /// File format of the adapter
    #[arg(long, value_enum, default_value = "peft")]
    adapter_format: FormatArg,
    /// Virtual tokens of a soft prompt
    #[arg(long, value_name = "N", default_value = "16")]
    virtual_tokens: usize,
    /// Text to initialize a soft prompt from; random tokens of the vocabulary by default
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    init_text: Option<String>,
    /// With --method full, train parameters whose names match this regular expression; repeatable, all by
    /// default
    #[arg(long, value_name = "REGEX")]
    train: Vec<String>,
    /// With --method full, leave parameters whose names match this as they are; repeatable
    #[arg(long, value_name = "REGEX")]
    freeze: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormatArg {
    Peft,
    MlxLm,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Checkpoints and held-out data")]
struct SavingArgs {
    /// Write a checkpoint every N steps
    #[arg(long, value_name = "N", default_value = "100")]
    save_every: u64,
    /// Measure the validation loss every N steps
    #[arg(long, value_name = "N", default_value = "50")]
    eval_every: u64,
    /// Early stopping: stop after N measurements without an improvement
    #[arg(long, value_name = "N")]
    patience: Option<u64>,
    /// Resume the run in the folder of --out
    #[arg(long)]
    resume: bool,
}

impl TrainArgs {
    /// What the run is made of, for so many batches per pass.
    fn config(&self, batches: usize, model: &Model) -> Result<TrainingConfig> {
        let steps = match self.steps {
            Some(steps) => steps,
            None => (self.epochs * batches as u64).div_ceil(self.accumulate as u64),
        };
        if steps == 0 || self.accumulate == 0 || self.batch_size == 0 {
            return Err(Failure::usage(
                "--steps, --epochs, --batch-size and --accumulate are at least 1",
            ));
        }
        let given = &self.optimizer;
        let decay = match given.schedule {
            ScheduleArg::Constant => Decay::Constant,
            ScheduleArg::Linear => Decay::Linear,
            ScheduleArg::Cosine => Decay::Cosine,
        };
        let mut config = TrainingConfig::new(steps, given.learning_rate);
        config.schedule = Schedule { warmup: given.warmup, decay };
        config.optimizer = given.kind()?;
        config.lora_dropout = self.adapter.lora_dropout;
        config.seed = self.seed;
        config.max_grad_norm = Some(given.max_grad_norm).filter(|it| *it != 0.0);
        config.ema_decay = given.ema;
        config.checkpoint_layers = given.checkpoint_layers;
        if model.decoder().dtype() == Dtype::Float16 {
            config.scaler = LossScaler::dynamic();
        }
        Ok(config)
    }

    /// Puts what is to be trained on the model.
    fn trainee<'m>(&self, model: &'m mut Model) -> Result<Trainee<'m>> {
        let given = &self.adapter;
        let count = model.decoder().layers().len();
        let layers = match &given.layers {
            None | Some(Layers::All) => None,
            Some(only) => Some(only.of(count)),
        };
        let trainee = match self.method {
            // One that was given is trained further.
            Method::Lora | Method::Dora if !self.model.adapter.is_empty() => {
                Trainee::new(model.decoder_mut()).adapters()
            }
            Method::Lora | Method::Dora => {
                let config = LoraConfig {
                    rank: given.rank,
                    alpha: given.alpha,
                    rank_stabilized: given.rank_stabilized,
                    dora: self.method == Method::Dora,
                    targets: given.targets.clone(),
                    layers: layers.unwrap_or_default(),
                    seed: self.seed,
                };
                let adapted = attach_lora(model.decoder_mut(), &config);
                let adapted = adapted.map_err(mlx_genkit::Error::from)?;
                let experts = adapted.iter().find(|it| it.contains(".switch_mlp."));
                if let (Some(path), AdapterFormat::Peft) = (experts, self.adapter_format()) {
                    return Err(Failure::usage(format_args!(
                        "`{path}` are a mixture's experts, whose adapters PEFT cannot hold: add \
                         `--adapter-format mlx-lm`"
                    )));
                }
                Trainee::new(model.decoder_mut()).adapters()
            }
            Method::SoftPrompt => {
                let count = given.virtual_tokens;
                let soft = match &given.init_text {
                    None => SoftPrompt::from_vocabulary(model.decoder(), count, self.seed),
                    Some(text) => {
                        let ids = model.tokenizer()?.encode(text, false);
                        let ids = ids.map_err(mlx_genkit::Error::from)?;
                        SoftPrompt::from_tokens(model.decoder(), &ids, count)
                    }
                };
                let soft = soft.map_err(mlx_genkit::Error::from)?;
                Trainee::new(model.decoder_mut()).soft_prompt(soft.embeddings())
            }
            Method::Vector => {
                let layers = layers.unwrap_or_else(|| (0..count).collect());
                Trainee::new(model.decoder_mut()).vectors(&layers)
            }
            Method::Full => {
                let [train, freeze] = [&given.train, &given.freeze]
                    .map(|it| it.iter().map(String::as_str).collect::<Vec<_>>());
                Trainee::new(model.decoder_mut()).weights(&train, &freeze)
            }
        };
        Ok(trainee.map_err(mlx_genkit::Error::from)?)
    }

    /// Refuses flags that do not go together.
    fn check(&self) -> Result<()> {
        if self.method != Method::Full
            && !(self.adapter.train.is_empty() && self.adapter.freeze.is_empty())
        {
            return Err(Failure::usage("--train and --freeze need --method full"));
        }
        if self.adapter.lora_dropout != 0.0 && !matches!(self.method, Method::Lora | Method::Dora) {
            return Err(Failure::usage("--lora-dropout needs --method lora or dora"));
        }
        if self.method == Method::Full && !self.model.adapter.is_empty() {
            let what = "--method full cannot train under an adapter: merge it first with `mlxgk \
                        adapter merge`";
            return Err(Failure::usage(what));
        }
        if matches!(self.method, Method::Lora | Method::Dora) && self.model.adapter.len() > 1 {
            return Err(Failure::usage("one --adapter can be trained further, not several"));
        }
        let given = &self.steering;
        for (is_given, flag) in [
            (given.steer_positions.is_some(), "--steer-positions"),
            (given.steer_schedule.is_some(), "--steer-schedule"),
            (!given.steer_logits.is_empty(), "--steer-logits"),
            (given.steer_kl.is_some(), "--steer-kl"),
        ] {
            if is_given {
                return Err(Failure::usage(format_args!(
                    "{flag} is not supported in training, which steers every token of a row alike"
                )));
            }
        }
        Ok(())
    }

    /// Whose files an adapter is written as.
    fn adapter_format(&self) -> AdapterFormat {
        match self.adapter.adapter_format {
            FormatArg::Peft => AdapterFormat::Peft,
            FormatArg::MlxLm => AdapterFormat::MlxLm,
        }
    }
}
