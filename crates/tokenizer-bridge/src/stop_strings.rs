//! Strings that end a text, found among token ids.

use std::collections::HashMap;

use tokenizers::DecoderWrapper;

use crate::decode::{ByteLevel, byte_of_fallback};
use crate::error::{Error, ErrorKind, Result};
use crate::tokenizer::Tokenizer;

/// Put before a token to see what the decoder makes of it in the middle of a text.
const PREFIX: &str = "abcdef";

/// Strings to stop at, and the tokenizer that says how tokens spell them (HF `StopStringCriteria`).
///
/// What is compared are bytes, so a string is found as soon as its last byte is there, even in the
/// middle of a character's tokens or of a longer token. Special tokens count with the text they stand
/// for.
///
/// ```
/// use mlxgk_tokenizer_bridge::{Files, StopStrings, Tokenizer};
///
/// let json = r#"{
///     "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
///                 "use_regex": false},
///     "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4, "f": 5,
///               "sto": 6, "pper": 7, "t": 8}, "merges": []}
/// }"#;
/// let files = Files { tokenizer: Some(json.as_bytes().into()), ..Files::default() };
/// let tokenizer = Tokenizer::from_files(&files)?;
///
/// let mut stop = StopStrings::new(&tokenizer, vec!["stop".into()])?;
/// assert!(!stop.end(&[8, 6])?);
/// assert!(stop.end(&[8, 6, 7])?);
/// // Found when its last byte comes, not again later.
/// assert!(!stop.end(&[8, 6, 7, 8])?);
/// # Ok::<(), mlxgk_tokenizer_bridge::Error>(())
/// ```
#[derive(Debug)]
pub struct StopStrings {
    tokenizer: Tokenizer,
    strings: Vec<String>,
    spelling: Spelling,
    /// Tokens looked at, from the end.
    window: usize,
    /// The prefix as the decoder takes it.
    prefix: Vec<String>,
    /// What the tokens seen so far spell; `None` for ids that stand for nothing.
    known: HashMap<u32, Option<Vec<u8>>>,
}

/// How a tokenizer writes bytes that are not characters by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// Every character stands for a byte.
    ByteLevel,
    /// Tokens like `<0x0A>`.
    ByteFallback,
    /// It does not.
    Characters,
}

impl StopStrings {
    /// Strings to look for.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::StopString`] where there is no string, or an empty one, which every text ends
    /// with;
    /// [`ErrorKind::Tokenizer`] where the tokenizer cannot spell plain letters, so that what its
    /// tokens stand for is not known.
    pub fn new(tokenizer: &Tokenizer, strings: Vec<String>) -> Result<Self> {
        if strings.is_empty() || strings.iter().any(String::is_empty) {
            let what = "a string to stop at must not be empty";
            return Err(Error::new(ErrorKind::StopString, what));
        }
        let spelling = spelling(tokenizer);
        let ids = tokenizer.encode(PREFIX, false)?;
        let prefix = ids.iter().filter_map(|&id| tokenizer.id_to_token(id)).collect();
        // HF looks at as many tokens as the longest string has characters, or bytes.
        let len = |it: &String| match spelling {
            Spelling::Characters => it.chars().count(),
            _ => it.len(),
        };
        let window = strings.iter().map(len).max().unwrap_or(0);
        let known = HashMap::new();
        let tokenizer = tokenizer.clone();
        Ok(Self { tokenizer, strings, spelling, window, prefix, known })
    }

    /// The strings.
    pub fn strings(&self) -> &[String] {
        &self.strings
    }

    /// Whether one of the strings ends within the last of `tokens`, prompt and new ones: it may begin
    /// in an earlier token, also in the prompt's, and the last token may go on after it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Tokenizer`] when the tokenizer's own decoder fails.
    pub fn end(&mut self, tokens: &[u32]) -> Result<bool> {
        let seen = &tokens[tokens.len().saturating_sub(self.window)..];
        let mut text = Vec::new();
        let mut last = 0;
        for &id in seen {
            if !self.known.contains_key(&id) {
                let bytes = self.spell(id)?;
                self.known.insert(id, bytes);
            }
            match &self.known[&id] {
                Some(bytes) => {
                    text.extend_from_slice(bytes);
                    last = bytes.len();
                }
                // No string goes on across an id that stands for nothing.
                None => {
                    text.clear();
                    last = 0;
                }
            }
        }
        let before = text.len() - last;
        Ok(self.strings.iter().any(|it| {
            let mut places = text.windows(it.len());
            places.rposition(|part| part == it.as_bytes()).is_some_and(|at| at + it.len() > before)
        }))
    }

    /// The bytes a token stands for within a text.
    fn spell(&self, id: u32) -> Result<Option<Vec<u8>>> {
        let Some(token) = self.tokenizer.id_to_token(id) else { return Ok(None) };
        let bytes = match self.spelling {
            Spelling::ByteLevel => ByteLevel::bytes(&token),
            Spelling::ByteFallback => byte_of_fallback(&token).map(|it| vec![it]),
            Spelling::Characters => None,
        };
        if bytes.is_some() {
            return Ok(bytes);
        }
        let tokens = self.prefix.iter().cloned().chain([token]).collect();
        let text = self.tokenizer.join(tokens)?;
        match text.find(PREFIX) {
            Some(at) => Ok(Some(text.as_bytes()[at + PREFIX.len()..].to_vec())),
            None => {
                let what = format!("it makes {text:?} of {PREFIX:?}");
                Err(Error::tokenizer("tell what a token of this tokenizer spells", what))
            }
        }
    }
}

fn spelling(tokenizer: &Tokenizer) -> Spelling {
    let has = |kind: fn(&DecoderWrapper) -> bool| {
        tokenizer.decoders().is_some_and(|all| all.iter().any(|it| kind(it)))
    };
    match () {
        () if has(|it| matches!(it, DecoderWrapper::ByteFallback(_))) => Spelling::ByteFallback,
        () if has(|it| matches!(it, DecoderWrapper::ByteLevel(_))) => Spelling::ByteLevel,
        () => Spelling::Characters,
    }
}
