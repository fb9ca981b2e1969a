//! torch's generator, draw by draw.

use std::path::Path;

use mlxgk_torch::TorchRng;
use serde::Deserialize;

use super::rows::Number;
use crate::{Case, files};

pub(super) fn cases(path: &Path, suite: &str) -> Result<Vec<Case>, String> {
    let mut cases = Vec::new();
    for recorded in files::read_cases::<Recorded>(path)? {
        let seed: u64 =
            recorded.seed.parse().map_err(|it| format!("seed {}: {it}", recorded.seed))?;
        let mut push = |what: &str, same: Box<dyn FnOnce(&mut TorchRng) -> bool + Send>| {
            cases.push(Case::new(suite, format!("{what} under seed {seed}"), move || {
                match same(&mut TorchRng::new(seed)) {
                    true => Ok(0.0),
                    false => Err("not torch's draws".to_owned()),
                }
            }));
        };
        let Recorded { uniform_f32, uniform_f64, exponential_f32, randint, randperm, .. } =
            recorded;
        let f32s = move |rng: &mut TorchRng| uniform_f32.iter().all(|it| it.0 == rng.uniform_f32());
        push("uniform_f32", Box::new(f32s));
        let unit = (1u64 << 53) as f64;
        let f64s = move |rng: &mut TorchRng| {
            uniform_f64.iter().all(|&it| it as f64 / unit == rng.uniform_f64())
        };
        push("uniform_f64", Box::new(f64s));
        let exponential = move |rng: &mut TorchRng| {
            exponential_f32.iter().all(|it| it.0 == rng.exponential_f32())
        };
        push("exponential", Box::new(exponential));
        for (high, draws) in randint {
            let same = move |rng: &mut TorchRng| draws.iter().all(|it| *it == rng.randint(high));
            push(&format!("randint({high})"), Box::new(same));
        }
        for (n, head, next) in randperm {
            let same = move |rng: &mut TorchRng| {
                rng.randperm(n).starts_with(&head) && rng.uniform_f32() == next.0
            };
            push(&format!("randperm({n})"), Box::new(same));
        }
    }
    Ok(cases)
}

#[derive(Deserialize)]
struct Recorded {
    /// A string, because JSON numbers end before 64 bits do.
    seed: String,
    uniform_f32: Vec<Number>,
    /// Multiples of 2^-53.
    uniform_f64: Vec<u64>,
    exponential_f32: Vec<Number>,
    randint: Vec<(u64, Vec<u64>)>,
    randperm: Vec<(u32, Vec<u32>, Number)>,
}
