//! Bans and forced tokens on a row of scores.

use crate::{Error, Result};

/// Bans the tokens; ids outside the vocabulary cannot be generated anyway.
pub(crate) fn ban(scores: &mut [f32], tokens: &[u32]) {
    for &token in tokens {
        if let Some(score) = scores.get_mut(token as usize) {
            *score = f32::NEG_INFINITY;
        }
    }
}

/// Bans everything except the tokens, whose scores become 0; `name` is the parameter they are from.
pub(crate) fn force(scores: &mut [f32], tokens: &[u32], name: &str) -> Result<()> {
    in_vocabulary(tokens, scores.len(), name)?;
    scores.fill(f32::NEG_INFINITY);
    for &token in tokens {
        scores[token as usize] = 0.0;
    }
    Ok(())
}

/// Fails for the first token that is not below `vocabulary`.
pub(crate) fn in_vocabulary(tokens: &[u32], vocabulary: usize, name: &str) -> Result<()> {
    match tokens.iter().find(|&&token| token as usize >= vocabulary) {
        Some(&token) => Err(Error::beyond_vocabulary(name, token, vocabulary)),
        None => Ok(()),
    }
}
