//! The decoder graphs: transformers' log-probabilities, greedy tokens and hidden states in fp32.
//!
//! Each model is run the ways a caller may run it (whole, token by token over a cache, in chunks,
//! alone, beside longer rows) and every way has to give the recorded answer.
//! See `xtask/record/models.py`.

use std::{
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use mlx_rs::Array;
use mlxgk_decoding_strategies::{
    DEFAULT_PREFILL_CHUNK, DecoderSession, LanguageModel, LeftPadded, Limits, Prefill, RowGroup,
    SampleLoop, TokenLoop,
};
use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
use serde::Deserialize;

use crate::{Case, files, recent::Recent};

/// Log-probabilities may be off by this much from transformers' in fp32.
pub(crate) const TOLERANCE: f64 = 1e-4;
/// And by this much from mlx-lm's over quantized weights.
pub(crate) const QUANTIZED_TOLERANCE: f64 = 1e-3;
/// A prefill chunk that divides none of the prompts.
const CHUNK: usize = 6;

/// The cases of every `*.json` of `folder`, on the model folders they name.
pub(crate) fn cases(folder: &Path) -> Vec<Case> {
    files::suites(folder, |path, suite| {
        let fixture: Fixture = files::read(path)?;
        fixture.cases(folder, suite)
    })
}

thread_local! {
    static DECODERS: Recent<Decoder> = const { Recent::new() };
}

fn decoder(folder: &Path) -> Result<Rc<Decoder>, String> {
    let load = |path: &Path| Decoder::load(path, ComputeDtype::Float32).map_err(text);
    DECODERS.with(|it| it.get(folder, load))
}

#[derive(Deserialize)]
struct Fixture {
    reference: String,
    model: String,
    forward: Vec<Forward>,
    greedy: Vec<Greedy>,
    #[serde(default)]
    batches: Vec<Batch>,
    eos: Option<Eos>,
}

#[derive(Deserialize)]
struct Forward {
    prompt: Vec<u32>,
    logprobs: Vec<f32>,
    positions: Vec<usize>,
    rows: Vec<Vec<f32>>,
    #[serde(default)]
    layers: Vec<usize>,
    /// By layer, position and width.
    #[serde(default)]
    hidden: Vec<Vec<Vec<f32>>>,
}

#[derive(Deserialize)]
struct Greedy {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
}

#[derive(Deserialize)]
struct Batch {
    prompts: Vec<Vec<u32>>,
    tokens: Vec<Vec<u32>>,
    logprobs: Vec<Vec<f32>>,
    rows_stand_alone: bool,
}

#[derive(Deserialize)]
struct Eos {
    prompts: Vec<Vec<u32>>,
    max_new_tokens: usize,
    eos_token_id: Vec<u32>,
    pad_token_id: u32,
    tokens: Vec<Vec<u32>>,
}

impl Fixture {
    fn cases(self, folder: &Path, suite: &str) -> Result<Vec<Case>, String> {
        if self.forward.is_empty() || self.greedy.is_empty() {
            return Err("the fixture has no cases under `forward` or `greedy`".into());
        }
        let mut cases = Cases {
            suite,
            folder: folder.join(&self.model),
            tolerance: if self.reference == "mlx-lm" { QUANTIZED_TOLERANCE } else { TOLERANCE },
            found: Vec::new(),
        };
        for case in self.forward.into_iter().map(Arc::new) {
            let name = |way: &str| format!("{way}, {} tokens", case.prompt.len());
            cases.push(name("whole"), &case, Forward::whole);
            cases.push(name("token by token"), &case, |it, model| it.in_parts(model, 1));
            cases.push(name("in chunks"), &case, |it, model| it.in_parts(model, CHUNK));
            if !case.layers.is_empty() {
                cases.push(name("hidden states"), &case, Forward::hidden);
            }
        }
        for case in self.greedy.into_iter().map(Arc::new) {
            for (way, chunk) in [("greedy", DEFAULT_PREFILL_CHUNK), ("greedy in chunks", CHUNK)] {
                let name = format!("{way}, {} tokens", case.prompt.len());
                cases.push(name, &case, move |it, model| {
                    let prompt = std::slice::from_ref(&it.prompt);
                    let expected =
                        (std::slice::from_ref(&it.tokens), std::slice::from_ref(&it.logprobs));
                    continues(model, prompt, chunk, expected)
                });
            }
        }
        for case in self.batches.into_iter().map(Arc::new) {
            let lengths: Vec<usize> = case.prompts.iter().map(Vec::len).collect();
            for (way, chunk) in [("batch", DEFAULT_PREFILL_CHUNK), ("batch in chunks", CHUNK)] {
                cases.push(format!("{way} of {lengths:?}"), &case, move |it, model| {
                    continues(model, &it.prompts, chunk, (&it.tokens, &it.logprobs))
                });
            }
            for row in 0..if case.rows_stand_alone { lengths.len() } else { 0 } {
                cases.push(format!("row {row} of {lengths:?} alone"), &case, move |it, model| {
                    let expected = (&it.tokens[row..=row], &it.logprobs[row..=row]);
                    continues(model, &it.prompts[row..=row], DEFAULT_PREFILL_CHUNK, expected)
                });
            }
        }
        if let Some(case) = self.eos.map(Arc::new) {
            cases.push(format!("ends at {:?}", case.eos_token_id), &case, Eos::ends);
        }
        Ok(cases.found)
    }
}

/// The cases of one fixture as they are gathered.
struct Cases<'a> {
    suite: &'a str,
    folder: PathBuf,
    tolerance: f64,
    found: Vec<Case>,
}

impl Cases<'_> {
    fn push<T: Send + Sync + 'static>(
        &mut self,
        name: String,
        recorded: &Arc<T>,
        check: impl FnOnce(&T, &Decoder) -> Result<Deviation, String> + Send + 'static,
    ) {
        let (recorded, folder, tolerance) =
            (Arc::clone(recorded), self.folder.clone(), self.tolerance);
        self.found.push(Case::new(self.suite, name, move || {
            let error = f64::from(check(&recorded, &*decoder(&folder)?)?.0);
            if error <= tolerance { Ok(error) } else { Err(format!("off by {error:.1e}")) }
        }));
    }
}

/// The largest absolute difference in a comparison.
struct Deviation(f32);

impl Deviation {
    fn between(ours: &[f32], theirs: &[f32]) -> Result<Self, String> {
        if ours.len() != theirs.len() {
            return Err(format!("{} values instead of {}", ours.len(), theirs.len()));
        }
        let worst = |worst: f32, (a, b): (&f32, &f32)| {
            let difference = (a - b).abs();
            // A NaN must come through.
            if difference > worst || difference.is_nan() { difference } else { worst }
        };
        Ok(Self(ours.iter().zip(theirs).fold(0.0, worst)))
    }

    fn or(self, other: Self) -> Self {
        if self.0 > other.0 || self.0.is_nan() { self } else { other }
    }
}

impl Forward {
    /// One pass over the whole prompt.
    fn whole(&self, model: &Decoder) -> Result<Deviation, String> {
        let ours = logprobs(&model.logits_of(&[&self.prompt]).map_err(text)?)?;
        let next = self.prompt.iter().skip(1);
        let chosen: Option<Vec<f32>> =
            next.zip(&ours).map(|(&next, row)| row.get(next as usize).copied()).collect();
        let chosen = chosen.ok_or("a prompt id without a score")?;
        let worst = Deviation::between(&chosen, &self.logprobs)?;
        Ok(worst.or(self.at_positions(&ours, &self.rows)?))
    }

    /// Over a cache, a few tokens at a time. Only what follows the prompt is compared: longrope
    /// gives earlier positions other frequencies while the prompt is short.
    fn in_parts(&self, model: &Decoder, chunk: usize) -> Result<Deviation, String> {
        let mut cache = model.new_cache(1);
        let mut last = None;
        for part in self.prompt.chunks(chunk) {
            last = Some(model.forward(&[part], &mut cache, &mut NoHook).map_err(text)?);
        }
        let ours = logprobs(&last.ok_or("an empty prompt")?)?;
        let end = self.positions.iter().position(|it| it + 1 == self.prompt.len());
        match (ours.last(), end.and_then(|it| self.rows.get(it))) {
            (Some(ours), Some(theirs)) => Deviation::between(ours, theirs),
            _ => Err("nothing is recorded for the last position".into()),
        }
    }

    /// The residual stream after each block. Its values are larger than log-probabilities, so the
    /// difference is relative to the widest one.
    fn hidden(&self, model: &Decoder) -> Result<Deviation, String> {
        let (_, layers) = model.forward_with_hidden(&[&self.prompt], &self.layers).map_err(text)?;
        if layers.len() != self.hidden.len() {
            return Err(format!("{} layers instead of {}", layers.len(), self.hidden.len()));
        }
        let mut worst = Deviation(0.0);
        for ((array, theirs), layer) in layers.iter().zip(&self.hidden).zip(&self.layers) {
            let widest = theirs.iter().flatten().fold(1.0_f32, |widest, it| widest.max(it.abs()));
            let Deviation(difference) = self.at_positions(&rows_of(array)?, theirs)?;
            let error = f64::from(difference / widest);
            // The first layer that is off has the cause; those behind it only pass it on.
            if error.is_nan() || error > TOLERANCE {
                return Err(format!("layer {layer} is off by {error:.1e}"));
            }
            worst = worst.or(Deviation(difference / widest));
        }
        Ok(worst)
    }

    /// Compares the rows at the recorded positions.
    fn at_positions(&self, ours: &[Vec<f32>], theirs: &[Vec<f32>]) -> Result<Deviation, String> {
        let at = |&position: &usize| ours.get(position).cloned();
        let ours: Option<Vec<_>> = self.positions.iter().map(at).collect();
        let ours = ours.ok_or("a position outside the prompt")?;
        Deviation::between(&ours.concat(), &theirs.concat())
    }
}

impl Eos {
    fn ends(&self, model: &Decoder) -> Result<Deviation, String> {
        let prompts = LeftPadded::new(&self.prompts, self.pad_token_id).map_err(text)?;
        let session = Prefill::new(model, &prompts, NoHook).finish().map_err(text)?;
        let limits = Limits { max_new_tokens: self.max_new_tokens, eos: self.eos_token_id.clone() };
        let group = RowGroup::greedy(limits).pad(self.pad_token_id);
        let mut tokens = SampleLoop::new(session, &prompts, group);
        while let Some(step) = tokens.step() {
            step.map_err(text)?;
        }
        let ours: Vec<_> = tokens.into_parts().1.into_iter().map(|it| it.tokens).collect();
        same_tokens(&ours, &self.tokens)?;
        Ok(Deviation(0.0))
    }
}

/// Greedy continuation of a left-padded batch: the same tokens, and log-probabilities near.
fn continues(
    model: &Decoder,
    prompts: &[Vec<u32>],
    chunk: usize,
    (tokens, logprobs): (&[Vec<u32>], &[Vec<f32>]),
) -> Result<Deviation, String> {
    let padded = LeftPadded::new(prompts, 0).map_err(text)?;
    let mut hook = NoHook;
    let mut session = DecoderSession::prefill(model, &padded, chunk, &mut hook).map_err(text)?;
    let vocab = session.vocab_size();
    let mut ours = vec![Vec::new(); prompts.len()];
    let mut chosen = vec![Vec::new(); prompts.len()];
    let steps = tokens.first().map_or(0, Vec::len);
    for step in 0..steps {
        let scores = session.scores().map_err(text)?;
        for (row, scores) in scores.chunks_exact(vocab).enumerate() {
            let best = (0..vocab).max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
            let best = best.ok_or("no scores")?;
            ours[row].push(best as u32);
            chosen[row].push(scores[best] - log_sum_exp(scores));
        }
        if step + 1 < steps {
            let fed: Vec<u32> = ours.iter().filter_map(|row| row.last().copied()).collect();
            session.feed(&fed).map_err(text)?;
        }
    }
    same_tokens(&ours, tokens)?;
    Deviation::between(&chosen.concat(), &logprobs.concat())
}

/// Log-probabilities of each position of a single row.
fn logprobs(logits: &Array) -> Result<Vec<Vec<f32>>, String> {
    let mut rows = rows_of(logits)?;
    for row in &mut rows {
        let total = log_sum_exp(row);
        row.iter_mut().for_each(|it| *it -= total);
    }
    Ok(rows)
}

/// A `[1, tokens, width]` array as one vector per token.
fn rows_of(array: &Array) -> Result<Vec<Vec<f32>>, String> {
    let width = *array.shape().last().ok_or("an array without a shape")? as usize;
    let values: &[f32] = array.try_as_slice().map_err(text)?;
    Ok(values.chunks_exact(width).map(<[f32]>::to_vec).collect())
}

fn log_sum_exp(scores: &[f32]) -> f32 {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = scores.iter().map(|it| f64::from(it - max).exp()).sum();
    max + sum.ln() as f32
}

fn same_tokens(ours: &[Vec<u32>], theirs: &[Vec<u32>]) -> Result<(), String> {
    if ours.len() != theirs.len() {
        return Err(format!("{} rows instead of {}", ours.len(), theirs.len()));
    }
    for (row, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        if ours != theirs {
            let at = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
            return Err(format!(
                "row {row} differs from token {at} on: {:?} instead of {:?}",
                ours.get(at),
                theirs.get(at)
            ));
        }
    }
    Ok(())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
