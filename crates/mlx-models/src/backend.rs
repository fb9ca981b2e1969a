//! What the default device can do.

use mlx_rs::{Array, Device, DeviceType, Dtype, error::Result as MlxResult};

use crate::{
    Error, Result,
    native::{Native, Packed},
};

/// How a model's rotations, norms, gates, attention and weight products are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// By MLX's kernels.
    Gpu,
    /// By operations of our own.
    Native(Native),
    /// By MLX's operations, composed so that they are few: on the CPU it has no kernels for these, and
    /// puts them together from a dozen to thirty operations each.
    Composed,
}

impl Backend {
    /// For a model that computes in `dtype` on the default device.
    pub(crate) fn new(dtype: Dtype) -> Result<Self> {
        if is_gpu()? {
            return Ok(Self::Gpu);
        }
        let native = Native::new().filter(|_| dtype == Dtype::Float32);
        Ok(native.map_or(Self::Composed, Self::Native))
    }

    /// The operations of our own, where they are used.
    pub(crate) fn native(self) -> Option<Native> {
        match self {
            Self::Native(native) => Some(native),
            Self::Gpu | Self::Composed => None,
        }
    }
}

impl Backend {
    /// `x Wᵀ` for `x` of `[.., in]` and packed weights.
    pub(crate) fn packed_product(self, x: &Array, weight: &Packed) -> MlxResult<Array> {
        match self {
            Self::Native(native) => native.packed_product(x, weight),
            Self::Gpu | Self::Composed => weight.product(x),
        }
    }

    /// `x W[chosen]ᵀ`, one packed matrix per entry of `chosen`.
    pub(crate) fn gathered_packed_product(
        self,
        x: &Array,
        weight: &Packed,
        chosen: &Array,
    ) -> MlxResult<Array> {
        match self {
            Self::Native(native) => native.gathered_packed_product(x, weight, chosen),
            Self::Gpu | Self::Composed => weight.gathered_product(x, chosen),
        }
    }
}

/// Whether the default device has kernels for rotations, norms and attention.
pub(crate) fn is_gpu() -> Result<bool> {
    let device = Device::try_default().and_then(|it| it.get_type());
    let device = device.map_err(|e| Error::mlx("asking for the default device", &e))?;
    Ok(matches!(device, DeviceType::Gpu))
}
