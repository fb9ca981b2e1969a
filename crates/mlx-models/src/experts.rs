//! The products of a mixture's experts.

use mlx_rs::{Array, Dtype, error::Result as MlxResult};

use crate::{
    Adapter, Error, ErrorKind, Result,
    parameters::{Parameter, ParameterKind, Replace},
    together::Together,
    weight::Weight,
};

/// One [`Linear`](crate::Linear) per expert.
#[derive(Debug, Clone)]
pub(crate) struct Experts {
    /// mlx-lm's name of all together: `model.layers.0.mlp.switch_mlp.gate_proj`; of HF's one tensor
    /// the name that it has, `model.layers.0.mlp.experts.down_proj`.
    path: String,
    /// `[experts, out, in]`.
    weight: Weight,
    /// `[experts, out]`.
    bias: Option<Array>,
    layout: Layout,
    adapter: Option<Adapter>,
}

/// How a checkpoint keeps experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// A tensor per expert: `experts.3.up_proj.weight`.
    Each,
    /// mlx-lm's one tensor for all: `switch_mlp.up_proj.weight`.
    Together,
    /// HF's one tensor for all, whose name has no ending: `experts.down_proj`, `experts.down_proj_bias`.
    Bare,
    /// As `Bare`, but `[experts, in, out]` (gpt-oss).
    Transposed,
    /// OpenAI's mxfp4: `experts.down_proj_blocks`, whose bytes are those of MLX's words, and
    /// `experts.down_proj_scales`, `[experts, out, ..]` both.
    Blocks,
}

impl Experts {
    pub(crate) fn new(path: String, weight: Weight, bias: Option<Array>, layout: Layout) -> Self {
        Self { path, weight, bias, layout, adapter: None }
    }

    /// `x` is `[batch, tokens, 1 or chosen, 1, in]`, `chosen` u32 `[batch, tokens, chosen]`; returns
    /// `[batch, tokens, chosen, 1, out]`.
    pub(crate) fn forward(&self, x: &Array, chosen: &Array) -> MlxResult<Array> {
        let y = self.weight.gathered_product(x, chosen)?;
        let y = match &self.adapter {
            None => y,
            Some(adapter) => y.add(adapter.gathered(x, chosen)?.as_dtype(y.dtype())?)?,
        };
        match &self.bias {
            None => Ok(y),
            Some(bias) => y.add(bias.take_axis(chosen, 0)?.expand_dims(-2)?),
        }
    }

    /// `silu(gate(x)) · up(x)` of the chosen experts for `x` of `[batch, tokens, in]`, `[batch, tokens, chosen, out]`,
    /// where that is one operation. There are the products of gate and up, or one whose rows are both in turn.
    pub(crate) fn gate<const N: usize>(
        gate_up: [&Self; N],
        x: &Array,
        chosen: &Array,
    ) -> MlxResult<Option<Array>> {
        match Together::of(gate_up.map(|it| &it.weight)) {
            Some(together) if gate_up.iter().all(|it| it.is_bare()) => {
                together.gathered_gate(x, chosen)
            }
            _ => Ok(None),
        }
    }

    /// The products of `x`, `[batch, tokens, chosen, in]`, each times its share, `[batch, tokens, chosen]`, and added
    /// up: `[batch, tokens, out]`, where that is one operation.
    pub(crate) fn mixed(
        &self,
        x: &Array,
        chosen: &Array,
        shares: &Array,
    ) -> MlxResult<Option<Array>> {
        match Together::of([&self.weight]) {
            Some(alone) if self.is_bare() => alone.mixed(x, chosen, shares),
            _ => Ok(None),
        }
    }

    fn is_bare(&self) -> bool {
        self.bias.is_none() && self.adapter.is_none()
    }

    /// All matrices in the compute dtype, `[experts, out, in]`.
    pub(crate) fn dequantized(&self) -> MlxResult<Array> {
        self.weight.dequantized()
    }

    /// Whether files with adapters have a name for it: mlx-lm's.
    pub(crate) fn is_adaptable(&self) -> bool {
        matches!(self.layout, Layout::Each | Layout::Together) && self.path.contains(".switch_mlp.")
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// `[experts, out, in]`.
    pub(crate) fn shape(&self) -> Vec<usize> {
        self.weight.shape()
    }

    pub(crate) fn is_quantized(&self) -> bool {
        self.weight.is_quantized()
    }

    pub(crate) fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// All matrices with their adapters in them, fp32.
    pub(crate) fn merged(&self) -> Result<Array> {
        let weight = self.weight.dequantized()?.as_dtype(Dtype::Float32)?;
        match &self.adapter {
            None => Ok(weight),
            Some(adapter) => Ok(weight.add(adapter.matrix()?)?),
        }
    }

    pub(crate) fn set_adapter(&mut self, adapter: Adapter) -> Result<()> {
        let (fits, found) = (self.shape(), adapter.shape());
        if found != fits {
            let path = &self.path;
            let what =
                format!("the adapter for `{path}` is for {found:?}, but its shape is {fits:?}");
            return Err(Error::new(ErrorKind::Weights, what));
        }
        self.adapter = Some(adapter);
        Ok(())
    }

    pub(crate) fn clear_adapter(&mut self) -> Option<Adapter> {
        self.adapter.take()
    }

    pub(crate) fn parameters(&self, f: &mut dyn FnMut(Parameter<'_>)) {
        let layout = self.layout;
        match (layout, &self.weight) {
            (Layout::Transposed, Weight::Dense(it)) => {
                f(Parameter::new(&self.path, ParameterKind::Weight, it.columns()));
            }
            (Layout::Blocks, weight) => weight.parameters(&self.path, &mut |it| {
                f(Parameter { path: &in_blocks(it.path), ..it });
            }),
            (_, weight) => weight.parameters(&self.path, &mut |it| f(layout.named(it))),
        }
        if let Some(bias) = &self.bias {
            let path = layout.bias_of(&self.path);
            f(layout.named(Parameter::new(&path, ParameterKind::Bias, bias)));
        }
        for (name, array) in self.adapter.iter().flat_map(Adapter::arrays) {
            f(Parameter::new(&format!("{}.{name}", self.path), ParameterKind::Adapter, array));
        }
    }

    pub(crate) fn replace(&mut self, f: &mut Replace<'_>) -> Result<()> {
        let layout = self.layout;
        match (layout, &mut self.weight) {
            (Layout::Transposed, Weight::Dense(it)) => {
                let held = it.columns();
                let parameter = Parameter::new(&self.path, ParameterKind::Weight, held);
                if let Some(array) = parameter.replaced(f)? {
                    let rows = array.as_dtype(held.dtype())?.swap_axes(-1, -2)?;
                    self.weight = Weight::dense(rows)?;
                }
            }
            (Layout::Blocks, weight) => weight
                .replace(&self.path, &mut |it| f(Parameter { path: &in_blocks(it.path), ..it }))?,
            (_, weight) => weight.replace(&self.path, &mut |it| f(layout.named(it)))?,
        }
        if let Some(bias) = &mut self.bias {
            let path = layout.bias_of(&self.path);
            let held = layout.named(Parameter::new(&path, ParameterKind::Bias, bias));
            if let Some(array) = held.replaced(f)? {
                *bias = array.as_dtype(bias.dtype())?;
            }
        }
        if let Some(adapter) = &self.adapter {
            self.adapter = Some(adapter.renewed(&self.path, f)?);
        }
        Ok(())
    }
}

impl Layout {
    /// The parameter under the name that the checkpoint has for it.
    fn named(self, parameter: Parameter<'_>) -> Parameter<'_> {
        let path = match self {
            Self::Bare => parameter.path.strip_suffix(".weight").unwrap_or(parameter.path),
            Self::Each | Self::Together | Self::Transposed | Self::Blocks => parameter.path,
        };
        Parameter { path, stacked: self == Self::Each, ..parameter }
    }

    /// The name of the bias of what is at `path`.
    fn bias_of(self, path: &str) -> String {
        match self {
            Self::Each | Self::Together => format!("{path}.bias"),
            Self::Bare | Self::Transposed | Self::Blocks => format!("{path}_bias"),
        }
    }
}

/// OpenAI's name of an array of packed experts.
fn in_blocks(path: &str) -> String {
    match path.rsplit_once('.') {
        Some((path, "weight")) => format!("{path}_blocks"),
        Some((path, ending)) => format!("{path}_{ending}"),
        None => path.to_owned(),
    }
}
