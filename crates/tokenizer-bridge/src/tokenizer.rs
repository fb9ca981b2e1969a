//! Text to token ids and back.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, OnceLock};

use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::{
    AddedToken, AddedVocabulary, Decoder, DecoderWrapper, Model, OffsetType, PreTokenizer,
};

use crate::check::{MOST_IDS, check_tokenizer, check_vocabulary};
use crate::classes;
use crate::config::{SpecialTokens, TokenizerConfig};
use crate::decode::{StreamDecoder, flatten};
use crate::error::{Error, ErrorKind, Result};
use crate::files::{CONFIG, Files, TOKENIZER};
use crate::panics::catching;
use crate::texts::TokenTexts;

/// The longest text that is encoded, in bytes.
const LONGEST: usize = 3 << 20;

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
///
/// Cloning it is cheap: clones share the vocabulary and all that is made from it.
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
}

/// What the clones of a tokenizer share.
struct Shared {
    inner: tokenizers::Tokenizer,
    /// The decoder, sequences taken apart; `None` where there is none.
    decoders: Option<Vec<Arc<DecoderWrapper>>>,
    special: SpecialTokens,
    clean_up: bool,
    /// Made for the first that asks.
    texts: OnceLock<TokenTexts>,
    /// The tokens as they stand in the vocabulary, sorted, with their ids.
    names: OnceLock<Vec<(String, u32)>>,
    /// The added tokens for a text in which special tokens are not looked for.
    plain: OnceLock<AddedVocabulary>,
}

/// A tokenizer made or loaded elsewhere, taken as it is.
impl From<tokenizers::Tokenizer> for Tokenizer {
    fn from(inner: tokenizers::Tokenizer) -> Self {
        Self::build(inner, SpecialTokens::default(), false)
    }
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
        check_tokenizer(text).map_err(|what| wrong(&what))?;
        let loaded = catching(|| text.parse()).map_err(|what| wrong(&what))?;
        let mut inner: tokenizers::Tokenizer = loaded.map_err(|what| wrong(&what))?;
        check_vocabulary(&inner).map_err(|what| wrong(&what))?;
        let mut config = TokenizerConfig::from_files(files)?;
        let model: Option<Value> = files.json(CONFIG, files.config.as_deref())?;
        let model_type = model.as_ref().and_then(|it| it["model_type"].as_str());
        classes::apply(&mut inner, &mut config, model_type).map_err(|what| wrong(&what))?;
        if let Some(padding) = inner.get_padding() {
            config.special.set_default("pad_token", &padding.pad_token);
        }
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|what| wrong(&what))?;

        let missing = missing_tokens(&inner, &config);
        let added = catching(|| inner.add_tokens(missing)).map_err(|what| wrong(&what))?;
        added.map_err(|what| wrong(&what))?;

        let bpe = matches!(inner.get_model(), ModelWrapper::BPE(_));
        let clean_up = config.clean_up_spaces && (!bpe || config.clean_up_spaces_for_bpe);
        Ok(Self::build(inner, config.special, clean_up))
    }

    fn build(inner: tokenizers::Tokenizer, special: SpecialTokens, clean_up: bool) -> Self {
        let decoders = inner.get_decoder().map(flatten);
        let (texts, names, plain) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        let shared = Shared { inner, decoders, special, clean_up, texts, names, plain };
        Self { shared: Arc::new(shared) }
    }

    /// The `tokenizers` library's own tokenizer, for what this type has no method for: offsets,
    /// pairs, batches.
    pub fn inner(&self) -> &tokenizers::Tokenizer {
        &self.shared.inner
    }

    /// The token ids of a text.
    ///
    /// `add_special_tokens` lets the tokenizer put its own around the text, usually the begin token.
    /// A text rendered by a chat template already contains them: pass `false` there.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Tokenizer`] for a text that the vocabulary cannot express and that has no
    /// unknown token, or of more than 3 MiB, which is beyond most contexts: the `tokenizers`
    /// library takes a hundred times a text's bytes.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let failed = |what: &dyn fmt::Display| Error::tokenizer("encode the text", what);
        if text.len() > LONGEST {
            let length = text.len();
            return Err(failed(&format_args!(
                "it has {length} bytes, and at most {LONGEST} are encoded"
            )));
        }
        let encoding = catching(|| self.shared.inner.encode_fast(text, add_special_tokens))
            .map_err(|what| failed(&format_args!("`{}`: {what}", self.part_at_fault(text))))?;
        Ok(encoding.map_err(|what| failed(&what))?.get_ids().to_vec())
    }

    /// The token ids of a text that continues another one: without the space that some tokenizers
    /// put before a text, and with the spelling of a special token taken as the text it is.
    ///
    /// `None` where the tokenizer has no ids of its own that spell exactly this text.
    ///
    /// ```
    /// use mlxgk_tokenizer_bridge::{Files, Tokenizer};
    ///
    /// let json = r#"{
    ///     "added_tokens": [{"id": 0, "content": "</s>", "special": true, "single_word": false,
    ///                       "lstrip": false, "rstrip": false, "normalized": false}],
    ///     "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
    ///                       "split": false},
    ///     "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
    ///                 "split": false},
    ///     "model": {"type": "BPE", "merges": [["▁", "a"]],
    ///               "vocab": {"</s>": 0, "▁": 1, "a": 2, "▁a": 3, "<": 4, "/": 5, "s": 6, ">": 7}}
    /// }"#;
    /// let files = Files { tokenizer: Some(json.as_bytes().into()), ..Files::default() };
    /// let tokenizer = Tokenizer::from_files(&files)?;
    /// assert_eq!(tokenizer.encode("a</s>", false)?, [3, 0]);
    /// assert_eq!(tokenizer.encode_continuation("a</s>"), Some(vec![2, 4, 5, 6, 7]));
    /// # Ok::<(), mlxgk_tokenizer_bridge::Error>(())
    /// ```
    #[must_use]
    pub fn encode_continuation(&self, text: &str) -> Option<Vec<u32>> {
        let texts = self.texts();
        // Something has to precede the text that does not grow together with it.
        ["\n", "a", "0", ".", ")"].iter().find_map(|before| {
            let ids = self.encode_plain(&format!("{before}{text}"))?;
            let mut rest = text.as_bytes();
            for (at, &id) in ids.iter().enumerate().rev() {
                if rest.is_empty() {
                    return Some(ids[at + 1..].to_vec());
                }
                rest = rest.strip_suffix(texts.bytes(id).filter(|it| !it.is_empty())?)?;
            }
            None
        })
    }

    /// The entry of `tokenizer.json` that panics on a text.
    fn part_at_fault(&self, text: &str) -> &'static str {
        let inner = &self.shared.inner;
        let mut parts = None;
        let added = inner.get_added_vocabulary();
        let normalize = || parts = Some(added.extract_and_normalize(inner.get_normalizer(), text));
        if catching(normalize).is_err() {
            return "normalizer";
        }
        let Some(mut parts) = parts else { return "normalizer" };
        let split = || inner.get_pre_tokenizer().map(|it| it.pre_tokenize(&mut parts));
        if catching(split).is_err() {
            return "pre_tokenizer";
        }
        let tokenize = || parts.tokenize(|part| inner.get_model().tokenize(part.get()));
        if catching(tokenize).is_err() { "model" } else { "post_processor" }
    }

    /// The ids of a text in which special tokens are not looked for.
    fn encode_plain(&self, text: &str) -> Option<Vec<u32>> {
        let inner = &self.shared.inner;
        let plain = self.shared.plain.get_or_init(|| {
            let mut added = inner.get_added_vocabulary().clone();
            added.set_encode_special_tokens(true);
            added
        });
        let encode = || {
            let mut parts = plain.extract_and_normalize(inner.get_normalizer(), text);
            if let Some(pre_tokenizer) = inner.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut parts)?;
            }
            parts.tokenize(|part| inner.get_model().tokenize(part.get()))?;
            parts.into_encoding(None, 0, OffsetType::None)
        };
        let encoding: tokenizers::Result<_> = catching(encode).ok()?;
        Some(encoding.ok()?.get_ids().to_vec())
    }

    /// What each token spells, made once and shared by all clones.
    pub fn texts(&self) -> &TokenTexts {
        self.shared.texts.get_or_init(|| TokenTexts::new(self))
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
    pub fn stream(&self, skip_special_tokens: bool) -> StreamDecoder {
        StreamDecoder::new(self, skip_special_tokens)
    }

    /// The tokenizer as a `tokenizer.json`, with the tokens that the other files added.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Tokenizer`] when it cannot be written as JSON.
    pub fn to_json(&self) -> Result<Value> {
        serde_json::to_value(&self.shared.inner)
            .map_err(|it| Error::tokenizer("write the tokenizer as JSON", it))
    }

    /// How many tokens the vocabulary has, added tokens included (Python's `len(tokenizer)`).
    pub fn vocab_size(&self) -> usize {
        self.shared.inner.get_vocab_size(true)
    }

    /// The id of a token, given as it stands in the vocabulary (`Ġworld`, not ` world`).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.shared.inner.token_to_id(token)
    }

    /// The token of an id, as it stands in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.shared.inner.id_to_token(id)
    }

    /// The ids of all tokens that begin with `start`, both given as they stand in the vocabulary, in
    /// the order of their ids.
    pub fn ids_beginning_with(&self, start: &str) -> Vec<u32> {
        let names = self.names();
        let first = names.partition_point(|(name, _)| name.as_str() < start);
        let begin = names[first..].iter().take_while(|(name, _)| name.starts_with(start));
        let mut ids: Vec<u32> = begin.map(|(_, id)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// The first id that stands for another token in the other tokenizer; `None` where both have the
    /// same vocabulary.
    pub fn first_difference(&self, other: &Self) -> Option<u32> {
        if Arc::ptr_eq(&self.shared, &other.shared) || self.names() == other.names() {
            return None;
        }
        let ids = 0..self.ids().end.max(other.ids().end);
        ids.into_iter().find(|&id| self.id_to_token(id) != other.id_to_token(id))
    }

    fn names(&self) -> &[(String, u32)] {
        self.shared.names.get_or_init(|| {
            let named = |id| Some((self.id_to_token(id)?, id));
            let mut names: Vec<_> = self.ids().filter_map(named).collect();
            names.sort_unstable();
            names
        })
    }

    /// All ids up to the highest that has a token; there may be gaps.
    pub(crate) fn ids(&self) -> std::ops::Range<u32> {
        let highest = self.shared.inner.get_vocab(true).into_values().max();
        0..highest.map_or(0, |it| it.saturating_add(1)).min(MOST_IDS)
    }

    /// Whether the id's token is a special one, which decoding can skip.
    pub fn is_special(&self, id: u32) -> bool {
        let token = self.shared.inner.id_to_token(id);
        token.is_some_and(|token| self.shared.inner.get_added_vocabulary().is_special_token(&token))
    }

    /// The named special tokens.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.shared.special
    }

    /// The token a decoder starts from: where it differs, the normalized form of an added token.
    pub(crate) fn decoder_token(&self, id: u32, skip_special_tokens: bool) -> Option<String> {
        let added = self.shared.inner.get_added_vocabulary();
        let token = added.simple_id_to_token(id).or_else(|| self.shared.inner.id_to_token(id))?;
        Some(token).filter(|token| !skip_special_tokens || !added.is_special_token(token))
    }

    /// The text of tokens, given as they stand in the vocabulary (`convert_tokens_to_string`).
    pub(crate) fn join(&self, tokens: Vec<String>) -> Result<String> {
        match self.shared.inner.get_decoder() {
            Some(decoder) => {
                decoder.decode(tokens).map_err(|it| Error::tokenizer("decode the tokens", it))
            }
            None => Ok(tokens.join(" ")),
        }
    }

    /// The decoder, sequences taken apart; `None` where there is none.
    pub(crate) fn decoders(&self) -> Option<&[Arc<DecoderWrapper>]> {
        self.shared.decoders.as_deref()
    }

    /// Whether `clean_up_tokenization_spaces` applies, so that a text is not its tokens' spellings
    /// one after another.
    pub fn cleans_up(&self) -> bool {
        self.shared.clean_up
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut it = f.debug_struct("Tokenizer");
        it.field("vocab_size", &self.vocab_size()).field("special", &self.shared.special);
        it.finish_non_exhaustive()
    }
}

/// The tokens the config has and `tokenizer.json` lacks, or has with other properties.
fn missing_tokens(inner: &tokenizers::Tokenizer, config: &TokenizerConfig) -> Vec<AddedToken> {
    let known = inner.get_added_vocabulary().get_added_tokens_decoder();
    let known: HashMap<&str, &AddedToken> =
        known.values().map(|it| (it.content.as_str(), it)).collect();
    let differs = |it: &&AddedToken| known.get(it.content.as_str()) != Some(it);
    let mut missing: Vec<AddedToken> = config.added.iter().filter(differs).cloned().collect();
    let new = |it: &&AddedToken| !known.contains_key(it.content.as_str());
    missing.extend(config.legacy.iter().filter(new).cloned());
    // A named token is special, whatever the files say of it.
    let is_named = |it: &AddedToken| config.special.iter().any(|(_, text)| text == it.content);
    for it in &mut missing {
        it.special |= is_named(it);
    }
    let mut there: HashSet<String> = missing.iter().map(|it| it.content.clone()).collect();
    let unnamed = config.unnamed.iter().map(String::as_str);
    for text in config.special.iter().map(|(_, text)| text).chain(unnamed) {
        if !known.contains_key(text) && there.insert(text.to_owned()) {
            missing.push(AddedToken::from(text, true));
        }
    }
    missing
}
