//! Scoring a given text.

use mlx_rs::{Array, ops::logsumexp_axis};
use mlxgk_kv_cache::RowId;
use mlxgk_mlx_models::{Decoder, ResidualHook};

use crate::{Error, ErrorKind, Result, TokenLogprobs, pending::Pending};

/// Positions scored per pass; their logits are the largest thing in memory (fp32, this many times
/// the vocabulary).
const CHUNK: usize = 128;

/// The log-probability of every token after the first, given those before it, and of the `top`
/// likeliest at its place: `tokens.len() - 1` entries.
///
/// # Errors
/// When there is no token, one is outside the vocabulary, the hook has a
/// [budget](ResidualHook::budget), or the model fails.
pub fn score(
    model: &Decoder,
    tokens: &[u32],
    top: usize,
    hook: &mut dyn ResidualHook,
) -> Result<Vec<TokenLogprobs>> {
    if tokens.is_empty() {
        return Err(Error::new(ErrorKind::Prompt, "there is no token to score"));
    }
    if hook.budget(RowId::default()).is_some() {
        let what =
            "a KL budget is kept where tokens are chosen; a given text is scored without one";
        return Err(Error::new(ErrorKind::Prompt, what));
    }
    check_vocabulary(model, tokens)?;
    let mut cache = model.new_cache(1);
    // The last token predicts nothing, but counts where positions depend on the length.
    cache.plan(tokens.len());
    cache.set_prompt_end(tokens.len());
    let fed = &tokens[..tokens.len() - 1];
    let mut scored = Vec::with_capacity(fed.len());
    for part in fed.chunks(CHUNK) {
        let next = &tokens[scored.len() + 1..][..part.len()];
        let logits = model.forward(&[part], &mut cache, hook)?;
        if top > 0 {
            let logits = Pending(logits);
            let rows = logits.read::<f32>()?.chunks_exact(model.vocab_size()).zip(next);
            let row = |(row, token): (&[f32], &u32)| TokenLogprobs::of(*token, row, top);
            scored.extend(rows.map(row).collect::<Result<Vec<_>>>()?);
            continue;
        }
        let targets = Array::from_slice(next, &[1, next.len() as i32, 1]);
        let chosen = logits.take_along_axis(targets, -1)?;
        let logprobs = Pending(chosen.subtract(logsumexp_axis(&logits, -1, true)?)?);
        let row = |(&token, &logprob)| TokenLogprobs { token, logprob, top: Vec::new() };
        scored.extend(next.iter().zip(logprobs.read::<f32>()?).map(row));
    }
    Ok(scored)
}

fn check_vocabulary(model: &Decoder, tokens: &[u32]) -> Result<()> {
    let vocab = model.vocab_size();
    match tokens.iter().find(|&&id| id as usize >= vocab) {
        None => Ok(()),
        Some(id) => {
            let what = format!("token id {id} is outside the vocabulary of {vocab}");
            Err(Error::new(ErrorKind::Model, what))
        }
    }
}
