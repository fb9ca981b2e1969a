//! Packed weights, and MLX's own products with them in each of its quantization modes.
//!
//! mlx-rs knows the affine mode only; the others are reached through MLX's C interface. What makes the
//! calls sound: a [`Packed`] holds arrays whose shapes and types [`Packed::new`] has checked, they and
//! the stream are borrowed for the whole call, and MLX takes any layout in memory.

#![allow(unsafe_code, reason = "arguments of C functions that mlx-rs does not pass")]

use std::ffi::{CStr, c_int};

use mlx_rs::{
    Array, Device, Dtype, Stream,
    error::{Exception, Result},
    ops::{indexing::TryIndexOp, pad},
    transforms::eval,
};
use mlx_sys::{mlx_array, mlx_optional_dtype, mlx_optional_int, mlx_stream};

use crate::check;

/// How numbers become bits.
///
/// ```
/// use mlxgk_native::Mode;
///
/// assert_eq!(Mode::named("mxfp4"), Some(Mode::Mxfp4));
/// assert_eq!(Mode::ALL.map(Mode::name), ["affine", "mxfp4", "mxfp8", "nvfp4"]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(i32)]
pub enum Mode {
    /// `scale · q + bias`, whole `q`, with a float scale and bias per group.
    Affine = 0,
    /// e2m1 numbers with a power of two (e8m0) per 32 (OCP Microscaling Formats 1.0).
    Mxfp4 = 1,
    /// e4m3 numbers with a power of two (e8m0) per 32.
    Mxfp8 = 2,
    /// e2m1 numbers with an e4m3 scale per 16.
    Nvfp4 = 3,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 4] = [Self::Affine, Self::Mxfp4, Self::Mxfp8, Self::Nvfp4];

    /// The name that MLX and its folders use: `affine`, `mxfp4`, `mxfp8` or `nvfp4`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Affine => "affine",
            Self::Mxfp4 => "mxfp4",
            Self::Mxfp8 => "mxfp8",
            Self::Nvfp4 => "nvfp4",
        }
    }

    /// The mode of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name)
    }

    fn c_name(self) -> &'static CStr {
        match self {
            Self::Affine => c"affine",
            Self::Mxfp4 => c"mxfp4",
            Self::Mxfp8 => c"mxfp8",
            Self::Nvfp4 => c"nvfp4",
        }
    }
}

/// A mode with its sizes.
///
/// ```
/// use mlxgk_native::{Mode, Quantization};
///
/// let packed = Quantization::affine(64, 4).unwrap();
/// assert_eq!((packed.mode, packed.group_size, packed.bits), (Mode::Affine, 64, 4));
/// assert_eq!(Quantization::affine(64, 7), None); // MLX has no 7 bits
/// assert_eq!(Quantization::NVFP4.group_size, 16);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Quantization {
    /// How numbers become bits.
    pub mode: Mode,
    /// How many numbers of a row share a scale.
    pub group_size: i32,
    /// Bits per number.
    pub bits: i32,
}

impl Quantization {
    /// e2m1 in groups of 32.
    pub const MXFP4: Self = Self { mode: Mode::Mxfp4, group_size: 32, bits: 4 };
    /// e4m3 in groups of 32.
    pub const MXFP8: Self = Self { mode: Mode::Mxfp8, group_size: 32, bits: 8 };
    /// e2m1 in groups of 16.
    pub const NVFP4: Self = Self { mode: Mode::Nvfp4, group_size: 16, bits: 4 };

    /// The affine mode with these sizes; `None` where MLX has no such: bits are 2, 3, 4, 5, 6 or 8, and
    /// groups 32, 64 or 128.
    pub fn affine(group_size: i32, bits: i32) -> Option<Self> {
        let known = [2, 3, 4, 5, 6, 8].contains(&bits) && [32, 64, 128].contains(&group_size);
        known.then_some(Self { mode: Mode::Affine, group_size, bits })
    }
}

/// A packed matrix of `[out, in]`, or one per expert, `[experts, out, in]`; or packed keys or values,
/// `[batch, heads, columns, dim]`.
///
/// ```
/// use mlx_rs::{Array, ops::quantize};
/// use mlxgk_native::{Packed, Quantization};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let matrix = Array::from_iter((0..4 * 64).map(|it| (it % 16) as f32), &[4, 64]);
/// let (words, scales, biases) = quantize(&matrix, 64, 4)?;
/// let packed = Packed::new(words, scales, Some(biases), Quantization::affine(64, 4).unwrap())?;
/// assert_eq!(packed.shape(), [4, 64]);
/// let ones = Array::ones::<f32>(&[1, 64])?;
/// assert_eq!(packed.product(&ones)?.to_vec_exact::<f32>()?, [480.0; 4]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Packed {
    pub(crate) words: Array,
    pub(crate) scales: Array,
    pub(crate) biases: Option<Array>,
    quantization: Quantization,
}

impl Packed {
    /// Packed weights as MLX lays them out. `words` is u32 `[.., out, in · bits / 32]`, the first number
    /// in the lowest bits; `scales` is `[.., out, in / group_size]`, floats in the affine mode and u8 in
    /// the others; `biases`, floats of the scales' shape, belongs to the affine mode.
    ///
    /// Nothing is evaluated.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn new(
        words: Array,
        scales: Array,
        biases: Option<Array>,
        quantization: Quantization,
    ) -> Result<Self> {
        check::packed(&words, &scales, biases.as_ref(), quantization)?;
        // An error in C ends the process unless mlx-rs has put its handler in place, which its first
        // checked call does.
        Device::try_default()?;
        Ok(Self { words, scales, biases, quantization })
    }

    /// The numbers' bits, u32 `[.., out, in · bits / 32]`.
    pub fn words(&self) -> &Array {
        &self.words
    }

    /// `[.., out, in / group_size]`.
    pub fn scales(&self) -> &Array {
        &self.scales
    }

    /// `[.., out, in / group_size]`, in the affine mode.
    pub fn biases(&self) -> Option<&Array> {
        self.biases.as_ref()
    }

    /// How they are packed.
    pub fn quantization(&self) -> Quantization {
        self.quantization
    }

    /// The shape unpacked, `[.., out, in]`.
    pub fn shape(&self) -> Vec<i32> {
        let mut shape = self.scales.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last *= self.quantization.group_size;
        }
        shape
    }

    /// Computes the arrays.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn eval(&self) -> Result<()> {
        eval([Some(&self.words), Some(&self.scales), self.biases.as_ref()].into_iter().flatten())
    }

    /// `x Wᵀ` for `x` of `[.., in]` and a single matrix, by MLX's own operation.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn product(&self, x: &Array) -> Result<Array> {
        check::product(x, self)?;
        self.call("quantized_matmul", |it, result, stream| {
            // SAFETY: see `call`.
            unsafe {
                mlx_sys::mlx_quantized_matmul(
                    result,
                    x.as_ptr(),
                    it.words,
                    it.scales,
                    it.biases,
                    true,
                    it.group_size,
                    it.bits,
                    it.mode,
                    stream,
                )
            }
        })
    }

    /// `x W[chosen]ᵀ`, by MLX's own operation: `x` is `[.., rows, in]`, `chosen` u32 of as many leading
    /// axes, each of `x`'s being that of `chosen` or 1; returns `[chosen.., rows, out]`.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn gathered_product(&self, x: &Array, chosen: &Array) -> Result<Array> {
        check::gathered_product(x, self, chosen)?;
        self.call("gather_qmm", |it, result, stream| {
            // SAFETY: see `call`.
            unsafe {
                mlx_sys::mlx_gather_qmm(
                    result,
                    x.as_ptr(),
                    it.words,
                    it.scales,
                    it.biases,
                    EMPTY,
                    chosen.as_ptr(),
                    true,
                    it.group_size,
                    it.bits,
                    it.mode,
                    false,
                    stream,
                )
            }
        })
    }

    /// The matrix, or the matrices, unpacked to `dtype`.
    ///
    /// # Errors
    /// When MLX fails, or `dtype` is not float.
    pub fn dequantized(&self, dtype: Dtype) -> Result<Array> {
        check::float("dequantize", dtype)?;
        let groups = self.scales.size() as i32;
        if self.quantization.mode == Mode::Nvfp4 && groups % 2 == 1 {
            // MLX takes the words of two groups together, and fails where one is left.
            let words = pad(self.words.reshape(&[groups, 2])?, &[(0, 1), (0, 0)], None, None)?;
            let scales = pad(self.scales.reshape(&[groups, 1])?, &[(0, 1), (0, 0)], None, None)?;
            let even = Self { words, scales, biases: None, ..*self }.dequantized(dtype)?;
            return even.try_index(..groups)?.reshape(&self.shape());
        }
        let wide = self.with_scales_in(dtype)?;
        wide.call("dequantize", |it, result, stream| {
            let dtype = mlx_optional_dtype { value: dtype.into(), has_value: true };
            // SAFETY: see `call`.
            unsafe {
                mlx_sys::mlx_dequantize(
                    result,
                    it.words,
                    it.scales,
                    it.biases,
                    it.group_size,
                    it.bits,
                    it.mode,
                    EMPTY,
                    dtype,
                    stream,
                )
            }
        })
    }

    /// Rows of a single matrix: ids of `[..]` to `[.., in]` in `dtype`.
    ///
    /// # Errors
    /// When MLX fails, or `dtype` is not float.
    pub fn rows(&self, ids: &Array, dtype: Dtype) -> Result<Array> {
        let rows = |it: &Array| it.take_axis(ids, 0);
        let biases = self.biases.as_ref().map(rows).transpose()?;
        let (words, scales) = (rows(&self.words)?, rows(&self.scales)?);
        Self { words, scales, biases, ..*self }.dequantized(dtype)
    }

    /// The same with scales and biases of this type, where they are floats.
    fn with_scales_in(&self, dtype: Dtype) -> Result<Self> {
        let Some(biases) = &self.biases else { return Ok(self.clone()) };
        Ok(Self {
            scales: self.scales.as_dtype(dtype)?,
            biases: Some(biases.as_dtype(dtype)?),
            ..self.clone()
        })
    }

    /// Calls an operation of MLX's C interface on the current stream.
    ///
    /// The handles that `operation` is given belong to arrays that live until it returns, and fit each
    /// other; it must hand `result` and `stream` to a function that puts a new array behind the former,
    /// or returns a number other than 0.
    fn call(
        &self,
        name: &str,
        operation: impl FnOnce(Handles, *mut mlx_array, mlx_stream) -> c_int,
    ) -> Result<Array> {
        let stream = Stream::thread_local_or_default();
        let optional = |value| mlx_optional_int { value, has_value: true };
        let handles = Handles {
            words: self.words.as_ptr(),
            scales: self.scales.as_ptr(),
            biases: self.biases.as_ref().map_or(EMPTY, Array::as_ptr),
            group_size: optional(self.quantization.group_size),
            bits: optional(self.quantization.bits),
            mode: self.quantization.mode.c_name().as_ptr(),
        };
        let mut result = EMPTY;
        if operation(handles, &raw mut result, stream.as_ptr()) == 0 {
            // SAFETY: the function has put a new array there, which is ours.
            return Ok(unsafe { Array::from_ptr(result) });
        }
        // The text of MLX's error is in a place that only mlx-rs can read.
        let (shape, mode) = (self.shape(), self.quantization.mode.name());
        Err(Exception::custom(format!("{name} failed for {mode} weights of {shape:?}")))
    }
}

/// A handle with no array behind it.
const EMPTY: mlx_array = mlx_array { ctx: std::ptr::null_mut() };

/// What every function of packed weights takes.
struct Handles {
    words: mlx_array,
    scales: mlx_array,
    biases: mlx_array,
    group_size: mlx_optional_int,
    bits: mlx_optional_int,
    mode: *const std::ffi::c_char,
}
