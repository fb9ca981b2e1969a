//! Prints the first numbers after `torch.manual_seed(SEED)`, to be compared with Python.
//!
//! `cargo run -p mlxgk-torch --example seeded -- 42`

use std::error::Error;

use mlxgk_torch::TorchRng;

#[allow(clippy::print_stdout, reason = "an example prints")]
fn main() -> Result<(), Box<dyn Error>> {
    let seed = match std::env::args().nth(1) {
        Some(seed) => seed.parse()?,
        None => 0,
    };
    let fresh = || TorchRng::new(seed);
    let mut rng = fresh();
    println!("torch.rand(4)         {:?}", [0; 4].map(|_| rng.uniform_f32()));
    let mut rng = fresh();
    println!("torch.randint(100,..) {:?}", [0; 4].map(|_| rng.randint(100)));
    println!("torch.randperm(8)     {:?}", fresh().randperm(8));
    Ok(())
}
