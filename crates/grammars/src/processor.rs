//! The processor: bans every token that the grammar cannot go on with.

use std::sync::{Mutex, PoisonError};

use llguidance::{Matcher, ParserFactory, toktrie::SimpleVob};
use mlxgk_logits_processors::{Context, Error, ErrorKind, LogitsProcessor, Result, Stage};

use crate::{Grammar, Vocabulary};

/// Parser states kept at once: as many rows or beams as take turns without reading anything twice.
const STATES: usize = 32;

/// Bans every token that the grammar cannot go on with after the generated tokens; the prompt is no
/// part of the text. Once the text is complete and nothing can follow, only end tokens are allowed.
///
/// A row that has ended (an end token among its tokens) is left alone.
pub struct GrammarProcessor {
    fresh: Matcher,
    kind: &'static str,
    eos: Vec<u32>,
    states: Mutex<Vec<State>>,
}

/// A parser and the tokens it has read, most recently used last.
struct State {
    read: Vec<u32>,
    matcher: Matcher,
}

impl GrammarProcessor {
    /// Compiles a grammar for a vocabulary.
    ///
    /// # Errors
    /// When the grammar's syntax is wrong or it uses what is not supported; the message says where.
    pub fn new(vocabulary: &Vocabulary, grammar: &Grammar) -> Result<Self> {
        let wrong = |e: &dyn std::fmt::Display| {
            // The library's messages run over several lines; the first says what is wrong.
            let text = e.to_string();
            let lines: Vec<&str> =
                text.lines().map(str::trim).filter(|it| !it.is_empty()).collect();
            let what = format!("the {} cannot be used: {}", grammar.kind, lines.join(" "));
            Error::new(ErrorKind::Parameter, what)
        };
        let mut factory = ParserFactory::new_simple(&vocabulary.env()).map_err(|e| wrong(&e))?;
        factory.quiet();
        let parser = factory.create_parser(grammar.source.clone()).map_err(|e| wrong(&e))?;
        let fresh = Matcher::new(Ok(parser));
        if let Some(message) = fresh.get_error() {
            return Err(wrong(&message));
        }
        let eos = vocabulary.env().tok_trie().eos_tokens().to_vec();
        Ok(Self { fresh, kind: grammar.kind, eos, states: Mutex::new(Vec::new()) })
    }

    /// Whether the generated tokens are a complete text of the grammar.
    ///
    /// # Errors
    /// When they do not fit the grammar.
    pub fn is_complete(&self, context: &Context<'_>) -> Result<bool> {
        let generated = generated(context);
        let text = generated.split(|id| self.eos.contains(id)).next().unwrap_or_default();
        self.with_matcher(text, |matcher| matcher.is_accepting().map_err(|e| self.failed(text, &e)))
    }

    /// Runs `work` on a parser that has read exactly `tokens`.
    fn with_matcher<T>(
        &self,
        tokens: &[u32],
        work: impl FnOnce(&mut Matcher) -> Result<T>,
    ) -> Result<T> {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = take_nearest(&mut states, tokens)
            .unwrap_or_else(|| State { read: Vec::new(), matcher: self.fresh.deep_clone() });
        let common = common_prefix(&state.read, tokens);
        let behind = state.read.len() - common;
        let moved = match behind {
            0 => Ok(()),
            _ => state.matcher.rollback(behind),
        };
        let moved = moved.and_then(|()| state.matcher.consume_tokens(&tokens[common..]));
        // A parser that failed stays failed; it is dropped rather than kept.
        moved.map_err(|e| self.failed(tokens, &e))?;
        state.read.truncate(common);
        state.read.extend_from_slice(&tokens[common..]);
        let outcome = work(&mut state.matcher)?;
        states.push(state);
        Ok(outcome)
    }

    fn failed(&self, tokens: &[u32], e: &dyn std::fmt::Display) -> Error {
        let reason = e.to_string();
        let reason = reason.lines().next().unwrap_or_default();
        let what = format!("the {} does not allow the tokens {tokens:?}: {reason}", self.kind);
        Error::new(ErrorKind::NoTokenAllowed, what)
    }
}

fn generated<'a>(context: &Context<'a>) -> &'a [u32] {
    context.tokens.get(context.prompt_len..).unwrap_or_default()
}

/// Takes out the state from which `tokens` is reached: one that has read a part of them, the
/// longest; else, once enough are kept, the one that was not used for the longest time.
fn take_nearest(states: &mut Vec<State>, tokens: &[u32]) -> Option<State> {
    let on_the_way = |state: &State| tokens.starts_with(&state.read);
    let nearest = (0..states.len())
        .filter(|&at| on_the_way(&states[at]))
        .max_by_key(|&at| states[at].read.len());
    // A fresh parser costs less than it costs another row to find its state taken.
    let at = nearest.or((states.len() >= STATES).then_some(0))?;
    Some(states.remove(at))
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl LogitsProcessor for GrammarProcessor {
    fn name(&self) -> &'static str {
        "GrammarProcessor"
    }

    fn stage(&self) -> Stage {
        Stage::PrefixConstrained
    }

    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        let generated = generated(context);
        if generated.iter().any(|id| self.eos.contains(id)) {
            return Ok(());
        }
        self.with_matcher(generated, |matcher| {
            let mask = matcher.compute_mask_or_eos().map_err(|e| self.failed(generated, &e))?;
            apply(&mask, scores);
            Ok(())
        })
    }

    /// The text that the grammar leaves no choice of, as the tokenizer spells it; nothing for a
    /// vocabulary without an encoder.
    fn forced_tokens(&self, context: &Context<'_>) -> Result<Vec<u32>> {
        let generated = generated(context);
        if generated.iter().any(|id| self.eos.contains(id)) {
            return Ok(Vec::new());
        }
        self.with_matcher(generated, |matcher| Ok(matcher.compute_ff_tokens()))
    }
}

/// Bans what the mask leaves out; a model often scores more ids than the tokenizer has tokens, and
/// those are left out too.
fn apply(mask: &SimpleVob, scores: &mut [f32]) {
    let mut words = mask.as_slice().iter();
    for part in scores.chunks_mut(u32::BITS as usize) {
        match words.next().copied().unwrap_or(0) {
            0 => part.fill(f32::NEG_INFINITY),
            u32::MAX => {}
            word => {
                for (bit, score) in part.iter_mut().enumerate() {
                    if word & (1 << bit) == 0 {
                        *score = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

impl std::fmt::Debug for GrammarProcessor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarProcessor").field("kind", &self.kind).finish_non_exhaustive()
    }
}
