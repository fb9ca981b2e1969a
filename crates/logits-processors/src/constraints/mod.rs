//! Constraints that name the tokens allowed next.

mod prefix;
mod trie;

pub use self::prefix::PrefixConstrained;
pub use self::trie::TokenTrie;
