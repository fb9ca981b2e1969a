//! The decoders of the `tokenizers` crate as stages that see one token at a time.
//!
//! Wherever a decoder's answer depends on one token, or on a few that can be held, the stage asks the
//! decoder itself, so that the two cannot disagree.

use std::{fmt, sync::Arc};

use tokenizers::decoders::strip::Strip;
use tokenizers::{Decoder, DecoderWrapper, Result};

/// One step of the chain: takes tokens, gives tokens, and may hold some back until the end.
pub(super) trait Stage: fmt::Debug + Send {
    /// Takes one token and appends to `out` what is certain now.
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<()>;

    /// Gives what was held back.
    fn finish(&mut self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

/// Stages one after another.
#[derive(Debug, Default)]
pub(super) struct Chain(pub(super) Vec<Box<dyn Stage>>);

impl Chain {
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

impl Stage for Chain {
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
pub(super) struct Each {
    decoder: Arc<DecoderWrapper>,
}

impl Each {
    pub(super) fn new(decoder: Arc<DecoderWrapper>) -> Self {
        Self { decoder }
    }
}

impl Stage for Each {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<()> {
        out.extend(self.decoder.decode_chain(vec![token])?);
        Ok(())
    }
}

/// A decoder that treats the first token differently from all others.
#[derive(Debug)]
pub(super) struct Positional {
    decoder: Arc<DecoderWrapper>,
    begun: bool,
}

impl Positional {
    pub(super) fn new(decoder: Arc<DecoderWrapper>) -> Self {
        Self { decoder, begun: false }
    }
}

impl Stage for Positional {
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
pub(super) struct WordEnd {
    decoder: Arc<DecoderWrapper>,
    last: Option<String>,
}

impl WordEnd {
    pub(super) fn new(decoder: Arc<DecoderWrapper>) -> Self {
        Self { decoder, last: None }
    }
}

impl Stage for WordEnd {
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
pub(super) struct RepeatsOnce {
    decoder: Arc<DecoderWrapper>,
    previous: Option<String>,
}

impl RepeatsOnce {
    pub(super) fn new(decoder: Arc<DecoderWrapper>) -> Self {
        Self { decoder, previous: None }
    }
}

impl Stage for RepeatsOnce {
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
pub(super) struct ByteFallback {
    decoder: Arc<DecoderWrapper>,
    run: Vec<String>,
}

impl ByteFallback {
    pub(super) fn new(decoder: Arc<DecoderWrapper>) -> Self {
        Self { decoder, run: Vec::new() }
    }
}

impl Stage for ByteFallback {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<()> {
        if decoder_byte(&token).is_some() {
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

/// The byte as which the decoder reads the token. (It takes what `from_str_radix` takes, so `<0x+F>`.)
pub(super) fn decoder_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2)
}

/// The `Strip` decoder on tokens. (Its own code panics on tokens shorter than what it strips.)
#[derive(Debug)]
pub(super) struct StripToken {
    content: char,
    start: usize,
    stop: usize,
}

impl StripToken {
    pub(super) fn new(strip: &Strip) -> Self {
        Self { content: strip.content, start: strip.start, stop: strip.stop }
    }
}

impl Stage for StripToken {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<()> {
        out.push(self.strip(&token).to_owned());
        Ok(())
    }
}

impl StripToken {
    /// What is left of a token.
    pub(super) fn strip<'a>(&self, token: &'a str) -> &'a str {
        // No token has more to strip than characters, whatever number the file gives.
        let most = |count: usize| count.min(token.len());
        let mut rest = token;
        for _ in 0..most(self.start) {
            rest = rest.strip_prefix(self.content).unwrap_or(rest);
        }
        for _ in 0..most(self.stop) {
            rest = rest.strip_suffix(self.content).unwrap_or(rest);
        }
        rest
    }
}

/// The `Strip` decoder on a text that comes in fragments.
#[derive(Debug)]
pub(super) struct StripText {
    content: char,
    /// How many characters may be stripped at the end.
    stop: usize,
    /// How many characters may still be stripped at the start.
    to_strip: usize,
    /// How many strippable characters are held back because they may be the text's last.
    held: usize,
}

impl StripText {
    pub(super) fn new(strip: &Strip) -> Self {
        Self { content: strip.content, stop: strip.stop, to_strip: strip.start, held: 0 }
    }
}

impl Stage for StripText {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<()> {
        let mut text = String::with_capacity(token.len());
        for it in token.chars() {
            if it == self.content && self.to_strip > 0 {
                self.to_strip -= 1;
                continue;
            }
            self.to_strip = 0;
            if it == self.content && self.held < self.stop {
                self.held += 1;
                continue;
            }
            // A strippable character after `held` of its kind lets the first of those go.
            if it != self.content {
                text.extend(std::iter::repeat_n(self.content, self.held));
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
pub(super) struct Rest {
    decoders: Chain,
    text: String,
}

impl Rest {
    pub(super) fn new(decoders: Chain) -> Self {
        Self { decoders, text: String::new() }
    }
}

impl Stage for Rest {
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
