//! When a text may end, and when it should.

mod exponential_decay;
mod min_length;
mod min_new_tokens;

pub use self::exponential_decay::ExponentialDecayLengthPenalty;
pub use self::min_length::MinLength;
pub use self::min_new_tokens::MinNewTokensLength;
