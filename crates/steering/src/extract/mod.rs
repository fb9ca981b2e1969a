//! Steering vectors from contrast pairs: how activations differ between two kinds of answers.

mod directions;
mod linear_algebra;
mod readings;
mod report;

pub use self::directions::{Direction, Method, direction};
pub use self::readings::{Example, Pair, Read, Readings, read_pairs};
pub use self::report::{Extraction, LayerReport};
