//! Positions as the command line spells them.

use std::{fmt, str::FromStr};

use super::{Clause, Positions};
use crate::{Error, Result};

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
                "unknown position {text:?}; expected all, prompt, generation, prompt[A..B], \
                 generation[A..B] or tokens[ID;ID]"
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
    use super::*;
    use crate::ErrorKind;

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
