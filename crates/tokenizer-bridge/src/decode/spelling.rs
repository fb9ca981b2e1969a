//! What a single token adds to a text that has begun, in bytes.

use std::sync::Arc;

use tokenizers::{Decoder, DecoderWrapper, Result};

use super::byte_level::ByteLevel;
use super::stages::{StripToken, decoder_byte};

/// The bytes a token adds after another token, as the decoders write it.
///
/// It is the middle of the text that counts: what decoders do to its ends (the first space that
/// SentencePiece adds, a word's end mark at the very end) is not a property of a token.
pub(crate) fn spelling(decoders: Option<&[Arc<DecoderWrapper>]>, token: String) -> Result<Vec<u8>> {
    // Without a decoder tokens are joined with spaces.
    let Some(decoders) = decoders else { return Ok(format!(" {token}").into_bytes()) };
    let mut token = token;
    let mut fused = false;
    for decoder in decoders {
        token = match &**decoder {
            DecoderWrapper::ByteLevel(_) => {
                return Ok(ByteLevel::bytes(&token).unwrap_or_else(|| token.into_bytes()));
            }
            DecoderWrapper::ByteFallback(_) => match decoder_byte(&token) {
                Some(byte) => return Ok(vec![byte]),
                None => token,
            },
            DecoderWrapper::Fuse(_) => {
                fused = true;
                token
            }
            // It takes away the text's first or last characters.
            DecoderWrapper::Strip(_) if fused => token,
            DecoderWrapper::Strip(strip) => StripToken::new(strip).strip(&token).to_owned(),
            // An empty token stands in for all those before.
            DecoderWrapper::WordPiece(_) | DecoderWrapper::Metaspace(_) => {
                decoder.decode_chain(vec![String::new(), token])?.into_iter().skip(1).collect()
            }
            // An empty token stands in for all those after.
            DecoderWrapper::BPE(_) => {
                decoder.decode_chain(vec![token, String::new()])?.into_iter().take(1).collect()
            }
            DecoderWrapper::Replace(_) | DecoderWrapper::CTC(_) => {
                decoder.decode_chain(vec![token])?.into_iter().collect()
            }
            // Flattened lists hold no sequences.
            DecoderWrapper::Sequence(_) => token,
        };
    }
    Ok(token.into_bytes())
}
