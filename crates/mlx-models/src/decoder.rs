//! The one decoder loop: embed, blocks, norm, head.

use std::ops::Range;

use mlx_rs::{Array, Dtype, ops::tanh};
use mlxgk_kv_cache::{CacheOptions, KvCache, LayerSpec};

use crate::{
    Error, ErrorKind, Result,
    block::Block,
    checkpoint::Skipped,
    config::Dims,
    device,
    embedding::Embedding,
    hooks::{Capture, HookPoint, NoHook, ResidualHook},
    linear::Linear,
    norm::RmsNorm,
    parameters::visit,
    pass::{BlockPass, Wanted},
    per_layer::PerLayerInputs,
    row_adapters::NamedAdapters,
    streams::Streams,
};

/// The dtype that weights are converted to and activations are computed in.
///
/// ```
/// use mlx_rs::Dtype;
/// use mlxgk_mlx_models::{ComputeDtype, Decoder};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Bfloat16)?;
/// assert_eq!(model.dtype(), Dtype::Bfloat16);
/// // Logits are fp32, whatever the model computes in.
/// assert_eq!(model.logits_of(&[&[5, 9]])?.dtype(), Dtype::Float32);
/// # Ok::<(), mlxgk_mlx_models::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ComputeDtype {
    /// The checkpoint's on a GPU; fp32 on the CPU backend, whose half-precision loops are many times
    /// slower than its fp32 ones.
    #[default]
    Auto,
    /// IEEE single precision.
    Float32,
    /// The upper half of a single.
    Bfloat16,
    /// IEEE half precision.
    Float16,
}

impl ComputeDtype {
    /// The dtype to convert to; `None` keeps the checkpoint's.
    pub(crate) fn resolve(self) -> Result<Option<Dtype>> {
        Ok(match self {
            Self::Float32 => Some(Dtype::Float32),
            Self::Bfloat16 => Some(Dtype::Bfloat16),
            Self::Float16 => Some(Dtype::Float16),
            Self::Auto => (!device::is_gpu()?).then_some(Dtype::Float32),
        })
    }
}

/// Why embeddings cannot be the input of a model with inputs for each layer.
pub(crate) const NO_TOKENS: &str =
    "the model has inputs for each layer, which it looks up by token ids, not by embeddings";

/// A decoder-only language model.
///
/// It holds weights and nothing else; what it remembers of a request is the caller's [`KvCache`].
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let mut cache = model.new_cache(1);
/// let prompt = model.forward(&[&[5, 9, 14]], &mut cache, &mut NoHook)?;
/// assert_eq!(prompt.shape(), [1, 3, model.vocab_size() as i32]);
/// let next = model.forward(&[&[7]], &mut cache, &mut NoHook)?;
/// assert_eq!((next.dim(1), cache.len()), (1, 4));
/// // A token that the model does not know is refused, and the cache is as it was.
/// assert!(model.forward(&[&[9_999]], &mut cache, &mut NoHook).is_err());
/// assert_eq!(cache.len(), 4);
/// # Ok::<(), mlxgk_mlx_models::Error>(())
/// ```
#[derive(Debug)]
pub struct Decoder {
    pub(crate) model_type: String,
    pub(crate) dims: Dims,
    pub(crate) embedding: Embedding,
    /// Gemma 4's inputs for each layer.
    pub(crate) per_layer: Option<PerLayerInputs>,
    /// Gemma 3n's further streams.
    pub(crate) streams: Option<Streams>,
    pub(crate) blocks: Vec<Box<dyn Block>>,
    pub(crate) layers: Vec<LayerSpec>,
    pub(crate) norm: RmsNorm,
    pub(crate) head: Option<Linear>,
    pub(crate) options: DecoderOptions,
    pub(crate) dtype: Dtype,
    pub(crate) skipped: Vec<Skipped>,
    pub(crate) adapters: NamedAdapters,
}

visit!(struct Decoder { embedding, per_layer, streams, blocks, norm, head });

/// What differs between the families outside their blocks.
#[derive(Debug, Clone, Default)]
pub(crate) struct DecoderOptions {
    /// Multiplies the embeddings (Gemma, Granite).
    pub(crate) embedding_scale: Option<f32>,
    /// Whether embeddings go through a norm without a weight (Muse Glimmer).
    pub(crate) embedding_norm: bool,
    /// Multiplies the logits, before the cap (Cohere, Granite).
    pub(crate) logit_scale: Option<f32>,
    /// `cap · tanh(logits / cap)` (Gemma 2).
    pub(crate) logit_cap: Option<f32>,
    /// The context beyond which longrope changes its frequencies (Phi-3).
    pub(crate) original_context: Option<usize>,
}

/// A decoder's parts, found once when it is loaded.
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let parts = model.components();
/// assert_eq!((parts.embedding, parts.layers), ([151, 32], 3));
/// assert!(!parts.tied_head && !parts.quantized && parts.logit_cap.is_none());
/// # Ok::<(), mlxgk_mlx_models::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Components {
    /// Shape of the token table, `[vocabulary, hidden]`.
    pub embedding: [usize; 2],
    /// Number of blocks.
    pub layers: usize,
    /// Whether the token table is also the head.
    pub tied_head: bool,
    /// Whether the head's weights are packed.
    pub quantized: bool,
    /// What embeddings are multiplied by (Gemma).
    pub embedding_scale: Option<f32>,
    /// The cap on logits (Gemma 2).
    pub logit_cap: Option<f32>,
}

/// Says where a model's embedding, blocks, norm and head are; the same as
/// [`Decoder::components`], under the name the Python original has for it.
pub fn detect_components(model: &Decoder) -> Components {
    model.components()
}

impl Decoder {
    /// An empty cache for `batch` rows without padding.
    pub fn new_cache(&self, batch: usize) -> KvCache {
        KvCache::new(&self.layers, batch)
    }

    /// An empty cache for a left-padded batch, one entry per row.
    pub fn new_padded_cache(&self, padding: &[usize]) -> KvCache {
        KvCache::left_padded(&self.layers, padding)
    }

    /// As [`new_padded_cache`](Self::new_padded_cache), for a cache that keeps its columns as
    /// `options` say: quantized, bounded, or not at all. A pass through a cache of the
    /// [first layers](CacheOptions::early_exit) goes from the last of them to the final norm:
    ///
    /// ```
    /// use mlxgk_kv_cache::CacheOptions;
    /// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
    ///
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
    /// let model = Decoder::load(folder, ComputeDtype::Float32)?;
    /// let mut early = model.new_cache_with(&[0], &CacheOptions::new().early_exit(1))?;
    /// let logits = model.forward(&[&[5, 9]], &mut early, &mut NoHook)?;
    /// assert_eq!(logits.shape(), [1, 2, model.vocab_size() as i32]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// When the options do not fit a layer.
    pub fn new_cache_with(&self, padding: &[usize], options: &CacheOptions) -> Result<KvCache> {
        if options.early_exit.is_some() && self.layers.len() > self.blocks.len() {
            let what = "an early exit from a model whose blocks keep two things each";
            return Err(Error::new(ErrorKind::Cache, what));
        }
        Ok(KvCache::with_options(&self.layers, padding, options)?)
    }

    /// Feeds `rows`, one equally long slice of token ids per row of the cache, and returns the
    /// logits of every position, fp32 `[batch, tokens, vocabulary]`, not yet evaluated.
    ///
    /// # Errors
    /// When an id is outside the vocabulary, the rows do not fit the cache, or a hook or MLX fails.
    /// The cache is then as it was.
    pub fn forward(
        &self,
        rows: &[&[u32]],
        cache: &mut KvCache,
        hook: &mut dyn ResidualHook,
    ) -> Result<Array> {
        let hidden = self.hidden(rows, cache, hook)?;
        self.logits(&hidden)
    }

    /// The loop itself. Adding to the residual stream and calling the hook happen here only.
    ///
    /// Runs some of the blocks, and the final norm where they are the last to be run.
    pub(crate) fn run(
        &self,
        layers: Range<usize>,
        is_last: bool,
        hidden: Array,
        pass: &mut BlockPass<'_>,
        hook: &mut dyn ResidualHook,
    ) -> Result<Array> {
        self.choose_adapters(pass.step().rows(), hook)?;
        pass.per_layer = match (&self.per_layer, pass.step().tokens()) {
            (None, _) => None,
            (Some(inputs), Some(tokens)) if layers.start == 0 => {
                Some(inputs.inputs(tokens, &hidden)?)
            }
            (Some(inputs), Some(tokens)) => Some(inputs.inputs(tokens, &self.embed(tokens)?)?),
            (Some(_), None) => return Err(Error::new(ErrorKind::Tokens, NO_TOKENS)),
        };
        let mut hidden = hidden;
        pass.streams = self.streams.as_ref().map(|it| it.spread(&hidden)).transpose()?;
        for (layer, block) in layers.clone().zip(&self.blocks[layers]) {
            let shape = hidden.shape().to_vec();
            let failed = |half: &str, e: Error| {
                e.during(format_args!("{half} of layer {layer} on {shape:?}"))
            };
            hidden = hook.apply(HookPoint::ResidPre(layer), hidden, pass.step())?;
            pass.weights = if hook.sees_attention(layer) { Wanted::Yes } else { Wanted::No };
            let mixed = block.mix(layer, &hidden, pass).map_err(|e| failed("attention", e))?;
            if let Wanted::Left(weights) = &pass.weights {
                hook.attention(layer, weights, pass.step())?;
            }
            if let Some(mixed) = mixed {
                hidden = hidden.add(mixed)?;
            }
            hidden = hook.apply(HookPoint::ResidMid(layer), hidden, pass.step())?;
            let fed = block.feed_forward(layer, &hidden, pass);
            if let Some(fed) = fed.map_err(|e| failed("feed-forward", e))? {
                hidden = hidden.add(fed)?;
            }
            if let Some(factor) = block.factor() {
                hidden = hidden.multiply(factor)?;
            }
            hidden = hook.apply(HookPoint::ResidPost(layer), hidden, pass.step())?;
        }
        if !is_last {
            return Ok(hidden);
        }
        if let (Some(streams), Some(further)) = (&self.streams, &pass.streams) {
            hidden = streams.gather(&hidden, further)?;
        }
        let hidden = self.norm.forward(&hidden)?;
        hook.apply(HookPoint::FinalNorm, hidden, pass.step())
    }

    /// What the first block is given for some tokens: rows of the token table, times the factor that
    /// Gemma has. `tokens` is u32 or i32 `[batch, tokens]`, every id below the vocabulary size (MLX
    /// does not check); the result is `[batch, tokens, hidden]`, not yet evaluated.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn embed(&self, tokens: &Array) -> Result<Array> {
        self.embedding.forward(tokens)
    }

    /// The head: `hidden`, `[.., hidden]` after the final norm, to fp32 logits `[.., vocabulary]`.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn logits(&self, hidden: &Array) -> Result<Array> {
        let logits = self.unembed(hidden)?;
        let logits = match self.options.logit_cap {
            None => logits,
            Some(cap) => {
                let cap = Array::from_f32(cap).as_dtype(logits.dtype())?;
                tanh(logits.divide(&cap)?)?.multiply(&cap)?
            }
        };
        Ok(logits.as_dtype(Dtype::Float32)?)
    }

    /// The head without its soft cap, in the weights' dtype. What the family multiplies its logits by
    /// is in them.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn unembed(&self, hidden: &Array) -> Result<Array> {
        let logits = self.head.as_ref().unwrap_or(self.embedding.table()).forward(hidden)?;
        match self.options.logit_scale {
            None => Ok(logits),
            Some(scale) => {
                let scale = Array::from_f32(scale).as_dtype(logits.dtype())?;
                Ok(logits.multiply(scale)?)
            }
        }
    }

    /// Logits and the residual stream after chosen blocks, from one pass without a cache:
    /// `[batch, tokens, vocabulary]`, and per layer `[batch, tokens, hidden]` in the order asked for.
    ///
    /// Layer ℓ's entry is HF's `hidden_states[ℓ + 1]`, except that HF replaces the last one by the
    /// final norm's output.
    ///
    /// # Errors
    /// When a layer does not exist, and as [`forward`](Self::forward).
    pub fn forward_with_hidden(
        &self,
        rows: &[&[u32]],
        layers: &[usize],
    ) -> Result<(Array, Vec<Array>)> {
        if let Some(layer) = layers.iter().find(|&&it| it >= self.blocks.len()) {
            let what = format!("layer {layer} of a model with {} layers", self.blocks.len());
            return Err(Error::new(ErrorKind::Hook, what));
        }
        let mut capture = Capture::new(layers.iter().map(|&it| HookPoint::ResidPost(it)));
        let logits = self.forward(rows, &mut self.single_pass(rows.len()), &mut capture)?;
        let captured = capture.into_captured();
        let hidden = layers.iter().map(|&it| captured[&HookPoint::ResidPost(it)].clone()).collect();
        Ok((logits, hidden))
    }

    /// Logits of a pass without cache or hook: `[batch, tokens, vocabulary]`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn logits_of(&self, rows: &[&[u32]]) -> Result<Array> {
        self.forward(rows, &mut self.single_pass(rows.len()), &mut NoHook)
    }

    /// A cache that keeps nothing, for a pass that nothing follows.
    pub(crate) fn single_pass(&self, rows: usize) -> KvCache {
        KvCache::for_one_pass(&self.layers, rows)
    }

    /// HF's `model_type`.
    pub fn model_type(&self) -> &str {
        &self.model_type
    }

    /// Tokens that the head scores and the embedding knows.
    pub fn vocab_size(&self) -> usize {
        self.dims.vocab
    }

    /// Width of the residual stream.
    pub fn hidden_size(&self) -> usize {
        self.dims.hidden
    }

    /// The longest sequence the model was made for (`max_position_embeddings`).
    pub fn max_positions(&self) -> usize {
        self.dims.max_positions
    }

    /// The length beyond which all of a text is rotated differently (longrope); `None` where length
    /// changes nothing.
    pub fn original_context(&self) -> Option<usize> {
        self.options.original_context
    }

    /// Whether embeddings can be its input; not where layers have inputs that are looked up by tokens (Gemma 4
    /// E2B and E4B).
    pub fn takes_embeddings(&self) -> bool {
        self.per_layer.is_none()
    }

    /// What each layer's cache keeps, one entry per layer.
    pub fn layers(&self) -> &[LayerSpec] {
        &self.layers[..self.blocks.len()]
    }

    /// What a cache keeps: [`layers`](Self::layers), and behind them what layers that keep two things
    /// keep beside it, in the order of the layers (Falcon-H1).
    pub fn cache_layers(&self) -> &[LayerSpec] {
        &self.layers
    }

    /// The dtype of weights and activations.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// What the checkpoint holds beside the language model, by part, and was not loaded.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// Bytes that one more token adds to a cache, as long as no sliding layer's window is full.
    pub fn kv_bytes_per_token(&self) -> usize {
        let item = if self.dtype == Dtype::Float32 { 4 } else { 2 };
        self.blocks.iter().map(|it| it.cached_per_token()).sum::<usize>() * item
    }

    /// Numbers per head of the keys and of the values that the layers keep, by layer; `None` for a layer
    /// that keeps none, or is a [custom block](crate::CustomBlock). The groups of a quantized cache
    /// have to divide them.
    pub fn head_dims(&self) -> impl Iterator<Item = Option<[usize; 2]>> + '_ {
        self.blocks.iter().map(|it| it.head_dims())
    }

    /// The parts that steering, training and `info` address.
    pub fn components(&self) -> Components {
        Components {
            embedding: [self.dims.vocab, self.dims.hidden],
            layers: self.blocks.len(),
            tied_head: self.head.is_none(),
            quantized: self.head.as_ref().unwrap_or(self.embedding.table()).is_quantized(),
            embedding_scale: self.options.embedding_scale,
            logit_cap: self.options.logit_cap,
        }
    }
}
