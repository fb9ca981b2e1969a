//! What the handlers of requests share: everything about the model that needs no arrays, the registered
//! vectors, the queue.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use mlx_genkit::{
    Error, GenerationConfig, Model,
    generation_config::Resolved,
    sampling::{CompiledGrammar, Rules, Text},
    tokenizer_bridge::{CallFormat, ChatTemplate, Tokenizer},
};

use tokio::sync::Semaphore;

use crate::{Options, metrics::Metrics, queue::Queue, refusal::Refusal, vectors::Vectors};

/// Files of vectors that are read at a time.
const UPLOADS: usize = 4;

/// What the handlers share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) about: About,
    pub(crate) vectors: Vectors,
    pub(crate) queue: Arc<Queue>,
    pub(crate) metrics: Metrics,
    pub(crate) api_key: Option<String>,
    /// Whether only programs on this machine reach the server.
    pub(crate) is_local: bool,
    pub(crate) cors_origin: Option<String>,
    /// Places for vectors' files that are being read.
    pub(crate) uploads: Semaphore,
    pub(crate) max_rows: usize,
    pub(crate) max_tokens: usize,
}

/// What is known of the model without its arrays, which belong to the engine's thread.
#[derive(Debug)]
pub(crate) struct About {
    /// What requests call it.
    pub(crate) id: String,
    /// When the server began, in seconds since 1970.
    pub(crate) created: u64,
    /// The tokenizer with what grammars make of it; the model's own, which shares what is compiled.
    text: Option<Text>,
    template: Result<ChatTemplate, Error>,
    /// In what form the model calls tools, where that is known.
    pub(crate) call_format: Option<CallFormat>,
    /// The words of that form that are special tokens.
    pub(crate) marks: Vec<(&'static str, u32)>,
    pub(crate) generation_config: GenerationConfig,
    /// How many tokens a text can have.
    pub(crate) context: usize,
    pub(crate) vocab: usize,
    pub(crate) width: usize,
    pub(crate) layers: usize,
}

impl App {
    pub(crate) fn new(
        options: Options,
        address: SocketAddr,
        model: &Model,
        vectors: Vectors,
        queue: Arc<Queue>,
    ) -> Self {
        Self {
            about: About::new(options.model, model),
            vectors,
            queue,
            metrics: Metrics::default(),
            api_key: options.api_key,
            is_local: address.ip().is_loopback(),
            cors_origin: options.cors_origin,
            uploads: Semaphore::new(UPLOADS),
            max_rows: options.max_rows,
            max_tokens: options.max_tokens,
        }
    }
}

impl About {
    fn new(id: String, model: &Model) -> Self {
        let decoder = model.decoder();
        let text = model.text().cloned();
        let tokenizer = text.as_ref().map(Text::tokenizer);
        let template = model.chat_template().cloned();
        let call_format = template.as_ref().ok().and_then(ChatTemplate::call_format);
        let marks = call_format.zip(tokenizer).map(|(form, it)| form.special_marks(it));
        Self {
            id,
            created: now(),
            marks: marks.unwrap_or_default(),
            call_format,
            text,
            template,
            generation_config: model.generation_config().clone(),
            context: decoder.max_positions(),
            vocab: decoder.vocab_size(),
            width: decoder.hidden_size(),
            layers: decoder.components().layers,
        }
    }

    /// The special token that a word of the form of calls is, where it is one.
    pub(crate) fn mark(&self, word: &str) -> Option<u32> {
        self.marks.iter().find(|it| it.0 == word).map(|it| it.1)
    }

    /// The tokenizer, where the model has one.
    pub(crate) fn tokenizer(&self) -> Result<&Tokenizer, Refusal> {
        self.text.as_ref().map(Text::tokenizer).ok_or_else(|| {
            Refusal::request("the model has no tokenizer; give the prompt as token ids instead")
        })
    }

    /// The grammar that an answer has to fit, where there is one. It is compiled here, where nobody waits for
    /// it but who asks; the engine takes it from there as long as it is held.
    pub(crate) fn compile(&self, resolved: &Resolved) -> Result<Option<CompiledGrammar>, Refusal> {
        // Without a tokenizer the engine says which field needs one.
        let Some(text) = &self.text else { return Ok(None) };
        let refuse = |e| Refusal::from(Error::from(e)).about(Rules::field_about_text(resolved));
        text.compile(resolved).map_err(refuse)
    }

    /// The chat template, where the model has one.
    pub(crate) fn template(&self) -> Result<&ChatTemplate, Refusal> {
        // Without a tokenizer a missing chat template is not worth mentioning.
        self.tokenizer()?;
        self.template.as_ref().map_err(|e| Refusal::request(e.to_string()))
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs())
}
