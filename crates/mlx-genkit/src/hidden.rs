//! The residual stream that each token was chosen from: HF's `hidden_states`.

use std::sync::{Arc, Mutex, PoisonError};

use mlxgk_generation_config::Resolved;
use mlxgk_mlx_models::{Decoder, HookPoint, Recording, ResidualHook};

use crate::{Error, ErrorKind, Result};

/// The residual stream behind chosen layers, for every new token of a sequence.
///
/// HF returns a tuple per token, of which each holds a tensor per layer, `[rows, positions, hidden]`;
/// this is one row of it, its left padding left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HiddenStates {
    /// The layers, numbered as in HF: 0 is the embeddings, *i* what block *i* - 1 returns, and the
    /// last, as many as there are blocks, what the final norm makes of it.
    pub layers: Vec<usize>,
    /// Width of the stream.
    pub hidden_size: usize,
    /// Per new token and, in it, per entry of `layers`: `[positions, hidden_size]`, fp32, row after
    /// row. The first token was chosen from the whole prompt, so its positions are the prompt's, or
    /// those of them that a [cache](crate::Request::cache) did not hold. Each later token has one.
    pub steps: Vec<Vec<Vec<f32>>>,
}

/// Records the stream of a request under way.
#[derive(Debug, Clone)]
pub(crate) struct HiddenRecorder {
    layers: Vec<usize>,
    points: Vec<HookPoint>,
    hidden_size: usize,
    recording: Arc<Mutex<Recording>>,
}

impl HiddenRecorder {
    /// Keeps `layers`, or all of them where only the configuration asks for hidden states; `None`
    /// where nothing does.
    pub(crate) fn new(
        layers: Option<Vec<usize>>,
        resolved: &Resolved,
        model: &Decoder,
    ) -> Result<Option<Self>> {
        let count = model.layers().len();
        let layers = match layers {
            Some(layers) => layers,
            None if resolved.config.output_hidden_states == Some(true) => (0..=count).collect(),
            None => return Ok(None),
        };
        if let Some(layer) = layers.iter().find(|it| **it > count) {
            let what = format!(
                "there are no hidden states of layer {layer}: they are numbered from 0, the \
                 embeddings, to {count}, behind the last block and the final norm"
            );
            return Err(Error::new(ErrorKind::Request, what));
        }
        let point = |&layer: &usize| match layer {
            0 => HookPoint::ResidPre(0),
            _ if layer == count => HookPoint::FinalNorm,
            _ => HookPoint::ResidPost(layer - 1),
        };
        let points: Vec<HookPoint> = layers.iter().map(point).collect();
        let recording = Arc::new(Mutex::new(Recording::new(points.iter().copied())));
        Ok(Some(Self { layers, points, hidden_size: model.hidden_size(), recording }))
    }

    /// The request's own hook, and behind it the recording.
    pub(crate) fn behind<'a>(
        &self,
        hook: Box<dyn ResidualHook + 'a>,
    ) -> Box<dyn ResidualHook + 'a> {
        Box::new((hook, Arc::clone(&self.recording)))
    }

    /// What row `row` of `rows` was chosen from: `tokens` new ones behind a prompt that ends before
    /// column `width`, the first `padding` of them no part of it.
    pub(crate) fn states(
        &self,
        (row, rows): (usize, usize),
        padding: usize,
        width: usize,
        tokens: usize,
    ) -> Result<HiddenStates> {
        let recording = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
        let mut steps = vec![Vec::with_capacity(self.layers.len()); tokens];
        for &point in &self.points {
            let (start, values) = recording.row(point, row, rows)?;
            let column = |at: usize| (at - start) * self.hidden_size;
            for (token, step) in steps.iter_mut().enumerate() {
                let begin = if token == 0 { padding.max(start) } else { width + token - 1 };
                step.push(values[column(begin)..column(width + token)].to_vec());
            }
        }
        let (layers, hidden_size) = (self.layers.clone(), self.hidden_size);
        Ok(HiddenStates { layers, hidden_size, steps })
    }
}
