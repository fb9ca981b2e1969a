//! Samplers: shapes a distribution over tokens and draws from it.

mod candidates;
mod chain;
mod config;
mod crossing;
mod generator;
mod greedy;
mod select;
mod torch_math;
mod warpers;

pub use mlxgk_logits_processors::{Error, ErrorKind, Result, TorchRng};

pub use self::chain::{SamplerChain, Warper};
pub use self::config::{Order, WarperConfig};
pub use self::generator::{Distribution, FastRng, Generator, Streams};
pub use self::greedy::greedy;
pub use self::warpers::{
    DynamicTemperature, EpsilonCutoff, EtaCutoff, MinP, Mirostat, Temperature, TopH, TopK,
    TopNSigma, TopP, Typical, Xtc,
};
