//! Heads that guess further tokens (multi-token prediction), which some checkpoints have beside the model.
//!
//! A head is a decoder block behind a product that joins two vectors per column: the embedding of a later
//! token, and what the model left after its final norm. Head 0 reads the next token and guesses the one
//! after that; each further head reads one token further on, and what the head before it left:
//!
//! ```text
//! h_k(j) = norm(block_k(W_k [norm(embedding(token(j + 1 + k))), norm(h_{k-1}(j))]))     h_{-1}: the model's
//! ```
//!
//! Embedding and head are the model's own (DeepSeek-AI, [DeepSeek-V3](https://arxiv.org/abs/2412.19437),
//! 2.2; HF `MtpModel`).

use std::path::Path;

use mlx_rs::{Array, ops::concatenate};
use mlxgk_kv_cache::{Column, KvCache};
use serde_json::{Value, json};

use crate::{
    Decoder, Error, ErrorKind, NoHook, Result, checkpoint,
    config::Config,
    families, foreign,
    linear::Linear,
    norm::RmsNorm,
    weights::{OfHead, Weights},
};

/// Where the checkpoints of a family have such heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeadPlace {
    /// Behind the layers, numbered on.
    Behind,
    /// One, under `mtp.`, with attention of this kind where the config does not say.
    Apart { attention: &'static str },
}

/// The heads of a model, loaded from its folder.
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, MtpHeads, NoHook};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/assisted/mtp-glm4-moe");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let heads = MtpHeads::load(folder, &model)?.expect("the folder has heads");
/// // After 5, 9, 14 the model says 3, of which it knows nothing yet.
/// let states = model.hidden(&[&[5, 9, 14]], &mut model.new_cache(1), &mut NoHook)?;
/// let mut caches = heads.new_caches();
/// let guessed = heads.forward(0, &[9, 14, 3], &states, &mut caches[0])?;
/// let logits = heads.logits(&guessed)?; // the last row is about what follows 3
/// assert_eq!(logits.shape(), [1, 3, model.vocab_size() as i32]);
/// # Ok::<(), mlxgk_mlx_models::Error>(())
/// ```
#[derive(Debug)]
pub struct MtpHeads {
    heads: Vec<Head>,
}

/// One of them.
#[derive(Debug)]
struct Head {
    token_norm: RmsNorm,
    state_norm: RmsNorm,
    /// From both, one after the other, to the block.
    projection: Linear,
    /// The block and the norm behind it, as a model of one layer.
    graph: Decoder,
}

impl MtpHeads {
    /// Loads the heads that `folder` has for `model`, which was loaded from it; `None` where it has none.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the tensors are not exactly those that the config calls for.
    pub fn load(folder: impl AsRef<Path>, model: &Decoder) -> Result<Option<Self>> {
        Self::open(folder.as_ref(), model, false)
    }

    /// As [`load`](Self::load), but weights are only opened; see [`Decoder::load_lazily`].
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_lazily(folder: impl AsRef<Path>, model: &Decoder) -> Result<Option<Self>> {
        Self::open(folder.as_ref(), model, true)
    }

    fn open(folder: &Path, model: &Decoder, is_lazy: bool) -> Result<Option<Self>> {
        let config = Config::read(&folder.join("config.json"))?;
        let config = foreign::with_settings_beside(config, folder)?;
        let config = families::with_usual_names(&config)?;
        let Some(place) = families::head_place(&config)? else { return Ok(None) };
        let tensors = checkpoint::open(folder)?;
        let config = config.for_weights(checkpoint::numbers(&tensors));
        let name = folder.display().to_string();
        let weights = Weights::with_heads(name, tensors, &config, Some(model.dtype()))?;
        let weights = weights.lazy(is_lazy);
        let heads = match place {
            HeadPlace::Behind => behind(&config, &weights, model)?,
            HeadPlace::Apart { attention } => {
                apart(&config, &weights, model, attention)?.into_iter().collect()
            }
        };
        Ok((!heads.is_empty()).then_some(Self { heads }))
    }

    /// How many heads there are, and so how many tokens they guess at once.
    #[allow(clippy::len_without_is_empty, reason = "there is at least one")]
    pub fn len(&self) -> usize {
        self.heads.len()
    }

    /// An empty cache for each head, of one row.
    pub fn new_caches(&self) -> Vec<KvCache> {
        self.heads.iter().map(|it| it.graph.new_cache(1)).collect()
    }

    /// Runs a head over the columns that follow those in its `cache`: `states` is what the model left there
    /// after its final norm, or the head before this one, `[1, columns, hidden]`; `tokens` are as many, for
    /// head *k* those that stand *k* + 1 behind. Returns what the head leaves, `[1, columns, hidden]`, not
    /// yet evaluated.
    ///
    /// # Errors
    /// When there is no such head, a token is outside the vocabulary, or the shapes or the cache do not fit.
    pub fn forward(
        &self,
        head: usize,
        tokens: &[u32],
        states: &Array,
        cache: &mut KvCache,
    ) -> Result<Array> {
        let Some(Head { token_norm, state_norm, projection, graph }) = self.heads.get(head) else {
            let what = format!("head {head} of a model with {}", self.heads.len());
            return Err(Error::new(ErrorKind::Tokens, what));
        };
        graph.check_ids(tokens)?;
        let wanted = [1, tokens.len(), graph.hidden_size()].map(|it| it as i32);
        if states.shape() != wanted {
            let what = format!("states of shape {:?}, not {wanted:?}", states.shape());
            return Err(Error::new(ErrorKind::Tokens, what));
        }
        let embedded = graph.embed(&Array::from_slice(tokens, &wanted[..2]))?;
        let both = [token_norm.forward(&embedded)?, state_norm.forward(states)?];
        let joined = projection.forward(&concatenate(&both, -1)?)?;
        let columns: Vec<Column> = tokens.iter().copied().map(Column::Token).collect();
        graph.hidden_from_embeddings(&joined, &[&columns], cache, &mut NoHook)
    }

    /// The model's head over what one of these left: fp32 `[1, columns, vocabulary]`.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn logits(&self, states: &Array) -> Result<Array> {
        self.heads[0].graph.logits(states)
    }
}

/// Those of GLM and DeepSeek, as many as the config says.
fn behind(config: &Config, weights: &Weights, model: &Decoder) -> Result<Vec<Head>> {
    let layers = model.layers().len();
    let count = config.usize("num_nextn_predict_layers")?.unwrap_or(1);
    let alone = alone(config, "full_attention", "sparse");
    let place = |layer: usize| format!("model.layers.{layer}");
    let load = |layer| {
        let at = place(layer);
        let names = HeadNames {
            token_norm: format!("{at}.enorm"),
            state_norm: format!("{at}.hnorm"),
            projection: format!("{at}.eh_proj"),
            norm: format!("{at}.shared_head.norm"),
            // The model's own, once more.
            repeated: vec![format!("{at}.embed_tokens"), format!("{at}.shared_head.head")],
            block: at.clone(),
            all: at,
        };
        names.load(&alone, weights, model)
    };
    // A conversion may have left them out.
    (layers..).take(count).take_while(|&it| weights.has_part(&place(it))).map(load).collect()
}

/// That of Mellum and Qwen.
fn apart(
    config: &Config,
    weights: &Weights,
    model: &Decoder,
    attention: &str,
) -> Result<Option<Head>> {
    if !weights.has_part("mtp") {
        return Ok(None);
    }
    if weights.has_part("mtp.layers.1") {
        let what = "has several layers under `mtp.layers`, of which one is known";
        return Err(Error::new(ErrorKind::Weights, format!("{} {what}", weights.name())));
    }
    let kind = |key: &str, default: &str| -> Result<String> {
        let kinds = config.list(key, "a list of names", |it| it.as_str().map(str::to_owned))?;
        Ok(kinds.and_then(|it| it.into_iter().next()).unwrap_or_else(|| default.to_owned()))
    };
    let attention = kind("mtp_layer_types", attention)?;
    let alone = alone(config, &attention, &kind("mtp_mlp_layer_types", "sparse")?);
    let names = HeadNames {
        token_norm: "mtp.pre_fc_norm_embedding".to_owned(),
        state_norm: "mtp.pre_fc_norm_hidden".to_owned(),
        projection: "mtp.fc".to_owned(),
        block: "mtp.layers.0".to_owned(),
        norm: "mtp.norm".to_owned(),
        repeated: Vec::new(),
        all: "mtp".to_owned(),
    };
    names.load(&alone, weights, model).map(Some)
}

/// The config of a model of one layer, a head's (HF `get_mtp_config`).
fn alone(config: &Config, attention: &str, feed_forward: &str) -> Config {
    let fields: [(&str, Value); 7] = [
        ("num_hidden_layers", json!(1)),
        ("layer_types", json!([attention])),
        ("mlp_layer_types", json!([feed_forward])),
        ("first_k_dense_replace", json!(0)),
        ("mlp_only_layers", json!([])),
        ("decoder_sparse_step", json!(1)),
        ("num_nextn_predict_layers", json!(0)),
    ];
    config.clone().with_text_fields(fields)
}

/// What a checkpoint calls the parts of a head.
struct HeadNames {
    token_norm: String,
    state_norm: String,
    projection: String,
    block: String,
    norm: String,
    /// Parts that are there, and not needed.
    repeated: Vec<String>,
    /// The beginning of all of these.
    all: String,
}

impl HeadNames {
    fn load(self, config: &Config, weights: &Weights, model: &Decoder) -> Result<Head> {
        let form = model.norm.form();
        let mut weights = weights.only(&self.all);
        for part in &self.repeated {
            weights.leave_out(part);
        }
        let (hidden, eps) = (model.dims.hidden, model.dims.eps);
        let token_norm = weights.norm(&self.token_norm, hidden, eps, form)?;
        let state_norm = weights.norm(&self.state_norm, hidden, eps, form)?;
        let projection = weights.linear(&self.projection, hidden, 2 * hidden, false)?;
        let of = OfHead {
            block: self.block,
            norm: self.norm,
            embedding: model.embedding.clone(),
            head: model.head.clone(),
            form,
        };
        let graph = families::build(config, weights.of_head(of))?;
        Ok(Head { token_norm, state_norm, projection, graph })
    }
}
