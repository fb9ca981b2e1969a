//! Templates and tokenizers against what transformers recorded, a test for each case.

use std::process::ExitCode;

fn main() -> ExitCode {
    mlxgk_parity::run_tests(&["templates"])
}
