//! A hook that keeps the residual stream of a whole generation.

use std::collections::BTreeMap;

use mlx_rs::{Array, ops::concatenate, ops::indexing::TryIndexOp};
use mlxgk_kv_cache::Step;

use crate::{Error, HookPoint, ResidualHook, Result};

/// Keeps the residual stream at chosen points for every token that was fed: HF's `hidden_states`.
///
/// Unlike [`Capture`](crate::Capture), which has the last pass, it goes by position: chunks of a
/// prompt, single tokens and checked drafts make up one sequence, and what is rolled back is
/// forgotten. The last new token is not fed to the model, so it has no entry.
#[derive(Debug, Default)]
pub struct Recording {
    points: BTreeMap<HookPoint, Vec<(usize, Array)>>,
}

impl Recording {
    /// Keeps the stream at `points`.
    pub fn new(points: impl IntoIterator<Item = HookPoint>) -> Self {
        Self { points: points.into_iter().map(|it| (it, Vec::new())).collect() }
    }

    /// The stream at a point, `[rows, positions, hidden]`, left padding included; `None` where it was
    /// not kept or nothing was fed. Where a prompt's row was repeated for several sequences, so is its
    /// part.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn states(&self, point: HookPoint) -> Result<Option<Array>> {
        let Some(parts) = self.points.get(&point).filter(|it| !it.is_empty()) else {
            return Ok(None);
        };
        let rows = parts.iter().map(|(_, part)| part.dim(0)).max().unwrap_or(0);
        let part = |(_, part): &(usize, Array)| {
            let times = rows / part.dim(0).max(1);
            let indices: Vec<i32> =
                (0..part.dim(0)).flat_map(|row| std::iter::repeat_n(row, times as usize)).collect();
            part.take_axis(Array::from_slice(&indices, &[indices.len() as i32]), 0)
        };
        let doing = |e| Error::mlx("joining the recorded stream", &e);
        let parts = parts.iter().map(part).collect::<std::result::Result<Vec<_>, _>>();
        let parts = parts.map_err(doing)?;
        concatenate(&parts, 1).map(Some).map_err(doing)
    }
}

impl ResidualHook for Recording {
    fn apply(&mut self, point: HookPoint, hidden: Array, step: &Step) -> Result<Array> {
        let Some(parts) = self.points.get_mut(&point) else { return Ok(hidden) };
        let start = step.start();
        while let Some((from, part)) = parts.pop() {
            if from >= start {
                continue;
            }
            let kept = ((start - from) as i32).min(part.dim(1));
            parts.push((from, part.try_index((.., ..kept, ..))?));
            break;
        }
        parts.push((start, hidden.clone()));
        Ok(hidden)
    }
}
