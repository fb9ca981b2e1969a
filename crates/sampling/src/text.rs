//! The rules that need a tokenizer: a grammar, DRY with its breakers, stop strings.
//!
//! A generation config knows tokens only; here the strings in its fields meet a model's vocabulary.

use mlxgk_generation_config::Resolved;
use mlxgk_logits_processors::{Dry, Error, ErrorKind, History, Result};

use crate::Rules;

#[cfg(feature = "tokenizer")]
mod tokenizer;

#[cfg(feature = "grammars")]
mod compiled;

#[cfg(feature = "grammars")]
pub use self::compiled::CompiledGrammar;
#[cfg(feature = "tokenizer")]
pub use self::tokenizer::Text;

/// What tokens spell; without the feature `tokenizer` there is none.
#[cfg(not(feature = "tokenizer"))]
#[derive(Debug, Clone)]
pub enum Text {}

/// llama.cpp's breakers: ends of lines, names before a colon, quotations, emphasis.
#[cfg(feature = "tokenizer")]
const DRY_BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];

/// Adds what the fields ask for.
pub(crate) fn add(
    rules: &mut Rules,
    resolved: &Resolved,
    vocab_size: usize,
    text: Option<&Text>,
) -> Result<()> {
    if text.is_none()
        && let Some(field) = Rules::field_about_text(resolved)
    {
        let what = format!("`{field}` is about text, but there is no tokenizer");
        return Err(Error::about(field, ErrorKind::Parameter, what));
    }
    if let Some(dry) = dry(resolved, vocab_size, text)? {
        rules.processors.insert(Box::new(dry));
    }
    add_grammar(rules, resolved, text)?;
    #[cfg(feature = "tokenizer")]
    if let (Some(strings), Some(text)) = (&resolved.config.stop_strings, text) {
        rules.stop.push(text.stop_at(strings.as_slice().to_vec())?);
    }
    Ok(())
}

#[cfg_attr(not(feature = "tokenizer"), expect(unused_variables, reason = "there is no text"))]
fn dry(resolved: &Resolved, vocab_size: usize, text: Option<&Text>) -> Result<Option<Dry>> {
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
    // Without a tokenizer there is no text to break.
    #[cfg(feature = "tokenizer")]
    if let Some(text) = text {
        let breakers: Vec<&str> = match &config.dry_sequence_breakers {
            Some(strings) => strings.iter().map(String::as_str).collect(),
            None => DRY_BREAKERS.to_vec(),
        };
        return text.with_breakers(dry, breakers, vocab_size).map(Some);
    }
    Ok(Some(dry))
}

#[cfg(feature = "grammars")]
fn add_grammar(rules: &mut Rules, resolved: &Resolved, text: Option<&Text>) -> Result<()> {
    use mlxgk_generation_config::{Warning, WarningKind};

    let Some(compiled) = text.map(|it| it.compile(resolved)).transpose()?.flatten() else {
        return Ok(());
    };
    let field = compiled.field();
    let warning =
        |it: &String| Warning::new(WarningKind::Grammar, field, format!("`{field}`: {it}"));
    let processor = compiled.processor();
    rules.warnings = processor.warnings().iter().map(warning).collect();
    rules.processors.insert(Box::new(processor));
    Ok(())
}

#[cfg(not(feature = "grammars"))]
fn add_grammar(_: &mut Rules, resolved: &Resolved, _: Option<&Text>) -> Result<()> {
    let config = &resolved.config;
    let fields = [
        ("json_schema", config.json_schema.is_some()),
        ("regex", config.regex.is_some()),
        ("grammar", config.grammar.is_some()),
    ];
    match fields.iter().find(|(_, is_set)| *is_set) {
        Some((field, _)) => {
            let what = format!("`{field}` is set, but the feature `grammars` is not compiled in");
            Err(Error::about(field, ErrorKind::Parameter, what))
        }
        None => Ok(()),
    }
}
