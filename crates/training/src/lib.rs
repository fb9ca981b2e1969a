#![doc = include_str!("../README.md")]

mod adapters;
mod average;
mod batch;
mod clipping;
mod data;
mod error;
mod files;
mod folder;
mod gradients;
mod head;
pub mod losses;
mod optimizer;
mod optimizers;
mod order;
mod plot;
mod scaling;
mod schedule;
mod scoring;
mod soft_prompt;
mod trainee;
mod trainer;

pub use self::adapters::{
    AdapterFormat, LoraConfig, Merged, add_adapter, attach_lora, clear_adapters, load_adapter,
    load_named_adapter, merge_adapters, merge_folder, save_adapter,
};
pub use self::average::{Ema, ema_update};
pub use self::batch::{Batch, Example, IGNORE_INDEX, build_action_mask};
pub use self::clipping::clip_global_norm;
pub use self::data::{Encoder, Row, pack};
pub use self::error::{Error, ErrorKind, Result};
pub use self::gradients::{GradientOptions, Gradients};
pub use self::head::Objective;
pub use self::losses::{KlEstimator, stable_softmax, xent_loss};
pub use self::optimizer::{Adafactor, AdjustLr, Muon, Optimizer, OptimizerKind, TorchAdafactor};
pub use self::optimizers::ParameterGroup;
pub use self::order::Order;
pub use self::plot::loss_plot;
pub use self::scaling::LossScaler;
pub use self::schedule::{Decay, Schedule};
pub use self::scoring::{
    LogprobReduction, loss_forward, sequence_logprob, token_kl, token_logprobs,
};
pub use self::soft_prompt::SoftPrompt;
pub use self::trainee::{SOFT_PROMPT, Trainee};
pub use self::trainer::{StepReport, Trainer, TrainingConfig};
