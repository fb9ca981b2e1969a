//! The processor: bans every token that the grammar does not allow next.

use std::sync::{Mutex, PoisonError};

use llguidance::{Matcher, toktrie::SimpleVob};
use mlxgk_logits_processors::{Context, Error, ErrorKind, LogitsProcessor, Result, Row, Stage};

use crate::engine::{explore, sentence};
use crate::{Grammar, Vocabulary};

/// Parser states kept at once: as many rows or beams as take turns without reading anything twice.
const STATES: usize = 32;
/// Tokens that an error shows.
const SHOWN: usize = 8;

/// Bans every token that the grammar does not allow after the generated tokens; the prompt is not
/// part of the text. Once the text is complete and nothing can follow, only end tokens are allowed.
///
/// A row that has ended (an end token among its tokens) is left alone.
///
/// Where other processors have banned whatever the grammar allows, that is an error; among beams it
/// is not, since others go on.
///
/// ```
/// use mlxgk_grammars::{Grammar, GrammarProcessor, Vocabulary};
/// use mlxgk_logits_processors::{Context, LogitsProcessor};
///
/// const OUT: f32 = f32::NEG_INFINITY;
/// let vocabulary = Vocabulary::new(&["</s>", "ye", "s", "no"].map(Vec::from), &[0])?;
/// let processor = GrammarProcessor::new(&vocabulary, &Grammar::regex("yes|no")?)?;
/// let (mut first, mut last) = ([0.0; 4], [0.0; 4]);
/// processor.process(&Context::new(&[], 0), &mut first)?;
/// assert_eq!(first, [OUT, 0.0, OUT, 0.0]);
/// processor.process(&Context::new(&[1, 2], 0), &mut last)?;
/// assert_eq!(last, [0.0, OUT, OUT, OUT]); // nothing can follow "yes"
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
pub struct GrammarProcessor {
    fresh: Mutex<Matcher>,
    kind: &'static str,
    eos: Vec<u32>,
    warnings: Vec<String>,
    states: Mutex<Vec<State>>,
}

/// A parser and the tokens it has read; in the list the most recently used one is the last.
struct State {
    read: Vec<u32>,
    matcher: Matcher,
}

impl GrammarProcessor {
    /// Compiles a grammar for a vocabulary, and follows it for some bytes: what is beyond the limits
    /// of the engine is refused here rather than once a text has begun.
    ///
    /// # Errors
    /// When the grammar's syntax is wrong, it uses what is not supported, or it is too large; the
    /// message says where.
    pub fn new(vocabulary: &Vocabulary, grammar: &Grammar) -> Result<Self> {
        let wrong = |what: String| {
            let what = format!("the {} cannot be used: {what}", grammar.kind());
            Error::new(ErrorKind::Parameter, what)
        };
        let source = grammar.over(vocabulary.tokens()).map_err(wrong)?;
        let engine = vocabulary.engine()?;
        let mut parser = engine
            .parser(source)
            .map_err(|what| wrong(grammar.locate(&what, |it| engine.parser(it).err())))?;
        explore(&mut parser).map_err(wrong)?;
        let mut warnings = grammar.warnings().to_vec();
        warnings.extend(parser.grammar_warnings());
        engine.follow(&parser).map_err(wrong)?;
        let mut fresh = Matcher::new(Ok(parser));
        // It is kept for all that start from here.
        fresh.compute_mask_or_eos().map_err(|e| wrong(sentence(&e.to_string())))?;
        let (fresh, states) = (Mutex::new(fresh), Mutex::new(Vec::new()));
        Ok(Self { fresh, kind: grammar.kind(), eos: engine.eos().to_vec(), warnings, states })
    }

    /// What in the grammar is not enforced, such as an unknown `format`.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
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

    /// Runs `work` on a parser that has read exactly `tokens`. No lock is held meanwhile, so rows do
    /// not wait for each other.
    fn with_matcher<T>(
        &self,
        tokens: &[u32],
        work: impl FnOnce(&mut Matcher) -> Result<T>,
    ) -> Result<T> {
        let nearest = take_nearest(&mut lock(&self.states), tokens);
        let mut state = nearest
            .unwrap_or_else(|| State { read: Vec::new(), matcher: lock(&self.fresh).deep_clone() });
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
        let mut states = lock(&self.states);
        if states.len() >= STATES {
            states.remove(0);
        }
        states.push(state);
        Ok(outcome)
    }

    /// Bans what the grammar does not allow; whether a token is left.
    fn ban(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<bool> {
        let generated = generated(context);
        if generated.iter().any(|id| self.eos.contains(id)) {
            return Ok(true);
        }
        self.with_matcher(generated, |matcher| {
            let mask = matcher.compute_mask_or_eos().map_err(|e| self.failed(generated, &e))?;
            Ok(apply(&mask, scores))
        })
    }

    fn failed(&self, tokens: &[u32], e: &dyn std::fmt::Display) -> Error {
        let last = &tokens[tokens.len().saturating_sub(SHOWN)..];
        let dots = if last.len() < tokens.len() { "..., " } else { "" };
        let last: Vec<String> = last.iter().map(u32::to_string).collect();
        let (kind, last, why) = (self.kind, last.join(", "), sentence(&e.to_string()));
        let what = format!("the {kind} does not allow the tokens [{dots}{last}]: {why}");
        Error::new(ErrorKind::NoTokenAllowed, what)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

/// A copy follows other texts: what is compiled is taken over, and what was read is not.
impl Clone for GrammarProcessor {
    fn clone(&self) -> Self {
        Self {
            fresh: Mutex::new(lock(&self.fresh).deep_clone()),
            kind: self.kind,
            eos: self.eos.clone(),
            warnings: self.warnings.clone(),
            states: Mutex::new(Vec::new()),
        }
    }
}

impl LogitsProcessor for GrammarProcessor {
    fn name(&self) -> &'static str {
        "GrammarProcessor"
    }

    fn stage(&self) -> Stage {
        Stage::Grammar
    }

    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        if self.ban(context, scores)? {
            return Ok(());
        }
        let kind = self.kind;
        let what = format!(
            "no token can be chosen: other settings ban every token that the {kind} allows"
        );
        Err(Error::new(ErrorKind::NoTokenAllowed, what))
    }

    fn process_rows(&self, rows: &mut [Row<'_>]) -> Result<()> {
        rows.iter_mut().try_for_each(|row| self.ban(&row.context, row.scores).map(drop))
    }

    /// The text that the grammar leaves no choice of, as the tokenizer spells it; nothing for a
    /// vocabulary without an encoder, or one that cannot spell every byte.
    fn forced_tokens(&self, context: &Context<'_>) -> Result<Vec<u32>> {
        let generated = generated(context);
        if generated.iter().any(|id| self.eos.contains(id)) {
            return Ok(Vec::new());
        }
        self.with_matcher(generated, |matcher| Ok(matcher.compute_ff_tokens()))
    }
}

/// Bans what the mask leaves out; a model often scores more ids than the tokenizer has tokens, and
/// those are left out too. Returns whether a token is left.
fn apply(mask: &SimpleVob, scores: &mut [f32]) -> bool {
    let mut words = mask.as_slice().iter();
    let mut is_left = false;
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
        is_left = is_left || part.iter().any(|score| *score != f32::NEG_INFINITY);
    }
    is_left
}

impl std::fmt::Debug for GrammarProcessor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarProcessor").field("kind", &self.kind).finish_non_exhaustive()
    }
}
