//! What the default device can do.

use mlx_rs::{Device, DeviceType};

use crate::{Error, Result};

/// Whether rotations, norms and attention are kernels of their own. On the CPU backend MLX puts them
/// together from a dozen to thirty operations each, and other combinations need fewer.
pub(crate) fn has_fused_kernels() -> Result<bool> {
    let device = Device::try_default().and_then(|it| it.get_type());
    let device = device.map_err(|e| Error::mlx("asking for the default device", &e))?;
    Ok(matches!(device, DeviceType::Gpu))
}
