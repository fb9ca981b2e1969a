//! A model's tokens as bytes, which is how a grammar sees them.

use std::sync::Arc;

use mlxgk_logits_processors::{Error, ErrorKind, Result};
use serde_json::Value;
use toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

/// The tokens of a tokenizer. Build it once per tokenizer and share it between grammars: it holds a
/// trie over the whole vocabulary.
#[derive(Clone)]
pub struct Vocabulary {
    env: Arc<Env>,
}

impl Vocabulary {
    /// Tokens by id; a special token begins with the byte `0xff`, which no text contains. `eos` are
    /// the tokens that may end a complete text.
    ///
    /// # Errors
    /// When there is no token or no end token, or an end token is outside the vocabulary.
    pub fn new(tokens: &[Vec<u8>], eos: &[u32]) -> Result<Self> {
        let trie = trie(tokens, eos)?;
        Ok(Self { env: Arc::new(Env { trie, encode: None }) })
    }

    /// The tokens of a `tokenizer.json`: byte-level, or with byte fallback.
    ///
    /// `encode` is the tokenizer's own encoding of a text without special tokens. It is what makes
    /// [`forced_tokens`](mlxgk_logits_processors::LogitsProcessor::forced_tokens) possible: text that
    /// a grammar forces has many spellings in tokens, and only the tokenizer's own is one the model
    /// knows.
    ///
    /// # Errors
    /// When the file's tokens cannot be read as bytes, and as [`new`](Self::new).
    pub fn from_tokenizer(
        tokenizer: &Value,
        eos: &[u32],
        encode: impl Fn(&str) -> Vec<u32> + Send + Sync + 'static,
    ) -> Result<Self> {
        let tokens = llguidance::token_bytes_from_tokenizer_json(tokenizer).map_err(|e| {
            Error::new(
                ErrorKind::Parameter,
                format!("tokenizer.json: its tokens are no bytes: {e}"),
            )
        })?;
        let trie = trie(&tokens, eos)?;
        Ok(Self { env: Arc::new(Env { trie, encode: Some(Arc::new(encode)) }) })
    }

    /// The same tokens with other end tokens. This copies the trie, which is far quicker than to
    /// build it.
    ///
    /// # Errors
    /// When there is no end token, or one is outside the vocabulary.
    pub fn with_eos(&self, eos: &[u32]) -> Result<Self> {
        let trie = self.env.tok_trie();
        check_eos(eos, trie.vocab_size())?;
        let trie = trie.with_eos_tokens(eos);
        Ok(Self { env: Arc::new(Env { trie, encode: self.env.encode.clone() }) })
    }

    pub(crate) fn env(&self) -> TokEnv {
        self.env.clone()
    }
}

fn trie(tokens: &[Vec<u8>], eos: &[u32]) -> Result<TokTrie> {
    let first = check_eos(eos, tokens.len())?;
    let info = TokRxInfo::new(tokens.len() as u32, first);
    Ok(TokTrie::from(&info, tokens).with_eos_tokens(eos))
}

/// The first end token, if there are some and all are tokens.
fn check_eos(eos: &[u32], vocab: usize) -> Result<u32> {
    let Some(&first) = eos.first() else {
        let what = "a grammar needs an end token, and `eos_token_id` names none";
        return Err(Error::new(ErrorKind::Parameter, what));
    };
    match eos.iter().find(|&&id| id as usize >= vocab) {
        Some(id) => {
            let what = format!("the end token {id} is outside the vocabulary of {vocab}");
            Err(Error::new(ErrorKind::Token, what))
        }
        None => Ok(first),
    }
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vocabulary").field("tokens", &self.env.tok_trie().vocab_size()).finish()
    }
}

type Encode = Arc<dyn Fn(&str) -> Vec<u32> + Send + Sync>;

struct Env {
    trie: TokTrie,
    encode: Option<Encode>,
}

impl TokenizerEnv for Env {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        match (&self.encode, std::str::from_utf8(bytes)) {
            (Some(encode), Ok(text)) => encode(text),
            // Half a character has no spelling of the tokenizer's own.
            _ => self.trie.greedy_tokenize(bytes),
        }
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.encode.is_some()
    }
}
