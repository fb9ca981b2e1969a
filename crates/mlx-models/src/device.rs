//! Where MLX computes: the default device, on which models are loaded and run.

use mlx_rs::{Device, DeviceType};

use crate::{Error, Result};

/// Starts MLX, and makes `wanted` its default device where one is; returns whether it has it. Where MLX
/// has a GPU, that is the default unless the CPU is wanted.
///
/// ```
/// use mlx_rs::DeviceType;
///
/// assert!(mlxgk_mlx_models::use_device(Some(DeviceType::Cpu))?);
/// # Ok::<(), mlxgk_mlx_models::Error>(())
/// ```
///
/// # Errors
/// When MLX does not start.
pub fn use_device(wanted: Option<DeviceType>) -> Result<bool> {
    // Asking for the default installs MLX's error handler; without it a failing first call ends the
    // process.
    match (wanted, default()?) {
        (Some(DeviceType::Gpu), DeviceType::Cpu) => Ok(false),
        (Some(DeviceType::Cpu), DeviceType::Gpu) => {
            Device::set_default(&Device::cpu());
            Ok(true)
        }
        _ => Ok(true),
    }
}

/// Whether the default device has kernels for rotations, norms and attention.
pub(crate) fn is_gpu() -> Result<bool> {
    Ok(matches!(default()?, DeviceType::Gpu))
}

fn default() -> Result<DeviceType> {
    let device = Device::try_default().and_then(|it| it.get_type());
    device.map_err(|e| Error::mlx("MLX does not start", &e))
}
