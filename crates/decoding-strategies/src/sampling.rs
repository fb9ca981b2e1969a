//! The choice of a row's next token, under the names that the loops use.

pub use mlxgk_sampling::{Chooser as Rule, Sampling};
