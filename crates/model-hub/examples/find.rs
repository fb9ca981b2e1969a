//! Finds a model on disk or downloads it, and prints its folder.
//!
//! ```sh
//! cargo run -p mlxgk-model-hub --example find -- Qwen/Qwen3-0.6B
//! ```

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::env;

use mlxgk_model_hub::{Hub, NoProgress, Result};

fn main() -> Result<()> {
    let hub = Hub::from_env()?;
    match env::args().nth(1) {
        Some(model) => println!("{}", hub.find(&model, &mut NoProgress)?.folder.display()),
        None => {
            for model in hub.models()? {
                println!("{:>8} MB  {}@{}", model.bytes / 1_000_000, model.repo, model.commit);
            }
        }
    }
    Ok(())
}
