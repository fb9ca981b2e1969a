//! Samplers: shapes a distribution over tokens and draws from it, as Hugging Face and torch do.
//!
//! A [`WarperConfig`] holds the settings, under HF's names. Its [`chain`](WarperConfig::chain) has
//! the warpers in HF's order, mlx-lm's or llama.cpp's; a [`SamplerChain`] can also be put together by
//! hand, of these warpers and [your own](CustomWarper). A [`Sampler`] applies it and draws.
//! [`TorchRng`] draws the tokens torch draws after the same seed, [`FastRng`] others, faster, and a
//! stream for each row; [`FromRand`] takes any generator of `rand`. Without sampling, [`greedy`] is
//! all it takes.
//!
//! ```
//! use mlxgk_samplers::{SamplerState, TorchRng, WarperConfig};
//!
//! // generate(do_sample=True, temperature=0.7, top_k=50, top_p=0.9)
//! let config = WarperConfig {
//!     temperature: Some(0.7),
//!     top_k: Some(50),
//!     top_p: Some(0.9),
//!     ..WarperConfig::default()
//! };
//! let mut sampler = config.chain()?.sampler();
//! let mut state = SamplerState::default(); // what Mirostat remembers of a sequence
//! let mut rng = TorchRng::new(42); // torch.manual_seed(42)
//!
//! let logits = vec![0.25; 1000]; // of one row, from any model
//! let token = sampler.sample(&logits, &mut state, &mut rng)?;
//! assert!(token < 1000);
//! # Ok::<(), mlxgk_samplers::Error>(())
//! ```
//!
//! The settings are shared, the buffers of a [`Sampler`] are a thread's, and a row has only its
//! [`SamplerState`].
//!
//! As in HF, a warper is a logits processor: each is a [`LogitsProcessor`] for a row of scores, and
//! can stand in a processor list. Excepted are [`Xtc`], which flips a coin, and [`Mirostat`], which
//! remembers.
//!
//! # What is equal to what
//!
//! The kept tokens and their scores are those of transformers 5.23 to the last bit: sums run in
//! torch's order, comparisons in its precision. Where a cut of [`TopP`], [`TopH`] or [`Typical`] goes
//! through equal scores, those are kept that torch's sort keeps. The tokens drawn with [`TorchRng`] are
//! those of torch 2.15 on the CPU. CUDA and MPS have other generators.

mod candidates;
mod chain;
mod config;
mod crossing;
mod distribution;
mod fast_rng;
mod from_rand;
mod generator;
mod greedy;
mod histogram;
mod inversion;
mod rounding;
mod sampler;
mod select;
mod streams;
mod warpers;

pub use mlxgk_logits_processors::{Context, Error, ErrorKind, LogitsProcessor, Result};
pub use mlxgk_torch::{TorchRng, random_seed};

pub use self::chain::{SamplerChain, Warper};
pub use self::config::{Order, WarperConfig};
pub use self::distribution::Distribution;
pub use self::fast_rng::FastRng;
pub use self::from_rand::FromRand;
pub use self::generator::Generator;
pub use self::greedy::{argmax, greedy};
pub use self::sampler::{Sampler, SamplerState};
pub use self::streams::{Seed, Streams};
pub use self::warpers::{
    Custom, CustomWarper, DynamicTemperature, EpsilonCutoff, EtaCutoff, MinP, Mirostat, Remaining,
    RemainingToken, Temperature, TopH, TopK, TopNSigma, TopP, Typical, Xtc,
};

/// The README's code is tested too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
