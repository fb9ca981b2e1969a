//! The decoders of the `tokenizers` crate as stages that see one token at a time.
//!
//! Wherever a decoder's answer depends on one token, or on a few that can be held, the stage asks the
//! decoder itself, so that the two cannot disagree.

use std::fmt;

use tokenizers::decoders::strip::Strip;
use tokenizers::{Decoder, DecoderWrapper, Result};

/// One step of the chain: takes tokens, gives tokens, and may hold some back until the end.
pub(super) trait Stage: fmt::Debug {
    /// Takes one token and appends to `out` what is certain now.
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<()>;

    /// Gives what was held back.
    fn finish(&mut self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

/// Stages one after another.
#[derive(Debug, Default)]
pub(super) struct Chain<'t>(pub(super) Vec<Box<dyn Stage + 't>>);

impl Chain<'_> {
    /// Sends tokens through the stages from `first` on.
    fn run(&mut self, mut tokens: Vec<String>, first: usize) -> Result<Vec<String>> {
        for stage in &mut self.0[first..] {
            let mut passed = Vec::with_capacity(tokens.len());
            for token in tokens {
                stage.push(token, &mut passed)?;
            }
            tokens = passed;
        }
        Ok(tokens)
    }
}

impl Stage for Chain<'_> {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<()> {
        out.extend(self.run(vec![token], 0)?);
        Ok(())
    }

    fn finish(&mut self) -> Result<Vec<String>> {
        let mut out = Vec::new();
        for stage in 0..self.0.len() {
            let rest = self.0[stage].finish()?;
            out.extend(self.run(rest, stage + 1)?);
        }
        Ok(out)
    }
}

/// No decoder: tokens are joined with spaces.
#[derive(Debug, Default)]
pub(super) struct Spaced {
    begun: bool,
}

impl Stage for Spaced {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<()> {
        if std::mem::replace(&mut self.begun, true) {
            out.push(" ".to_owned());
        }
        out.push(token);
        Ok(())
    }
}

/// A decoder that treats every token alike and by itself.
#[derive(Debug)]
pub(super) struct Each<'t> {
    decoder: &'t DecoderWrapper,
}

impl<'t> Each<'t> {
    pub(super) fn new(decoder: &'t DecoderWrapper) -> Self {
        Self { decoder }
    }
}

impl Stage for Each<'_> {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<()> {
        out.extend(self.decoder.decode_chain(vec![token])?);
        Ok(())
    }
}

/// A decoder that treats the first token differently from all others.
#[derive(Debug)]
pub(super) struct Positional<'t> {
    decoder: &'t DecoderWrapper,
    begun: bool,
}

impl<'t> Positional<'t> {
    pub(super) fn new(decoder: &'t DecoderWrapper) -> Self {
        Self { decoder, begun: false }
    }
}

impl Stage for Positional<'_> {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<()> {
        if std::mem::replace(&mut self.begun, true) {
            // An empty token stands in for all those before.
            out.extend(self.decoder.decode_chain(vec![String::new(), token])?.into_iter().skip(1));
        } else {
            out.extend(self.decoder.decode_chain(vec![token])?);
        }
        Ok(())
    }
}

/// The `BPEDecoder`, which makes a space of a word's end mark, except after the last token.
#[derive(Debug)]
pub(super) struct WordEnd<'t> {
    decoder: &'t DecoderWrapper,
    last: Option<String>,
}

impl<'t> WordEnd<'t> {
    pub(super) fn new(decoder: &'t DecoderWrapper) -> Self {
        Self { decoder, last: None }
    }
}

impl Stage for WordEnd<'_> {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<()> {
        if let Some(inner) = self.last.replace(token) {
            out.extend(self.decoder.decode_chain(vec![inner, String::new()])?.into_iter().take(1));
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<Vec<String>> {
        match self.last.take() {
            Some(last) => self.decoder.decode_chain(vec![last]),
            None => Ok(Vec::new()),
        }
    }
}

/// The `CTC` decoder, which takes a run of one token as one.
#[derive(Debug)]
pub(super) struct RepeatsOnce<'t> {
    decoder: &'t DecoderWrapper,
    previous: Option<String>,
}

impl<'t> RepeatsOnce<'t> {
    pub(super) fn new(decoder: &'t DecoderWrapper) -> Self {
        Self { decoder, previous: None }
    }
}

impl Stage for RepeatsOnce<'_> {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<()> {
        if self.previous.as_ref() != Some(&token) {
            self.previous = Some(token.clone());
            out.extend(self.decoder.decode_chain(vec![token])?);
        }
        Ok(())
    }
}

/// The `ByteFallback` decoder, which makes text of a whole run of byte tokens (`<0xC3>`), or one
/// `�` for each of them when the run is not UTF-8.
#[derive(Debug)]
pub(super) struct ByteFallback<'t> {
    decoder: &'t DecoderWrapper,
    run: Vec<String>,
}

impl<'t> ByteFallback<'t> {
    pub(super) fn new(decoder: &'t DecoderWrapper) -> Self {
        Self { decoder, run: Vec::new() }
    }
}

impl Stage for ByteFallback<'_> {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<()> {
        if is_byte(&token) {
            self.run.push(token);
        } else {
            out.extend(self.finish()?);
            out.push(token);
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<Vec<String>> {
        self.decoder.decode_chain(std::mem::take(&mut self.run))
    }
}

/// The byte that a token like `<0x0A>` stands for.
pub(crate) fn byte_of_fallback(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let plain = digits.len() == 2 && digits.bytes().all(|it| it.is_ascii_hexdigit());
    plain.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// Whether the decoder reads the token as a byte. (It takes what `from_str_radix` takes, so `<0x+F>`.)
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|it| it.strip_suffix('>'));
    digits.is_some_and(|it| it.len() == 2 && u8::from_str_radix(it, 16).is_ok())
}

/// The `Strip` decoder on tokens. (Its own code panics on tokens shorter than what it strips.)
#[derive(Debug)]
pub(super) struct StripToken<'t> {
    strip: &'t Strip,
}

impl<'t> StripToken<'t> {
    pub(super) fn new(strip: &'t Strip) -> Self {
        Self { strip }
    }
}

impl Stage for StripToken<'_> {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<()> {
        let Strip { content, start, stop, .. } = *self.strip;
        let mut rest = token.as_str();
        for _ in 0..start {
            rest = rest.strip_prefix(content).unwrap_or(rest);
        }
        for _ in 0..stop {
            rest = rest.strip_suffix(content).unwrap_or(rest);
        }
        out.push(rest.to_owned());
        Ok(())
    }
}

/// The `Strip` decoder on a text that comes in fragments.
#[derive(Debug)]
pub(super) struct StripText<'t> {
    strip: &'t Strip,
    /// How many characters may still be stripped at the start.
    to_strip: usize,
    /// How many strippable characters are held back because they may be the text's last.
    held: usize,
}

impl<'t> StripText<'t> {
    pub(super) fn new(strip: &'t Strip) -> Self {
        Self { strip, to_strip: strip.start, held: 0 }
    }
}

impl Stage for StripText<'_> {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<()> {
        let mut text = String::with_capacity(token.len());
        for it in token.chars() {
            if it == self.strip.content && self.to_strip > 0 {
                self.to_strip -= 1;
                continue;
            }
            self.to_strip = 0;
            if it == self.strip.content && self.held < self.strip.stop {
                self.held += 1;
                continue;
            }
            // A strippable character behind `held` of its kind lets the first of those go.
            if it != self.strip.content {
                text.extend(std::iter::repeat_n(self.strip.content, self.held));
                self.held = 0;
            }
            text.push(it);
        }
        out.push(text);
        Ok(())
    }
}

/// Decoders that cannot work on fragments of one token: they get all of it at the end.
#[derive(Debug)]
pub(super) struct Rest<'t> {
    decoders: Chain<'t>,
    text: String,
}

impl<'t> Rest<'t> {
    pub(super) fn new(decoders: Chain<'t>) -> Self {
        Self { decoders, text: String::new() }
    }
}

impl Stage for Rest<'_> {
    fn push(&mut self, token: String, _: &mut Vec<String>) -> Result<()> {
        self.text.push_str(&token);
        Ok(())
    }

    fn finish(&mut self) -> Result<Vec<String>> {
        let mut out = Vec::new();
        self.decoders.push(std::mem::take(&mut self.text), &mut out)?;
        out.extend(self.decoders.finish()?);
        Ok(out)
    }
}
