//! A model's tokens as bytes, which is how a grammar sees them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use mlxgk_logits_processors::{Error, ErrorKind, Result};

use crate::engine::Engine;

/// Longer tokens are never allowed: the trie has no room for them, and no text needs them.
const LONGEST: usize = 1000;
/// Sets of end tokens whose engines are kept; a server meets one or two.
const ENGINES: usize = 4;
/// What a special token's bytes begin with; no text contains this byte.
pub(crate) const SPECIAL: u8 = 0xff;

/// The tokens of a tokenizer, and what is built from them once for all grammars: a trie over the
/// whole vocabulary and the tables of the grammar engine. Clones share both.
///
/// ```
/// use mlxgk_grammars::{Grammar, GrammarProcessor, Vocabulary};
/// use mlxgk_logits_processors::{Context, LogitsProcessor};
///
/// // A special token begins with 0xff, so that no text of a grammar contains it.
/// let tokens = [b"\xff</s>".to_vec(), b"a".to_vec(), b"b".to_vec(), b"\xff<eot>".to_vec()];
/// let vocabulary = Vocabulary::new(&tokens, &[0])?;
/// let ending = vocabulary.with_eos(&[3])?;
/// let mut scores = [0.0; 4];
/// GrammarProcessor::new(&ending, &Grammar::regex("a")?)?
///     .process(&Context::new(&[1], 0), &mut scores)?;
/// assert!(scores[3] == 0.0 && scores[0] == f32::NEG_INFINITY);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Clone)]
pub struct Vocabulary {
    tokens: Arc<Tokens>,
    eos: Vec<u32>,
    engines: Arc<Mutex<Vec<Arc<Engine>>>>,
}

/// How a text that continues another one is encoded; `None` where the tokenizer cannot.
pub(crate) type Encode = Arc<dyn Fn(&str) -> Option<Vec<u32>> + Send + Sync>;

pub(crate) struct Tokens {
    /// By id; empty where nothing may stand for the id.
    pub(crate) bytes: Vec<Vec<u8>>,
    pub(crate) encode: Option<Encode>,
    /// The characters that are tokens, where not every byte is one; any text can be written if every
    /// byte is.
    pub(crate) characters: Option<Characters>,
}

/// The characters that are tokens.
#[derive(Clone)]
pub(crate) struct Characters {
    pub(crate) alone: BTreeSet<char>,
    /// Whether they are all that longer tokens are made of.
    pub(crate) all: bool,
}

impl Vocabulary {
    /// Tokens by id; a special token begins with the byte `0xff`, which no text contains, and an
    /// empty one stands for nothing. `eos` are the tokens that may end a complete text.
    ///
    /// # Errors
    /// When there is no token or no end token, or an end token is outside the vocabulary.
    pub fn new(tokens: &[Vec<u8>], eos: &[u32]) -> Result<Self> {
        Self::build(tokens.to_vec(), None, eos)
    }

    /// The same tokens with the tokenizer's own way to encode a text that continues another one.
    ///
    /// It is what makes
    /// [`forced_tokens`](mlxgk_logits_processors::LogitsProcessor::forced_tokens) possible: text that
    /// a grammar forces can be written in tokens in many ways, and only the tokenizer's own is one
    /// the model knows. Where the tokens it gives do not spell the text, they are not used.
    #[must_use]
    pub fn with_encoder(
        self,
        encode: impl Fn(&str) -> Option<Vec<u32>> + Send + Sync + 'static,
    ) -> Self {
        let tokens = Tokens {
            bytes: self.tokens.bytes.clone(),
            encode: Some(Arc::new(encode)),
            characters: self.tokens.characters.clone(),
        };
        Self { tokens: Arc::new(tokens), eos: self.eos, engines: Arc::default() }
    }

    /// The tokens of a tokenizer, of any kind: what a token spells is what the tokenizer's decoder
    /// makes of it after another token.
    ///
    /// ```
    /// use mlxgk_grammars::{Grammar, GrammarProcessor, Vocabulary};
    /// use mlxgk_logits_processors::{Context, LogitsProcessor};
    /// use mlxgk_tokenizer_bridge::{Files, Tokenizer};
    ///
    /// let json = r#"{
    ///     "added_tokens": [{"id": 0, "content": "</s>", "special": true, "single_word": false,
    ///                       "lstrip": false, "rstrip": false, "normalized": false}],
    ///     "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
    ///                 "use_regex": false},
    ///     "model": {"type": "BPE", "vocab": {"</s>": 0, "yes": 1, "no": 2, "Ġ": 3}, "merges": []}
    /// }"#;
    /// let files = Files { tokenizer: Some(json.as_bytes().into()), ..Files::default() };
    /// let tokenizer = Tokenizer::from_files(&files)?;
    ///
    /// let vocabulary = Vocabulary::from_tokenizer(&tokenizer, &[0])?;
    /// let processor = GrammarProcessor::new(&vocabulary, &Grammar::regex("yes|no")?)?;
    /// let mut scores = [0.0; 4];
    /// processor.process(&Context::new(&[], 0), &mut scores)?;
    /// assert_eq!(scores, [f32::NEG_INFINITY, 0.0, 0.0, f32::NEG_INFINITY]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`new`](Self::new), and when the tokenizer's text is not that of its tokens one after
    /// another (`clean_up_tokenization_spaces`).
    #[cfg(feature = "tokenizer")]
    pub fn from_tokenizer(
        tokenizer: &mlxgk_tokenizer_bridge::Tokenizer,
        eos: &[u32],
    ) -> Result<Self> {
        if tokenizer.cleans_up() {
            let what = "a grammar cannot be used with a tokenizer that has \
                        `clean_up_tokenization_spaces`, which changes the text after it is decoded";
            return Err(Error::new(ErrorKind::Parameter, what));
        }
        let texts = tokenizer.texts();
        let bytes = |id: u32| match texts.bytes(id) {
            Some(bytes) => bytes.to_vec(),
            None if texts.is_special(id) => {
                let name = tokenizer.id_to_token(id).unwrap_or_default();
                [&[SPECIAL], name.as_bytes()].concat()
            }
            None => Vec::new(),
        };
        let tokens = (0..texts.len() as u32).map(bytes).collect();
        let tokenizer = tokenizer.clone();
        let encode: Encode = Arc::new(move |text: &str| tokenizer.encode_continuation(text));
        Self::build(tokens, Some(encode), eos)
    }

    fn build(mut tokens: Vec<Vec<u8>>, encode: Option<Encode>, eos: &[u32]) -> Result<Self> {
        check_eos(eos, tokens.len())?;
        for token in &mut tokens {
            // The byte 0xff itself is part of no text.
            if token.len() > LONGEST || *token == [SPECIAL] {
                token.clear();
            }
        }
        let characters = characters(&tokens);
        let tokens = Arc::new(Tokens { bytes: tokens, encode, characters });
        Ok(Self { tokens, eos: eos.to_vec(), engines: Arc::default() })
    }

    /// The same tokens with other end tokens. What is built for a set of end tokens is kept with the
    /// vocabulary it came from.
    ///
    /// # Errors
    /// When there is no end token, or one is outside the vocabulary.
    pub fn with_eos(&self, eos: &[u32]) -> Result<Self> {
        check_eos(eos, self.tokens.bytes.len())?;
        Ok(Self { eos: eos.to_vec(), ..self.clone() })
    }

    pub(crate) fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// What grammars over this vocabulary are compiled with, built when it is first asked for.
    pub(crate) fn engine(&self) -> Result<Arc<Engine>> {
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = engines.iter().find(|it| it.eos() == self.eos) {
            return Ok(engine.clone());
        }
        let engine = Arc::new(Engine::new(&self.tokens, &self.eos)?);
        if engines.len() >= ENGINES {
            engines.remove(0);
        }
        engines.push(engine.clone());
        Ok(engine)
    }
}

/// Checks that there are end tokens and that all are tokens.
fn check_eos(eos: &[u32], vocab: usize) -> Result<()> {
    if eos.is_empty() {
        let what = "a grammar needs an end token, and `eos_token_id` names none";
        return Err(Error::new(ErrorKind::Parameter, what));
    }
    match eos.iter().find(|&&id| id as usize >= vocab) {
        Some(id) => {
            let what = format!("the end token {id} is outside the vocabulary of {vocab}");
            Err(Error::new(ErrorKind::Token, what))
        }
        None => Ok(()),
    }
}

/// The characters that are tokens; `None` where every byte of UTF-8 is one.
fn characters(tokens: &[Vec<u8>]) -> Option<Characters> {
    let mut bytes = [false; 256];
    for token in tokens {
        if let [byte] = token[..] {
            bytes[usize::from(byte)] = true;
        }
    }
    let in_text = |byte: u8| !matches!(byte, 0xc0 | 0xc1 | 0xf5..=0xff);
    if (0..=u8::MAX).all(|byte| bytes[usize::from(byte)] || !in_text(byte)) {
        return None;
    }
    let one = |token: &Vec<u8>| {
        let mut chars = std::str::from_utf8(token).ok()?.chars();
        chars.next().filter(|_| chars.next().is_none())
    };
    let alone: BTreeSet<char> = tokens.iter().filter_map(one).collect();
    let is_made = |token: &Vec<u8>| match std::str::from_utf8(token) {
        Ok(text) => text.chars().all(|it| alone.contains(&it)),
        // A special token is not text; half a character may never become a whole one.
        Err(_) => token.first() == Some(&SPECIAL),
    };
    let all = tokens.iter().all(is_made);
    Some(Characters { alone, all })
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut it = f.debug_struct("Vocabulary");
        it.field("tokens", &self.tokens.bytes.len()).field("eos", &self.eos);
        it.finish_non_exhaustive()
    }
}
