//! `tokenizer_config.json` and its predecessor `special_tokens_map.json`, as far as they matter here.

use serde_json::{Map, Value};
#[cfg(feature = "tokenizer")]
use tokenizers::AddedToken;

use crate::error::{Error, Result};
#[cfg(feature = "tokenizer")]
use crate::files::ADDED_TOKENS;
use crate::files::{Files, SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG};

/// transformers' `SPECIAL_TOKENS_ATTRIBUTES`: the names every tokenizer may give a token.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The texts of a tokenizer's special tokens under their names: `bos_token`, `eos_token`, ...
///
/// These are what a chat template sees as variables (transformers' `special_tokens_map`). A model
/// may name tokens of its own (`image_token`).
///
/// ```
/// use mlxgk_tokenizer_bridge::{Files, SpecialTokens};
///
/// let config = br#"{"bos_token": {"__type": "AddedToken", "content": "<s>"}, "eos_token": "</s>"}"#;
/// let files = Files { tokenizer_config: Some(config.into()), ..Files::default() };
/// let special = SpecialTokens::from_files(&files)?;
/// assert_eq!(special.get("bos_token"), Some("<s>"));
/// assert_eq!(special.get("pad_token"), None);
/// # Ok::<(), mlxgk_tokenizer_bridge::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    named: Vec<(String, String)>,
}

impl SpecialTokens {
    /// The named special tokens of `tokenizer_config.json` and `special_tokens_map.json`.
    ///
    /// The older `special_tokens_map.json` counts, and then wins, only where the config lists no
    /// `added_tokens_decoder`; so transformers reads them.
    ///
    /// # Errors
    ///
    /// A file that is not UTF-8 or JSON, or a token that is neither a text nor an object with one.
    pub fn from_files(files: &Files<'_>) -> Result<Self> {
        Ok(TokenizerConfig::from_files(files)?.special)
    }

    /// The text of the token of this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(it, _)| it == name).map(|(_, text)| text.as_str())
    }

    /// All names and texts.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.named.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// Names a token unless the name is taken.
    #[cfg(feature = "tokenizer")]
    pub(crate) fn set_default(&mut self, name: &str, text: &str) {
        if self.get(name).is_none() {
            self.named.push((name.to_owned(), text.to_owned()));
        }
    }
}

/// The list of special tokens without a name.
const EXTRA: &str = "extra_special_tokens";

/// What is read of the two files.
#[derive(Debug, Default)]
pub(crate) struct TokenizerConfig {
    pub(crate) special: SpecialTokens,
    /// Special tokens without a name (`extra_special_tokens`, once `additional_special_tokens`).
    #[cfg(feature = "tokenizer")]
    pub(crate) unnamed: Vec<String>,
    /// Tokens the config adds to the vocabulary, in the order of their ids.
    #[cfg(feature = "tokenizer")]
    pub(crate) added: Vec<AddedToken>,
    /// Those of `added_tokens.json`, which count where neither the config nor `tokenizer.json` lists
    /// added tokens of the same text.
    #[cfg(feature = "tokenizer")]
    pub(crate) legacy: Vec<AddedToken>,
    /// The chat template or templates, as found.
    #[cfg(feature = "chat")]
    pub(crate) chat_template: Option<Value>,
    /// `tokenizer_class`, and what classes read.
    #[cfg(feature = "tokenizer")]
    pub(crate) class: Option<String>,
    #[cfg(feature = "tokenizer")]
    pub(crate) legacy_class: Option<bool>,
    #[cfg(feature = "tokenizer")]
    pub(crate) add_prefix_space: Option<bool>,
    #[cfg(feature = "tokenizer")]
    pub(crate) clean_up_spaces: bool,
    /// transformers ignores `clean_up_spaces` for BPE, where it would remove real spaces, unless it is set twice.
    #[cfg(feature = "tokenizer")]
    pub(crate) clean_up_spaces_for_bpe: bool,
}

impl TokenizerConfig {
    pub(crate) fn from_files(files: &Files<'_>) -> Result<Self> {
        let config = files.tokenizer_config.as_deref();
        let mut config: Map<String, Value> =
            files.json(TOKENIZER_CONFIG, config)?.unwrap_or_default();
        let old = !config.contains_key("added_tokens_decoder");
        if old {
            let map = files.special_tokens_map.as_deref();
            let mut map: Map<String, Value> =
                files.json(SPECIAL_TOKENS_MAP, map)?.unwrap_or_default();
            // Lists of further tokens are joined.
            if let (Some(Value::Array(more)), Some(Value::Array(own))) =
                (map.get_mut(EXTRA), config.get(EXTRA))
            {
                let mut all = own.clone();
                all.extend(more.drain(..).filter(|it| !own.contains(it)));
                *more = all;
            }
            config.extend(map);
        }
        let wrong = |field: &str, what: &str| {
            Error::file(files.name(TOKENIZER_CONFIG), format!("`{field}` is {what}"))
        };
        #[cfg(feature = "tokenizer")]
        let flag = |field: &str| match config.get(field) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(wrong(field, "not a boolean")),
        };
        let special = SpecialTokens { named: named_tokens(&config, &wrong)? };
        #[cfg(feature = "tokenizer")]
        let unnamed = unnamed_tokens(&config, &wrong)?;
        Ok(Self {
            #[cfg(feature = "tokenizer")]
            added: added_tokens(&config, &wrong)?,
            #[cfg(feature = "tokenizer")]
            legacy: if old { legacy_tokens(files, &special, &unnamed)? } else { Vec::new() },
            special,
            #[cfg(feature = "tokenizer")]
            unnamed,
            #[cfg(feature = "tokenizer")]
            class: config.get("tokenizer_class").and_then(Value::as_str).map(str::to_owned),
            #[cfg(feature = "tokenizer")]
            legacy_class: config.get("legacy").and_then(Value::as_bool),
            #[cfg(feature = "tokenizer")]
            add_prefix_space: config.get("add_prefix_space").and_then(Value::as_bool),
            #[cfg(feature = "tokenizer")]
            clean_up_spaces: flag("clean_up_tokenization_spaces")?,
            #[cfg(feature = "tokenizer")]
            clean_up_spaces_for_bpe: flag(
                "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
            )?,
            #[cfg(feature = "chat")]
            chat_template: config.remove("chat_template").filter(|it| !it.is_null()),
        })
    }
}

type Wrong<'a> = dyn Fn(&str, &str) -> Error + 'a;

/// A token is saved as its text, or as an object whose `content` is the text.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

fn named_tokens(config: &Map<String, Value>, wrong: &Wrong<'_>) -> Result<Vec<(String, String)>> {
    let mut named = Vec::new();
    for name in NAMES {
        match config.get(name) {
            None | Some(Value::Null) => {}
            Some(value) => {
                let text = token_text(value).ok_or_else(|| wrong(name, "not a token"))?;
                named.push((name.to_owned(), text.to_owned()));
            }
        }
    }
    let own = config.iter().filter(|(key, _)| key.ends_with("_token"));
    let dict = config.get("extra_special_tokens").and_then(Value::as_object);
    for (name, value) in own.chain(dict.into_iter().flatten()) {
        // `add_bos_token: true` ends like a token's name, too.
        if let Some(text) = token_text(value).filter(|_| !NAMES.contains(&name.as_str())) {
            named.push((name.clone(), text.to_owned()));
        }
    }
    Ok(named)
}

#[cfg(feature = "tokenizer")]
fn unnamed_tokens(config: &Map<String, Value>, wrong: &Wrong<'_>) -> Result<Vec<String>> {
    for field in [EXTRA, "additional_special_tokens"] {
        match config.get(field) {
            Some(Value::Array(tokens)) if !tokens.is_empty() => {
                let texts = tokens.iter().map(|it| token_text(it).map(str::to_owned));
                let texts: Option<_> = texts.collect();
                return texts.ok_or_else(|| wrong(field, "not a list of tokens"));
            }
            None | Some(Value::Null | Value::Array(_) | Value::Object(_)) => {}
            Some(_) => return Err(wrong(field, "not a list of tokens")),
        }
    }
    Ok(Vec::new())
}

/// The tokens of `added_tokens.json`, in the order of their ids.
#[cfg(feature = "tokenizer")]
fn legacy_tokens(
    files: &Files<'_>,
    special: &SpecialTokens,
    unnamed: &[String],
) -> Result<Vec<AddedToken>> {
    let content = files.added_tokens.as_deref();
    let tokens: Map<String, Value> = files.json(ADDED_TOKENS, content)?.unwrap_or_default();
    let mut added = Vec::with_capacity(tokens.len());
    for (text, id) in &tokens {
        let id = id.as_u64().ok_or_else(|| {
            let what = format!("{text:?} has {id}, which is not a token id");
            Error::file(files.name(ADDED_TOKENS), what)
        })?;
        let named = special.iter().any(|(_, it)| it == text) || unnamed.contains(text);
        added.push((id, AddedToken::from(text.as_str(), named).normalized(!named)));
    }
    added.sort_by_key(|(id, _)| *id);
    Ok(added.into_iter().map(|(_, token)| token).collect())
}

#[cfg(feature = "tokenizer")]
fn added_tokens(config: &Map<String, Value>, wrong: &Wrong<'_>) -> Result<Vec<AddedToken>> {
    const FIELD: &str = "added_tokens_decoder";
    let tokens = match config.get(FIELD) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(tokens)) => tokens,
        Some(_) => return Err(wrong(FIELD, "not a map from ids to tokens")),
    };
    let mut added = Vec::with_capacity(tokens.len());
    for (id, token) in tokens {
        let id: u32 = id
            .parse()
            .map_err(|_| wrong(FIELD, &format!("keyed by `{id}`, which is not a token id")))?;
        let text = token.get("content").and_then(Value::as_str);
        let text = text.ok_or_else(|| wrong(FIELD, &format!("without `content` for {id}")))?;
        let flag = |name: &str| token.get(name).and_then(Value::as_bool);
        let special = flag("special").unwrap_or(false);
        let token = AddedToken::from(text, special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special));
        added.push((id, token));
    }
    added.sort_by_key(|(id, _)| *id);
    Ok(added.into_iter().map(|(_, token)| token).collect())
}
