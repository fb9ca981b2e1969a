//! One conversation in one cache, and in a cache per cluster.
//!
//! `cargo run -p mlxgk-isolation --example isolate [FILE]`

#![allow(clippy::print_stdout, reason = "an example prints")]

use mlx_genkit::{ComputeDtype, Model, Result};
use mlxgk_isolation::{Condition, Example, Options, TurnFormat, run};

fn main() -> Result<()> {
    let file = std::env::args().nth(1);
    let file = file.as_deref().unwrap_or("fixtures/isolation/01_web_shop.json");
    let (model, example) = (Model::bundled(ComputeDtype::Auto)?, Example::load(file)?);
    let mut options = Options::new(TurnFormat::of(&model));
    options.conditions = vec![Condition::Sequential, Condition::Semantic];
    let report = run(&model, &[example], &options, |_| ())?;
    for found in &report.examples[0].conditions {
        for cache in &found.caches {
            println!("{}: {} holds {} tokens", found.condition, cache.name, cache.tokens);
        }
        for output in &found.outputs {
            println!("  {} ({})", output.said.text, output.said.finish_reason);
        }
    }
    Ok(())
}
