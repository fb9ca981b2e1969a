//! From files to a decoder.

use std::path::Path;

use mlx_rs::Dtype;

use crate::{
    Decoder, Error, ErrorKind, Result,
    block::Block,
    checkpoint::{self, Tensors},
    config::{Config, Dims},
    decoder::{ComputeDtype, DecoderOptions},
    embedding::Embedding,
    families, foreign,
    norm::RmsNorm,
    row_adapters::NamedAdapters,
    weights::Weights,
};

impl Decoder {
    /// Loads a folder with `config.json` and safetensors, as HF or mlx-lm write it.
    ///
    /// # Errors
    /// When a file is missing or damaged, the model type is unknown, or the tensors are not exactly
    /// those that the config calls for.
    pub fn load(folder: impl AsRef<Path>, dtype: ComputeDtype) -> Result<Self> {
        Self::open(folder.as_ref(), dtype, false)
    }

    /// As [`load`](Self::load), but most weights are only opened: names, shapes and dtypes are checked,
    /// and each is read when it is first computed with.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_lazily(folder: impl AsRef<Path>, dtype: ComputeDtype) -> Result<Self> {
        Self::open(folder.as_ref(), dtype, true)
    }

    fn open(folder: &Path, dtype: ComputeDtype, is_lazy: bool) -> Result<Self> {
        if !folder.is_dir() {
            let name = folder.display();
            let what = match folder.exists() {
                true => format!("{name} is a file; a model is a folder with config.json"),
                false => format!("there is no folder {name}"),
            };
            return Err(Error::new(ErrorKind::File, what));
        }
        let config = Config::read(&folder.join("config.json"))?;
        let config = foreign::with_settings_beside(config, folder)?;
        // An unknown model type is reported before the weights are looked for.
        families::check(&config)?;
        let tensors = checkpoint::open(folder)?;
        build(config, folder.display().to_string(), tensors, dtype.resolve()?, is_lazy)
    }

    /// Loads a model whose files are in memory.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_bytes(config: &[u8], weights: &[u8], dtype: ComputeDtype) -> Result<Self> {
        let config = Config::parse("config.json", config)?;
        families::check(&config)?;
        let name = "model.safetensors";
        let tensors = checkpoint::parse(name, weights)?;
        build(config, name.to_owned(), tensors, dtype.resolve()?, false)
    }
}

fn build(
    config: Config,
    name: String,
    tensors: Tensors,
    dtype: Option<Dtype>,
    is_lazy: bool,
) -> Result<Decoder> {
    let config = config.for_weights(checkpoint::numbers(&tensors));
    let weights = Weights::new(name, tensors, &config, dtype)?.lazy(is_lazy);
    families::build(&config, weights)
}

/// Loads the parts around a family's blocks, puts all together, and checks that no tensor is left
/// over.
pub(crate) fn assemble(
    model_type: &str,
    dims: Dims,
    mut weights: Weights,
    norm: RmsNorm,
    blocks: Vec<Box<dyn Block>>,
    options: DecoderOptions,
) -> Result<Decoder> {
    let dtype = weights.dtype();
    let (embedding, head) = match weights.shared_ends() {
        Some(shared) => shared,
        None => {
            let table = weights.linear("model.embed_tokens", dims.vocab, dims.hidden, false)?;
            let head = weights.head(&dims, &table)?;
            let norm = options.embedding_norm.then(|| weights.unit_norm(dims.hidden, dims.eps));
            let embedding = Embedding::new(table, options.embedding_scale, dtype)?;
            (embedding.normed(norm.transpose()?), head)
        }
    };
    let skipped = weights.finish()?;
    Ok(Decoder {
        model_type: model_type.to_owned(),
        dims,
        embedding,
        per_layer: None,
        streams: None,
        layers: (blocks.iter().map(|it| it.spec()))
            .chain(blocks.iter().filter_map(|it| it.second_spec()))
            .collect(),
        blocks,
        norm,
        head,
        options,
        dtype,
        skipped,
        adapters: NamedAdapters::default(),
    })
}
