//! Steering vectors from contrast pairs: what the model holds while it reads one kind of answer,
//! against what it holds while it reads the other.

mod directions;
mod readings;
mod report;

pub use self::directions::{Direction, Method, direction};
pub use self::readings::{Example, Pair, Read, Readings, read_pairs};
pub use self::report::{Extraction, LayerReport};
