//! Which pass fed which token of a sequence: what recorders of passes are read by.

use std::ops::Range;

use mlxgk_decoding_strategies::RowId;
use mlxgk_kv_cache::Step;

/// The rows of a pass: each one's id, and the position of its first new token counted from the row's
/// own first; below 0 while it is padding.
#[derive(Debug)]
pub(crate) struct PassRows(Vec<(RowId, isize)>);

impl PassRows {
    /// Those of a step. What is read again was recorded when it was new, and is left out.
    pub(crate) fn new(step: &Step) -> Self {
        let start = (step.start() + step.again()) as isize;
        let first = |(&id, padding): (&RowId, &usize)| (id, start - *padding as isize);
        Self(step.rows().iter().zip(step.padding()).map(first).collect())
    }
}

/// A finished sequence, by the rows that its tokens were fed in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fed {
    pub(crate) row: RowId,
    /// The row that the prompt was fed in, perhaps another.
    pub(crate) prompt_row: RowId,
    pub(crate) prompt_len: usize,
    /// How many new tokens there are.
    pub(crate) tokens: usize,
}

/// Where a token that was fed is found: in a pass, by its number among the tokens of the row there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) pass: usize,
    pub(crate) token: usize,
}

impl Fed {
    /// How many tokens were fed: all but the last, which nothing was chosen from.
    fn len(&self) -> usize {
        (self.prompt_len + self.tokens).saturating_sub(1)
    }

    /// The row of a pass that holds some of the tokens, and the position of its first.
    pub(crate) fn row_of(&self, rows: &PassRows) -> Option<(usize, isize)> {
        let holds = |(id, first): (RowId, isize)| {
            id == self.row || (id == self.prompt_row && first < self.prompt_len as isize)
        };
        let (at, &(_, first)) = rows.0.iter().enumerate().find(|(_, it)| holds(**it))?;
        Some((at, first))
    }

    /// Where each token is found, by its position, in passes of so many tokens per row. What was fed
    /// later to a position that was rolled back takes its place.
    pub(crate) fn places<'a>(
        &self,
        passes: impl Iterator<Item = (&'a PassRows, usize)>,
    ) -> Vec<Option<Place>> {
        let mut places = vec![None; self.len()];
        for (pass, (rows, width)) in passes.enumerate() {
            let Some((at, first)) = self.row_of(rows) else { continue };
            let end = if rows.0[at].0 == self.row { self.len() } else { self.prompt_len };
            for token in 0..width {
                let position = first + token as isize;
                if (0..end as isize).contains(&position)
                    && let Some(place) = places.get_mut(position as usize)
                {
                    *place = Some(Place { pass, token });
                }
            }
        }
        places
    }

    /// The positions that new token `token` was chosen from: the first, from the whole prompt.
    pub(crate) fn positions(&self, token: usize) -> Range<usize> {
        let begin = if token == 0 { 0 } else { self.prompt_len + token - 1 };
        begin..self.prompt_len + token
    }
}
