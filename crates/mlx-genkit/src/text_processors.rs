//! The processors that need the tokenizer: a grammar, and DRY with its breakers.
//!
//! The generation config knows tokens only; here the strings in its fields meet the model's
//! vocabulary.

use mlxgk_generation_config::Resolved;
use mlxgk_logits_processors::{Dry, History, LogitsProcessor, SequenceBreakers};
use mlxgk_tokenizer_bridge::Tokenizer;

use crate::{Error, ErrorKind, Model, Result};

/// llama.cpp's breakers: ends of lines, names before a colon, quotations, emphasis.
const DRY_BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];

/// What the fields ask for.
pub(crate) fn text_processors(
    resolved: &Resolved,
    model: &Model,
) -> Result<Vec<Box<dyn LogitsProcessor>>> {
    let mut processors: Vec<Box<dyn LogitsProcessor>> = Vec::new();
    if let Some(dry) = dry(resolved, model)? {
        processors.push(Box::new(dry));
    }
    if let Some(grammar) = grammar(resolved, model)? {
        processors.push(grammar);
    }
    Ok(processors)
}

fn dry(resolved: &Resolved, model: &Model) -> Result<Option<Dry>> {
    let config = &resolved.config;
    let Some(multiplier) = config.dry_multiplier.filter(|it| *it != 0.0) else {
        return Ok(None);
    };
    let base = config.dry_base.unwrap_or(1.75);
    let dry = Dry::new(multiplier, base, config.dry_allowed_length.unwrap_or(2))?;
    let dry = match config.dry_penalty_last_n {
        Some(last) => dry.over(History::Last(last)),
        None => dry,
    };
    let breakers: Vec<&str> = match &config.dry_sequence_breakers {
        Some(strings) => strings.iter().map(String::as_str).collect(),
        // Without a tokenizer there is no text to break.
        None if !model.has_tokenizer() => Vec::new(),
        None => DRY_BREAKERS.to_vec(),
    };
    if breakers.is_empty() {
        return Ok(Some(dry));
    }
    let tokenizer = needed_tokenizer(model, "dry_sequence_breakers")?;
    let texts = tokenizer.texts();
    let words: Vec<String> = (0..model.decoder().vocab_size() as u32)
        .map(|id| match texts.bytes(id) {
            Some(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            // A breaker may be a special token.
            None => tokenizer.id_to_token(id).unwrap_or_default(),
        })
        .collect();
    // A text that cannot be spelled is no tail of a breaker.
    let spell = |rest: &[u8]| {
        let text = std::str::from_utf8(rest).ok();
        text.and_then(|it| tokenizer.encode_continuation(it)).unwrap_or_default()
    };
    Ok(Some(dry.with_breakers(SequenceBreakers::from_strings(breakers, &words, spell)?)))
}

/// The tokenizer, which a field cannot do without.
fn needed_tokenizer<'m>(model: &'m Model, field: &str) -> Result<&'m Tokenizer> {
    model.tokenizer().map_err(|_| {
        let what = format!(
            "`{field}` is about text, but {} has no tokenizer.json to tell what a token spells",
            model.name()
        );
        Error::new(ErrorKind::Request, what)
    })
}

#[cfg(feature = "grammars")]
fn grammar(resolved: &Resolved, model: &Model) -> Result<Option<Box<dyn LogitsProcessor>>> {
    use mlxgk_grammars::{Grammar, GrammarProcessor};

    let config = &resolved.config;
    let grammar = match (&config.json_schema, &config.regex, &config.grammar) {
        (Some(schema), _, _) => Grammar::json_schema(schema)?,
        (_, Some(regex), _) => Grammar::regex(regex)?,
        (_, _, Some(lark)) => Grammar::lark(lark)?,
        (None, None, None) => return Ok(None),
    };
    let fields = [
        ("json_schema", config.json_schema.is_some()),
        ("regex", config.regex.is_some()),
        ("grammar", config.grammar.is_some()),
    ];
    for (field, _) in fields.iter().filter(|(_, set)| *set) {
        needed_tokenizer(model, field)?;
    }
    let vocabulary = model.grammar_vocabulary(&resolved.special_tokens.eos)?;
    Ok(Some(Box::new(GrammarProcessor::new(&vocabulary, &grammar)?)))
}

#[cfg(not(feature = "grammars"))]
fn grammar(resolved: &Resolved, _model: &Model) -> Result<Option<Box<dyn LogitsProcessor>>> {
    match ["json_schema", "regex", "grammar"].iter().find(|it| resolved.config.get(it).is_some()) {
        Some(field) => {
            let what = format!("`{field}` is set, but mlx-genkit was built without `grammars`");
            Err(Error::new(ErrorKind::Request, what))
        }
        None => Ok(None),
    }
}
