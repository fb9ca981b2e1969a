//! A model ready to use: decoder, tokenizer, chat template and generation defaults.

#[cfg(feature = "grammars")]
use std::sync::OnceLock;
use std::{path::Path, sync::Arc};

use mlxgk_generation_config::{Error as FieldError, GenerationConfig, OneOrMany};
#[cfg(feature = "grammars")]
use mlxgk_grammars::Vocabulary;
use mlxgk_mlx_models::{ComputeDtype, Decoder};
use mlxgk_tokenizer_bridge::{
    ChatTemplate, Error as TemplateError, ErrorKind as TemplateErrorKind, Files, SpecialIds,
    Tokenizer,
};
use serde_json::Value;

use crate::{Error, ErrorKind, Result};

/// Everything a model folder holds.
#[derive(Debug)]
pub struct Model {
    decoder: Decoder,
    tokenizer: Option<Arc<Tokenizer>>,
    /// The tokens as grammars see them, made for the first that asks.
    #[cfg(feature = "grammars")]
    grammar_vocabulary: OnceLock<Vocabulary>,
    /// A broken template is an error only for those who use it.
    chat_template: Result<ChatTemplate, TemplateError>,
    generation_config: GenerationConfig,
    name: String,
}

impl Model {
    /// Loads a model folder as HF or mlx-lm write it: `config.json`, safetensors, and what there is of
    /// `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` and `generation_config.json`.
    ///
    /// A folder without a tokenizer works with token ids.
    ///
    /// # Errors
    /// When a file is missing, damaged or does not fit the others; the message names it.
    pub fn load(folder: impl AsRef<Path>, dtype: ComputeDtype) -> Result<Self> {
        let folder = folder.as_ref();
        let decoder = Decoder::load(folder, dtype)?;
        let files = Files::from_folder(folder)?;
        Self::assemble(folder.display().to_string(), decoder, &files)
    }

    /// The small model inside the library: Qwen3-shaped, about 3 million parameters, taught to
    /// chat in four voices. For first runs, examples and tests.
    ///
    /// # Errors
    /// When MLX fails.
    #[cfg(feature = "bundled")]
    pub fn bundled(dtype: ComputeDtype) -> Result<Self> {
        crate::bundled::load(dtype)
    }

    pub(crate) fn assemble(name: String, decoder: Decoder, files: &Files<'_>) -> Result<Self> {
        let tokenizer = match files.tokenizer {
            Some(_) => Some(Arc::new(Tokenizer::from_files(files)?)),
            None => None,
        };
        let chat_template = ChatTemplate::from_files(files);
        let mut generation_config = generation_config(files)?;
        if files.generation_config.is_none() {
            // HF knows the end token from the two configs alone. A folder that only its tokenizer
            // tells where an answer ends would never stop.
            let ids = SpecialIds::from_files(files, tokenizer.as_deref())?;
            if generation_config.eos_token_id.is_none() && !ids.eos.is_empty() {
                let eos = ids.eos.iter().map(|&id| id.into()).collect();
                generation_config.eos_token_id = Some(OneOrMany::Many(eos));
            }
            if generation_config.pad_token_id.is_none() {
                generation_config.pad_token_id = ids.pad.map(Into::into);
            }
        }
        Ok(Self {
            decoder,
            tokenizer,
            #[cfg(feature = "grammars")]
            grammar_vocabulary: OnceLock::new(),
            chat_template,
            generation_config,
            name,
        })
    }

    /// The same model with the tokenizer and chat template of another folder; its end and pad tokens
    /// count where the model's own configuration names none.
    ///
    /// ```no_run
    /// use mlx_genkit::{ComputeDtype, Model};
    ///
    /// let model = Model::load("./weights", ComputeDtype::Auto)?.with_tokenizer("./tokenizer")?;
    /// # Ok::<(), mlx_genkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the folder has no tokenizer that can be used, or one with more tokens than the model has
    /// embeddings.
    pub fn with_tokenizer(self, folder: impl AsRef<Path>) -> Result<Self> {
        let files = Files::from_folder(folder.as_ref())?;
        let files = Files { config: None, generation_config: None, ..files };
        let tokenizer = Tokenizer::from_files(&files)?;
        let (tokens, embeddings) = (tokenizer.vocab_size(), self.decoder.vocab_size());
        if tokens > embeddings {
            let what = format!(
                "the tokenizer in {} has {tokens} tokens, but {} has embeddings for {embeddings}",
                folder.as_ref().display(),
                self.name
            );
            return Err(Error::new(ErrorKind::Model, what));
        }
        let (decoder, own) = (self.decoder, self.generation_config);
        let mut model = Self::assemble(self.name, decoder, &files)?;
        let ids = std::mem::replace(&mut model.generation_config, own);
        let own = &mut model.generation_config;
        own.eos_token_id = own.eos_token_id.take().or(ids.eos_token_id);
        own.pad_token_id = own.pad_token_id.take().or(ids.pad_token_id);
        Ok(model)
    }

    /// The graph and its weights.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// When the folder has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_deref().ok_or_else(|| {
            let what = format!(
                "{} has no tokenizer.json; give the prompt as token ids instead",
                self.name
            );
            Error::new(ErrorKind::Model, what)
        })
    }

    /// The tokenizer, to be shared.
    pub(crate) fn shared_tokenizer(&self) -> Option<Arc<Tokenizer>> {
        self.tokenizer.clone()
    }

    /// The tokens as grammars see them, with these end tokens.
    #[cfg(feature = "grammars")]
    pub(crate) fn grammar_vocabulary(&self, eos: &[u32]) -> Result<Vocabulary> {
        if let Some(vocabulary) = self.grammar_vocabulary.get() {
            return Ok(vocabulary.with_eos(eos)?);
        }
        let vocabulary = Vocabulary::from_tokenizer(self.tokenizer()?, eos)?;
        Ok(self.grammar_vocabulary.get_or_init(|| vocabulary).clone())
    }

    /// Whether there is a tokenizer.
    pub fn has_tokenizer(&self) -> bool {
        self.tokenizer.is_some()
    }

    /// The chat template.
    ///
    /// # Errors
    /// When the model has none, or one that cannot be used.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        self.chat_template.as_ref().map_err(|e| match e.kind() {
            TemplateErrorKind::MissingTemplate => {
                let what =
                    format!("{} has no chat template; give the prompt as plain text", self.name);
                Error::new(ErrorKind::Request, what)
            }
            _ => e.clone().into(),
        })
    }

    /// Whether there is a chat template.
    pub fn has_chat_template(&self) -> bool {
        !matches!(&self.chat_template, Err(e) if e.kind() == TemplateErrorKind::MissingTemplate)
    }

    /// The model's own generation defaults (`generation_config.json`, or the fields that old
    /// folders keep in `config.json`).
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation_config
    }

    /// The folder it was loaded from.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn generation_config(files: &Files<'_>) -> Result<GenerationConfig> {
    let read =
        |name: &str, bytes: &[u8], read: fn(&Value) -> Result<GenerationConfig, FieldError>| {
            let name = match &files.folder {
                Some(folder) => folder.join(name).display().to_string(),
                None => name.to_owned(),
            };
            let wrong = |what: String| Error::new(ErrorKind::Request, what);
            let value = serde_json::from_slice(bytes)
                .map_err(|e| wrong(format!("{name} is not valid JSON: {e}")))?;
            read(&value).map_err(|e| wrong(format!("{name}: {e}")))
        };
    match (&files.generation_config, &files.config) {
        (Some(bytes), _) => read("generation_config.json", bytes, GenerationConfig::from_json),
        (None, Some(bytes)) => read("config.json", bytes, GenerationConfig::from_model_config),
        (None, None) => Ok(GenerationConfig::default()),
    }
}
