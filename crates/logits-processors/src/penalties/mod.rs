//! Penalties on tokens that have occurred.

mod breakers;
mod dry;
mod encoder_repetition;
mod frequency;
mod history;
mod presence;
mod repetition;

pub use self::breakers::SequenceBreakers;
pub use self::dry::Dry;
pub use self::encoder_repetition::EncoderRepetitionPenalty;
pub use self::frequency::FrequencyPenalty;
pub use self::history::History;
pub use self::presence::PresencePenalty;
pub use self::repetition::RepetitionPenalty;

use crate::scratch;

/// Replaces the score of each token by `f` of it, once however often the token occurs; ids beyond
/// the vocabulary are ignored.
///
/// All new scores are computed before the first is written. So a token that occurs twice gets the
/// same value twice, and no set of distinct tokens is needed.
fn rewrite_once(tokens: &[u32], scores: &mut [f32], f: impl Fn(f32) -> f32) {
    scratch::with(&scratch::SCORES, |rewritten| {
        rewritten.extend(tokens.iter().map(|&it| scores.get(it as usize).map_or(0.0, |&it| f(it))));
        for (&token, &new) in tokens.iter().zip(rewritten.iter()) {
            if let Some(score) = scores.get_mut(token as usize) {
                *score = new;
            }
        }
    });
}

/// The repetition penalty's rule, which lowers a score of either sign when `penalty` is above 1.
fn penalised(score: f32, penalty: f32) -> f32 {
    if score < 0.0 { score * penalty } else { score / penalty }
}
