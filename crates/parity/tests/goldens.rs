//! The recorded goldens that run on MLX, a test for each case; those of the pure crates are theirs.

use std::process::ExitCode;

fn main() -> ExitCode {
    mlxgk_parity::run_tests(&[
        "assisted",
        "attentions",
        "beams",
        "caches",
        "generate",
        "healing",
        "models",
        "moved",
        "outputs",
        "steering",
        "stopping",
    ])
}
