//! macOS: mlx-sys builds MLX with Metal by itself; only its tools are checked.

use super::tools::{self, Tool};
use crate::failure::Result;

const TOOLS: &[Tool] = &[
    Tool {
        program: "xcrun",
        probe: &["--find", "metal"],
        missing: "the Metal compiler is missing: install Xcode, then run \
                  `xcodebuild -downloadComponent MetalToolchain`",
    },
    Tool {
        program: "cmake",
        probe: &["--version"],
        missing: "cmake is missing: install it, for example with `brew install cmake`",
    },
];

/// Checks the tools. There is never anything to make.
pub(super) fn ensure() -> Result<bool> {
    tools::require(TOOLS)?;
    Ok(false)
}
