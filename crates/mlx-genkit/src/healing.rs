//! Token healing: the last token of a prompt is chosen again among those that begin like it (HF
//! `heal_tokens`).
//!
//! A prompt that ends inside a word ends with a token that seldom stands there: after `http:` no
//! text continues with `//`, for `://` is one token. Healing takes such a token back and lets the
//! model choose it, or one that it is the beginning of.

use mlxgk_decoding_strategies::{
    LeftPadded, Limits, Prefill, RowGroup, RowOutcome, SampleLoop, TokenLoop,
};
use mlxgk_generation_config::{GenerationConfig, Kwargs, OneOrMany, Sources};
use mlxgk_mlx_models::NoHook;
use mlxgk_tokenizer_bridge::Tokenizer;

use crate::{Error, Model, Prompt, Result};

/// Bias for tokens that extend the last token's text, and for the last token itself, as in HF: it
/// stays where another is no better.
const BIAS: f64 = 10.0;
const BIAS_OF_LAST: f64 = 11.0;

/// A prompt that is to be healed, and in the end was.
#[derive(Debug)]
pub(crate) struct Healing {
    pub(crate) ids: Vec<u32>,
    /// What the new last token says beyond the prompt as it was given.
    pub(crate) beyond: String,
    text: String,
    /// What precedes the last token, and how that is chosen; `None` where it stays.
    choice: Option<(Vec<u32>, RowGroup)>,
}

impl Healing {
    /// Finds out what can become of each prompt.
    ///
    /// Like HF this reads the prompt as text, without special tokens and white space around it, and
    /// does not look at its begin token. Unlike HF it leaves that token in the prompt, and always takes
    /// the likeliest.
    pub(crate) fn plan(model: &Model, prompts: &[Prompt]) -> Result<Vec<Self>> {
        let wrong = |what: String| Error::of_field("token_healing", what);
        let Ok(tokenizer) = model.tokenizer() else {
            return Err(wrong(format!(
                "`token_healing` looks for tokens with the same beginning, but {} has no tokenizer.json",
                model.name()
            )));
        };
        let plan = |prompt: &Prompt| {
            if matches!(prompt, Prompt::Messages(_)) {
                let what = "`token_healing` continues the last word of a text, which a chat template \
                            has closed: give the prompt as plain text";
                return Err(wrong(what.to_owned()));
            }
            let text = tokenizer.decode(&prompt.ids(model)?, true)?;
            let text = text.trim().to_owned();
            let ids = Prompt::from(text.as_str()).ids(model)?;
            let choice = choice(model, tokenizer, &ids)?;
            Ok(Self { ids, beyond: String::new(), text, choice })
        };
        prompts.iter().map(plan).collect()
    }

    /// Chooses the last tokens, all in one pass, and returns the prompts as they became.
    pub(crate) fn run(model: &Model, all: &mut [Self]) -> Result<Vec<Vec<u32>>> {
        let mut before = Vec::new();
        let mut choosing = Vec::new();
        for healing in &mut *all {
            if let Some((prompt, group)) = healing.choice.take() {
                before.push(prompt);
                choosing.push((group, healing));
            }
        }
        if !before.is_empty() {
            let prompts = LeftPadded::new(&before, 0)?;
            let session = Prefill::new(model.decoder(), &prompts, NoHook).finish()?;
            let (groups, mut healed): (Vec<_>, Vec<_>) = choosing.into_iter().unzip();
            let mut choice = SampleLoop::of_groups(session, &prompts, groups);
            for event in choice.step().transpose()?.unwrap_or_default() {
                match event.outcome {
                    RowOutcome::Token { token, .. } => {
                        let healing = &mut healed[event.row.get() as usize];
                        healing.ids.pop();
                        healing.ids.push(token);
                    }
                    RowOutcome::Failed(e) => return Err(e.into()),
                    _ => {}
                }
            }
        }
        let tokenizer = model.tokenizer()?;
        let prompts = all.iter_mut().map(|it| {
            let text = tokenizer.decode(&it.ids, true)?;
            it.beyond = text.strip_prefix(&it.text).unwrap_or("").to_owned();
            Ok(it.ids.clone())
        });
        prompts.collect()
    }
}

/// How the last token is chosen; `None` where no other begins like it, or nothing precedes it.
fn choice(
    model: &Model,
    tokenizer: &Tokenizer,
    ids: &[u32],
) -> Result<Option<(Vec<u32>, RowGroup)>> {
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
    let extends = tokenizer.ids_beginning_with(&word).into_iter().filter(|id| *id < vocab);
    let bias = |id| if id == last { BIAS_OF_LAST } else { BIAS };
    let biases: Vec<_> = extends.map(|id| (vec![id.into()], bias(id))).collect();
    if biases.len() < 2 {
        return Ok(None);
    }
    let own = GenerationConfig {
        max_new_tokens: Some(1),
        do_sample: Some(false),
        num_beams: Some(1),
        token_healing: Some(false),
        sequence_bias: Some(biases),
        eos_token_id: Some(OneOrMany::Many(Vec::new())),
        ..GenerationConfig::default()
    };
    // As in HF, the model's own settings hold, and those of the request do not.
    let (kwargs, passed) = (Kwargs::from(own), GenerationConfig::default());
    let sources = Sources { kwargs: &kwargs, passed: &passed, model: model.generation_config() };
    let resolved = sources.merge()?.resolve(before.len(), None)?;
    let processors = resolved.pipeline(model.decoder().vocab_size())?.processors;
    let limits = Limits { max_new_tokens: 1, eos: Vec::new() };
    Ok(Some((before, RowGroup::greedy(limits).processors(processors))))
}
