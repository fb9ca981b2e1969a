//! What each extraction method makes of the same pairs: `cargo run -p mlxgk-steering --example directions`.
//!
//! The pairs differ along axis 0, vary along axis 1, and have a large variation in common along axis 2.

#![allow(clippy::print_stdout, reason = "an example shows its result")]

use mlxgk_steering::extract::{Method, direction};

fn main() -> Result<(), mlxgk_steering::Error> {
    let row = |sign: f32, at: f32| vec![sign, (7.0 * at + sign).sin() * 0.8, 3.0 * at.cos()];
    let side = |sign: f32| (0..24).map(|it| row(sign, it as f32)).collect::<Vec<_>>();
    let (positive, negative) = (side(1.0), side(-1.0));
    for method in [
        Method::MeanDiff,
        Method::PcaDiffCentered,
        Method::PcaDiffUncentered,
        Method::PcaPairCentered,
        Method::PcaGlobalCentered,
        Method::LogisticProbe,
    ] {
        let found = direction(method, &positive, &negative)?;
        let share = found.explained_variance;
        println!("{:<20} {:>6.2?}  explains {share:.2}", method.to_string(), found.vector);
    }
    Ok(())
}
