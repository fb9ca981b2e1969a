//! The samplers against what transformers and torch recorded, a test for each case.

use std::process::ExitCode;

fn main() -> ExitCode {
    mlxgk_parity::run_tests(&["samplers"])
}
