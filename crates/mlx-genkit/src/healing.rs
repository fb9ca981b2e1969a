//! Token healing: the last token of a prompt is chosen anew among those that begin like it (HF
//! `heal_tokens`).
//!
//! A prompt that ends inside a word ends with a token that seldom stands there: after `http:` no
//! text goes on with `//`, for `://` is one token. Healing takes such a token back and lets the model
//! say it, or one that it is the beginning of.

use mlxgk_generation_config::{GenerationConfig, OneOrMany};
use mlxgk_tokenizer_bridge::Tokenizer;

use crate::{Error, ErrorKind, Model, Prompt, Request, Result, generate::generate};

/// What tokens that go on the last one's text are favoured by, and how much more the last itself, as
/// in HF: it stays where another is no better.
const FAVOUR: f64 = 10.0;
const FAVOUR_OF_LAST: f64 = 11.0;

/// A prompt that was healed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Healed {
    pub(crate) ids: Vec<u32>,
    /// What the new last token says beyond the prompt as it was given.
    pub(crate) beyond: String,
}

/// What the text of a prompt's sequences begins with, where the prompts were healed.
pub(crate) fn beyond(healed: &[Healed], prompt: usize) -> &str {
    healed.get(prompt).map_or("", |it| it.beyond.as_str())
}

/// Heals each prompt by itself.
///
/// Like HF this reads the prompt as text, without special tokens and white space around it, and does
/// not look at its begin token. Unlike HF it leaves that token in the prompt, and always takes the
/// likeliest.
pub(crate) fn heal(model: &Model, prompts: &[Prompt]) -> Result<Vec<Healed>> {
    let Ok(tokenizer) = model.tokenizer() else {
        let name = model.name();
        let what = format!(
            "`token_healing` looks for tokens that begin alike, but {name} has no tokenizer.json"
        );
        return Err(Error::new(ErrorKind::Request, what));
    };
    let heal = |prompt: &Prompt| {
        if matches!(prompt, Prompt::Messages(_)) {
            let what = "`token_healing` goes on with the last word of a text, which a chat template \
                        has closed: give the prompt as plain text";
            return Err(Error::new(ErrorKind::Request, what));
        }
        let text = tokenizer.decode(&prompt.ids(model)?, true)?;
        let text = text.trim();
        let mut ids = Prompt::from(text).ids(model)?;
        if let Some(id) = new_last(model, tokenizer, &ids)?
            && let Some(last) = ids.last_mut()
        {
            *last = id;
        }
        let beyond = tokenizer.decode(&ids, true)?.strip_prefix(text).unwrap_or("").to_owned();
        Ok(Healed { ids, beyond })
    };
    prompts.iter().map(heal).collect()
}

/// What the last token becomes; `None` where no other begins like it, or nothing stands before it.
fn new_last(model: &Model, tokenizer: &Tokenizer, ids: &[u32]) -> Result<Option<u32>> {
    let Some((&last, before)) = ids.split_last() else { return Ok(None) };
    let begin =
        tokenizer.special_tokens().get("bos_token").and_then(|it| tokenizer.token_to_id(it));
    let mut before: Vec<u32> = before.iter().copied().filter(|id| Some(*id) != begin).collect();
    if before.is_empty() {
        before.extend(begin);
    }
    let Some(word) = tokenizer.id_to_token(last).filter(|_| !before.is_empty()) else {
        return Ok(None);
    };
    let vocab = tokenizer.vocab_size().min(model.decoder().vocab_size()) as u32;
    let extends =
        |id: &u32| tokenizer.id_to_token(*id).is_some_and(|it| it.starts_with(word.as_str()));
    let favour = |id| if id == last { FAVOUR_OF_LAST } else { FAVOUR };
    let biases: Vec<_> =
        (0..vocab).filter(extends).map(|id| (vec![id.into()], favour(id))).collect();
    if biases.len() < 2 {
        return Ok(None);
    }
    let config = GenerationConfig {
        max_new_tokens: Some(1),
        do_sample: Some(false),
        num_beams: Some(1),
        token_healing: Some(false),
        sequence_bias: Some(biases),
        eos_token_id: Some(OneOrMany::Many(Vec::new())),
        ..GenerationConfig::default()
    };
    let generation = generate(model, Request::new(before).overrides(config))?;
    Ok(generation.sequences[0].tokens.first().copied())
}
