//! Biases on tokens and token sequences, and bad words, which are infinite ones.

mod bad_words;
mod sequence;
mod token;

pub use self::bad_words::NoBadWords;
pub use self::sequence::SequenceBias;
pub use self::token::TokenBias;

use crate::{Error, Result};

/// A bias as the fp32 number torch adds. Minus infinity bans; plus infinity would make NaN of a
/// banned score.
fn bias(name: &str, value: f64) -> Result<f32> {
    let narrow = value as f32;
    if narrow < f32::INFINITY {
        Ok(narrow)
    } else {
        Err(Error::parameter(name, "made of biases below infinity", value))
    }
}
