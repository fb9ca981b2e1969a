//! Where the cases that run on MLX are computed: where the environment says, else MLX's default.

use mlx_rs::DeviceType;

/// `cpu` or `gpu`; `cargo xtask test --device` sets it.
const VARIABLE: &str = "MLXGK_PARITY_DEVICE";

/// Chooses the device that the environment names, for all cases to come.
///
/// # Errors
/// When it names neither `cpu` nor `gpu`, MLX does not start, or has no GPU.
pub fn choose_device() -> Result<(), String> {
    let Some(name) = std::env::var_os(VARIABLE) else { return Ok(()) };
    let wanted = match name.to_str() {
        Some("cpu") => DeviceType::Cpu,
        Some("gpu") => DeviceType::Gpu,
        _ => return Err(format!("{VARIABLE} is {name:?}, expected cpu or gpu")),
    };
    match mlxgk_mlx_models::use_device(Some(wanted)) {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!(
            "{VARIABLE} is gpu, but MLX has no GPU here: on Linux it takes `cargo xtask setup --cuda` \
             and NVIDIA's driver"
        )),
        Err(e) => Err(e.to_string()),
    }
}
