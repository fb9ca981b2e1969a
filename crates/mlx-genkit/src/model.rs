//! A model ready to use: decoder, tokenizer, chat template and generation defaults.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use mlxgk_generation_config::{Error as FieldError, GenerationConfig, OneOrMany, read_json};
use mlxgk_mlx_models::{ComputeDtype, Decoder, MtpHeads};
use mlxgk_sampling::Text;
use mlxgk_tokenizer_bridge::{
    ChatTemplate, Error as TemplateError, ErrorKind as TemplateErrorKind, Files, SpecialIds,
    Tokenizer,
};
use serde_json::Value;

use crate::{Error, ErrorKind, Result};

/// A model with its tokenizer, chat template and generation defaults: all that a model folder holds.
///
/// ```
/// use mlx_genkit::{ComputeDtype, Message, Model, Request};
///
/// // The model inside the library; `Model::load` takes a folder.
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// assert!(model.has_tokenizer() && model.has_chat_template());
/// assert_eq!(model.decoder().layers().len(), 5);
/// let question = vec![Message::new("user", "How is the sea?")];
/// println!("{}", model.generate(Request::new(question))?.sequences[0].text);
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug)]
pub struct Model {
    decoder: Decoder,
    text: Option<Text>,
    /// A broken template is an error only for those who use it.
    chat_template: Result<ChatTemplate, TemplateError>,
    generation_config: GenerationConfig,
    name: String,
    /// Made for the first that asks.
    fingerprint: OnceLock<String>,
    /// Where the weights are, and whether they stay there until they are computed with; `None` for those of
    /// the library itself.
    weights: Option<(PathBuf, bool)>,
    /// Loaded for the first that asks; `None` where there are none.
    heads: OnceLock<Option<MtpHeads>>,
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
        let model = Self::assemble(folder.display().to_string(), decoder, &files)?;
        Ok(Self { weights: Some((folder.to_owned(), false)), ..model })
    }

    /// As [`load`](Self::load), but weights are read from the files when they are first needed: for
    /// questions about a request ([`plan`](Self::plan)) that is never run.
    ///
    /// # Errors
    /// As [`load`](Self::load); a damaged weight is found when it is needed.
    pub fn load_lazily(folder: impl AsRef<Path>, dtype: ComputeDtype) -> Result<Self> {
        let folder = folder.as_ref();
        let decoder = Decoder::load_lazily(folder, dtype)?;
        let files = Files::from_folder(folder)?;
        let model = Self::assemble(folder.display().to_string(), decoder, &files)?;
        Ok(Self { weights: Some((folder.to_owned(), true)), ..model })
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

    /// Writes the small model inside the library as a folder, which then loads, converts and trains as any
    /// other.
    ///
    /// ```
    /// use mlx_genkit::{ComputeDtype, Model};
    ///
    /// let folder = tempfile::tempdir()?;
    /// Model::write_bundled(folder.path())?;
    /// assert!(Model::load(folder.path(), ComputeDtype::Auto)?.tokenizer().is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// When a file cannot be written; the message names it.
    #[cfg(feature = "bundled")]
    pub fn write_bundled(folder: impl AsRef<Path>) -> Result<()> {
        crate::bundled::write(folder.as_ref())
    }

    pub(crate) fn assemble(name: String, decoder: Decoder, files: &Files<'_>) -> Result<Self> {
        let tokenizer = match files.tokenizer {
            Some(_) => Some(Tokenizer::from_files(files)?),
            None => None,
        };
        let chat_template = ChatTemplate::from_files(files);
        let mut generation_config = generation_config(files)?;
        if files.generation_config.is_none() {
            // HF knows the end token from the two configs alone. A folder that only its tokenizer
            // tells where an answer ends would never stop.
            let ids = SpecialIds::from_files(files, tokenizer.as_ref())?;
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
            text: tokenizer.map(Text::from),
            chat_template,
            generation_config,
            name,
            fingerprint: OnceLock::new(),
            weights: None,
            heads: OnceLock::new(),
        })
    }

    /// The same model with the tokenizer and chat template of another folder; its end and pad tokens
    /// count where the model's own configuration names none.
    ///
    /// ```
    /// use mlx_genkit::{ComputeDtype, Model, Request};
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let (weights, tokenizer) = (folder.path().join("weights"), folder.path().join("tokenizer"));
    /// # for it in [&weights, &tokenizer] {
    /// #     std::fs::create_dir(it)?;
    /// #     Model::write_bundled(it)?;
    /// # }
    /// # std::fs::remove_file(weights.join("tokenizer.json"))?;
    /// let model = Model::load(&weights, ComputeDtype::Auto)?;
    /// assert!(!model.has_tokenizer());
    /// let model = model.with_tokenizer(&tokenizer)?;
    /// println!("{}", model.generate(Request::new("Once"))?.sequences[0].text);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
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
        let (decoder, own, weights) = (self.decoder, self.generation_config, self.weights);
        let mut model = Self { weights, ..Self::assemble(self.name, decoder, &files)? };
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

    /// The graph and its weights, to be trained or adapted.
    pub fn decoder_mut(&mut self) -> &mut Decoder {
        // It may be another model from here on, whose ends the heads share.
        self.fingerprint.take();
        self.heads.take();
        &mut self.decoder
    }

    /// Loads a LoRA or DoRA adapter, of PEFT or of mlx-lm, and sets it on the model. Returns how many
    /// products it is for.
    ///
    /// ```
    /// use mlx_genkit::{ComputeDtype, Model};
    ///
    /// # use mlx_genkit::training::{
    /// #     AdapterFormat, LoraConfig, attach_lora, clear_adapters, save_adapter,
    /// # };
    /// # let mut model = Model::bundled(ComputeDtype::Auto)?;
    /// # attach_lora(model.decoder_mut(), &LoraConfig::default())?;
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let pirate = folder.path();
    /// # save_adapter(model.decoder(), pirate, AdapterFormat::Peft, "bundled")?;
    /// # clear_adapters(model.decoder_mut());
    /// // `pirate` is a folder of PEFT or of mlx-lm.
    /// let products = model.load_adapter(pirate)?;
    /// assert_eq!(products, 7 * model.decoder().layers().len());
    /// # Ok::<(), mlx_genkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// When a file is missing or damaged, the adapter is of a kind that is not supported, or it is for
    /// another model. The model is then as it was.
    pub fn load_adapter(&mut self, folder: impl AsRef<Path>) -> Result<usize> {
        Ok(mlxgk_training::load_adapter(self.decoder_mut(), folder)?)
    }

    /// Adds a LoRA adapter to those that are set: what each changes is added up.
    ///
    /// # Errors
    /// As [`load_adapter`](Self::load_adapter), and when one of two adapters for the same product is DoRA.
    pub fn add_adapter(&mut self, folder: impl AsRef<Path>) -> Result<usize> {
        Ok(mlxgk_training::add_adapter(self.decoder_mut(), folder)?)
    }

    /// Loads a LoRA adapter beside others, for requests that [choose](crate::Request::adapter) it by
    /// `name`. Returns how many products it is for.
    ///
    /// # Errors
    /// As [`load_adapter`](Self::load_adapter), and when the name is taken, or the adapter is DoRA or for
    /// a product outside the blocks.
    pub fn load_named_adapter(&mut self, name: &str, folder: impl AsRef<Path>) -> Result<usize> {
        // Caches know by name and contents what their rows were filled under; the model stays itself.
        Ok(mlxgk_training::load_named_adapter(&mut self.decoder, name, folder)?)
    }

    /// What makes tokens of training data for this model.
    ///
    /// # Errors
    /// When the model has no tokenizer.
    pub fn encoder<'a>(&'a self, ends: &'a [u32]) -> Result<mlxgk_training::Encoder<'a>> {
        Ok(mlxgk_training::Encoder {
            tokenizer: self.tokenizer()?,
            template: self.chat_template.as_ref().ok(),
            ends,
            context: self.decoder.max_positions(),
        })
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// When the folder has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.text().map(Text::tokenizer).ok_or_else(|| {
            let what = format!(
                "{} has no tokenizer.json; give the prompt as token ids instead",
                self.name
            );
            Error::new(ErrorKind::Model, what)
        })
    }

    /// The tokenizer with what grammars make of it, where there is one.
    pub fn text(&self) -> Option<&Text> {
        self.text.as_ref()
    }

    /// Whether there is a tokenizer.
    pub fn has_tokenizer(&self) -> bool {
        self.text.is_some()
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

    /// What tells its caches from another model's.
    pub(crate) fn fingerprint(&self) -> Result<&str> {
        if let Some(fingerprint) = self.fingerprint.get() {
            return Ok(fingerprint);
        }
        let fingerprint = self.decoder.fingerprint()?;
        Ok(self.fingerprint.get_or_init(|| fingerprint))
    }

    /// The heads that guess further tokens (`use_mtp`), which are loaded for the first that asks.
    pub(crate) fn mtp_heads(&self) -> Result<&MtpHeads> {
        let heads = match self.heads.get() {
            Some(heads) => heads,
            None => {
                let loaded = match &self.weights {
                    None => None,
                    Some((folder, true)) => MtpHeads::load_lazily(folder, &self.decoder)?,
                    Some((folder, false)) => MtpHeads::load(folder, &self.decoder)?,
                };
                self.heads.get_or_init(|| loaded)
            }
        };
        heads.as_ref().ok_or_else(|| {
            let left_out = self.decoder.skipped().iter().find(|it| it.part.contains("mtp"));
            let what = match left_out {
                Some(heads) => format!(
                    "`use_mtp` is true, but the multi-token-prediction heads of {} models, which {} has under \
                     `{}`, are not supported",
                    self.decoder.model_type(),
                    self.name,
                    heads.part
                ),
                None => format!(
                    "`use_mtp` is true, but {} has no multi-token-prediction heads: few models are \
                     published with them, and conversions leave them out",
                    self.name
                ),
            };
            Error::of_field("use_mtp", what)
        })
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
            let value = read_json(bytes).map_err(|e| wrong(format!("{name} {e}")))?;
            read(&value).map_err(|e| wrong(format!("{name}: {e}")))
        };
    match (&files.generation_config, &files.config) {
        (Some(bytes), _) => read("generation_config.json", bytes, GenerationConfig::from_json),
        (None, Some(bytes)) => read("config.json", bytes, GenerationConfig::from_model_config),
        (None, None) => Ok(GenerationConfig::default()),
    }
}
