//! Suppressed tokens: everywhere, or at the beginning.

mod at_begin;
mod tokens;

pub use self::at_begin::SuppressTokensAtBegin;
pub use self::tokens::SuppressTokens;
