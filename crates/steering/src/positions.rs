//! Which tokens are steered.

use std::{fmt, ops::Range, str::FromStr};

use mlx_rs::Array;
use mlxgk_kv_cache::Step;

use crate::{Error, ErrorKind, Result};

/// One way to select tokens. A row's prompt has `P` tokens; padding is never selected.
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

    /// Which of a step's tokens are selected, as far as their positions say, and what their ids add.
    pub(crate) fn select(&self, step: &Step) -> Result<Selection> {
        let (batch, count) = (step.padding().len(), step.count());
        let places = |of: &[Clause]| -> Result<Vec<bool>> {
            let mut selected = vec![false; batch * count];
            for clause in of {
                for (row, selected) in selected.chunks_exact_mut(count).enumerate() {
                    for index in clause.places(step, row)? {
                        selected[index] = true;
                    }
                }
            }
            Ok(selected)
        };
        let mut selected = places(&self.include)?;
        let excluded = places(&self.exclude)?;
        let included = ids(&self.include, step)?;
        let banned = ids(&self.exclude, step)?;
        let mut allowed = vec![true; selected.len()];
        for (row, allowed) in allowed.chunks_exact_mut(count).enumerate() {
            let padding = step.padding()[row].saturating_sub(step.start()).min(count);
            allowed[..padding].fill(false);
        }
        for (at, excluded) in excluded.into_iter().enumerate() {
            allowed[at] &= !excluded;
            selected[at] &= allowed[at];
        }
        if included.is_none() && banned.is_none() {
            return Ok(Selection::Known(selected));
        }
        let shape = [batch as i32, count as i32];
        let mut mask = Array::from_slice(&selected, &shape);
        if let Some(included) = included {
            let allowed = Array::from_slice(&allowed, &shape);
            mask = mask.logical_or(included.logical_and(allowed)?)?;
        }
        if let Some(banned) = banned {
            mask = mask.logical_and(banned.logical_not()?)?;
        }
        Ok(Selection::ByToken(mask))
    }
}

/// The selected tokens of a step.
#[derive(Debug, Clone)]
pub(crate) enum Selection {
    /// Row after row.
    Known(Vec<bool>),
    /// Boolean `[batch, count]`, where token ids decide: those may be on the device still.
    ByToken(Array),
}

impl Selection {
    /// Whether some token may be in both. Where ids decide, only the device knows, so they may.
    pub(crate) fn may_meet(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Known(a), Self::Known(b)) => a.iter().zip(b).any(|(a, b)| *a && *b),
            _ => true,
        }
    }

    /// What `other` does not select.
    pub(crate) fn minus(&self, other: &Self, step: &Step) -> Result<Self> {
        if let (Self::Known(a), Self::Known(b)) = (self, other) {
            return Ok(Self::Known(a.iter().zip(b).map(|(a, b)| *a && !*b).collect()));
        }
        let rest = other.mask(step).logical_not()?;
        Ok(Self::ByToken(self.mask(step).logical_and(rest)?))
    }

    /// Boolean `[batch, count]`.
    fn mask(&self, step: &Step) -> Array {
        match self {
            Self::Known(it) => {
                Array::from_slice(it, &[step.padding().len() as i32, step.count() as i32])
            }
            Self::ByToken(mask) => mask.clone(),
        }
    }
}

/// Where the step's tokens have an id that a clause names; `None` where no clause names any.
fn ids(clauses: &[Clause], step: &Step) -> Result<Option<Array>> {
    let mut found: Option<Array> = None;
    for clause in clauses {
        let Clause::Tokens(ids) = clause else { continue };
        let Some(tokens) = step.tokens() else {
            let what = "token sets need the ids of the tokens, which this step does not carry";
            return Err(Error::new(ErrorKind::Run, what));
        };
        let wanted: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        let wanted = Array::from_slice(&wanted, &[1, 1, wanted.len() as i32]);
        let here = tokens.expand_dims(-1)?.eq(&wanted)?.any_axis(-1, false)?;
        found = Some(match found {
            None => here,
            Some(before) => before.logical_or(here)?,
        });
    }
    Ok(found)
}

impl Clause {
    /// The selected indices of a step's tokens in one row, as far as positions decide.
    fn places(&self, step: &Step, row: usize) -> Result<Range<usize>> {
        let padding = step.padding()[row] as i64;
        let prompt = || Ok(prompt_end(step, row)? as i64 - padding);
        self.among(step.start() as i64 - padding, step.count() as i64, &prompt)
    }

    /// The selected indices of `count` tokens from position `first` on, after a prompt of so many.
    fn among(
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

/// The column in which a row's generation begins.
pub(crate) fn prompt_end(step: &Step, row: usize) -> Result<usize> {
    step.prompt_end(row).ok_or_else(|| {
        let what = "steering that depends on the prompt's end needs to know it; tell the cache with \
                    `set_prompt_end`";
        Error::new(ErrorKind::Run, what)
    })
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Prompt => f.write_str("prompt"),
            Self::Generation => f.write_str("generation"),
            Self::PromptWindow(from, None) => write!(f, "prompt[{from}..]"),
            Self::PromptWindow(from, Some(to)) => write!(f, "prompt[{from}..{to}]"),
            Self::GenerationWindow(from, None) => write!(f, "generation[{from}..]"),
            Self::GenerationWindow(from, Some(to)) => write!(f, "generation[{from}..{to}]"),
            Self::Tokens(ids) => {
                let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
                write!(f, "tokens[{}]", ids.join(";"))
            }
        }
    }
}

impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let include = self.include.iter().map(|it| it.to_string());
        let exclude = self.exclude.iter().map(|it| format!("-{it}"));
        f.write_str(&include.chain(exclude).collect::<Vec<_>>().join(","))
    }
}

/// Clauses separated by commas, a `-` before those to exclude: `all`, `prompt`, `generation`,
/// `prompt[A..B]`, `generation[A..B]`, `tokens[ID;ID]`.
impl FromStr for Positions {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut positions = Self { include: Vec::new(), exclude: Vec::new() };
        for part in text.split(',') {
            let (list, clause) = match part.trim().strip_prefix('-') {
                Some(rest) => (&mut positions.exclude, rest),
                None => (&mut positions.include, part.trim()),
            };
            list.push(clause.parse().map_err(|it: Error| it.of(format_args!("{text:?}")))?);
        }
        if positions.include.is_empty() {
            positions.include.push(Clause::All);
        }
        positions.check()?;
        Ok(positions)
    }
}

impl FromStr for Clause {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::parameter(format!(
                "{text:?} is no position; there are all, prompt, generation, prompt[A..B], \
                 generation[A..B] and tokens[ID;ID]"
            ))
        };
        let Some((name, inner)) = text.split_once('[') else {
            return match text {
                "all" => Ok(Self::All),
                "prompt" => Ok(Self::Prompt),
                "generation" => Ok(Self::Generation),
                _ => Err(wrong()),
            };
        };
        let inner = inner.strip_suffix(']').ok_or_else(wrong)?;
        if name == "tokens" {
            let ids = inner.split(';').map(|it| it.trim().parse().map_err(|_| wrong()));
            return Ok(Self::Tokens(ids.collect::<Result<_>>()?));
        }
        let (from, to) = inner.split_once("..").ok_or_else(wrong)?;
        let number = |it: &str| it.trim().parse::<i64>().map_err(|_| wrong());
        let from = if from.trim().is_empty() { 0 } else { number(from)? };
        let to = if to.trim().is_empty() { None } else { Some(number(to)?) };
        match name {
            "prompt" => Ok(Self::PromptWindow(from, to)),
            "generation" => {
                let count = |it: i64| usize::try_from(it).map_err(|_| wrong());
                Ok(Self::GenerationWindow(count(from)?, to.map(count).transpose()?))
            }
            _ => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use mlxgk_kv_cache::{Column, KvCache};

    use super::*;

    /// What is selected of two rows, one with two columns of padding, fed in parts: a prompt of six
    /// columns and three new tokens.
    fn selected(text: &str, parts: &[usize]) -> [String; 2] {
        let positions: Positions = text.parse().unwrap();
        let mut cache = KvCache::left_padded(&[], &[0, 2]);
        cache.set_prompt_end(6);
        let mut rows = [String::new(), String::new()];
        for &count in parts {
            let tokens: Vec<i32> = (cache.len()..cache.len() + count).map(|it| it as i32).collect();
            let tokens = Array::from_slice(&[tokens.clone(), tokens].concat(), &[2, count as i32]);
            let step = cache.step(count).with_tokens(&tokens);
            let picked = match positions.select(&step).unwrap() {
                Selection::Known(it) => it,
                Selection::ByToken(mask) => mask.to_vec_exact().unwrap(),
            };
            for (row, picked) in picked.chunks(count).enumerate() {
                rows[row].extend(picked.iter().map(|&it| if it { 'x' } else { '.' }));
            }
            let fed = vec![vec![Column::Token(0); count]; 2];
            cache.begin(&[&fed[0], &fed[1]], &[]).unwrap().commit().unwrap();
        }
        rows
    }

    #[test]
    fn every_clause_means_the_same_in_parts() {
        for (text, first, second) in [
            ("all", "xxxxxxxxx", "..xxxxxxx"),
            ("prompt", "xxxxxx...", "..xxxx..."),
            ("generation", ".....xxxx", ".....xxxx"),
            ("prompt[0..2]", "xx.......", "..xx....."),
            ("prompt[-2..]", "....xx...", "....xx..."),
            ("prompt[1..-1]", ".xxxx....", "...xx...."),
            ("prompt[-9..-5]", "x........", "........."),
            ("generation[0..2]", ".....xx..", ".....xx.."),
            ("generation[2..]", ".......xx", ".......xx"),
            ("prompt[0..1],generation[3..4]", "x.......x", "..x.....x"),
            ("-prompt[0..1]", ".xxxxxxxx", "...xxxxxx"),
            ("generation,-generation[1..2]", ".....x.xx", ".....x.xx"),
            ("tokens[0;4]", "x...x....", "....x...."),
            ("prompt,-tokens[3]", "xxx.xx...", "..x.xx..."),
            ("tokens[1;7],-prompt", ".......x.", ".......x."),
        ] {
            for parts in [vec![6, 1, 1, 1], vec![4, 2, 1, 1, 1], vec![1; 9], vec![5, 4]] {
                assert_eq!(selected(text, &parts), [first, second], "{text} in {parts:?}");
            }
            let positions: Positions = text.parse().unwrap();
            assert_eq!(positions, positions.to_string().parse().unwrap());
        }
    }

    #[test]
    fn nothing_selected_is_an_error() {
        for text in [
            "prompt[3..3]",
            "prompt[-1..-2]",
            "prompt[0..0]",
            "generation[2..1]",
            "all,-all",
            "tokens[]",
            "",
            "prompt[",
            "everything",
            "generation[-1..]",
        ] {
            assert_eq!(
                text.parse::<Positions>().unwrap_err().kind(),
                ErrorKind::Parameter,
                "{text}"
            );
        }
    }
}
