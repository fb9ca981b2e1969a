//! Multi-head latent attention (DeepSeek-V2, 2024): what the cache keeps of a token is one latent vector and
//! one rotary key, for all heads.
//!
//! A few new tokens look at many columns, so the products that expand a latent into a head's key and value
//! are applied to the head's query and to what it has mixed instead ("absorbed"): no column is expanded.
//! For many new tokens that would cost more than expanding the columns does.

use mlx_rs::{Array, ops::indexing::TryIndexOp};
use mlxgk_kv_cache::LayerSpec;

use crate::{
    Result,
    attention::{Scored, shares},
    backend::Backend,
    config::{Config, Dims},
    experts::Experts,
    growth::Growth,
    linear::Linear,
    norm::{NormWeight, RmsNorm},
    parameters::visit,
    pass::{BlockPass, Wanted},
    rope::Rope,
    weights::Weights,
};

/// From this many new tokens on, columns are expanded.
const EXPANDED_FROM: i32 = 32;

/// HF gives the norms on latents this, whatever the config says of the others.
const LATENT_EPS: f32 = 1e-6;

/// Attention over latents.
#[derive(Debug)]
pub(crate) struct LatentAttention {
    query: Query,
    /// To the latent and the rotary key in turn.
    down: Linear,
    norm: RmsNorm,
    expansion: Expansion,
    output: Linear,
    options: LatentOptions,
    backend: Backend,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one per layer, which is never moved")]
enum Query {
    Direct {
        all: Linear,
    },
    /// Through a latent of its own.
    Ranked {
        down: Linear,
        norm: RmsNorm,
        up: Linear,
    },
}

/// The products from a latent to each head's key, without its rotary part, and value.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one per layer, which is never moved")]
enum Expansion {
    /// HF's one matrix: rows of key and value in turn, head after head.
    Joint { both: Linear },
    /// mlx-lm's two: `[heads, latent, key]` and `[heads, value, latent]`.
    Split { keys: Experts, values: Experts },
}

visit!(struct LatentAttention { query, down, norm, expansion, output });
visit!(enum Query { Direct { all }, Ranked { down, norm, up } });
visit!(enum Expansion { Joint { both }, Split { keys, values } });

/// What differs between the families' latent attention.
#[derive(Debug, Clone)]
pub(crate) struct LatentOptions {
    pub(crate) heads: usize,
    /// Width of the latent.
    pub(crate) rank: usize,
    /// Width of the queries' latent; `None`: they have none.
    pub(crate) query_rank: Option<usize>,
    /// Width of a head's query and key without their rotary part.
    pub(crate) plain: usize,
    /// Width of that part.
    pub(crate) rotary: usize,
    /// Width of a head's value.
    pub(crate) value: usize,
    /// A bias on the products to latents, and on the last.
    pub(crate) bias: bool,
    /// `None`: what others rotate stands as it is (Kimi Linear).
    pub(crate) rope: Option<Rope>,
    pub(crate) growth: Option<Growth>,
    pub(crate) scale: f32,
}

/// What a family has where a config leaves a size out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LatentSizes {
    pub(crate) rank: usize,
    pub(crate) query_rank: Option<usize>,
    pub(crate) plain: usize,
    pub(crate) rotary: usize,
    pub(crate) value: usize,
}

impl LatentSizes {
    /// As the config has them, under HF's names.
    pub(crate) fn read(self, config: &Config) -> Result<Self> {
        let size = |key: &str, default: usize| match config.usize(key)?.unwrap_or(default) {
            0 => Err(config.error(key, "must be above 0")),
            size => Ok(size),
        };
        let query = "q_lora_rank";
        Ok(Self {
            rank: size("kv_lora_rank", self.rank)?,
            // `null` is none.
            query_rank: if config.has(query) { config.usize(query)? } else { self.query_rank },
            plain: size("qk_nope_head_dim", self.plain)?,
            rotary: size("qk_rope_head_dim", self.rotary)?,
            value: size("v_head_dim", self.value)?,
        })
    }
}

impl LatentAttention {
    /// Loads the layer at `at` (`model.layers.3.self_attn`).
    pub(crate) fn load(
        weights: &mut Weights,
        at: &str,
        dims: &Dims,
        options: LatentOptions,
    ) -> Result<Self> {
        let LatentOptions { heads, rank, plain, rotary, value, bias, .. } = options;
        let (hidden, form) = (dims.hidden, NormWeight::Plain);
        let name = |part: &str| format!("{at}.{part}");
        let queries = heads * (plain + rotary);
        let query = match options.query_rank {
            None => Query::Direct { all: weights.linear(&name("q_proj"), queries, hidden, false)? },
            Some(rank) => Query::Ranked {
                down: weights.linear(&name("q_a_proj"), rank, hidden, bias)?,
                norm: weights.norm(&name("q_a_layernorm"), rank, LATENT_EPS, form)?,
                up: weights.linear(&name("q_b_proj"), queries, rank, false)?,
            },
        };
        let down = weights.linear(&name("kv_a_proj_with_mqa"), rank + rotary, hidden, bias)?;
        let norm = weights.norm(&name("kv_a_layernorm"), rank, LATENT_EPS, form)?;
        let is_split =
            ["embed_q.weight", "unembed_out.weight"].iter().any(|it| weights.has(&name(it)));
        let expansion = if is_split {
            Expansion::Split {
                keys: weights.stacked(&name("embed_q"), [heads, rank, plain])?,
                values: weights.stacked(&name("unembed_out"), [heads, value, rank])?,
            }
        } else {
            let rows = heads * (plain + value);
            Expansion::Joint { both: weights.wide_linear(&name("kv_b_proj"), rows, rank)? }
        };
        let output = weights.linear(&name("o_proj"), hidden, heads * value, bias)?;
        let backend = weights.backend();
        Ok(Self { query, down, norm, expansion, output, options, backend })
    }

    pub(crate) fn forward(
        &self,
        layer: usize,
        x: &Array,
        pass: &mut BlockPass<'_>,
    ) -> Result<Array> {
        let LatentOptions { heads, rank, plain, rotary, value, .. } = self.options;
        let [heads, rank, plain, rotary, value] =
            [heads, rank, plain, rotary, value].map(|it| it as i32);
        let (batch, tokens) = (x.dim(0), x.dim(1));
        let queries = match &self.query {
            Query::Direct { all } => all.forward(x)?,
            Query::Ranked { down, norm, up } => up.forward(&norm.forward(&down.forward(x)?)?)?,
        };
        let queries = queries
            .reshape(&[batch, tokens, heads, plain + rotary])?
            .transpose_axes(&[0, 2, 1, 3])?;
        let queries = match self.options.growth {
            None => queries,
            Some(growth) => pass.grown(queries, growth)?,
        };
        let scale = Array::from_f32(self.options.scale).as_dtype(queries.dtype())?;
        let queries = queries.multiply(scale)?.split_at_indices(&[plain], -1)?;
        let latent = self.down.forward(x)?.split_at_indices(&[rank], -1)?;
        let rotation = self.options.rope.as_ref().map(|rope| pass.rotation(rope)).transpose()?;
        let rotate = |x: &Array| match &rotation {
            None => Ok(x.clone()),
            Some(rotation) => rotation.apply(x, self.backend),
        };
        let rotated = rotate(&queries[1])?;
        let key = latent[1].reshape(&[batch, 1, tokens, rotary])?;
        let key = rotate(&key)?;
        let latent = self.norm.forward(&latent[0])?.reshape(&[batch, 1, tokens, rank])?;
        let seen = pass.append(layer, &latent, &key)?;
        let (latents, keys) = (seen.keys.dense()?, seen.values.dense()?);

        let (to_key, to_value) = self.expansion.matrices(heads, plain, value)?;
        let plain_scores = if tokens < EXPANDED_FROM {
            queries[0].matmul(&to_key)?.matmul(latents.swap_axes(-1, -2)?)?
        } else {
            let expanded = latents.matmul(to_key.swap_axes(-1, -2)?)?;
            queries[0].matmul(expanded.swap_axes(-1, -2)?)?
        };
        let scores = plain_scores.add(rotated.matmul(keys.swap_axes(-1, -2)?)?)?;
        let sizes = Scored { groups: heads, group: 1, tokens, columns: keys.dim(2) };
        let weights = shares(scores, sizes, &seen.mask, None)?;
        let mixed = if tokens < EXPANDED_FROM {
            weights.matmul(&latents)?.matmul(to_value.swap_axes(-1, -2)?)?
        } else {
            weights.matmul(latents.matmul(to_value.swap_axes(-1, -2)?)?)?
        };
        if !matches!(pass.weights, Wanted::No) {
            pass.weights = Wanted::Left(weights);
        }
        let mixed =
            mixed.transpose_axes(&[0, 2, 1, 3])?.reshape(&[batch, tokens, heads * value])?;
        Ok(self.output.forward(&mixed)?)
    }

    /// What the layer may see of the past.
    pub(crate) fn spec(&self) -> LayerSpec {
        LayerSpec::Full
    }

    pub(crate) fn cached_per_token(&self) -> usize {
        self.options.rank + self.options.rotary
    }

    /// The latent is kept as the one key, the rotary key as its value.
    pub(crate) fn head_dims(&self) -> [usize; 2] {
        [self.options.rank, self.options.rotary]
    }
}

impl Expansion {
    /// The matrices to keys, `[heads, key, latent]`, and to values, `[heads, value, latent]`.
    fn matrices(&self, heads: i32, plain: i32, value: i32) -> Result<(Array, Array)> {
        match self {
            Self::Joint { both } => {
                let both = both.matrix()?;
                let both = both.reshape(&[heads, plain + value, both.dim(-1)])?;
                Ok((both.try_index((.., ..plain, ..))?, both.try_index((.., plain.., ..))?))
            }
            Self::Split { keys, values } => {
                Ok((keys.dequantized()?.swap_axes(-1, -2)?, values.dequantized()?))
            }
        }
    }
}
