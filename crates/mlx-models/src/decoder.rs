//! The one decoder loop: embed, blocks, norm, head.

use std::sync::Arc;

use mlx_rs::{
    Array, Device, DeviceType, Dtype,
    ops::{concatenate, indexing::TryIndexOp, tanh},
};
use mlxgk_kv_cache::{KvCache, LayerSpec, Step};

use crate::{
    Error, ErrorKind, Result,
    block::{Block, Pass},
    checkpoint::Skipped,
    config::Dims,
    embedding::Embedding,
    hooks::{Capture, HookPoint, NoHook, ResidualHook},
    linear::Linear,
    norm::RmsNorm,
    parameters::visit,
};

/// The dtype that weights are converted to and activations are computed in.
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
            Self::Auto => {
                let device = Device::try_default().and_then(|it| it.get_type());
                match device.map_err(|e| Error::mlx("asking for the default device", &e))? {
                    DeviceType::Cpu => Some(Dtype::Float32),
                    DeviceType::Gpu => None,
                }
            }
        })
    }
}

/// A decoder-only language model.
///
/// It holds weights and nothing else; what it remembers of a request is the caller's [`KvCache`].
#[derive(Debug)]
pub struct Decoder {
    pub(crate) model_type: String,
    pub(crate) dims: Dims,
    pub(crate) embedding: Embedding,
    pub(crate) blocks: Vec<Box<dyn Block>>,
    pub(crate) layers: Vec<LayerSpec>,
    pub(crate) norm: RmsNorm,
    pub(crate) head: Option<Linear>,
    pub(crate) options: DecoderOptions,
    pub(crate) dtype: Dtype,
    pub(crate) skipped: Vec<Skipped>,
}

visit!(struct Decoder { embedding, blocks, norm, head });

/// What differs between the families outside their blocks.
#[derive(Debug, Clone, Default)]
pub(crate) struct DecoderOptions {
    /// Multiplies the embeddings (Gemma).
    pub(crate) embedding_scale: Option<f32>,
    /// `cap · tanh(logits / cap)` (Gemma 2).
    pub(crate) logit_cap: Option<f32>,
    /// The context beyond which longrope changes its frequencies (Phi-3).
    pub(crate) original_context: Option<usize>,
}

/// A decoder's parts, found once when it is loaded.
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

    /// As [`forward`](Self::forward), but stops after the final norm: `[batch, tokens, hidden]`. For
    /// long prompts, where the head is needed for the last position only.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn hidden(
        &self,
        rows: &[&[u32]],
        cache: &mut KvCache,
        hook: &mut dyn ResidualHook,
    ) -> Result<Array> {
        let tokens = self.tokens(rows)?;
        let hidden = self.hidden_of(&tokens, cache, hook)?;
        cache.record(rows)?;
        Ok(hidden)
    }

    /// As [`hidden`](Self::hidden), for ids that are still on the device: `tokens` is u32 or i32
    /// `[batch, tokens]`, every id below the vocabulary size (MLX does not check). The caller
    /// [records](KvCache::record) them once it has read them.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn hidden_of(
        &self,
        tokens: &Array,
        cache: &mut KvCache,
        hook: &mut dyn ResidualHook,
    ) -> Result<Array> {
        self.check(tokens, cache, hook)?;
        let (held, all) = (cache.len(), cache.len() + tokens.dim(1) as usize);
        if held > cache.least_padding() && !self.is_long(held, cache) && self.is_long(all, cache) {
            // Longrope rotates all keys differently from here on (HF drops its cache at the same
            // place).
            return self.reread(tokens, cache, hook);
        }
        self.advance(tokens, 0, cache, hook)
    }

    /// As [`hidden`](Self::hidden), but reads the whole text anew instead of going on from what the
    /// cache holds of it: HF's `use_cache=False`. The states are those of the new tokens alone.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and when the cache does not know the [ids](KvCache::record) of
    /// all that it holds.
    pub fn hidden_anew(
        &self,
        rows: &[&[u32]],
        cache: &mut KvCache,
        hook: &mut dyn ResidualHook,
    ) -> Result<Array> {
        let tokens = self.tokens(rows)?;
        self.check(&tokens, cache, hook)?;
        let hidden = self.reread(&tokens, cache, hook)?;
        cache.record(rows)?;
        Ok(hidden)
    }

    fn check(&self, tokens: &Array, cache: &KvCache, hook: &dyn ResidualHook) -> Result<()> {
        if tokens.ndim() != 2 || tokens.dim(0) as usize != cache.batch() {
            return Err(Error::new(
                ErrorKind::Tokens,
                format!("{:?} tokens for a cache of {} rows", tokens.shape(), cache.batch()),
            ));
        }
        if !cache.layers().eq(self.layers.iter().copied()) {
            return Err(Error::new(ErrorKind::Cache, "the cache was made for another model"));
        }
        Ok(cache.check_steering(&names(cache, hook))?)
    }

    /// Whether a text of so many columns is read with longrope's long factors.
    fn is_long(&self, columns: usize, cache: &KvCache) -> bool {
        let tokens = columns.max(cache.planned()).saturating_sub(cache.least_padding());
        self.options.original_context.is_some_and(|limit| tokens > limit)
    }

    /// Runs the loop on tokens of which the first `again` are read a second time, and counts the new
    /// columns as held.
    fn advance(
        &self,
        tokens: &Array,
        again: usize,
        cache: &mut KvCache,
        hook: &mut dyn ResidualHook,
    ) -> Result<Array> {
        let count = tokens.dim(1) as usize;
        let columns = cache.len() + count;
        let long = columns > cache.least_padding() && self.is_long(columns, cache);
        let step = cache.step(count).with_tokens(tokens).reading_again(again);
        let hidden = self.run(tokens, &step, long, cache, hook)?;
        cache.advance(count);
        cache.set_steering(&names(cache, hook))?;
        Ok(hidden)
    }

    /// Feeds everything again that the cache holds, and the new tokens behind it.
    fn reread(
        &self,
        tokens: &Array,
        cache: &mut KvCache,
        hook: &mut dyn ResidualHook,
    ) -> Result<Array> {
        let (held, count) = (cache.len(), tokens.dim(1));
        let rows: Vec<&[u32]> = (0..cache.batch()).map(|row| cache.tokens(row)).collect();
        if rows.iter().any(|row| row.len() != held) {
            let what = "the cache must hold every token's id where a text is read anew";
            return Err(Error::new(ErrorKind::Cache, what));
        }
        let doing = |e| Error::mlx("feeding the context again", &e);
        let tokens = tokens.as_type::<u32>().map_err(doing)?;
        let all = concatenate(&[&self.tokens(&rows)?, &tokens], 1).map_err(doing)?;
        let mut fresh = cache.fork();
        fresh.rewind();
        fresh.plan(held + count as usize);
        let hidden = self.advance(&all, held, &mut fresh, hook)?;
        fresh.record(&rows)?;
        *cache = fresh;
        hidden.try_index((.., held as i32.., ..)).map_err(doing)
    }

    /// The loop itself. Adding to the residual stream and calling the hook happen here only.
    fn run(
        &self,
        tokens: &Array,
        step: &Step,
        long: bool,
        cache: &mut KvCache,
        hook: &mut dyn ResidualHook,
    ) -> Result<Array> {
        let mut pass = Pass { step, long, cache, rotations: Vec::new() };
        let mut hidden = self.embed(tokens)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let shape = hidden.shape().to_vec();
            let failed = |half: &str, e: Error| {
                e.during(format_args!("{half} of layer {layer} on {shape:?}"))
            };
            hidden = hook.apply(HookPoint::ResidPre(layer), hidden, step)?;
            let mixed = block.mix(layer, &hidden, &mut pass).map_err(|e| failed("attention", e))?;
            hidden = hidden.add(mixed)?;
            hidden = hook.apply(HookPoint::ResidMid(layer), hidden, step)?;
            let fed = block.feed_forward(&hidden).map_err(|e| failed("feed-forward", e))?;
            hidden = hidden.add(fed)?;
            hidden = hook.apply(HookPoint::ResidPost(layer), hidden, step)?;
        }
        let hidden = self.norm.forward(&hidden)?;
        hook.apply(HookPoint::FinalNorm, hidden, step)
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

    /// The head without its soft cap, in the weights' dtype.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn unembed(&self, hidden: &Array) -> Result<Array> {
        Ok(self.head.as_ref().unwrap_or(self.embedding.table()).forward(hidden)?)
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
        let logits = self.forward(rows, &mut self.new_cache(rows.len()), &mut capture)?;
        let captured = capture.into_captured();
        let hidden = layers.iter().map(|&it| captured[&HookPoint::ResidPost(it)].clone()).collect();
        Ok((logits, hidden))
    }

    /// Logits of a pass without cache or hook: `[batch, tokens, vocabulary]`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn logits_of(&self, rows: &[&[u32]]) -> Result<Array> {
        self.forward(rows, &mut self.new_cache(rows.len()), &mut NoHook)
    }

    /// Rows of ids as a u32 array, after checking that they are equally long and in the vocabulary.
    fn tokens(&self, rows: &[&[u32]]) -> Result<Array> {
        let count = rows.first().map_or(0, |row| row.len());
        if count == 0 || rows.iter().any(|row| row.len() != count) {
            let what = "a batch needs rows of one length, with at least one token each";
            return Err(Error::new(ErrorKind::Tokens, what));
        }
        let vocab = self.dims.vocab;
        if let Some(id) = rows.iter().flat_map(|row| *row).find(|&&id| id as usize >= vocab) {
            let what = format!("token id {id} is outside the vocabulary of {vocab}");
            return Err(Error::new(ErrorKind::Tokens, what));
        }
        Ok(Array::from_slice(&rows.concat(), &[rows.len() as i32, count as i32]))
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

    /// What each layer's cache keeps.
    pub fn layers(&self) -> &[LayerSpec] {
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

/// What a hook does to each of a cache's rows, by name.
fn names(cache: &KvCache, hook: &dyn ResidualHook) -> Vec<Option<Arc<str>>> {
    cache.row_ids().into_iter().map(|row| hook.name(row)).collect()
}
