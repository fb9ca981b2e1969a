//! The whole way from a model's scores to the next token of one text.

use mlxgk_generation_config::{GenerationMode, Resolved};
use mlxgk_logits_processors::{Context, Error, ErrorKind, LogitsProcessor, Result};
use mlxgk_samplers::Streams;

use crate::{FinishReason, Rules, Text};

/// A token, and why the text ends with it, if it does.
///
/// ```
/// use mlxgk_generation_config::GenerationConfig;
/// use mlxgk_samplers::Seed;
/// use mlxgk_sampling::{FinishReason, NextToken};
///
/// let config = GenerationConfig { eos_token_id: Some(2.into()), ..Default::default() };
/// let resolved = config.resolve(&GenerationConfig::default(), 1, None)?;
/// let mut next = NextToken::new(&resolved, 3, None, Seed::Torch(0))?;
/// let step = next.next(&[1], &mut [0.1, 0.7, 0.2])?;
/// assert_eq!((step.token, step.finish_reason), (1, None));
/// let step = next.next(&[1, 1], &mut [0.1, 0.2, 0.7])?;
/// assert_eq!((step.token, step.finish_reason), (2, Some(FinishReason::Eos)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Step {
    /// The token that comes next.
    pub token: u32,
    /// Why it is the last one; `None` where the text goes on.
    pub finish_reason: Option<FinishReason>,
}

/// Chooses the tokens of one text from scores that any model made, as `generate()` would.
///
/// It holds everything between the two: the processors and warpers that the config asks for, a
/// grammar, DRY, Mirostat's memory, the random stream, end tokens, the length and stop strings. What
/// it needs is the text so far and the scores at its end.
///
/// ```
/// use mlxgk_generation_config::GenerationConfig;
/// use mlxgk_sampling::{FinishReason, NextToken};
/// use mlxgk_samplers::Seed;
/// use serde_json::json;
///
/// let fields = json!({"do_sample": true, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 4,
///                     "repetition_penalty": 1.3, "eos_token_id": 9});
/// let config = GenerationConfig::from_json(&fields)?;
/// let mut tokens = vec![5, 3]; // the prompt
///
/// let resolved = config.resolve(&GenerationConfig::default(), tokens.len(), None)?;
/// let mut next = NextToken::new(&resolved, 10, None, Seed::Torch(42))?;
/// let finish_reason = loop {
///     let mut scores = [0.1; 10]; // the model's, for the token after `tokens`
///     let step = next.next(&tokens, &mut scores)?;
///     tokens.push(step.token);
///     if let Some(reason) = step.finish_reason {
///         break reason;
///     }
/// };
/// assert!(tokens.len() == 6 || finish_reason == FinishReason::Eos);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct NextToken {
    rules: Rules,
    prompt_len: usize,
    vocab_size: usize,
    /// The text with the token just chosen, which the stop conditions look at.
    text: Vec<u32>,
}

impl NextToken {
    /// What chooses tokens by the fields of a config that was resolved for this prompt. The model has
    /// `vocab_size` scores; `text` says what tokens spell, for the fields that are
    /// [about text](Rules::field_about_text).
    ///
    /// # Errors
    /// As [`Rules::new`], and where the fields ask for what takes more than the scores of one text:
    /// beams, several sequences, drafts, contrastive search, DoLa, guidance, token healing.
    pub fn new(
        resolved: &Resolved,
        vocab_size: usize,
        text: Option<&Text>,
        streams: impl Into<Streams>,
    ) -> Result<Self> {
        refuse_other_loops(resolved)?;
        let rules = Rules::new(resolved, vocab_size, text, streams)?;
        let prompt_len = resolved.lengths.prompt_len;
        Ok(Self { rules, prompt_len, vocab_size, text: Vec::new() })
    }

    /// The parts, to look at or to add a processor or a stopping criterion to.
    pub fn rules_mut(&mut self) -> &mut Rules {
        &mut self.rules
    }

    /// Chooses the token after `tokens`, the prompt and all tokens since, from the model's scores at
    /// their end, one for each entry of the vocabulary. The processors rewrite the scores in place.
    ///
    /// A text can be taken back and continued otherwise: besides the random stream and Mirostat's
    /// memory, nothing is kept from step to step.
    ///
    /// # Errors
    /// When the scores are not as many as the vocabulary has entries, the text is shorter than its
    /// prompt, or no token is left to choose: a grammar and other bans have none in common, or a
    /// score is NaN.
    pub fn next(&mut self, tokens: &[u32], scores: &mut [f32]) -> Result<Step> {
        if scores.len() != self.vocab_size {
            let (given, vocab_size) = (scores.len(), self.vocab_size);
            let what = format!("there are {given} scores for a vocabulary of {vocab_size}");
            return Err(Error::new(ErrorKind::Parameter, what));
        }
        if tokens.len() < self.prompt_len {
            let (given, prompt_len) = (tokens.len(), self.prompt_len);
            let what = format!("the text has {given} tokens, but its prompt has {prompt_len}");
            return Err(Error::new(ErrorKind::Parameter, what));
        }
        let context = Context::new(tokens, self.prompt_len);
        let Rules { processors, chooser, stop, .. } = &mut self.rules;
        processors.process(&context, scores)?;
        let token = chooser.choose(0, &context, scores)?;
        self.text.clear();
        self.text.extend_from_slice(tokens);
        self.text.push(token);
        let finish_reason = stop.check(&Context::new(&self.text, self.prompt_len))?;
        Ok(Step { token, finish_reason })
    }
}

/// Refuses the fields that ask for another loop than one token after the other.
fn refuse_other_loops(resolved: &Resolved) -> Result<()> {
    let config = &resolved.config;
    let guides = config.guidance_scale.is_some_and(|it| it != 1.0);
    let heals = config.token_healing == Some(true);
    let draws = matches!(resolved.mode, GenerationMode::GreedySearch | GenerationMode::Sample);
    let field = match resolved.mode {
        GenerationMode::BeamSearch | GenerationMode::BeamSample => "num_beams",
        GenerationMode::GroupBeamSearch => "num_beam_groups",
        GenerationMode::ConstrainedBeamSearch => "force_words_ids",
        GenerationMode::ContrastiveSearch => "penalty_alpha",
        GenerationMode::DolaGeneration => "dola_layers",
        _ if !draws => "prompt_lookup_num_tokens",
        _ if guides => "guidance_scale",
        _ if heals => "token_healing",
        _ if resolved.num_return_sequences > 1 => "num_return_sequences",
        _ => return Ok(()),
    };
    let what = format!("`{field}` takes more of a model than the scores of one text");
    Err(Error::about(field, ErrorKind::Parameter, what))
}
