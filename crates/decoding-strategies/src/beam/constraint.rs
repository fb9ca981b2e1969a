//! Words that a sequence has to contain, and how far it has come with them.
//!
//! The rules are those of transformers 4.46 (`beam_constraints.py`): a token advances one word at
//! most; a started word is continued until it is complete or broken; a broken word starts over,
//! at the end of the queue. The prompt's tokens count.

use crate::{Error, ErrorKind, Result};

/// A phrase, or several of which one is enough.
///
/// ```
/// use mlxgk_decoding_strategies::Constraint;
///
/// let either = Constraint::any_of(vec![vec![20, 21], vec![20, 22]])?;
/// assert_eq!(either.alternatives().len(), 2);
/// // The longer one could never be chosen.
/// assert!(Constraint::any_of(vec![vec![20], vec![20, 21]]).is_err());
/// # Ok::<(), mlxgk_decoding_strategies::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    alternatives: Vec<Vec<u32>>,
}

impl Constraint {
    /// These tokens, one after the other.
    ///
    /// # Errors
    /// When there are none.
    pub fn phrase(tokens: Vec<u32>) -> Result<Self> {
        Self::any_of(vec![tokens])
    }

    /// One of these phrases.
    ///
    /// # Errors
    /// When there is none, one is empty, or one begins with another: it could never be chosen.
    pub fn any_of(alternatives: Vec<Vec<u32>>) -> Result<Self> {
        if alternatives.is_empty() || alternatives.iter().any(Vec::is_empty) {
            return Err(wrong("a forced word must have at least one token"));
        }
        for (at, short) in alternatives.iter().enumerate() {
            let longer = |(other, it): &(usize, &Vec<u32>)| *other != at && it.starts_with(short);
            if let Some((_, long)) = alternatives.iter().enumerate().find(longer) {
                return Err(wrong(format!(
                    "of the alternatives of a forced word, {short:?} is the beginning of {long:?}"
                )));
            }
        }
        Ok(Self { alternatives })
    }

    /// The phrases of which one is enough.
    pub fn alternatives(&self) -> &[Vec<u32>] {
        &self.alternatives
    }

    fn longest(&self) -> usize {
        self.alternatives.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Tokens that continue `begun`, each once, in the order of the alternatives.
    fn next_tokens(&self, begun: &[u32]) -> Vec<u32> {
        let mut tokens = Vec::new();
        for alternative in self.alternatives.iter().filter(|it| it.starts_with(begun)) {
            match alternative.get(begun.len()) {
                Some(token) if !tokens.contains(token) => tokens.push(*token),
                _ => {}
            }
        }
        tokens
    }

    fn is_whole(&self, so_far: &[u32]) -> bool {
        self.alternatives.iter().any(|it| it == so_far)
    }

    /// Tokens that are missing at least.
    fn missing(&self, begun: &[u32]) -> usize {
        let open = self.alternatives.iter().filter(|it| it.starts_with(begun));
        open.map(|it| it.len() - begun.len()).min().unwrap_or(0)
    }
}

/// How far a sequence has come with a list of constraints.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    /// How many are met.
    met: usize,
    /// The one begun, and its tokens so far.
    begun: Option<(usize, Vec<u32>)>,
    /// Those not begun, in the order in which they are tried.
    pending: Vec<usize>,
}

impl Progress {
    /// After the given tokens.
    pub(super) fn after(tokens: &[u32], constraints: &[Constraint]) -> Self {
        let pending = (0..constraints.len()).collect();
        let mut progress = Self { met: 0, begun: None, pending };
        for &token in tokens {
            progress.add(token, constraints);
        }
        progress
    }

    /// Whether every constraint is met.
    pub(super) fn is_complete(&self) -> bool {
        self.begun.is_none() && self.pending.is_empty()
    }

    /// Takes one more token.
    pub(super) fn add(&mut self, token: u32, constraints: &[Constraint]) {
        let (at, mut so_far) = match self.begun.take() {
            Some(begun) => begun,
            None => {
                let begins = |it: &usize| constraints[*it].next_tokens(&[]).contains(&token);
                let Some(place) = self.pending.iter().position(begins) else { return };
                (self.pending.remove(place), Vec::new())
            }
        };
        if !constraints[at].next_tokens(&so_far).contains(&token) {
            self.pending.push(at);
            return;
        }
        so_far.push(token);
        if constraints[at].is_whole(&so_far) {
            self.met += 1;
        } else {
            self.begun = Some((at, so_far));
        }
    }

    /// The tokens that would advance a constraint: those that continue the one that was started, or start a
    /// pending one.
    pub(super) fn advancing(&self, constraints: &[Constraint]) -> Vec<u32> {
        match &self.begun {
            Some((at, so_far)) => constraints[*at].next_tokens(so_far),
            None => self.pending.iter().flat_map(|&at| constraints[at].next_tokens(&[])).collect(),
        }
    }

    /// HF's bank: beams that have come equally far compete with one another.
    pub(super) fn bank(&self, constraints: &[Constraint]) -> usize {
        let begun = self.begun.as_ref();
        self.bank_with(begun.map(|(at, so_far)| (*at, so_far.len())), constraints)
    }

    /// The bank if `begun` constraint had so many tokens.
    fn bank_with(&self, begun: Option<(usize, usize)>, constraints: &[Constraint]) -> usize {
        let longest = constraints.iter().map(Constraint::longest).max().unwrap_or(0);
        let begun = begun.map_or(0, |(at, so_far)| longest + so_far - constraints[at].longest());
        self.met * longest + begun
    }

    /// The banks of this progress advanced by each of its [`advancing`](Self::advancing) tokens.
    ///
    /// In HF the copies of a constraint begun share one list of tokens: what is a step for the
    /// first copy is in the way of the next, and their banks are read when all have stepped. Which
    /// beams survive depends on it, so it is repeated here.
    pub(super) fn advanced_banks(&self, tokens: &[u32], constraints: &[Constraint]) -> Vec<usize> {
        let Some((at, so_far)) = &self.begun else {
            let bank = |&token: &u32| {
                let mut advanced = self.clone();
                advanced.add(token, constraints);
                advanced.bank(constraints)
            };
            return tokens.iter().map(bank).collect();
        };
        let mut shared = so_far.clone();
        let outcomes: Vec<Outcome> = tokens
            .iter()
            .map(|token| {
                if !constraints[*at].next_tokens(&shared).contains(token) {
                    return Outcome::Broken;
                }
                shared.push(*token);
                if constraints[*at].is_whole(&shared) { Outcome::Whole } else { Outcome::Begun }
            })
            .collect();
        let longest = constraints.iter().map(Constraint::longest).max().unwrap_or(0);
        let bank = |outcome| match outcome {
            Outcome::Broken => self.met * longest,
            Outcome::Begun => self.bank_with(Some((*at, shared.len())), constraints),
            Outcome::Whole => (self.met + 1) * longest,
        };
        outcomes.into_iter().map(bank).collect()
    }

    /// Tokens that are missing at least.
    pub(super) fn missing(&self, constraints: &[Constraint]) -> usize {
        let begun = self.begun.as_ref().map_or(0, |(at, so_far)| constraints[*at].missing(so_far));
        begun + self.pending.iter().map(|&at| constraints[at].missing(&[])).sum::<usize>()
    }

    /// A constraint that is not met.
    pub(super) fn unmet<'a>(&self, constraints: &'a [Constraint]) -> Option<&'a Constraint> {
        let begun = self.begun.as_ref().map(|(at, _)| *at);
        begun.or(self.pending.first().copied()).map(|at| &constraints[at])
    }
}

#[derive(Clone, Copy)]
enum Outcome {
    Broken,
    Begun,
    Whole,
}

fn wrong(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Constraint, what)
}
