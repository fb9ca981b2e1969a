//! What a model's passes leave after the final norm, kept for the heads that read it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx_rs::{
    Array,
    error::Exception,
    ops::{concatenate, indexing::TryIndexOp},
    transforms::async_eval,
};
use mlxgk_kv_cache::Step;
use mlxgk_mlx_models::{HookPoint, ResidualHook};

use crate::Result;

/// What the passes of one row leave after the final norm, column by column. A clone is the same record, so
/// that one can be the passes' hook and another be read.
///
/// A pass over columns that were there before takes their place and that of those behind them, so
/// what was taken back is gone once something else stands there.
///
/// ```
/// use mlxgk_decoding_strategies::{DecoderSession, FinalStates, LeftPadded};
/// use mlxgk_mlx_models::{ComputeDtype, Decoder};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let states = FinalStates::default();
/// let prompts = LeftPadded::new(&[vec![5, 9, 14]], 0)?;
/// let session = DecoderSession::prefill(&model, &prompts, 64, states.clone())?;
/// let last = states.between(1, 3)?.unwrap();
/// assert_eq!(last.shape(), [1, 2, model.hidden_size() as i32]);
/// assert!(states.between(1, 4)?.is_none()); // the fourth column was not fed yet
/// # drop(session);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct FinalStates(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    /// The column that the first of the parts begins with.
    start: usize,
    /// `[1, columns, hidden]` each, one after the other.
    parts: Vec<Array>,
}

impl FinalStates {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first column that is kept; `None` while there is none.
    pub fn start(&self) -> Option<usize> {
        let kept = self.kept();
        (!kept.parts.is_empty()).then_some(kept.start)
    }

    /// The columns from `from` to before `to`, `[1, columns, hidden]`; `None` where not all are kept.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn between(&self, from: usize, to: usize) -> Result<Option<Array>> {
        let kept = self.kept();
        if from < kept.start || to > kept.end() || from >= to {
            return Ok(None);
        }
        let (mut at, mut slices) = (kept.start, Vec::new());
        for part in &kept.parts {
            let (first, end) = (at, at + columns(part));
            at = end;
            if first < to && end > from {
                slices.push(slice(part, from.max(first) - first, to.min(end) - first)?);
            }
        }
        Ok(Some(match slices.as_slice() {
            [one] => one.clone(),
            several => concatenate(several, 1)?,
        }))
    }

    /// Forgets the columns before `column`.
    pub fn forget(&self, column: usize) {
        let mut kept = self.kept();
        while let Some(first) = kept.parts.first().map(columns)
            && kept.start + first <= column
        {
            kept.parts.remove(0);
            kept.start += first;
        }
    }
}

impl Kept {
    fn end(&self) -> usize {
        self.start + self.parts.iter().map(columns).sum::<usize>()
    }

    /// Puts a pass's states behind the columns before `column`.
    fn put(&mut self, column: usize, states: Array) -> Result<(), Exception> {
        if column < self.start || column > self.end() {
            self.parts.clear();
        }
        let mut over = self.end().saturating_sub(column);
        while over > 0
            && let Some(last) = self.parts.pop()
        {
            let left = columns(&last).saturating_sub(over);
            over = over.saturating_sub(columns(&last));
            if left > 0 {
                self.parts.push(slice(&last, 0, left)?);
            }
        }
        if self.parts.is_empty() {
            self.start = column;
        }
        self.parts.push(states);
        Ok(())
    }
}

fn columns(states: &Array) -> usize {
    states.dim(1) as usize
}

fn slice(states: &Array, from: usize, to: usize) -> Result<Array, Exception> {
    states.try_index((.., from as i32..to as i32, ..))
}

impl ResidualHook for FinalStates {
    fn apply(
        &mut self,
        point: HookPoint,
        hidden: Array,
        step: &Step,
    ) -> mlxgk_mlx_models::Result<Array> {
        // What is read again alone is a state on its way back.
        let (again, count) = (step.again(), step.count());
        if point != HookPoint::FinalNorm || again == count {
            return Ok(hidden);
        }
        let states = if again == 0 { hidden.clone() } else { slice(&hidden, again, count)? };
        // An array that is not evaluated holds the whole pass.
        async_eval([&states])?;
        self.kept().put(step.start() + again, states)?;
        Ok(hidden)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(values: &[f32]) -> Array {
        Array::from_slice(values, &[1, values.len() as i32, 1])
    }

    fn between(of: &FinalStates, from: usize, to: usize) -> Option<Vec<f32>> {
        of.between(from, to).unwrap().map(|it| it.to_vec_exact().unwrap())
    }

    #[test]
    fn columns_are_replaced_and_forgotten() {
        let record = FinalStates::default();
        assert_eq!((record.start(), between(&record, 0, 1)), (None, None));
        let put = |at, values: &[f32]| record.kept().put(at, states(values)).unwrap();
        put(3, &[3.0, 4.0, 5.0]);
        put(6, &[6.0, 7.0]);
        assert_eq!(between(&record, 4, 7), Some(vec![4.0, 5.0, 6.0]));
        assert_eq!((between(&record, 2, 4), between(&record, 7, 9)), (None, None));
        put(5, &[5.5]);
        assert_eq!(between(&record, 3, 6), Some(vec![3.0, 4.0, 5.5]));
        assert_eq!(between(&record, 5, 7), None);
        record.forget(5);
        assert_eq!((record.start(), between(&record, 5, 6)), (Some(5), Some(vec![5.5])));
        put(0, &[0.0, 1.0]);
        assert_eq!((record.start(), between(&record, 0, 2)), (Some(0), Some(vec![0.0, 1.0])));
    }
}
