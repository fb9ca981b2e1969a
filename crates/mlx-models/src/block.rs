//! A decoder block in two halves, each of which returns what it adds to the residual stream.
//!
//! The additions themselves belong to the decoder loop, so that the residual stream has one owner
//! and hooks see it between any two additions. A family with another token mixer (a recurrent layer,
//! latent attention) or another feed-forward half implements [`Block`] in its own file.

use std::fmt::Debug;

use mlx_rs::Array;
use mlxgk_kv_cache::LayerSpec;

use crate::{
    Result,
    config::Dims,
    gated_delta::GatedDelta,
    kimi_delta::KimiDelta,
    latent::LatentAttention,
    mamba2::Mamba2,
    mlp::{GatedMlp, PlainMlp},
    moe::MixtureOfExperts,
    norm::{NormWeight, RmsNorm, normed},
    parameters::{Visit, visit},
    pass::BlockPass,
    self_attention::SelfAttention,
    short_convolution::ShortConvolution,
    weights::Weights,
};

/// What a family supplies per layer.
pub(crate) trait Block: Debug + Send + Visit {
    /// What the token mixer adds to `hidden`, `[batch, tokens, hidden]`; `None` where it has none.
    fn mix(&self, layer: usize, hidden: &Array, pass: &mut BlockPass<'_>) -> Result<Option<Array>>;

    /// What the feed-forward half adds to `hidden`, which has the first half's addition and what a hook
    /// made of it; `None` where it has none.
    fn feed_forward(
        &self,
        layer: usize,
        hidden: &Array,
        pass: &mut BlockPass<'_>,
    ) -> Result<Option<Array>>;

    /// What the stream is multiplied by after both additions (Gemma 4); `None` for 1.
    fn factor(&self) -> Option<&Array> {
        None
    }

    /// What the layer may see of the past.
    fn spec(&self) -> LayerSpec;

    /// What a second layer of the cache keeps for the block, whose number is the model's layers and this
    /// one's (Falcon-H1, with attention and a recurrence in each block).
    fn second_spec(&self) -> Option<LayerSpec> {
        None
    }

    /// How many numbers one more token adds to the layer's cache.
    fn cached_per_token(&self) -> usize;

    /// The attention of the block, where it is of the common kind.
    fn attention(&self) -> Option<&SelfAttention> {
        None
    }

    /// Numbers per head of the keys and of the values that the layer's cache keeps; `None` where it keeps
    /// none, or the block does not say.
    fn head_dims(&self) -> Option<[usize; 2]> {
        self.attention().map(|it| [it.head_dim(); 2])
    }
}

/// A token mixer and a feed-forward layer, each after a norm: all of the Llama-like families.
#[derive(Debug)]
pub(crate) struct TransformerBlock {
    pub(crate) input_norm: Option<RmsNorm>,
    pub(crate) mixer: Mixer,
    pub(crate) after_attention_norm: Option<RmsNorm>,
    pub(crate) feed_forward_norm: Option<RmsNorm>,
    pub(crate) feed_forward: FeedForward,
    pub(crate) after_feed_forward_norm: Option<RmsNorm>,
    /// What each half's addition is multiplied by (Granite); `None` for 1.
    pub(crate) residual_scale: Option<f32>,
}

impl TransformerBlock {
    /// What a half adds, of what it computed.
    fn addition(&self, computed: Array, norm: Option<&RmsNorm>) -> Result<Array> {
        let normed = match norm {
            None => computed,
            Some(norm) => norm.forward(&computed)?,
        };
        match self.residual_scale {
            None => Ok(normed),
            Some(scale) => {
                let scale = Array::from_f32(scale).as_dtype(normed.dtype())?;
                Ok(normed.multiply(scale)?)
            }
        }
    }
}

impl Block for TransformerBlock {
    fn mix(&self, layer: usize, hidden: &Array, pass: &mut BlockPass<'_>) -> Result<Option<Array>> {
        let mixed = self.mixer.forward(layer, &normed(self.input_norm.as_ref(), hidden)?, pass)?;
        self.addition(mixed, self.after_attention_norm.as_ref()).map(Some)
    }

    fn feed_forward(
        &self,
        _: usize,
        hidden: &Array,
        _: &mut BlockPass<'_>,
    ) -> Result<Option<Array>> {
        let fed = self.feed_forward.forward(&normed(self.feed_forward_norm.as_ref(), hidden)?)?;
        self.addition(fed, self.after_feed_forward_norm.as_ref()).map(Some)
    }

    fn spec(&self) -> LayerSpec {
        self.mixer.spec()
    }

    fn cached_per_token(&self) -> usize {
        self.mixer.cached_per_token()
    }

    fn attention(&self) -> Option<&SelfAttention> {
        match &self.mixer {
            Mixer::Attention { attention } => Some(attention),
            _ => None,
        }
    }

    fn head_dims(&self) -> Option<[usize; 2]> {
        self.mixer.head_dims()
    }
}

visit!(struct TransformerBlock {
    input_norm,
    mixer,
    after_attention_norm,
    feed_forward_norm,
    feed_forward,
    after_feed_forward_norm,
});

/// Where a block has norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Norms {
    /// Before each half.
    Before,
    /// After each half (OLMo 2).
    After,
    /// Before and after each half (Gemma 2 and 3).
    Around,
    /// The same under other names (GLM-4).
    AroundGlm,
    /// Before each half, under LFM2's names.
    BeforeLfm,
    /// Before and after each half, under LFM3's names.
    AroundLfm,
}

impl Norms {
    /// HF's names of the norms before and after attention, before and after the feed-forward half.
    fn names(self) -> [Option<&'static str>; 4] {
        let [input, post] = ["input_layernorm", "post_attention_layernorm"].map(Some);
        let post_feed_forward = Some("post_feedforward_layernorm");
        match self {
            Self::Before => [input, None, post, None],
            Self::After => [None, post, None, post_feed_forward],
            Self::Around => [input, post, Some("pre_feedforward_layernorm"), post_feed_forward],
            Self::BeforeLfm => [Some("operator_norm"), None, Some("ffn_norm"), None],
            Self::AroundLfm => {
                ["operator_norm", "post_operator_norm", "ffn_norm", "post_ffn_norm"].map(Some)
            }
            Self::AroundGlm => {
                [input, Some("post_self_attn_layernorm"), post, Some("post_mlp_layernorm")]
            }
        }
    }
}

impl TransformerBlock {
    /// Loads the norms at `at` (`model.layers.3`) around halves that are loaded.
    pub(crate) fn load(
        weights: &mut Weights,
        at: &str,
        dims: &Dims,
        (norms, form): (Norms, NormWeight),
        mixer: Mixer,
        feed_forward: FeedForward,
    ) -> Result<Self> {
        let mut norm = |name: Option<&str>| {
            let load = |name| weights.norm(&format!("{at}.{name}"), dims.hidden, dims.eps, form);
            name.map(load).transpose()
        };
        let [before_attention, after_attention, before_feed_forward, after_feed_forward] =
            norms.names();
        Ok(Self {
            input_norm: norm(before_attention)?,
            mixer,
            after_attention_norm: norm(after_attention)?,
            feed_forward_norm: norm(before_feed_forward)?,
            feed_forward,
            after_feed_forward_norm: norm(after_feed_forward)?,
            residual_scale: None,
        })
    }
}

/// What lets a token look at those before it.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one per layer, which is never moved")]
pub(crate) enum Mixer {
    Attention { attention: SelfAttention },
    Delta { delta: GatedDelta },
    Convolution { convolution: ShortConvolution },
    Mamba { mamba: Mamba2 },
    Latent { latent: LatentAttention },
    KimiDelta { delta: KimiDelta },
}

visit!(enum Mixer {
    Attention { attention },
    Delta { delta },
    Convolution { convolution },
    Mamba { mamba },
    Latent { latent },
    KimiDelta { delta },
});

impl Mixer {
    pub(crate) fn forward(
        &self,
        layer: usize,
        x: &Array,
        pass: &mut BlockPass<'_>,
    ) -> Result<Array> {
        match self {
            Self::Attention { attention } => attention.forward(layer, x, pass),
            Self::Delta { delta } => delta.forward(layer, x, pass),
            Self::Convolution { convolution } => convolution.forward(layer, x, pass),
            Self::Mamba { mamba } => mamba.forward(layer, x, pass),
            Self::Latent { latent } => latent.forward(layer, x, pass),
            Self::KimiDelta { delta } => delta.forward(layer, x, pass),
        }
    }

    pub(crate) fn spec(&self) -> LayerSpec {
        match self {
            Self::Attention { attention } => attention.spec(),
            Self::Latent { latent } => latent.spec(),
            _ => LayerSpec::State,
        }
    }

    pub(crate) fn cached_per_token(&self) -> usize {
        match self {
            Self::Attention { attention } => attention.cached_per_token(),
            Self::Latent { latent } => latent.cached_per_token(),
            _ => 0,
        }
    }

    pub(crate) fn head_dims(&self) -> Option<[usize; 2]> {
        match self {
            Self::Attention { attention } => Some([attention.head_dim(); 2]),
            Self::Latent { latent } => Some(latent.head_dims()),
            _ => None,
        }
    }
}

/// The feed-forward half: one layer, or several of which a router picks.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one per layer, which is never moved")]
pub(crate) enum FeedForward {
    Gated { mlp: GatedMlp },
    Plain { mlp: PlainMlp },
    Mixture { experts: MixtureOfExperts },
}

visit!(enum FeedForward { Gated { mlp }, Plain { mlp }, Mixture { experts } });

impl FeedForward {
    fn forward(&self, x: &Array) -> Result<Array> {
        match self {
            Self::Gated { mlp } => mlp.forward(x),
            Self::Plain { mlp } => mlp.forward(x),
            Self::Mixture { experts } => experts.forward(x),
        }
    }
}
