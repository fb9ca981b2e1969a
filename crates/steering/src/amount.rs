//! How strongly each token of a step is steered: what positions, schedule and budget come to.

use mlx_rs::{Array, ops::select};
use mlxgk_kv_cache::Step;

use crate::{
    Result, Schedule,
    positions::{Selection, prompt_end},
};

/// How strongly each token of a step is steered: the schedule's factor, 0 where it is not selected.
pub(crate) enum Amount {
    /// Every token alike.
    Same(f64),
    /// Row after row, and where token ids decide, which of them they leave.
    Each { factors: Vec<f64>, shape: [i32; 3], tokens: Option<Array> },
}

impl Amount {
    /// `None` where nothing is steered.
    pub(crate) fn new(
        selection: &Selection,
        schedule: &Schedule,
        step: &Step,
    ) -> Result<Option<Self>> {
        let factors = factors(schedule, step)?;
        let shape = [step.padding().len() as i32, step.count() as i32, 1];
        Ok(match selection {
            Selection::Known(selected) => {
                let chosen = selected.iter().zip(factors);
                let factors: Vec<f64> =
                    chosen.map(|(&selected, it)| if selected { it } else { 0.0 }).collect();
                let first = factors.first().copied().unwrap_or(0.0);
                if factors.iter().any(|&it| it != first) {
                    Some(Self::Each { factors, shape, tokens: None })
                } else {
                    (first != 0.0).then_some(Self::Same(first))
                }
            }
            Selection::ByToken(_) if factors.iter().all(|it| *it == 0.0) => None,
            Selection::ByToken(mask) => {
                Some(Self::Each { factors, shape, tokens: Some(mask.expand_dims(-1)?) })
            }
        })
    }

    /// `f(factor)` per token as fp32: a scalar, or `[batch, count, 1]`.
    pub(crate) fn map(&self, f: impl Fn(f64) -> f64) -> Result<Array> {
        match self {
            Self::Same(factor) => Ok(Array::from_f32(f(*factor) as f32)),
            Self::Each { factors, shape, tokens } => {
                let values: Vec<f32> = factors.iter().map(|&it| f(it) as f32).collect();
                let values = Array::from_slice(&values, shape);
                match tokens {
                    None => Ok(values),
                    Some(mask) => Ok(select(mask, &values, Array::from_f32(f(0.0) as f32))?),
                }
            }
        }
    }

    /// Which tokens are steered at all, boolean `[batch, count, 1]`; `None` for all.
    pub(crate) fn selected(&self) -> Result<Option<Array>> {
        let Self::Each { factors, shape, tokens } = self else { return Ok(None) };
        let selected: Vec<bool> = factors.iter().map(|&it| it != 0.0).collect();
        let selected = Array::from_slice(&selected, shape);
        Ok(Some(match tokens {
            None => selected,
            Some(mask) => selected.logical_and(mask)?,
        }))
    }
}

/// The factor of each token of a step, row after row.
fn factors(schedule: &Schedule, step: &Step) -> Result<Vec<f64>> {
    let rows = (0..step.padding().len()).map(|row| row_factors(schedule, step, row));
    Ok(rows.collect::<Result<Vec<_>>>()?.concat())
}

/// The schedule's factor of each token in one row, times the strength that was set for it.
pub(crate) fn row_factors(schedule: &Schedule, step: &Step, row: usize) -> Result<Vec<f64>> {
    let count = step.count();
    let mut factors = vec![1.0; count];
    if *schedule != Schedule::Constant {
        // The column of the last prompt token.
        let zero = prompt_end(step, row)?.saturating_sub(1);
        for (column, factor) in (step.start()..).zip(&mut factors) {
            *factor = schedule.factor(column.saturating_sub(zero));
        }
    }
    if let Some(strengths) = step.strengths() {
        for (factor, &strength) in factors.iter_mut().zip(&strengths[row * count..]) {
            *factor *= f64::from(strength);
        }
    }
    Ok(factors)
}
