//! The floats of a weight file, one at a time to and from `f32`.

use std::{fmt, str::FromStr};

use half::{bf16, f16};

use crate::{Error, ErrorKind, Result};

/// A float's width.
///
/// ```
/// use mlxgk_model_hub::Float;
///
/// let dtype: Float = "bfloat16".parse()?;
/// assert_eq!((dtype, dtype.as_str()), (Float::Bfloat16, "bfloat16"));
/// assert!("float8".parse::<Float>().is_err());
/// # Ok::<(), mlxgk_model_hub::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Float {
    /// 32 bits.
    Float32,
    /// 16 bits: 11 of precision, numbers up to 65,504.
    Float16,
    /// 16 bits: 8 of precision, numbers as large as with 32 bits.
    Bfloat16,
}

impl Float {
    /// As `config.json` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
        }
    }

    /// Bytes of a number.
    pub(super) fn size(self) -> usize {
        if self == Self::Float32 { 4 } else { 2 }
    }

    /// The nearest number of this width, ties to even.
    pub(super) fn round(self, x: f32) -> f32 {
        match self {
            Self::Float32 => x,
            Self::Float16 => f16::from_f32(x).to_f32(),
            Self::Bfloat16 => bf16::from_f32(x).to_f32(),
        }
    }

    /// Appends the numbers that `bytes` hold.
    pub(super) fn read(self, bytes: &[u8], into: &mut Vec<f32>) {
        match self {
            Self::Float32 => {
                into.extend(bytes.as_chunks().0.iter().map(|it| f32::from_le_bytes(*it)));
            }
            Self::Float16 => {
                into.extend(bytes.as_chunks().0.iter().map(|it| f16::from_le_bytes(*it).to_f32()));
            }
            Self::Bfloat16 => {
                into.extend(bytes.as_chunks().0.iter().map(|it| bf16::from_le_bytes(*it).to_f32()));
            }
        }
    }

    /// Appends a number's bytes.
    pub(super) fn write(self, x: f32, into: &mut Vec<u8>) {
        match self {
            Self::Float32 => into.extend(x.to_le_bytes()),
            Self::Float16 => into.extend(f16::from_f32(x).to_le_bytes()),
            Self::Bfloat16 => into.extend(bf16::from_f32(x).to_le_bytes()),
        }
    }
}

impl FromStr for Float {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "float32" => Ok(Self::Float32),
            "float16" => Ok(Self::Float16),
            "bfloat16" => Ok(Self::Bfloat16),
            _ => {
                let what =
                    format!("unknown dtype {text:?}; expected one of float32, float16, bfloat16");
                Err(Error::new(ErrorKind::Settings, what))
            }
        }
    }
}

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
