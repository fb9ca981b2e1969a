//! Keys and values as a layer is shown them: dense arrays, or packed in MLX's affine format.

use mlx_rs::{
    Array,
    error::Exception,
    ops::{dequantize, quantize},
};

use crate::{Error, Mask, Quantization, Result};

/// What the new tokens of a layer may look at, oldest first: keys, values, and the mask that fits
/// them.
///
/// ```
/// use mlx_rs::{Dtype, ops::zeros_dtype};
/// use mlxgk_kv_cache::{KvCache, LayerSpec, Mask};
///
/// let mut cache = KvCache::new(&[LayerSpec::Sliding { window: 4 }], 1);
/// let new = zeros_dtype(&[1, 2, 3, 16], Dtype::Float32)?;
/// let mut pass = cache.begin_tokens(&[&[5, 9, 14]], &[])?;
/// let seen = pass.append(0, &new, &new)?;
/// assert!(seen.keys.count() == 3 && matches!(seen.mask, Mask::Causal));
/// pass.commit()?;
/// // Of six tokens, the window shows each of the new ones another part.
/// let mut pass = cache.begin_tokens(&[&[7, 30, 11]], &[])?;
/// let seen = pass.append(0, &new, &new)?;
/// assert!(seen.keys.count() == 6 && matches!(seen.mask, Mask::Array(_)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Seen {
    /// `[batch, kv heads, columns, dimension]`.
    pub keys: Columns,
    /// `[batch, kv heads, columns, dimension]`; the dimension may be another than the keys'.
    pub values: Columns,
    /// Which of the columns each new token may look at.
    pub mask: Mask,
}

/// Keys or values of all columns shown, `[batch, heads, columns, dimension]`.
///
/// ```
/// use mlx_rs::{Dtype, ops::zeros_dtype};
/// use mlxgk_kv_cache::{CacheOptions, Columns, KvCache, LayerSpec, Quantization};
///
/// let options = CacheOptions::new().quantized(Quantization::new(32, 4)?);
/// let mut cache = KvCache::with_options(&[LayerSpec::Full], &[0], &options)?;
/// let new = zeros_dtype(&[1, 2, 3, 32], Dtype::Float32)?;
/// let mut pass = cache.begin_tokens(&[&[5, 9, 14]], &[])?;
/// let seen = pass.append(0, &new, &new)?;
/// assert!(matches!(seen.keys, Columns::Quantized(_)));
/// assert_eq!(seen.keys.dense()?.shape(), [1, 2, 3, 32]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Columns {
    /// As they were appended.
    Dense(Array),
    /// As integers of a few bits.
    Quantized(Packed),
}

/// Columns in MLX's affine format, as `quantized_matmul` takes them.
///
/// ```
/// use mlx_rs::{Dtype, ops::zeros_dtype};
/// use mlxgk_kv_cache::{CacheOptions, Columns, KvCache, LayerSpec, Quantization};
///
/// let options = CacheOptions::new().quantized(Quantization::new(32, 4)?);
/// let mut cache = KvCache::with_options(&[LayerSpec::Full], &[0], &options)?;
/// let new = zeros_dtype(&[1, 2, 3, 64], Dtype::Float32)?;
/// let mut pass = cache.begin_tokens(&[&[5, 9, 14]], &[])?;
/// if let Columns::Quantized(keys) = pass.append(0, &new, &new)?.keys {
///     // 64 numbers of 4 bits are 8 words, and two groups of 32.
///     assert_eq!(keys.packed.shape(), [1, 2, 3, 8]);
///     assert_eq!(keys.scales.shape(), [1, 2, 3, 2]);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Packed {
    /// u32 `[batch, heads, columns, dimension · bits / 32]`.
    pub packed: Array,
    /// `[batch, heads, columns, dimension / group size]`.
    pub scales: Array,
    /// As the scales.
    pub biases: Array,
    /// Numbers per scale.
    pub group_size: i32,
    /// Bits per number.
    pub bits: i32,
}

impl Columns {
    /// The columns as a dense array; a handle where they are dense already.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn dense(&self) -> Result<Array> {
        match self {
            Self::Dense(array) => Ok(array.clone()),
            Self::Quantized(it) => {
                dequantize(&it.packed, &it.scales, &it.biases, it.group_size, it.bits)
                    .map_err(|e| Error::mlx("unpacking quantized columns", &e))
            }
        }
    }

    /// How many columns there are.
    pub fn count(&self) -> usize {
        let array = match self {
            Self::Dense(array) => array,
            Self::Quantized(it) => &it.packed,
        };
        array.dim(2) as usize
    }
}

/// How a buffer holds its columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Keys, values.
    Dense,
    /// Packed keys, their scales and biases, and the same of the values.
    Quantized(Quantization),
}

impl Format {
    /// The names of the arrays of a layer, in their order.
    pub(crate) fn names(self) -> &'static [&'static str] {
        match self {
            Self::Dense => &["keys", "values"],
            Self::Quantized(_) => &[
                "keys.packed",
                "keys.scales",
                "keys.biases",
                "values.packed",
                "values.scales",
                "values.biases",
            ],
        }
    }

    /// Keys and values as the buffer holds them.
    pub(crate) fn encode(self, keys: &Array, values: &Array) -> Result<Vec<Array>> {
        let Self::Quantized(how) = self else { return Ok(vec![keys.clone(), values.clone()]) };
        let mut arrays = Vec::with_capacity(6);
        for (name, array) in [("keys", keys), ("values", values)] {
            let width = array.dim(-1);
            if width % how.group_size != 0 {
                return Err(Error::argument(format!(
                    "{name} of {width} numbers per head cannot be quantized in groups of {}: the \
                     head dimension must be a multiple of the group size",
                    how.group_size
                )));
            }
            let (packed, scales, biases) = quantize(array, how.group_size, how.bits)
                .map_err(|e| Error::mlx("quantizing columns", &e))?;
            arrays.extend([packed, scales, biases]);
        }
        Ok(arrays)
    }

    /// Held arrays as a layer is shown them.
    pub(crate) fn show(self, arrays: Vec<Array>, mask: Mask) -> Result<Seen> {
        let short = || Error::mlx("showing columns", &Exception::custom("arrays are missing"));
        let mut arrays = arrays.into_iter();
        let mut next = || arrays.next().ok_or_else(short);
        let mut columns = || match self {
            Self::Dense => Ok::<_, Error>(Columns::Dense(next()?)),
            Self::Quantized(how) => Ok(Columns::Quantized(Packed {
                packed: next()?,
                scales: next()?,
                biases: next()?,
                group_size: how.group_size,
                bits: how.bits,
            })),
        };
        Ok(Seen { keys: columns()?, values: columns()?, mask })
    }
}
