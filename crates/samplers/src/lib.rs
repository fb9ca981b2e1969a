//! Samplers: shapes a distribution over tokens and draws from it, as Hugging Face and torch do.
//!
//! A [`WarperConfig`] holds the settings, under HF's names. Its [`chain`](WarperConfig::chain) runs
//! the warpers in HF's order, mlx-lm's or llama.cpp's and draws; a [`SamplerChain`] can also be put
//! together by hand. [`TorchRng`] draws the tokens torch draws after the same seed, [`FastRng`]
//! others, faster, and a stream for each row. Without sampling, [`greedy`] is all it takes.
//!
//! ```
//! use mlxgk_samplers::{SamplerChain, TorchRng, WarperConfig};
//!
//! // generate(do_sample=True, temperature=0.7, top_k=50, top_p=0.9)
//! let config = WarperConfig {
//!     temperature: Some(0.7),
//!     top_k: Some(50),
//!     top_p: Some(0.9),
//!     ..WarperConfig::default()
//! };
//! let mut chain = config.chain()?;
//! let mut rng = TorchRng::new(42); // torch.manual_seed(42)
//!
//! let logits = vec![0.25; 1000]; // of one row, from any model
//! let token = chain.sample(&logits, &mut rng)?;
//! assert!(token < 1000);
//! # Ok::<(), mlxgk_samplers::Error>(())
//! ```
//!
//! Each warper is also a [`LogitsProcessor`] for a row of scores, except [`Xtc`], which throws a
//! coin, and [`Mirostat`], which remembers.
//!
//! # What is equal to what
//!
//! The kept tokens and their scores are those of transformers 5.23 to the last bit: sums run in
//! torch's order, comparisons in its precision. Where scores tie at a cut, torch's sort decides at
//! will; here it is by id. The tokens drawn with [`TorchRng`] are those of torch 2.15 on the CPU.
//! CUDA and MPS have other generators.

mod candidates;
mod chain;
mod config;
mod crossing;
mod distribution;
mod fast_rng;
mod generator;
mod greedy;
mod histogram;
mod rounding;
mod select;
mod streams;
mod warpers;

pub use mlxgk_logits_processors::{Context, Error, ErrorKind, LogitsProcessor, Result};
pub use mlxgk_torch::TorchRng;

pub use self::chain::{SamplerChain, Warper};
pub use self::config::{Order, WarperConfig};
pub use self::distribution::Distribution;
pub use self::fast_rng::FastRng;
pub use self::generator::Generator;
pub use self::greedy::greedy;
pub use self::streams::Streams;
pub use self::warpers::{
    DynamicTemperature, EpsilonCutoff, EtaCutoff, MinP, Mirostat, Temperature, TopH, TopK,
    TopNSigma, TopP, Typical, Xtc,
};

/// The README's code is tested too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
