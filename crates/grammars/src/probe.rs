//! Masks over a part of the vocabulary, by which a grammar is followed before a text is begun.
//!
//! A mask over a large vocabulary takes milliseconds where wide classes of characters may follow, and
//! following a grammar takes two dozen. A part of the tokens shows as well whether the engine comes near
//! its limits; only where it does, all are looked at.

use llguidance::TokenParser;
use llguidance::api::ParserLimits;
use llguidance::earley::{BiasComputer, ParserRecognizer};
use llguidance::toktrie::{SimpleVob, TokTrie};

/// One of so many tokens, in alphabetical order, is in the part; so is every token of one byte.
const EVERY: usize = 64;
/// Vocabularies of at most this size are looked at as a whole.
const SMALL: usize = 8192;

/// A part of the tokens, and when it is not enough.
pub(crate) struct Probe {
    /// `None` where all tokens are looked at.
    part: Option<Part>,
    /// Work of one mask over the part from which on all tokens are looked at.
    most_fuel: u64,
    most_items: usize,
}

struct Part(TokTrie);

impl Probe {
    /// The tokens to look at, of all of a vocabulary, by an engine with these limits.
    pub(crate) fn new(all: &TokTrie, limits: &ParserLimits) -> Self {
        let mut tokens: Vec<_> =
            (0..all.vocab_size() as u32).filter(|id| !all.token(*id).is_empty()).collect();
        if tokens.len() <= SMALL {
            return Self::of_all();
        }
        tokens.sort_unstable_by_key(|id| all.token(*id));
        let mut chosen = all.alloc_token_set();
        for (at, &id) in tokens.iter().enumerate() {
            if at % EVERY == 0 || all.token(id).len() == 1 {
                chosen.allow_token(id);
            }
        }
        let part = all.filter(&chosen);
        // What a mask takes grows at most with the bytes that it looks at.
        let times = all.root().subtree_size().div_ceil(part.root().subtree_size());
        Self {
            part: Some(Part(part)),
            most_fuel: limits.step_lexer_fuel / times as u64,
            most_items: limits.step_max_items / times,
        }
    }

    /// Looks at all tokens.
    pub(crate) fn of_all() -> Self {
        Self { part: None, most_fuel: 0, most_items: 0 }
    }

    /// Tokens that may follow: some of them, or all.
    ///
    /// # Errors
    /// When the engine is at its limits, or nothing may follow.
    pub(crate) fn mask(&self, parser: &mut TokenParser) -> Result<SimpleVob, String> {
        let near = match &self.part {
            Some(part) => self.over(part, parser),
            None => None,
        };
        near.map_or_else(|| parser.compute_mask().map_err(|e| e.to_string()), Ok)
    }

    /// A mask over the part; `None` where that is not enough.
    fn over(&self, part: &Part, parser: &mut TokenParser) -> Option<SimpleVob> {
        // Forced text is read ahead, and what follows has to begin with it.
        if !parser.compute_ff_tokens().is_empty()
            || !parser.parser.currently_forced_bytes().is_empty()
        {
            return None;
        }
        let before = parser.parser.stats().clone();
        let mask = parser.parser.compute_bias(part, &[]);
        let after = parser.parser.stats();
        let is_far = after.lexer_cost.saturating_sub(before.lexer_cost) < self.most_fuel
            && after.all_items.saturating_sub(before.all_items) < self.most_items;
        if is_far && !mask.is_zero() && parser.parser.get_error().is_none() {
            return Some(mask);
        }
        // It is no mask over all tokens.
        parser.invalidate_bias_cache();
        None
    }
}

impl BiasComputer for Part {
    fn compute_bias(&self, recognizer: &mut ParserRecognizer<'_>, start: &[u8]) -> SimpleVob {
        let mut mask = self.0.alloc_token_set();
        self.0.add_bias(recognizer, &mut mask, start);
        mask
    }

    fn trie(&self) -> &TokTrie {
        &self.0
    }
}
