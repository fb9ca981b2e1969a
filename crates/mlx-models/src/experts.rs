//! The products of a mixture's experts.

use mlx_rs::{Array, error::Result as MlxResult};

use crate::{
    Result,
    parameters::{Parameter, ParameterKind, Replace},
    weight::Weight,
};

/// One [`Linear`](crate::Linear) per expert.
#[derive(Debug, Clone)]
pub(crate) struct Experts {
    /// mlx-lm's name of all together: `model.layers.0.mlp.switch_mlp.gate_proj`.
    path: String,
    /// `[experts, out, in]`.
    weight: Weight,
    /// `[experts, out]`.
    bias: Option<Array>,
    /// Whether the checkpoint holds a tensor per expert.
    stacked: bool,
}

impl Experts {
    pub(crate) fn new(path: String, weight: Weight, bias: Option<Array>, stacked: bool) -> Self {
        Self { path, weight, bias, stacked }
    }

    /// `x` is `[batch, tokens, 1 or chosen, 1, in]`, `chosen` u32 `[batch, tokens, chosen]`; returns
    /// `[batch, tokens, chosen, 1, out]`.
    pub(crate) fn forward(&self, x: &Array, chosen: &Array) -> MlxResult<Array> {
        let y = self.weight.gathered_product(x, chosen)?;
        match &self.bias {
            None => Ok(y),
            Some(bias) => y.add(bias.take_axis(chosen, 0)?.expand_dims(-2)?),
        }
    }

    pub(crate) fn parameters(&self, f: &mut dyn FnMut(Parameter<'_>)) {
        let stacked = self.stacked;
        self.weight.parameters(&self.path, &mut |it| f(Parameter { stacked, ..it }));
        if let Some(bias) = &self.bias {
            let path = format!("{}.bias", self.path);
            let bias = Parameter::new(&path, ParameterKind::Bias, bias);
            f(Parameter { stacked, ..bias });
        }
    }

    pub(crate) fn replace(&mut self, f: &mut Replace<'_>) -> Result<()> {
        let stacked = self.stacked;
        self.weight.replace(&self.path, &mut |it| f(Parameter { stacked, ..it }))?;
        if let Some(bias) = &mut self.bias {
            let path = format!("{}.bias", self.path);
            let held = Parameter::new(&path, ParameterKind::Bias, bias);
            if let Some(array) = (Parameter { stacked, ..held }).replaced(f)? {
                *bias = array.as_dtype(bias.dtype())?;
            }
        }
        Ok(())
    }
}
