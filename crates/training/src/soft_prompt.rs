//! Soft prompts: embeddings without tokens, placed before a text (prompt tuning, Lester et al.,
//! 2021), in PEFT's files.
//!
//! They are what the first block is given. Families that multiply their embeddings by a factor (Gemma)
//! do not multiply these again, and neither does PEFT.

use std::{fs, path::Path};

use mlx_rs::{Array, Dtype, random};
use mlxgk_mlx_models::Decoder;
use mlxgk_torch::TorchRng;
use serde_json::json;

use crate::{
    Error, ErrorKind, Result,
    adapters::{read_config, write_config},
    files,
    files::failed,
    head::host,
};

const WEIGHTS: &str = "adapter_model.safetensors";
const TENSOR: &str = "prompt_embeddings";

/// The longest file: a thousand virtual tokens of the largest models take 64 MB.
const LONGEST: u64 = 512 << 20;

/// Embeddings that precede a text, `[virtual tokens, hidden]` (prompt tuning, Lester et al., 2021).
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder};
/// use mlxgk_training::SoftPrompt;
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// // Four virtual tokens, which begin as the embeddings of three words.
/// let prompt = SoftPrompt::from_tokens(&model, &[5, 9, 14], 4)?;
/// assert_eq!(prompt.embeddings().shape(), [4, model.hidden_size() as i32]);
/// let folder = tempfile::tempdir()?;
/// prompt.save(folder.path(), "./llama")?;
/// assert_eq!(SoftPrompt::load(folder.path())?.rows()?, prompt.rows()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct SoftPrompt {
    embeddings: Array,
}

impl SoftPrompt {
    /// A soft prompt of these embeddings, which are evaluated here.
    ///
    /// # Errors
    /// When they are not a matrix of floats with at least one row.
    pub fn new(embeddings: &Array) -> Result<Self> {
        if embeddings.ndim() != 2 || embeddings.dim(0) < 1 || !embeddings.dtype().is_float() {
            let (dtype, shape) = (embeddings.dtype(), embeddings.shape());
            let what = format!("a soft prompt is a float matrix, found {dtype:?} {shape:?}");
            return Err(Error::new(ErrorKind::Adapter, what));
        }
        let embeddings = embeddings.as_dtype(Dtype::Float32)?;
        embeddings.eval()?;
        Ok(Self { embeddings })
    }

    /// Noise with the spread of the model's own embeddings. (PEFT draws with a spread of 1, which can be
    /// far from any token.)
    ///
    /// # Errors
    /// When it is to have no token, or MLX fails.
    pub fn random(decoder: &Decoder, virtual_tokens: usize, seed: u64) -> Result<Self> {
        let sample = Self::from_vocabulary(decoder, 256, seed)?;
        let spread = mlx_rs::ops::std(&sample.embeddings, None, None)?;
        let shape = [count(virtual_tokens)?, decoder.hidden_size() as i32];
        let noise = random::normal::<f32>(&shape, None, None, &random::key(seed)?)?;
        Self::new(&noise.multiply(spread)?)
    }

    /// The embeddings of tokens drawn from the vocabulary (PEFT's `SAMPLE_VOCAB`).
    ///
    /// # Errors
    /// When it is to have no token, or MLX fails.
    pub fn from_vocabulary(decoder: &Decoder, virtual_tokens: usize, seed: u64) -> Result<Self> {
        let mut rng = TorchRng::new(seed);
        let vocab = decoder.vocab_size() as u64;
        let ids: Vec<u32> = (0..virtual_tokens).map(|_| rng.randint(vocab) as u32).collect();
        Self::from_tokens(decoder, &ids, virtual_tokens)
    }

    /// The embeddings of a text's tokens, repeated or cut to fit (PEFT's `TEXT`).
    ///
    /// # Errors
    /// When there is no token, or one is outside the vocabulary.
    pub fn from_tokens(decoder: &Decoder, ids: &[u32], virtual_tokens: usize) -> Result<Self> {
        let count = count(virtual_tokens)?;
        let vocab = decoder.vocab_size();
        if let Some(id) = ids.iter().find(|it| **it as usize >= vocab) {
            let what = format!("token id {id} is outside the vocabulary of {vocab}");
            return Err(Error::data(what));
        }
        if ids.is_empty() {
            return Err(Error::config("a soft prompt cannot be initialized from an empty text"));
        }
        let ids: Vec<u32> = ids.iter().copied().cycle().take(virtual_tokens).collect();
        let embedded = decoder.embed(&Array::from_slice(&ids, &[1, count]))?;
        Self::new(&embedded.squeeze_axes(&[0])?)
    }

    /// `[virtual tokens, hidden]`, fp32.
    pub fn embeddings(&self) -> &Array {
        &self.embeddings
    }

    /// How many virtual tokens it has.
    pub fn len(&self) -> usize {
        self.embeddings.dim(0) as usize
    }

    /// Never: a soft prompt has at least one virtual token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The embeddings of each virtual token.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn rows(&self) -> Result<Vec<Vec<f32>>> {
        let width = self.embeddings.dim(1).max(1) as usize;
        Ok(host(&self.embeddings)?.chunks(width).map(<[f32]>::to_vec).collect())
    }

    /// Reads the folder of a PEFT prompt tuning, or its file of weights.
    ///
    /// # Errors
    /// When a file is missing, damaged, or holds something else.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = if path.is_dir() {
            let config = read_config(path)?;
            if config["peft_type"] != "PROMPT_TUNING" {
                let kind = &config["peft_type"];
                let what =
                    format!("holds peft_type {kind}, and a soft prompt is \"PROMPT_TUNING\"");
                return Err(failed(path, what));
            }
            path.join(WEIGHTS)
        } else {
            path.to_owned()
        };
        let mut arrays = files::read(&file, LONGEST)?.arrays;
        let found = arrays
            .remove(TENSOR)
            .ok_or_else(|| failed(&file, format_args!("has no `{TENSOR}`")))?;
        if let Some(name) = arrays.keys().next() {
            return Err(failed(&file, format_args!("`{name}` does not belong to a soft prompt")));
        }
        Self::new(&found)
    }

    /// Writes the folder of a PEFT prompt tuning. `base` is the name of the model it is for.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>, base: &str) -> Result<()> {
        let folder = folder.as_ref();
        fs::create_dir_all(folder)
            .map_err(|e| failed(folder, format_args!("cannot be made: {e}")))?;
        let tensors = [(TENSOR.to_owned(), self.embeddings.clone())];
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        files::write(&folder.join(WEIGHTS), &tensors, metadata)?;
        let config = json!({
            "peft_type": "PROMPT_TUNING",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "inference_mode": true,
            "num_virtual_tokens": self.len(),
            "token_dim": self.embeddings.dim(1),
            "num_transformer_submodules": 1,
            "prompt_tuning_init": "RANDOM",
        });
        write_config(folder, &config)
    }
}

fn count(virtual_tokens: usize) -> Result<i32> {
    match i32::try_from(virtual_tokens) {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(Error::config(format!("a soft prompt of {virtual_tokens} virtual tokens"))),
    }
}
