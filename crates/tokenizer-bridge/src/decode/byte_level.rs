//! GPT-2's byte-level alphabet: one printable character stands for each byte.

use std::sync::LazyLock;

use super::stages::Stage;

/// Which byte a character stands for.
///
/// The printable bytes of Latin-1 stand for themselves; the other 68 (spaces, controls, the soft
/// hyphen) get the characters from U+0100 on, in order (`bytes_to_unicode` in GPT-2's encoder). So
/// every character of the alphabet is below U+0144 and the table is an array.
static BYTES: LazyLock<[Option<u8>; 0x144]> = LazyLock::new(|| {
    let mut bytes = [None; 0x144];
    let mut next = 0x100;
    for byte in 0..=u8::MAX {
        let at = match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => usize::from(byte),
            _ => {
                next += 1;
                next - 1
            }
        };
        bytes[at] = Some(byte);
    }
    bytes
});

/// The `ByteLevel` decoder: characters to bytes, bytes to text, bad bytes to `�`.
#[derive(Debug, Default)]
pub(crate) struct ByteLevel {
    /// The bytes of a character that is not complete yet; at most three.
    pending: Vec<u8>,
}

impl Stage for ByteLevel {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> tokenizers::Result<()> {
        match Self::bytes(&token) {
            Some(bytes) => self.pending.extend(bytes),
            // An added token with a character outside the alphabet is text already.
            None => self.pending.extend(token.as_bytes()),
        }
        out.push(self.take_complete());
        Ok(())
    }

    fn finish(&mut self) -> tokenizers::Result<Vec<String>> {
        Ok(vec![String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()])
    }
}

impl ByteLevel {
    /// The bytes a token stands for; `None` where it has a character outside the alphabet.
    pub(crate) fn bytes(token: &str) -> Option<Vec<u8>> {
        token.chars().map(|it| BYTES.get(it as usize).copied().flatten()).collect()
    }

    /// The text that no further byte can change.
    fn take_complete(&mut self) -> String {
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, bad) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = bad;
                    match error.error_len() {
                        Some(len) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = &bad[len..];
                        }
                        None => break,
                    }
                }
            }
        }
        self.pending = rest.to_vec();
        text
    }
}
