//! torch's numbers in pure Rust, bit for bit.
//!
//! Two programs agree on a seed only if they agree on every bit before the draw: on the generator,
//! on how its outputs become numbers, on the order in which a softmax over 150,000 scores is summed,
//! and on which of several equal scores a cut keeps. This crate has these as torch 2.15 has them on
//! the CPU:
//!
//! - [`TorchRng`] is `torch.Generator(device="cpu")` after `torch.manual_seed`: `rand`, `randint`,
//!   `randperm`, `exponential_`.
//! - [`softmax`], [`sum_of_exp`] and [`RowSum`] (`torch.sum`) add in torch's order; [`SparseRow`]
//!   does so for rows of which most terms are zero, without visiting those.
//! - [`sort`] and [`TopK`] (`torch.topk`) leave equal values in torch's order.
//! - [`vector`] runs loops over rows with the widest vectors that the processor has.
//!
//! ```
//! use mlxgk_torch::{TorchRng, softmax};
//!
//! // torch.manual_seed(0); torch.rand(2)
//! let mut rng = TorchRng::new(0);
//! assert_eq!([rng.uniform_f32(), rng.uniform_f32()], [0.49625659, 0.76822180]);
//!
//! // torch.tensor([1.0, 2.0, 3.0]).softmax(0)
//! let mut probs = Vec::new();
//! softmax(&[1.0, 2.0, 3.0], &mut probs);
//! assert_eq!(probs, [0.09003057, 0.24472848, 0.66524094]);
//! ```
//!
//! Beside torch's generator stands [`SplitMix64`], the small one for noise and derived seeds, and
//! [`random_seed`] for a seed that differs from run to run.
//!
//! torch's own sums depend on the width of its vectors. What is repeated here is torch on x86-64
//! with AVX-512, on every platform; on another processor torch itself differs in the last bits.
//! Exponentials use fused multiply-add: where the processor has none (32-bit x86, baseline wasm),
//! the results are the same and the loops many times slower.

mod math;
mod order;
mod rng;
mod sparse;
mod split_mix;
mod top_k;
pub mod vector;

pub use self::math::{GROUP, LANES, RowSum, exp, exp_each, fold, ln, max, softmax, sum_of_exp};
pub use self::order::sort;
pub use self::rng::TorchRng;
pub use self::sparse::{Places, SparseRow};
pub use self::split_mix::{SplitMix64, random_seed};
pub use self::top_k::{Ranked, TopK};

/// The code of the README, which the doc tests compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
