//! Peak memory beside the bytes of the weights. Not criterion's: it measures times only.

// A command line speaks on stdout.
#![allow(clippy::print_stdout, reason = "it prints what it measured")]

use std::path::Path;
use std::process::Command;

use mlxgk_bench::{Result, models};
use serde_json::{Value, json};

/// 300 tokens of prompt and 20 new ones, in a process that does nothing else.
fn measure(model: &Path) -> Result<Value> {
    let task = json!({
        "task": "generate", "model": model, "dtype": "float32", "prompt": [5, 17, 300], "new_tokens": 20,
        "prefill": (0..300).collect::<Vec<u32>>(), "repeats": 1,
    });
    let output =
        Command::new(env!("CARGO_BIN_EXE_mlxgk-measure")).arg(task.to_string()).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn main() -> Result<()> {
    let folder = models::default_folder();
    for (name, model) in [
        ("bundled", models::endless_bundled(&folder)?),
        ("Qwen3-0.6B shape", models::random_qwen3(&folder)?),
    ] {
        let measured = measure(&model)?;
        let megabytes = |field: &str| measured[field].as_f64().unwrap_or(f64::NAN) / 1e6;
        let (peak, weights) = (megabytes("peak_bytes"), megabytes("weight_bytes"));
        println!("{name}: peak memory {peak:.0} MB, weights {weights:.0} MB in fp32");
    }
    Ok(())
}
