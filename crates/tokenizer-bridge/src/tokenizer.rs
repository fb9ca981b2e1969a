//! Text to token ids and back.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::precompiled::Precompiled;
use tokenizers::{AddedToken, Decoder, DecoderWrapper};

use crate::config::{SpecialTokens, TokenizerConfig};
use crate::decode::StreamDecoder;
use crate::error::{Error, ErrorKind, Result};
use crate::files::{Files, TOKENIZER};

/// A tokenizer as transformers' `AutoTokenizer` would load it from the same files.
///
/// ```
/// use mlxgk_tokenizer_bridge::{Files, Tokenizer};
///
/// let json = br#"{
///     "added_tokens": [{"id": 3, "content": "</s>", "special": true, "single_word": false,
///                       "lstrip": false, "rstrip": false, "normalized": false}],
///     "pre_tokenizer": {"type": "Whitespace"},
///     "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "hello": 1, "world": 2}}
/// }"#;
/// let tokenizer = Tokenizer::from_files(&Files { tokenizer: Some(json.into()), ..Files::default() })?;
///
/// let ids = tokenizer.encode("hello world</s>", true)?;
/// assert_eq!(ids, [1, 2, 3]);
/// assert_eq!(tokenizer.decode(&ids, false)?, "hello world </s>");
/// assert_eq!(tokenizer.decode(&ids, true)?, "hello world");
/// assert_eq!(tokenizer.token_to_id("world"), Some(2));
/// # Ok::<(), mlxgk_tokenizer_bridge::Error>(())
/// ```
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialTokens,
    clean_up: bool,
}

impl Tokenizer {
    /// Loads the tokenizer of a model folder; short for [`Files::from_folder`] and
    /// [`Tokenizer::from_files`].
    ///
    /// # Errors
    ///
    /// Those of the two.
    pub fn from_folder(folder: impl AsRef<std::path::Path>) -> Result<Self> {
        Self::from_files(&Files::from_folder(folder)?)
    }

    /// Builds the tokenizer from `tokenizer.json` and what `tokenizer_config.json` and
    /// `special_tokens_map.json` add to it.
    ///
    /// Tokens that the config names but `tokenizer.json` does not list as added are added to the
    /// vocabulary, and the named ones are special, as in transformers. So is what it leaves out:
    /// truncation and padding stored in `tokenizer.json` (they were one training run's; only the name
    /// of the padding token is kept), and
    /// `add_bos_token` and `add_eos_token`, because `tokenizer.json` has its own post-processor.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::MissingTokenizer`] without a `tokenizer.json`; [`ErrorKind::File`] naming the
    /// file that cannot be used.
    pub fn from_files(files: &Files<'_>) -> Result<Self> {
        let Some(content) = files.tokenizer.as_deref() else {
            let what = "does not exist, so text cannot be encoded or decoded";
            let message = format!("{} {what}", files.name(TOKENIZER));
            return Err(Error::new(ErrorKind::MissingTokenizer, message));
        };
        let text = files.text(TOKENIZER, content)?;
        let wrong = |what: &dyn fmt::Display| Error::file(files.name(TOKENIZER), what);
        check_before_loading(text).map_err(|what| wrong(&what))?;
        let mut inner: tokenizers::Tokenizer = text.parse().map_err(|what| wrong(&what))?;
        let mut config = TokenizerConfig::from_files(files)?;
        if let Some(padding) = inner.get_padding() {
            config.special.set_default("pad_token", &padding.pad_token);
        }
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|what| wrong(&what))?;

        let missing = missing_tokens(&inner, &config);
        inner.add_tokens(missing).map_err(|what| wrong(&what))?;

        let bpe = matches!(inner.get_model(), ModelWrapper::BPE(_));
        let clean_up = config.clean_up_spaces && (!bpe || config.clean_up_spaces_for_bpe);
        Ok(Self { inner, special: config.special, clean_up })
    }

    /// The token ids of a text.
    ///
    /// `add_special_tokens` lets the tokenizer put its own around the text, usually the begin token.
    /// A text rendered by a chat template already contains them: pass `false` there.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Tokenizer`] for a text that the vocabulary cannot express and that has no
    /// unknown token.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, add_special_tokens);
        let encoding = encoding.map_err(|error| Error::tokenizer("encode the text", error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of token ids.
    ///
    /// Ids outside the vocabulary are left out, as in transformers: many models have more rows in
    /// their embedding than their tokenizer has tokens.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Tokenizer`] when the tokenizer's own decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let mut stream = self.stream(skip_special_tokens);
        let mut text = String::new();
        for &id in ids {
            text.push_str(stream.push(id)?);
        }
        text.push_str(stream.flush()?);
        Ok(text)
    }

    /// A decoder that takes one id at a time, for text that is shown while it is made.
    pub fn stream(&self, skip_special_tokens: bool) -> StreamDecoder<'_> {
        StreamDecoder::new(self, skip_special_tokens)
    }

    /// The tokenizer as a `tokenizer.json`, with the tokens that the other files added.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Tokenizer`] when it cannot be written as JSON.
    pub fn to_json(&self) -> Result<Value> {
        serde_json::to_value(&self.inner)
            .map_err(|it| Error::tokenizer("write the tokenizer as JSON", it))
    }

    /// How many tokens the vocabulary has, added tokens included (Python's `len(tokenizer)`).
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token, given as it stands in the vocabulary (`Ġworld`, not ` world`).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, as it stands in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether the id's token is a special one, which decoding can skip.
    pub fn is_special(&self, id: u32) -> bool {
        let token = self.inner.id_to_token(id);
        token.is_some_and(|token| self.inner.get_added_vocabulary().is_special_token(&token))
    }

    /// The named special tokens.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// The token a decoder starts from: where it differs, the normalized form of an added token.
    pub(crate) fn decoder_token(&self, id: u32, skip_special_tokens: bool) -> Option<String> {
        let added = self.inner.get_added_vocabulary();
        let token = added.simple_id_to_token(id).or_else(|| self.inner.id_to_token(id))?;
        Some(token).filter(|token| !skip_special_tokens || !added.is_special_token(token))
    }

    /// The text of tokens, given as they stand in the vocabulary (`convert_tokens_to_string`).
    pub(crate) fn join(&self, tokens: Vec<String>) -> Result<String> {
        match self.inner.get_decoder() {
            Some(decoder) => {
                decoder.decode(tokens).map_err(|it| Error::tokenizer("decode the tokens", it))
            }
            None => Ok(tokens.join(" ")),
        }
    }

    pub(crate) fn decoder(&self) -> Option<&DecoderWrapper> {
        self.inner.get_decoder()
    }

    /// Whether `clean_up_tokenization_spaces` applies.
    pub(crate) fn cleans_up(&self) -> bool {
        self.clean_up
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut it = f.debug_struct("Tokenizer");
        it.field("vocab_size", &self.vocab_size()).field("special", &self.special);
        it.finish_non_exhaustive()
    }
}

/// The tokens the config has and `tokenizer.json` lacks, or has with other properties.
fn missing_tokens(inner: &tokenizers::Tokenizer, config: &TokenizerConfig) -> Vec<AddedToken> {
    let known = inner.get_added_vocabulary().get_added_tokens_decoder();
    let mut missing: Vec<AddedToken> = config
        .added
        .iter()
        .filter(|&it| !known.values().any(|known| known == it))
        .cloned()
        .collect();
    let unnamed = config.unnamed.iter().map(String::as_str);
    for text in config.special.iter().map(|(_, text)| text).chain(unnamed) {
        let there = |it: &AddedToken| it.content == text;
        if !known.values().any(there) && !missing.iter().any(there) {
            missing.push(AddedToken::from(text, true));
        }
    }
    missing
}

/// Finds what the `tokenizers` crate would answer with a panic instead of an error: JSON that is
/// broken inside the decoder, and a SentencePiece character map that cannot be read.
fn check_before_loading(text: &str) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Head {
        #[serde(default)]
        normalizer: Value,
    }
    fn check(normalizer: &Value) -> Result<(), String> {
        if normalizer.get("type").and_then(Value::as_str) == Some("Precompiled") {
            Precompiled::deserialize(normalizer)
                .map_err(|error| format!("the `Precompiled` normalizer cannot be read: {error}"))?;
        }
        let inner = normalizer.get("normalizers").and_then(Value::as_array);
        inner.into_iter().flatten().try_for_each(check)
    }
    let head: Head = serde_json::from_str(text).map_err(|error| error.to_string())?;
    check(&head.normalizer)
}
