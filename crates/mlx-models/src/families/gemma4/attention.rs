//! Gemma 4's attention: normed values, which may be the keys before their norm, or an earlier layer's
//! columns.

use mlx_rs::Array;

use super::{super::prelude::*, Layer};
use crate::{
    attention::Softmax, backend::Backend, linear::Linear, norm::RmsNorm, parameters::visit,
    pass::BlockPass,
};

#[derive(Debug)]
pub(in crate::families) struct Attention {
    query: Linear,
    query_norm: RmsNorm,
    /// `None`: the layer reads an earlier one's.
    own: Option<KeysAndValues>,
    output: Linear,
    layer: Layer,
    backend: Backend,
}

#[derive(Debug)]
struct KeysAndValues {
    key: Linear,
    key_norm: RmsNorm,
    /// `None`: the keys before their norm.
    value: Option<Linear>,
    /// Without a weight.
    value_norm: RmsNorm,
}

visit!(struct Attention { query, query_norm, own, output });
visit!(struct KeysAndValues { key, key_norm, value });

impl Attention {
    /// Loads the layer of the block at `at` (`model.layers.3`), with a bias on its products and with values
    /// that are keys where the flags say so.
    pub(in crate::families) fn load(
        weights: &mut Weights,
        at: &str,
        dims: &Dims,
        layer: &Layer,
        (bias, keys_are_values): (bool, bool),
    ) -> Result<Self> {
        let at = format!("{at}.self_attn");
        let (heads, form) = (layer.heads, NormWeight::Plain);
        let kv = heads.kv * heads.dim;
        let own = if matches!(layer.spec, LayerSpec::Shared { .. }) {
            // Published files hold them all the same.
            for part in ["k_proj", "v_proj", "k_norm", "v_norm"] {
                weights.leave_out(&format!("{at}.{part}"));
            }
            None
        } else {
            let value = if keys_are_values {
                None
            } else {
                Some(weights.linear(&format!("{at}.v_proj"), kv, dims.hidden, bias)?)
            };
            Some(KeysAndValues {
                key: weights.linear(&format!("{at}.k_proj"), kv, dims.hidden, bias)?,
                key_norm: weights.norm(&format!("{at}.k_norm"), heads.dim, dims.eps, form)?,
                value,
                value_norm: weights.unit_norm(heads.dim, dims.eps)?,
            })
        };
        let queries = heads.count * heads.dim;
        Ok(Self {
            query: weights.linear(&format!("{at}.q_proj"), queries, dims.hidden, bias)?,
            query_norm: weights.norm(&format!("{at}.q_norm"), heads.dim, dims.eps, form)?,
            own,
            output: weights.linear(&format!("{at}.o_proj"), dims.hidden, queries, bias)?,
            layer: layer.clone(),
            backend: weights.backend(),
        })
    }

    pub(in crate::families) fn forward(
        &self,
        index: usize,
        x: &Array,
        pass: &mut BlockPass<'_>,
    ) -> Result<Array> {
        let (batch, tokens) = (x.dim(0), x.dim(1));
        let Heads { count, kv, dim } = self.layer.heads;
        let split = |x: &Array, heads: usize| {
            x.reshape(&[batch, tokens, heads as i32, dim as i32])?.transpose_axes(&[0, 2, 1, 3])
        };
        let rotation = pass.rotation(&self.layer.rope)?;
        let rotate = |x: &Array| rotation.apply(x, self.backend);
        let queries = split(&self.query.forward(x)?, count)?;
        let queries = rotate(&self.query_norm.forward(&queries)?)?;
        let seen = match &self.own {
            None => pass.shared(index)?,
            Some(own) => {
                let keys = split(&own.key.forward(x)?, kv)?;
                let values = match &own.value {
                    None => keys.clone(),
                    Some(value) => split(&value.forward(x)?, kv)?,
                };
                let keys = rotate(&own.key_norm.forward(&keys)?)?;
                pass.append(index, &keys, &own.value_norm.forward(&values)?)?
            }
        };
        let softmax = Softmax { scale: 1.0, soft_cap: None, sinks: None };
        let mixed = pass.attend(&queries, &seen, softmax, self.backend)?;
        let mixed = mixed.transpose_axes(&[0, 2, 1, 3])?;
        Ok(self.output.forward(&mixed.reshape(&[batch, tokens, (count * dim) as i32])?)?)
    }

    pub(in crate::families) fn spec(&self) -> LayerSpec {
        self.layer.spec
    }

    pub(in crate::families) fn cached_per_token(&self) -> usize {
        let heads = self.layer.heads;
        self.own.as_ref().map_or(0, |_| 2 * heads.kv * heads.dim)
    }

    pub(in crate::families) fn head_dims(&self) -> Option<[usize; 2]> {
        self.own.as_ref().map(|_| [self.layer.heads.dim; 2])
    }
}
