//! Which tokens are steered.

mod selection;
mod spelling;

use std::ops::Range;

use crate::{Error, Result};

pub(crate) use self::selection::{Selection, prompt_end};

/// One way to select tokens. A row's prompt has `P` tokens; padding is never selected.
///
/// ```
/// use mlxgk_steering::{Clause, Positions};
///
/// // The last two tokens of the prompt.
/// let end = Positions::from(Clause::PromptWindow(-2, None));
/// assert_eq!(end, "prompt[-2..]".parse()?);
/// // The choice of the first four new tokens.
/// let first = Positions::from(Clause::GenerationWindow(0, Some(4)));
/// assert_eq!(first.to_string(), "generation[0..4]");
/// # Ok::<(), mlxgk_steering::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Clause {
    /// Every token.
    All,
    /// Positions below `P`.
    Prompt,
    /// The last prompt token and everything after it: the tokens whose output chooses a new one.
    Generation,
    /// Prompt positions from the first number up to, not including, the second. A negative number counts from the
    /// prompt's end (-1 is its last token); no second number means up to the end.
    PromptWindow(i64, Option<i64>),
    /// As [`Generation`](Self::Generation), but only where new tokens `first .. second` are chosen,
    /// counted from 0: `(0, Some(k))` steers the choice of exactly the first k.
    GenerationWindow(usize, Option<usize>),
    /// Tokens with one of these ids, wherever they stand.
    Tokens(Vec<u32>),
}

/// The steered tokens: all that some clause includes, without those that any clause excludes.
///
/// ```
/// use mlxgk_steering::{Clause, Positions};
///
/// let positions = Positions::from(Clause::Generation).without(Clause::Tokens(vec![13]));
/// assert_eq!(positions, "generation,-tokens[13]".parse()?);
/// # Ok::<(), mlxgk_steering::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    include: Vec<Clause>,
    exclude: Vec<Clause>,
}

/// Every token.
impl Default for Positions {
    fn default() -> Self {
        Clause::All.into()
    }
}

impl From<Clause> for Positions {
    fn from(clause: Clause) -> Self {
        Self { include: vec![clause], exclude: Vec::new() }
    }
}

impl Positions {
    /// Adds what `clause` selects.
    #[must_use]
    pub fn with(mut self, clause: Clause) -> Self {
        self.include.push(clause);
        self
    }

    /// Takes away what `clause` selects, whatever includes it.
    #[must_use]
    pub fn without(mut self, clause: Clause) -> Self {
        self.exclude.push(clause);
        self
    }

    /// Checks that every clause can select something; parsing does so by itself.
    ///
    /// # Errors
    /// When nothing is included, a window is empty, or a token set is.
    pub fn check(&self) -> Result<()> {
        if self.include.is_empty() {
            return Err(Error::parameter(format!("the positions {self:?} include nothing")));
        }
        for clause in self.include.iter().chain(&self.exclude) {
            let empty = match clause {
                // Numbers of different sign meet or do not by the prompt's length.
                Clause::PromptWindow(from, Some(to)) => {
                    from >= to && (*from < 0) == (*to < 0) || *to == 0
                }
                Clause::GenerationWindow(from, Some(to)) => from >= to,
                Clause::Tokens(ids) => ids.is_empty(),
                _ => false,
            };
            if empty {
                let what = format!("the positions `{self}` are empty: {clause} selects nothing");
                return Err(Error::parameter(what));
            }
        }
        if self.exclude.contains(&Clause::All) {
            let what = format!("the positions `{self}` are empty: everything is excluded");
            return Err(Error::parameter(what));
        }
        Ok(())
    }

    /// Whether the token with this id, at this position after a prompt of `prompt` tokens, is
    /// selected.
    pub(crate) fn selects(&self, id: u32, position: usize, prompt: usize) -> Result<bool> {
        let any = |clauses: &[Clause]| -> Result<bool> {
            for clause in clauses {
                let by_id = matches!(clause, Clause::Tokens(ids) if ids.contains(&id));
                let place = clause.among(position as i64, 1, &|| Ok(prompt as i64))?;
                if by_id || !place.is_empty() {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        Ok(any(&self.include)? && !any(&self.exclude)?)
    }
}

impl Clause {
    /// The selected indices of `count` tokens from position `first` on, after a prompt of so many.
    pub(super) fn among(
        &self,
        first: i64,
        count: i64,
        prompt: &dyn Fn() -> Result<i64>,
    ) -> Result<Range<usize>> {
        let everything = (first, first + count);
        let (from, to) = match self {
            Self::All => everything,
            Self::Tokens(_) => return Ok(0..0),
            Self::Prompt => (0, prompt()?),
            Self::Generation => (prompt()? - 1, everything.1),
            Self::PromptWindow(from, to) => {
                let end = prompt()?;
                let from_end = |it: i64| if it < 0 { end + it } else { it.min(end) };
                (from_end(*from), to.map_or(end, from_end))
            }
            Self::GenerationWindow(from, to) => {
                let begin = prompt()? - 1;
                let to = to.map_or(everything.1, |it| begin.saturating_add(it as i64));
                (begin.saturating_add(*from as i64), to)
            }
        };
        let index = |position: i64| position.saturating_sub(first).clamp(0, count) as usize;
        Ok(index(from.max(0))..index(to).max(index(from.max(0))))
    }
}
