//! What every token of a tokenizer spells: one table for all that compares tokens with text.

use std::fmt;

use crate::decode::spelling;
use crate::tokenizer::Tokenizer;

/// The bytes that each token adds to a text, by id; see [`Tokenizer::texts`].
///
/// They are what the tokenizer's decoder makes of the token after another one, so a token of
/// SentencePiece's `▁the` spells ` the`, and one of byte fallback (`<0x0A>`) its byte. Special
/// tokens spell nothing: decoding leaves them out.
///
/// ```
/// use mlxgk_tokenizer_bridge::{Files, Tokenizer};
///
/// let json = r#"{
///     "added_tokens": [{"id": 3, "content": "</s>", "special": true, "single_word": false,
///                       "lstrip": false, "rstrip": false, "normalized": false}],
///     "decoder": {"type": "Sequence", "decoders": [
///         {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
///         {"type": "ByteFallback"}, {"type": "Fuse"},
///         {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
///     "model": {"type": "BPE", "vocab": {"▁the": 0, "<0x0A>": 1, "sea": 2}, "merges": []}
/// }"#;
/// let files = Files { tokenizer: Some(json.as_bytes().into()), ..Files::default() };
/// let texts = Tokenizer::from_files(&files)?.texts().clone();
/// assert_eq!(texts.bytes(0), Some(&b" the"[..]));
/// assert_eq!(texts.bytes(1), Some(&b"\n"[..]));
/// assert_eq!(texts.bytes(3), None);
/// assert!(texts.is_special(3));
/// # Ok::<(), mlxgk_tokenizer_bridge::Error>(())
/// ```
#[derive(Clone)]
pub struct TokenTexts {
    tokens: Vec<Entry>,
    /// The bytes of all tokens, one after another.
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Where the token's bytes end; they begin where those of the one before end.
    end: usize,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// No token has this id, or its decoder fails on it.
    Absent,
    Special,
    Text,
}

impl TokenTexts {
    pub(crate) fn new(tokenizer: &Tokenizer) -> Self {
        let ids = tokenizer.ids();
        let mut texts = Self { tokens: Vec::with_capacity(ids.len()), bytes: Vec::new() };
        for id in ids {
            let kind = match tokenizer.decoder_token(id, false) {
                None => Kind::Absent,
                Some(_) if tokenizer.is_special(id) => Kind::Special,
                Some(token) => match spelling(tokenizer.decoders(), token) {
                    Ok(bytes) => {
                        texts.bytes.extend(bytes);
                        Kind::Text
                    }
                    Err(_) => Kind::Absent,
                },
            };
            texts.tokens.push(Entry { end: texts.bytes.len(), kind });
        }
        texts
    }

    /// One more than the highest id of a token.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The bytes that a token adds to a text; `None` for special tokens and for ids without one.
    pub fn bytes(&self, id: u32) -> Option<&[u8]> {
        let at = id as usize;
        let entry = self.tokens.get(at).filter(|it| it.kind == Kind::Text)?;
        let start = at.checked_sub(1).map_or(0, |before| self.tokens[before].end);
        Some(&self.bytes[start..entry.end])
    }

    /// Whether the id's token is a special one.
    pub fn is_special(&self, id: u32) -> bool {
        self.tokens.get(id as usize).is_some_and(|it| it.kind == Kind::Special)
    }
}

impl fmt::Debug for TokenTexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenTexts").field("len", &self.len()).finish_non_exhaustive()
    }
}
