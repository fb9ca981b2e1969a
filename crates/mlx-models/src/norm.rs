//! RMS norm, and layer norm as one of what is left of a vector less its mean.

use mlx_rs::{Array, Dtype, error::Result as MlxResult};

use crate::{
    Result,
    backend::{Backend, Norm},
    parameters::{Parameter, ParameterKind, Replace},
};

/// `x / sqrt(mean(x²) + ε) · w` over the last axis (Zhang & Sennrich, 2019). With the mean taken from
/// `x` before, and a bias added after, it is layer norm (Ba et al., 2016).
#[derive(Debug, Clone)]
pub(crate) struct RmsNorm {
    path: String,
    /// As checkpoints store it, `[size]`.
    stored: Array,
    /// What is added after, `[size]`, and its path.
    bias: Option<(String, Array)>,
    form: NormWeight,
    eps: f32,
    backend: Backend,
    computed: Norm,
}

/// What a family's checkpoints store as the norm's weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormWeight {
    /// `w` itself.
    Plain,
    /// `w - 1`: Gemma, whose norms multiply by `1 + weight`.
    Offset,
    /// `w` itself, of a layer norm without a bias (Cohere).
    Centred,
    /// `w` itself, of a layer norm, beside its bias (StarCoder2).
    CentredBias,
    /// Nothing: `w` is 1.
    Unit,
}

impl RmsNorm {
    /// `stored` is the tensor `{path}.weight`, `bias` is `{path}.bias`.
    pub(crate) fn new(
        path: &str,
        stored: Array,
        bias: Option<Array>,
        eps: f32,
        form: NormWeight,
        backend: Backend,
    ) -> Result<Self> {
        let computed = computed(&stored, eps, form, backend)?;
        computed.weight().eval()?;
        let bias = bias.map(|it| (format!("{path}.bias"), it));
        Ok(Self { path: format!("{path}.weight"), stored, bias, form, eps, backend, computed })
    }

    /// What the checkpoint stores as its weight.
    pub(crate) fn form(&self) -> NormWeight {
        self.form
    }

    pub(crate) fn forward(&self, x: &Array) -> MlxResult<Array> {
        if let Some(plain) = self.plain() {
            return plain.forward(x);
        }
        let wide = x.as_dtype(Dtype::Float32)?;
        let centred = wide.subtract(wide.mean_axis(-1, true)?)?.as_dtype(x.dtype())?;
        let normed = self.computed.forward(&centred)?;
        match &self.bias {
            None => Ok(normed),
            Some((_, bias)) => normed.add(bias),
        }
    }

    /// All that it does, where that is an RMS norm alone.
    pub(crate) fn plain(&self) -> Option<&Norm> {
        let is_plain = !matches!(self.form, NormWeight::Centred | NormWeight::CentredBias);
        is_plain.then_some(&self.computed)
    }

    pub(crate) fn parameters(&self, f: &mut dyn FnMut(Parameter<'_>)) {
        if self.form == NormWeight::Unit {
            return;
        }
        f(Parameter::new(&self.path, ParameterKind::Norm, &self.stored));
        if let Some((path, bias)) = &self.bias {
            f(Parameter::new(path, ParameterKind::Bias, bias));
        }
    }

    pub(crate) fn replace(&mut self, f: &mut Replace<'_>) -> Result<()> {
        if self.form == NormWeight::Unit {
            return Ok(());
        }
        let weight = Parameter::new(&self.path, ParameterKind::Norm, &self.stored);
        if let Some(array) = weight.replaced(f)? {
            self.stored = array.as_dtype(self.stored.dtype())?;
            self.computed = computed(&self.stored, self.eps, self.form, self.backend)?;
        }
        if let Some((path, bias)) = &mut self.bias
            && let Some(array) = Parameter::new(path, ParameterKind::Bias, bias).replaced(f)?
        {
            *bias = array.as_dtype(bias.dtype())?;
        }
        Ok(())
    }
}

/// What a norm of this form multiplies by, as the backend takes it.
fn computed(stored: &Array, eps: f32, form: NormWeight, backend: Backend) -> MlxResult<Norm> {
    let weight = match form {
        NormWeight::Offset => {
            let wide = stored.as_dtype(Dtype::Float32)?.add(Array::from_f32(1.0))?;
            wide.as_dtype(stored.dtype())?
        }
        _ => stored.clone(),
    };
    backend.norm(weight, eps)
}

/// `x`, through the norm where there is one.
pub(crate) fn normed(norm: Option<&RmsNorm>, x: &Array) -> Result<Array> {
    match norm {
        None => Ok(x.clone()),
        Some(norm) => Ok(norm.forward(x)?),
    }
}
