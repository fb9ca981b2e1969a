//! Only what a caller's function allows.

use std::fmt;

use super::TokenTrie;
use crate::{Context, Error, ErrorKind, LogitsProcessor, Result, Row, Stage};

type AllowedTokens = dyn Fn(&Context<'_>) -> Vec<u32> + Send + Sync;

/// Bans every token that a function of the row does not allow
/// (`PrefixConstrainedLogitsProcessor`, `prefix_allowed_tokens_fn`; De Cao et al.,
/// [Autoregressive Entity Retrieval](https://arxiv.org/abs/2010.00904)).
///
/// When all allowed tokens of **all** beams of a prompt are banned already, the constraint wins
/// over the earlier bans: the allowed tokens get the score 0 and everything else is banned. That
/// result needs all beams at once, so beam search calls [`process_rows`]; a row processed alone
/// counts as its own only beam.
///
/// The function must be pure, as the processor is. It gets the prompt's index in
/// [`Context::row`].
///
/// [`process_rows`]: LogitsProcessor::process_rows
///
/// ```
/// use mlxgk_logits_processors::{Context, LogitsProcessor, PrefixConstrained};
///
/// // Even tokens follow odd ones.
/// let constrained = PrefixConstrained::new(|context: &Context<'_>| {
///     if context.tokens.last().is_some_and(|it| it % 2 == 1) { vec![0, 2] } else { vec![1, 3] }
/// });
/// let mut scores = [1.0, 2.0, 3.0, 4.0];
/// constrained.process(&Context::new(&[3], 1), &mut scores)?;
/// assert_eq!(scores, [1.0, f32::NEG_INFINITY, 3.0, f32::NEG_INFINITY]);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
pub struct PrefixConstrained(Box<AllowedTokens>);

impl PrefixConstrained {
    /// A constraint by a function from the row so far to the tokens allowed next.
    pub fn new(allowed: impl Fn(&Context<'_>) -> Vec<u32> + Send + Sync + 'static) -> Self {
        Self(Box::new(allowed))
    }

    /// A constraint to the sequences of a trie, which begin after the prompt.
    pub fn to_sequences(trie: TokenTrie) -> Self {
        Self::new(move |context| trie.allowed_after(context.generated()).to_vec())
    }

    fn allowed(&self, context: &Context<'_>, vocabulary: usize) -> Result<Vec<u32>> {
        let allowed = (self.0)(context);
        if allowed.is_empty() {
            let message = format!("no token is allowed next in row {}", context.row);
            return Err(Error::new(ErrorKind::NoTokenAllowed, message));
        }
        match allowed.iter().find(|&&token| token as usize >= vocabulary) {
            Some(token) => {
                let message = format!(
                    "`prefix_allowed_tokens_fn` allows token {token}, but the vocabulary has \
                     {vocabulary} entries"
                );
                Err(Error::new(ErrorKind::Callback, message))
            }
            None => Ok(allowed),
        }
    }
}

impl LogitsProcessor for PrefixConstrained {
    fn name(&self) -> &'static str {
        "PrefixConstrainedLogitsProcessor"
    }

    fn stage(&self) -> Stage {
        Stage::PrefixConstrained
    }

    /// # Errors
    /// When the function allows no token, or one beyond the vocabulary.
    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        self.process_rows(&mut [Row { context: *context, scores }])
    }

    /// # Errors
    /// When the function allows no token for a row, or one beyond the vocabulary.
    fn process_rows(&self, rows: &mut [Row<'_>]) -> Result<()> {
        for beams in rows.chunk_by_mut(|a, b| a.context.row == b.context.row) {
            let allowed = beams
                .iter()
                .map(|beam| self.allowed(&beam.context, beam.scores.len()))
                .collect::<Result<Vec<_>>>()?;
            let banned =
                |beam: &Row<'_>, token: u32| beam.scores[token as usize] == f32::NEG_INFINITY;
            let unsatisfiable = beams
                .iter()
                .zip(&allowed)
                .all(|(beam, allowed)| allowed.iter().all(|&token| banned(beam, token)));
            for (beam, allowed) in beams.iter_mut().zip(allowed) {
                keep_only(beam.scores, allowed, unsatisfiable);
            }
        }
        Ok(())
    }
}

/// Bans all but the allowed tokens, whose scores stay, or become 0 when `afresh`.
fn keep_only(scores: &mut [f32], mut allowed: Vec<u32>, afresh: bool) {
    allowed.sort_unstable();
    let mut from = 0;
    for token in allowed {
        let token = token as usize;
        // A token named twice ends before the place reached.
        scores[from.min(token)..token].fill(f32::NEG_INFINITY);
        if afresh {
            scores[token] = 0.0;
        }
        from = token + 1;
    }
    scores[from..].fill(f32::NEG_INFINITY);
}

impl fmt::Debug for PrefixConstrained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrefixConstrained(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BANNED: f32 = f32::NEG_INFINITY;

    fn run(rows: [(usize, [f32; 3]); 3]) -> Vec<[f32; 3]> {
        let constrained = PrefixConstrained::new(|context| vec![context.tokens[0]]);
        let mut scores: Vec<_> = rows.iter().map(|it| it.1).collect();
        let mut rows: Vec<_> = rows
            .iter()
            .zip(&mut scores)
            .map(|((row, _), scores)| Row {
                context: Context { row: *row, ..Context::new(&[1, 0], 1) },
                scores,
            })
            .collect();
        constrained.process_rows(&mut rows).unwrap();
        scores
    }

    #[test]
    fn overrules_earlier_bans_only_when_no_beam_can_go_on() {
        let dead = [1.0, BANNED, 1.0];
        let alive = [1.0, 0.5, 1.0];
        let all_banned = [BANNED; 3];
        let kept = [BANNED, 0.5, BANNED];
        let forced = [BANNED, 0.0, BANNED];
        assert_eq!(run([(0, dead), (0, alive), (1, dead)]), [all_banned, kept, forced]);
        assert_eq!(run([(0, dead), (0, dead), (1, alive)]), [forced, forced, kept]);
    }

    #[test]
    fn an_empty_list_and_an_unknown_token_are_errors() {
        for (tokens, kind) in [(vec![], ErrorKind::NoTokenAllowed), (vec![3], ErrorKind::Callback)]
        {
            let constrained = PrefixConstrained::new(move |_| tokens.clone());
            let mut scores = [0.0; 3];
            let error = constrained.process(&Context::new(&[0], 1), &mut scores).unwrap_err();
            assert_eq!(error.kind(), kind);
            assert_eq!(scores, [0.0; 3]);
        }
    }
}
