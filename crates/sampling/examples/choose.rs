//! Draws tokens from fixed scores, as torch would after `torch.manual_seed(42)`.

#![allow(clippy::print_stdout, reason = "an example prints")]

use mlxgk_logits_processors::{Context, Error, ProcessorList};
use mlxgk_samplers::{Seed, WarperConfig};
use mlxgk_sampling::Chooser;

fn main() -> Result<(), Error> {
    let warpers =
        WarperConfig { temperature: Some(0.7), top_k: Some(3), ..WarperConfig::default() };
    let mut chooser = Chooser::sample(&warpers.chain()?, ProcessorList::default(), Seed::Torch(42));
    let (mut text, scores) = (vec![0], [0.1, 1.2, 0.9, 0.4, -2.0]);
    for _ in 0..8 {
        let token = chooser.choose(0, &Context::new(&text, 1), &scores)?;
        text.push(token);
    }
    println!("{:?}", &text[1..]);
    Ok(())
}
