//! What positions select of one step: on the host as far as places decide, on the device where
//! token ids do.

use std::ops::Range;

use mlx_rs::Array;
use mlxgk_kv_cache::Step;

use super::{Clause, Positions};
use crate::{Error, ErrorKind, Result};

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

impl Positions {
    /// Which of a step's tokens are selected, as far as their positions say, and what their ids add.
    pub(crate) fn select(&self, step: &Step) -> Result<Selection> {
        let (batch, count) = (step.padding().len(), step.count());
        let rows = (0..batch).map(|row| self.by_place(step, row));
        let (selected, allowed): (Vec<_>, Vec<_>) =
            rows.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let (selected, allowed) = (selected.concat(), allowed.concat());
        let included = ids(&self.include, step)?;
        let banned = ids(&self.exclude, step)?;
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

    /// Which tokens of one row are selected; `None` where their ids decide.
    pub(crate) fn select_row(&self, step: &Step, row: usize) -> Result<Option<Vec<bool>>> {
        let mut clauses = self.include.iter().chain(&self.exclude);
        if clauses.any(|it| matches!(it, Clause::Tokens(_))) {
            return Ok(None);
        }
        Ok(Some(self.by_place(step, row)?.0))
    }

    /// Which tokens of one row are selected by their places, and which may be by their ids.
    fn by_place(&self, step: &Step, row: usize) -> Result<(Vec<bool>, Vec<bool>)> {
        let count = step.count();
        let mut allowed = vec![true; count];
        let padding = step.padding()[row].saturating_sub(step.start()).min(count);
        allowed[..padding].fill(false);
        for clause in &self.exclude {
            allowed[clause.places(step, row)?].fill(false);
        }
        let mut selected = vec![false; count];
        for clause in &self.include {
            for at in clause.places(step, row)? {
                selected[at] = allowed[at];
            }
        }
        Ok((selected, allowed))
    }
}

impl Clause {
    /// The selected indices of a step's tokens in one row, as far as positions decide.
    fn places(&self, step: &Step, row: usize) -> Result<Range<usize>> {
        let padding = step.padding()[row] as i64;
        let prompt = || Ok(prompt_end(step, row)? as i64 - padding);
        self.among(step.start() as i64 - padding, step.count() as i64, &prompt)
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

/// The column in which a row's generation begins.
pub(crate) fn prompt_end(step: &Step, row: usize) -> Result<usize> {
    step.prompt_end(row).ok_or_else(|| {
        let what = "steering that depends on the prompt's end needs to know it; tell the cache with \
                    `set_prompt_end`";
        Error::new(ErrorKind::Run, what)
    })
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
}
