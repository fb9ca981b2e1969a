//! Tokens that must not be said, ever or at first.

mod at_begin;
mod tokens;

pub use self::at_begin::SuppressTokensAtBegin;
pub use self::tokens::SuppressTokens;
