//! Token ids to text, one id at a time, giving exactly the text that all of them give at once.
//!
//! A token is not a piece of text: a character may be spread over several byte tokens, a space may
//! depend on the token before, and a decoder may take something back (SentencePiece's first space,
//! a word's end mark). The usual way out is to decode a growing window again and again and to print
//! the difference; it costs more per token the longer it has to wait, and it prints wrong text where
//! a later token changes an earlier one. Here the tokenizer's decoder is run as a chain of stages
//! instead, each of which holds back just what it cannot be sure of yet. Every token passes once.

mod byte_level;
mod clean_up;
mod spelling;
mod stages;

use std::sync::Arc;

use tokenizers::DecoderWrapper;

pub(crate) use self::byte_level::ByteLevel;
use self::clean_up::CleanUp;
pub(crate) use self::spelling::spelling;
pub(crate) use self::stages::byte_of_fallback;
use self::stages::{
    ByteFallback, Chain, Each, Positional, RepeatsOnce, Rest, Spaced, Stage, StripText, StripToken,
    WordEnd,
};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Decodes a sequence of ids as they come; see [`Tokenizer::stream`].
///
/// It shares the tokenizer, so it can be stored anywhere and sent to another thread.
///
/// The pieces [`push`](Self::push) gives, and the last one [`flush`](Self::flush) gives, put together
/// are exactly what [`Tokenizer::decode`] gives for all ids at once. No piece ends inside a
/// character.
///
/// What has to wait: the bytes of an unfinished character; with byte-fallback tokenizers (Llama 2,
/// Gemma) a whole run of byte tokens, because one bad byte turns all of them into `�`; and, with a
/// decoder that applies a pattern to the text as a whole, everything until the flush. (No published
/// model is known to have one.)
///
/// ```
/// use mlxgk_tokenizer_bridge::{Files, Tokenizer};
///
/// // "é" is two bytes, C3 A9, and here two tokens.
/// let json = r#"{
///     "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
///                 "use_regex": false},
///     "model": {"type": "BPE", "vocab": {"Ã": 0, "©": 1, "t": 2}, "merges": []}
/// }"#;
/// let files = Files { tokenizer: Some(json.as_bytes().into()), ..Files::default() };
/// let tokenizer = Tokenizer::from_files(&files)?;
///
/// let mut stream = tokenizer.stream(true);
/// assert_eq!(stream.push(0)?, "");
/// assert_eq!(stream.push(1)?, "é");
/// assert_eq!(stream.push(2)?, "t");
/// assert_eq!(stream.flush()?, "");
/// # Ok::<(), mlxgk_tokenizer_bridge::Error>(())
/// ```
#[derive(Debug)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    /// Special tokens that are not skipped.
    shown: Vec<u32>,
    chain: Chain,
    piece: String,
}

impl StreamDecoder {
    pub(crate) fn new(tokenizer: &Tokenizer, skip_special_tokens: bool) -> Self {
        let chain = decoder_chain(tokenizer);
        let (tokenizer, shown, piece) = (tokenizer.clone(), Vec::new(), String::new());
        Self { tokenizer, skip_special_tokens, shown, chain, piece }
    }

    /// Shows these special tokens where others are skipped.
    #[must_use]
    pub fn showing(self, shown: Vec<u32>) -> Self {
        Self { shown, ..self }
    }

    /// Takes the next id and gives the text that is now certain, often empty.
    ///
    /// Ids outside the vocabulary, and special ones where they are to be skipped, give nothing.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Tokenizer`](crate::ErrorKind::Tokenizer) when the tokenizer's own decoder fails.
    pub fn push(&mut self, id: u32) -> Result<&str> {
        let mut pieces = Vec::new();
        let skips_special = self.skip_special_tokens && !self.shown.contains(&id);
        if let Some(token) = self.tokenizer.decoder_token(id, skips_special) {
            self.chain.push(token, &mut pieces).map_err(failed)?;
        }
        Ok(self.show(pieces))
    }

    /// Gives the text that was held back; what comes after begins a new sequence.
    ///
    /// # Errors
    ///
    /// As [`push`](Self::push).
    pub fn flush(&mut self) -> Result<&str> {
        let pieces = self.chain.finish().map_err(failed)?;
        self.chain = decoder_chain(&self.tokenizer);
        Ok(self.show(pieces))
    }

    fn show(&mut self, pieces: Vec<String>) -> &str {
        self.piece.clear();
        self.piece.extend(pieces);
        &self.piece
    }
}

fn failed(error: tokenizers::Error) -> Error {
    Error::tokenizer("decode the tokens", error)
}

/// The tokenizer's decoder, from the beginning of a sequence.
fn decoder_chain(tokenizer: &Tokenizer) -> Chain {
    let mut chain = match tokenizer.decoders() {
        None => Chain(vec![Box::new(Spaced::default())]),
        Some(decoders) => stages(decoders),
    };
    if tokenizer.cleans_up() {
        chain.0.push(Box::new(CleanUp::default()));
    }
    chain
}

/// The decoders of nested sequences in the order they run.
pub(crate) fn flatten(decoder: &DecoderWrapper) -> Vec<Arc<DecoderWrapper>> {
    match decoder {
        DecoderWrapper::Sequence(sequence) => {
            sequence.get_decoders().iter().flat_map(flatten).collect()
        }
        decoder => vec![Arc::new(decoder.clone())],
    }
}

fn stages(decoders: &[Arc<DecoderWrapper>]) -> Chain {
    let mut chain = Chain::default();
    // Once a decoder has made one token of all, the tokens that pass are fragments of that one.
    let mut fused = false;
    for (at, decoder) in decoders.iter().enumerate() {
        let shared = decoder.clone();
        let stage: Box<dyn Stage> = match &**decoder {
            DecoderWrapper::Fuse(_) => {
                fused = true;
                continue;
            }
            DecoderWrapper::Strip(strip) if fused => Box::new(StripText::new(strip)),
            _ if fused => {
                chain.0.push(Box::new(Rest::new(stages(&decoders[at..]))));
                break;
            }
            DecoderWrapper::ByteLevel(_) => {
                fused = true;
                Box::new(ByteLevel::default())
            }
            DecoderWrapper::Replace(_) => Box::new(Each::new(shared)),
            DecoderWrapper::Strip(strip) => Box::new(StripToken::new(strip)),
            DecoderWrapper::WordPiece(_) | DecoderWrapper::Metaspace(_) => {
                Box::new(Positional::new(shared))
            }
            DecoderWrapper::BPE(_) => Box::new(WordEnd::new(shared)),
            DecoderWrapper::CTC(_) => Box::new(RepeatsOnce::new(shared)),
            DecoderWrapper::ByteFallback(_) => Box::new(ByteFallback::new(shared)),
            // `flatten` leaves no sequences.
            DecoderWrapper::Sequence(_) => continue,
        };
        chain.0.push(stage);
    }
    chain
}
