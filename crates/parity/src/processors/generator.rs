//! torch's generator, draw by draw.

use std::path::Path;

use mlxgk_torch::TorchRng;
use serde::Deserialize;

use super::read;
use super::rows::Number;
use crate::Report;

pub(super) fn check(path: &Path, report: &mut Report) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Case {
        /// A string, because JSON numbers end before 64 bits do.
        seed: String,
        uniform_f32: Vec<Number>,
        /// Multiples of 2^-53.
        uniform_f64: Vec<u64>,
        exponential_f32: Vec<Number>,
        randint: Vec<(u64, Vec<u64>)>,
        randperm: Vec<(u32, Vec<u32>, Number)>,
    }
    for case in read::<Case>(path)? {
        let seed: u64 = case.seed.parse().map_err(|it| format!("seed {}: {it}", case.seed))?;
        let fresh = || TorchRng::new(seed);
        let mut book = |what: &str, same: bool| {
            let outcome = if same { Ok(()) } else { Err("not torch's draws".to_owned()) };
            report.book("generator", &format!("{what} under seed {seed}"), 0.0, outcome);
        };
        let mut rng = fresh();
        book("uniform_f32", case.uniform_f32.iter().all(|it| it.0 == rng.uniform_f32()));
        let mut rng = fresh();
        let unit = (1u64 << 53) as f64;
        book(
            "uniform_f64",
            case.uniform_f64.iter().all(|&it| it as f64 / unit == rng.uniform_f64()),
        );
        let mut rng = fresh();
        book("exponential", case.exponential_f32.iter().all(|it| it.0 == rng.exponential_f32()));
        for (high, draws) in case.randint {
            let mut rng = fresh();
            let same = draws.iter().all(|it| *it == rng.randint(high));
            book(&format!("randint({high})"), same);
        }
        for (n, head, next) in case.randperm {
            let mut rng = fresh();
            let same = rng.randperm(n).starts_with(&head) && rng.uniform_f32() == next.0;
            book(&format!("randperm({n})"), same);
        }
    }
    Ok(())
}
