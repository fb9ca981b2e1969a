//! The weights of a product and the forms they are kept in.
//!
//! Every form knows the same few operations, so a further one is a variant here and a way to read it in
//! [`Weights`](crate::weights::Weights).

use mlx_rs::{
    Array, Dtype,
    error::{Exception, Result as MlxResult},
    ops::{gather_mm, stack},
    transforms::eval,
};

use crate::{
    Result,
    backend::Backend,
    native::{Native, Packed},
    parameters::{Parameter, ParameterKind, Replace},
};

/// A matrix `W` of `[out, in]`, or one per expert, `[experts, out, in]`.
#[derive(Debug, Clone)]
pub(crate) enum Weight {
    /// In the dtype that the model computes in.
    Dense(Dense),
    /// bf16 in a model that computes in fp32: half the memory to read, the same numbers.
    Bf16(Native, Array),
    /// In one of MLX's quantization modes.
    Packed(Quantized),
}

/// A weight that is multiplied as it is.
#[derive(Debug, Clone)]
pub(crate) struct Dense {
    /// `[.., out, in]`.
    rows: Array,
    /// `[.., in, out]`: a view, made once because a view costs a graph node each time.
    columns: Array,
    /// `[1, in, out]`: a batch of one row meets it as it is, where MLX would reshape the row to meet
    /// `columns`, and the product back.
    single: Option<Array>,
    /// There where a replacement in bf16 would stay as it is, as the first weight did.
    narrow: Option<Native>,
}

/// A packed weight in a model.
#[derive(Debug, Clone)]
pub(crate) struct Quantized {
    pub(crate) packed: Packed,
    /// How products with it are computed.
    pub(crate) backend: Backend,
    /// What the model computes in.
    pub(crate) dtype: Dtype,
}

impl Dense {
    /// Nothing is evaluated: the array may be one that a gradient is taken by.
    pub(crate) fn new(rows: Array) -> MlxResult<Self> {
        let columns = rows.swap_axes(-1, -2)?;
        let single = if columns.ndim() == 2 { Some(columns.expand_dims(0)?) } else { None };
        Ok(Self { rows, columns, single, narrow: None })
    }

    /// `[.., in, out]`.
    pub(crate) fn columns(&self) -> &Array {
        &self.columns
    }

    /// The transposed view that meets `x`.
    pub(crate) fn facing(&self, x: &Array) -> &Array {
        self.single.as_ref().filter(|_| x.ndim() == 3 && x.dim(0) == 1).unwrap_or(&self.columns)
    }
}

impl Weight {
    /// A weight in the compute dtype.
    pub(crate) fn dense(rows: Array) -> MlxResult<Self> {
        Dense::new(rows).map(Self::Dense)
    }

    /// One matrix per expert, of a matrix each: as they are where all are kept alike, else in the compute
    /// dtype.
    pub(crate) fn stacked(each: &[Self]) -> MlxResult<Self> {
        let dense = |each: &[Self]| {
            let each = each.iter().map(Self::dequantized).collect::<MlxResult<Vec<_>>>()?;
            Self::dense(stack(&each, 0)?)
        };
        match each.first() {
            Some(Self::Bf16(native, _)) => {
                let narrow: Option<Vec<&Array>> = each.iter().map(Self::narrow).collect();
                match narrow {
                    Some(arrays) => Ok(Self::Bf16(*native, stack(&arrays, 0)?)),
                    None => dense(each),
                }
            }
            Some(Self::Packed(first)) => {
                let packed: Option<Vec<&Packed>> = each.iter().map(Self::packed).collect();
                let alike = |it: &&Packed| it.quantization() == first.packed.quantization();
                match packed.filter(|it| it.iter().all(alike)) {
                    Some(packed) => {
                        Ok(Self::Packed(Quantized { packed: together(&packed)?, ..first.clone() }))
                    }
                    None => dense(each),
                }
            }
            _ => dense(each),
        }
    }

    /// The matrix, where it is bf16 in a model that computes in fp32.
    pub(crate) fn narrow(&self) -> Option<&Array> {
        if let Self::Bf16(_, it) = self { Some(it) } else { None }
    }

    /// The matrix, where it is packed.
    pub(crate) fn packed(&self) -> Option<&Packed> {
        if let Self::Packed(it) = self { Some(&it.packed) } else { None }
    }

    /// `x Wᵀ` for `x` of `[.., in]`.
    pub(crate) fn product(&self, x: &Array) -> MlxResult<Array> {
        match self {
            Self::Dense(it) => x.matmul(it.facing(x)),
            Self::Bf16(native, it) => native.widening_product(x, it),
            Self::Packed(it) => it.backend.packed_product(x, &it.packed),
        }
    }

    /// `x W[chosen]ᵀ`, one matrix per entry of `chosen`: see [`Experts`](crate::experts::Experts).
    pub(crate) fn gathered_product(&self, x: &Array, chosen: &Array) -> MlxResult<Array> {
        match self {
            Self::Dense(it) => gather_mm(x, &it.columns, None, chosen, false),
            Self::Bf16(native, it) => native.gathered_widening_product(x, it, chosen),
            Self::Packed(it) => it.backend.gathered_packed_product(x, &it.packed, chosen),
        }
    }

    /// Rows of the matrix in the compute dtype: ids of `[..]` to `[.., in]`.
    pub(crate) fn rows(&self, ids: &Array) -> MlxResult<Array> {
        match self {
            Self::Dense(it) => it.rows.take_axis(ids, 0),
            Self::Bf16(_, it) => it.take_axis(ids, 0)?.as_dtype(Dtype::Float32),
            Self::Packed(it) => it.packed.rows(ids, it.dtype),
        }
    }

    /// The whole matrix in the compute dtype.
    pub(crate) fn dequantized(&self) -> MlxResult<Array> {
        match self {
            Self::Dense(it) => Ok(it.rows.clone()),
            Self::Bf16(_, it) => it.as_dtype(Dtype::Float32),
            Self::Packed(it) => it.packed.dequantized(it.dtype),
        }
    }

    /// Computes its arrays and the views of them.
    pub(crate) fn eval(&self) -> MlxResult<()> {
        match self {
            Self::Dense(it) => {
                eval([Some(&it.rows), Some(&it.columns), it.single.as_ref()].into_iter().flatten())
            }
            Self::Bf16(_, it) => it.eval(),
            Self::Packed(it) => it.packed.eval(),
        }
    }

    /// The unpacked shape, `[.., out, in]`.
    pub(crate) fn shape(&self) -> Vec<usize> {
        match self {
            Self::Dense(Dense { rows: it, .. }) | Self::Bf16(_, it) => sizes(it.shape()),
            Self::Packed(it) => sizes(&it.packed.shape()),
        }
    }

    /// Its arrays, each with the ending of its name.
    fn arrays(&self) -> Vec<(&'static str, ParameterKind, &Array)> {
        match self {
            Self::Dense(Dense { rows: it, .. }) | Self::Bf16(_, it) => {
                vec![("weight", ParameterKind::Weight, it)]
            }
            Self::Packed(Quantized { packed: it, .. }) => {
                let mut arrays = vec![
                    ("weight", ParameterKind::Packed, it.words()),
                    ("scales", ParameterKind::Scales, it.scales()),
                ];
                arrays.extend(it.biases().map(|it| ("biases", ParameterKind::Offsets, it)));
                arrays
            }
        }
    }

    /// Calls `f` with its arrays under the names they have at `path`.
    pub(crate) fn parameters(&self, path: &str, f: &mut dyn FnMut(Parameter<'_>)) {
        for (ending, kind, array) in self.arrays() {
            let count = match kind {
                ParameterKind::Packed => self.shape().iter().product(),
                ParameterKind::Weight => array.size(),
                _ => 0,
            };
            f(Parameter { count, ..Parameter::new(&format!("{path}.{ending}"), kind, array) });
        }
    }

    /// Asks `f` for each of them, and takes what it returns.
    pub(crate) fn replace(&mut self, path: &str, f: &mut Replace<'_>) -> Result<()> {
        let mut replaced = Vec::new();
        self.parameters(path, &mut |it| replaced.push(it.replaced(f)));
        let endings: Vec<&str> = self.arrays().into_iter().map(|it| it.0).collect();
        for (ending, array) in endings.into_iter().zip(replaced) {
            if let Some(array) = array? {
                self.set(ending, array)?;
            }
        }
        Ok(())
    }

    /// Puts `array` in place of the one with this ending. bf16 stays bf16 only where the weight was
    /// loaded as that.
    fn set(&mut self, ending: &str, array: Array) -> MlxResult<()> {
        let narrow = match self {
            Self::Dense(it) => it.narrow,
            Self::Bf16(native, _) => Some(*native),
            Self::Packed(_) => None,
        };
        match (&mut *self, ending) {
            (Self::Dense(_) | Self::Bf16(..), _) => match narrow {
                Some(native) if array.dtype() == Dtype::Bfloat16 => {
                    // The native product reads it while the graph is built.
                    let array = array.contiguous()?;
                    array.eval()?;
                    *self = Self::Bf16(native, array);
                }
                _ => {
                    let dense = Dense::new(array.as_dtype(self.dtype())?)?;
                    *self = Self::Dense(Dense { narrow, ..dense });
                }
            },
            (Self::Packed(it), ending) => it.set(ending, array)?,
        }
        Ok(())
    }

    /// The dtype that products come out in.
    fn dtype(&self) -> Dtype {
        match self {
            Self::Dense(it) => it.rows.dtype(),
            Self::Bf16(..) => Dtype::Float32,
            Self::Packed(it) => it.dtype,
        }
    }

    pub(crate) fn is_quantized(&self) -> bool {
        matches!(self, Self::Packed(_))
    }
}

impl Quantized {
    /// The dtype in which scales or biases stored as `stored` are kept: narrow ones stay so where the
    /// products widen them.
    pub(crate) fn kept(backend: Backend, stored: Dtype, dtype: Dtype) -> Dtype {
        match stored {
            Dtype::Bfloat16 if backend.native().is_some() => stored,
            _ => dtype,
        }
    }

    /// Puts `array` in place of the one with this ending.
    fn set(&mut self, ending: &str, array: Array) -> MlxResult<()> {
        let packed = &self.packed;
        let kept = match array.dtype() {
            it if it.is_float() => array.as_dtype(Self::kept(self.backend, it, self.dtype))?,
            _ => array,
        };
        let (mut words, mut scales) = (packed.words().clone(), packed.scales().clone());
        let mut biases = packed.biases().cloned();
        match ending {
            "weight" => words = kept,
            "scales" => scales = kept,
            _ => biases = Some(kept),
        }
        self.packed = Packed::new(words, scales, biases, packed.quantization())?;
        Ok(())
    }
}

/// One packed matrix per expert, all in the same quantization.
fn together(each: &[&Packed]) -> MlxResult<Packed> {
    let all = |of: fn(&Packed) -> Option<&Array>| -> MlxResult<Option<Array>> {
        let arrays: Option<Vec<&Array>> = each.iter().map(|it| of(it)).collect();
        arrays.map(|it| stack(&it, 0)).transpose()
    };
    let words = all(|it| Some(it.words()))?;
    let scales = all(|it| Some(it.scales()))?;
    match (words, scales, each.first()) {
        (Some(words), Some(scales), Some(first)) => {
            Packed::new(words, scales, all(Packed::biases)?, first.quantization())
        }
        _ => Err(Exception::custom("there are no experts")),
    }
}

fn sizes(shape: &[i32]) -> Vec<usize> {
    shape.iter().map(|&it| it as usize).collect()
}
