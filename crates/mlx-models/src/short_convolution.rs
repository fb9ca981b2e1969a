//! The token mixer of LFM2: a short convolution between two gates.

use mlx_rs::Array;

use crate::{
    Result, convolution::CausalConvolution, linear::Linear, parameters::visit, pass::BlockPass,
    weights::Weights,
};

/// `out(c · conv(b · x))`, where `b`, `c` and `x` are a product of the layer's input.
#[derive(Debug)]
pub(crate) struct ShortConvolution {
    input: Linear,
    convolution: CausalConvolution,
    output: Linear,
}

visit!(struct ShortConvolution { input, convolution, output });

impl ShortConvolution {
    /// Loads the layer at `at` (`model.layers.3.conv`), whose convolution sees `width` tokens.
    pub(crate) fn load(
        weights: &mut Weights,
        at: &str,
        hidden: usize,
        width: usize,
        bias: bool,
    ) -> Result<Self> {
        let name = |it: &str| format!("{at}.{it}");
        Ok(Self {
            input: weights.linear(&name("in_proj"), 3 * hidden, hidden, bias)?,
            convolution: CausalConvolution::load(weights, &name("conv"), hidden, width, bias)?,
            output: weights.linear(&name("out_proj"), hidden, hidden, bias)?,
        })
    }

    pub(crate) fn forward(
        &self,
        layer: usize,
        x: &Array,
        pass: &mut BlockPass<'_>,
    ) -> Result<Array> {
        let parts = self.input.forward(x)?.split_equal(3, -1)?;
        // Behind the product, whose bias would reach real tokens.
        let convolved = pass.without_padding(&parts[0].multiply(&parts[2])?)?;
        let window = pass.state(layer)?.and_then(|it| it.first()).cloned();
        let (convolved, window) = self.convolution.forward(&convolved, window.as_ref(), None)?;
        pass.set_state(layer, vec![window])?;
        Ok(self.output.forward(&parts[1].multiply(convolved)?)?)
    }
}
