//! A hook that keeps the residual stream of a whole generation.

use std::collections::BTreeMap;

use mlx_rs::{Array, Dtype, ops::concatenate, ops::indexing::TryIndexOp};
use mlxgk_kv_cache::Step;

use crate::{Error, ErrorKind, HookPoint, ResidualHook, Result};

/// Keeps the residual stream at chosen points for every token that was fed: HF's `hidden_states`.
///
/// Unlike [`Capture`](crate::Capture), which has the last pass, it goes by position: chunks of a
/// prompt, single tokens and checked drafts make up one sequence, and what is rolled back is
/// forgotten. The last new token is not fed to the model, so it has no entry.
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, HookPoint, Recording};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let mut recording = Recording::new([HookPoint::ResidPost(0)]);
/// let mut cache = model.new_cache(1);
/// model.forward(&[&[5, 9, 14]], &mut cache, &mut recording)?;
/// model.forward(&[&[7]], &mut cache, &mut recording)?;
/// // Both passes are one text.
/// let states = recording.states(HookPoint::ResidPost(0))?.unwrap();
/// assert_eq!(states.shape(), [1, 4, 32]);
/// # Ok::<(), mlxgk_mlx_models::Error>(())
/// ```
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

    /// One row of the stream at a point, as fp32 `[positions, hidden]` row after row, and the position
    /// of its first: above 0 where a cache held the text before it. `rows` says how many rows the
    /// answers are, of which a part with fewer was the prompts', each repeated in succession.
    ///
    /// # Errors
    /// When the point was not kept, or MLX fails.
    pub fn row(&self, point: HookPoint, row: usize, rows: usize) -> Result<(usize, Vec<f32>)> {
        let doing = |e| Error::mlx("reading the recorded stream", &e);
        let Some(parts) = self.points.get(&point) else {
            return Err(Error::new(ErrorKind::Hook, format!("{point} was not recorded")));
        };
        if parts.is_empty() {
            return Ok((0, Vec::new()));
        }
        let of_row = |(_, part): &(usize, Array)| {
            let times = (rows / part.dim(0).max(1) as usize).max(1);
            part.try_index(((row / times) as i32, .., ..))
        };
        let parts_of_row = parts.iter().map(of_row).collect::<std::result::Result<Vec<_>, _>>();
        let whole = concatenate(&parts_of_row.map_err(doing)?, 0).map_err(doing)?;
        let whole = whole.as_dtype(Dtype::Float32).and_then(|it| it.contiguous()).map_err(doing)?;
        let unreadable = |e| Error::new(ErrorKind::Hook, format!("the recorded stream: {e}"));
        let values = whole.try_as_slice::<f32>().map_err(unreadable)?.to_vec();
        Ok((parts[0].0, values))
    }
}

impl ResidualHook for Recording {
    fn apply(&mut self, point: HookPoint, hidden: Array, step: &Step) -> Result<Array> {
        let Some(parts) = self.points.get_mut(&point) else { return Ok(hidden) };
        // What is read again was recorded when it was new.
        if step.again() == step.count() {
            return Ok(hidden);
        }
        let again = step.again() as i32;
        let new = if again == 0 { hidden.clone() } else { hidden.try_index((.., again.., ..))? };
        let start = step.start() + step.again();
        while let Some((from, part)) = parts.pop() {
            if from >= start {
                continue;
            }
            let kept = ((start - from) as i32).min(part.dim(1));
            parts.push((from, part.try_index((.., ..kept, ..))?));
            break;
        }
        parts.push((start, new));
        Ok(hidden)
    }
}
