//! The one weight product of every graph: with a bias, as a token table, and with an adapter.
//!
//! Every matrix-vector product of a model goes through [`Linear`] or
//! [`Experts`](crate::experts::Experts), so a backend with a faster kernel is plugged in at
//! [`Weight`] and nowhere else.

use std::sync::Arc;

use mlx_rs::{Array, error::Result as MlxResult, ops::addmm, transforms::eval};

use crate::{
    Error, ErrorKind, Result,
    parameters::{Parameter, ParameterKind, Replace},
    weight::Weight,
};

/// `y = x Wᵀ + b`, or a token table, whose rows are looked up.
///
/// It keeps the name it was loaded under, and may carry an [`Adapter`].
#[derive(Debug, Clone)]
pub struct Linear {
    path: Arc<str>,
    weight: Weight,
    bias: Option<Array>,
    adapter: Option<Adapter>,
}

impl Linear {
    pub(crate) fn new(path: impl Into<Arc<str>>, weight: Weight, bias: Option<Array>) -> Self {
        Self { path: path.into(), weight, bias, adapter: None }
    }

    /// The name without an ending: `model.layers.0.self_attn.q_proj`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Shape of the matrix, `[out, in]`; of a token table `[vocabulary, hidden]`.
    pub fn shape(&self) -> [usize; 2] {
        match self.weight.shape().as_slice() {
            &[out, columns] => [out, columns],
            _ => [0, 0],
        }
    }

    /// Whether the weights are packed.
    pub fn is_quantized(&self) -> bool {
        self.weight.is_quantized()
    }

    /// The matrix in the dtype that the model computes in, `[out, in]`, without the adapter; not yet
    /// evaluated where it is packed.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn dequantized(&self) -> Result<Array> {
        Ok(self.weight.dequantized()?)
    }

    /// The adapter, where one is set.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// Adds `adapter` to every product and every row from here on, in place of one that was set.
    ///
    /// # Errors
    /// When its matrices do not fit this one, or cannot be computed.
    pub fn set_adapter(&mut self, adapter: Adapter) -> Result<()> {
        let (fits, found) = (self.shape(), [adapter.b.dim(0), adapter.a.dim(1)]);
        if !fits.iter().zip(found).all(|(&fits, found)| fits == found as usize) {
            let path = &self.path;
            return Err(Error::new(
                ErrorKind::Weights,
                format!("the adapter for `{path}` is for {found:?}, but its shape is {fits:?}"),
            ));
        }
        self.adapter = Some(adapter);
        Ok(())
    }

    /// Takes the adapter off.
    pub fn clear_adapter(&mut self) -> Option<Adapter> {
        self.adapter.take()
    }

    pub(crate) fn weight(&self) -> &Weight {
        &self.weight
    }

    /// `x Wᵀ + b` for `x` of `[.., in]`.
    pub(crate) fn forward(&self, x: &Array) -> MlxResult<Array> {
        let y = match (&self.weight, &self.bias) {
            (Weight::Dense(weight), Some(bias)) => addmm(bias, x, weight.facing(x), None, None)?,
            (weight, Some(bias)) => weight.product(x)?.add(bias)?,
            (weight, None) => weight.product(x)?,
        };
        match &self.adapter {
            None => Ok(y),
            Some(adapter) => y.add(adapter.product(x)?.as_dtype(y.dtype())?),
        }
    }

    /// Rows of a token table: ids of `[batch, tokens]` to `[batch, tokens, hidden]`.
    pub(crate) fn rows(&self, ids: &Array) -> MlxResult<Array> {
        let rows = self.weight.rows(ids)?;
        match &self.adapter {
            None => Ok(rows),
            Some(adapter) => rows.add(adapter.rows(ids)?.as_dtype(rows.dtype())?),
        }
    }

    pub(crate) fn parameters(&self, f: &mut dyn FnMut(Parameter<'_>)) {
        self.weight.parameters(&self.path, f);
        if let Some(bias) = &self.bias {
            f(Parameter::new(&format!("{}.bias", self.path), ParameterKind::Bias, bias));
        }
        if let Some(Adapter { a, b, .. }) = &self.adapter {
            f(Parameter::new(&format!("{}.{LORA_A}", self.path), ParameterKind::Adapter, a));
            f(Parameter::new(&format!("{}.{LORA_B}", self.path), ParameterKind::Adapter, b));
        }
    }

    pub(crate) fn replace(&mut self, f: &mut Replace<'_>) -> Result<()> {
        self.weight.replace(&self.path, f)?;
        if let Some(bias) = &mut self.bias {
            let path = format!("{}.bias", self.path);
            if let Some(array) = Parameter::new(&path, ParameterKind::Bias, bias).replaced(f)? {
                *bias = array.as_dtype(bias.dtype())?;
            }
        }
        if let Some(Adapter { a, b, scale }) = &self.adapter {
            let [of_a, of_b] = [LORA_A, LORA_B].map(|it| format!("{}.{it}", self.path));
            let new_a = Parameter::new(&of_a, ParameterKind::Adapter, a).replaced(f)?;
            let new_b = Parameter::new(&of_b, ParameterKind::Adapter, b).replaced(f)?;
            let (a, b) = (new_a.unwrap_or_else(|| a.clone()), new_b.unwrap_or_else(|| b.clone()));
            self.adapter = Some(Adapter { a, b, scale: *scale });
        }
        Ok(())
    }
}

/// PEFT's names, since the shapes are PEFT's.
const LORA_A: &str = "lora_A.weight";
const LORA_B: &str = "lora_B.weight";

/// A low-rank addition to a matrix, `W + scale · B A` (LoRA, Hu et al., 2021): the product becomes
/// `y = W x + b + scale · B (A x)`, the row of a token table `W[id] + scale · B[id] A`.
///
/// As in PEFT, `A` is `[rank, in]`, `B` is `[out, rank]` and `scale` is `alpha / rank`; a checkpoint
/// of mlx-lm holds both transposed (`lora_a`, `lora_b`), and the scale itself.
#[derive(Debug, Clone)]
pub struct Adapter {
    a: Array,
    b: Array,
    scale: f32,
}

impl Adapter {
    /// An adapter of two float matrices, `a` of `[rank, in]` and `b` of `[out, rank]`, which are
    /// evaluated here.
    ///
    /// # Errors
    /// When their shapes or dtypes are others, or MLX cannot compute them.
    pub fn new(a: Array, b: Array, scale: f32) -> Result<Self> {
        let matrices = a.ndim() == 2 && b.ndim() == 2 && a.dim(0) == b.dim(1);
        if !matrices || !a.dtype().is_float() || !b.dtype().is_float() {
            let what = format!(
                "an adapter takes float matrices of [rank, in] and [out, rank], found {:?} {:?} and \
                 {:?} {:?}",
                a.dtype(),
                a.shape(),
                b.dtype(),
                b.shape()
            );
            return Err(Error::new(ErrorKind::Weights, what));
        }
        eval([&a, &b])?;
        Ok(Self { a, b, scale })
    }

    /// `[rank, in]`.
    pub fn a(&self) -> &Array {
        &self.a
    }

    /// `[out, rank]`.
    pub fn b(&self) -> &Array {
        &self.b
    }

    /// What `B A` is multiplied by.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    fn product(&self, x: &Array) -> MlxResult<Array> {
        x.matmul(self.a.t())?.matmul(self.b.t())?.multiply(Array::from_f32(self.scale))
    }

    fn rows(&self, ids: &Array) -> MlxResult<Array> {
        self.b.take_axis(ids, 0)?.matmul(&self.a)?.multiply(Array::from_f32(self.scale))
    }
}
