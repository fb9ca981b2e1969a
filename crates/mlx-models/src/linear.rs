//! The one weight product and the one token table of every graph.
//!
//! Every matrix-vector product of a model goes through [`Linear`] or [`Experts`], so a backend with a
//! faster kernel is plugged in here and nowhere else.

use mlx_rs::{
    Array, Dtype,
    error::Result,
    ops::{addmm, dequantize, gather_mm, gather_qmm, quantized_matmul},
    transforms::eval,
};

use crate::native::Native;

/// Packed weights as MLX's affine quantization writes them: `w = scale · q + bias` per group.
#[derive(Debug, Clone)]
pub(crate) struct Packed {
    /// u32, `[.., out, in · bits / 32]`.
    pub(crate) weight: Array,
    /// `[.., out, in / group_size]`.
    pub(crate) scales: Array,
    /// `[.., out, in / group_size]`.
    pub(crate) biases: Array,
    pub(crate) group_size: i32,
    pub(crate) bits: i32,
}

/// Weights of one product, `[.., out, in]`.
#[derive(Debug, Clone)]
pub(crate) enum Weight {
    Dense(Transposed),
    Quantized(Packed),
}

impl Weight {
    pub(crate) fn dense(weight: &Array) -> Result<Self> {
        Transposed::new(weight).map(Self::Dense)
    }
}

/// Views of a dense weight, made once, because a view costs a graph node each time.
#[derive(Debug, Clone)]
pub(crate) struct Transposed {
    /// `[.., in, out]`.
    plain: Array,
    /// `[1, in, out]`: a batch of one row meets it as it is, where MLX would reshape the row to meet
    /// `plain`, and the product back.
    single: Option<Array>,
}

impl Transposed {
    fn new(weight: &Array) -> Result<Self> {
        let plain = weight.swap_axes(-1, -2)?;
        let single = if plain.ndim() == 2 { Some(plain.expand_dims(0)?) } else { None };
        eval([Some(&plain), single.as_ref()].into_iter().flatten())?;
        Ok(Self { plain, single })
    }

    fn of(&self, x: &Array) -> &Array {
        self.single.as_ref().filter(|_| x.ndim() == 3 && x.dim(0) == 1).unwrap_or(&self.plain)
    }
}

/// `y = x Wᵀ + b`.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    pub(crate) weight: LinearWeight,
    pub(crate) bias: Option<Array>,
}

#[derive(Debug, Clone)]
pub(crate) enum LinearWeight {
    Plain(Weight),
    /// bf16 in a model that computes in fp32, `[out, in]`: half the memory to read, the same numbers.
    Widening(Native, Array),
}

impl Linear {
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        let y = match (&self.weight, &self.bias) {
            (LinearWeight::Plain(Weight::Dense(weight)), Some(bias)) => {
                return addmm(bias, x, weight.of(x), None, None);
            }
            (LinearWeight::Plain(Weight::Dense(weight)), None) => x.matmul(weight.of(x))?,
            (LinearWeight::Plain(Weight::Quantized(packed)), _) => packed_matmul(x, packed)?,
            (LinearWeight::Widening(native, weight), _) => native.widening_product(x, weight)?,
        };
        match &self.bias {
            Some(bias) => y.add(bias),
            None => Ok(y),
        }
    }

    pub(crate) fn is_quantized(&self) -> bool {
        matches!(self.weight, LinearWeight::Plain(Weight::Quantized(_)))
    }
}

fn packed_matmul(x: &Array, it: &Packed) -> Result<Array> {
    quantized_matmul(x, &it.weight, &it.scales, &it.biases, true, it.group_size, it.bits)
}

/// One [`Linear`] without bias per expert, `[experts, out, in]`.
#[derive(Debug, Clone)]
pub(crate) struct Experts(pub(crate) Weight);

impl Experts {
    /// `x` is `[batch, tokens, 1 or chosen, 1, in]`, `chosen` u32 `[batch, tokens, chosen]`; returns
    /// `[batch, tokens, chosen, 1, out]`.
    pub(crate) fn forward(&self, x: &Array, chosen: &Array) -> Result<Array> {
        match &self.0 {
            Weight::Dense(weight) => gather_mm(x, &weight.plain, None, chosen, false),
            Weight::Quantized(it) => gather_qmm(
                x,
                &it.weight,
                &it.scales,
                &it.biases,
                None,
                chosen,
                true,
                it.group_size,
                it.bits,
                false,
            ),
        }
    }
}

/// The token table; tied models use it as the head too.
#[derive(Debug, Clone)]
pub(crate) enum Embedding {
    /// `[vocabulary, hidden]`, and its transposed view for a tied head.
    Dense {
        table: Array,
        transposed: Transposed,
    },
    /// bf16 in a model that computes in fp32.
    Widening(Native, Array),
    Quantized(Packed),
}

impl Embedding {
    pub(crate) fn dense(table: Array) -> Result<Self> {
        let transposed = Transposed::new(&table)?;
        Ok(Self::Dense { table, transposed })
    }

    /// Rows of the table: `[batch, tokens]` to `[batch, tokens, hidden]`.
    pub(crate) fn forward(&self, tokens: &Array) -> Result<Array> {
        match self {
            Self::Dense { table, .. } => table.take_axis(tokens, 0),
            Self::Widening(_, table) => table.take_axis(tokens, 0)?.as_dtype(Dtype::Float32),
            Self::Quantized(it) => dequantize(
                it.weight.take_axis(tokens, 0)?,
                it.scales.take_axis(tokens, 0)?,
                &it.biases.take_axis(tokens, 0)?,
                it.group_size,
                it.bits,
            ),
        }
    }

    /// The tied head: `x Eᵀ`.
    pub(crate) fn as_linear(&self, x: &Array) -> Result<Array> {
        match self {
            Self::Dense { transposed, .. } => x.matmul(transposed.of(x)),
            Self::Widening(native, table) => native.widening_product(x, table),
            Self::Quantized(it) => packed_matmul(x, it),
        }
    }

    pub(crate) fn is_quantized(&self) -> bool {
        matches!(self, Self::Quantized(_))
    }
}
