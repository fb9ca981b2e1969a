//! Steps of LoRA beside PEFT on torch: the same model, adapter, batch and optimizer, and the same losses.

use serde_json::{Value, json};

use super::system::{Bench, System};
use super::{Effort, THREADS, median, number, report, shifted_prompt};
use crate::failure::{Failure, Result};
use crate::{python, workspace};

/// Rows of a batch and tokens of each, of the bundled model and of the large one.
const BUNDLED: [(usize, usize); 3] = [(8, 128), (8, 256), (8, 512)];
const LARGE: [(usize, usize); 1] = [(2, 256)];

/// How many times as fast we mean to be at the batch of 8 × 256.
const GOAL: f64 = 1.2;

/// How far the losses of the first steps may be apart, relative to them.
const SAME: f64 = 1e-4;

const SYSTEMS: [System; 2] = [System::Ours, System::Transformers];

/// What one system made of a batch.
struct Measured {
    rates: Vec<f64>,
    peak: f64,
    losses: Vec<f64>,
}

/// Measures and prints.
pub(super) fn run(effort: &Effort) -> Result<()> {
    let bench = Bench::prepare(true)?;
    let python = python::environment("record", "xtask/record/requirements.txt")?;
    python::packages(&python, "peft", "xtask/record/peft.txt")?;
    let head = ["", "unit", "mlx-genkit", "PEFT", "ratio", "goal"];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    let mut missed = Vec::new();
    for (name, model, batches, steps) in [
        ("bundled model", bench.bundled(), &BUNDLED[..], effort.training_steps),
        ("0.6B shape", bench.large(), &LARGE[..], effort.training_steps.min(3)),
    ] {
        for &(rows, tokens) in batches {
            let title = format!("{name}, {rows} × {tokens}");
            let [ours, theirs] = measure(&bench, model, rows, tokens, steps, effort.rounds)?;
            compare(&title, &ours.losses, &theirs.losses)?;
            let goal = (name == "bundled model" && tokens == 256).then_some(GOAL);
            let [fast, slow] = [&ours, &theirs].map(|it| median(&it.rates));
            if goal.is_some_and(|goal| fast < goal * slow || ours.peak > theirs.peak) {
                missed.push(format!("{title}: not {GOAL} times as fast in no more memory"));
            }
            let goal = goal.map_or_else(String::new, |it| it.to_string());
            table.push(row(&title, "tokens/s", [fast, slow], fast / slow, goal));
            let [small, large] = [ours.peak, theirs.peak];
            table.push(row("peak memory", "MB", [small, large], large / small, String::new()));
        }
    }
    println!("{}", report::markdown(&table));
    if missed.is_empty() { Ok(()) } else { Err(Failure::new(missed.join("\n"))) }
}

/// Both systems in turn, a process each.
fn measure(
    bench: &Bench,
    model: &Value,
    rows: usize,
    tokens: usize,
    steps: usize,
    rounds: usize,
) -> Result<[Measured; 2]> {
    let adapter = workspace::build().join("bench");
    let folder = model.as_str().and_then(|it| it.rsplit('/').next()).unwrap_or_default();
    let rows: Vec<_> = (0..rows).map(|row| shifted_prompt(tokens, 101 * row)).collect();
    let task = json!({
        "task": "train", "model": model, "adapter": adapter.join(format!("{folder}-adapter")),
        "rows": rows, "steps": steps,
    });
    let mut all = SYSTEMS.map(|_| Measured { rates: vec![], peak: 0.0, losses: vec![] });
    for _ in 0..rounds {
        for (system, all) in SYSTEMS.into_iter().zip(&mut all) {
            let measured = bench.run(system, &task, THREADS)?;
            all.rates.push(number(&measured, "tokens_per_second")?);
            all.peak = all.peak.max(number(&measured, "peak_bytes")? / 1e6);
            all.losses = losses(&measured)?;
        }
    }
    Ok(all)
}

/// The losses of an answer. JSON has null for those that are NaN.
fn losses(measured: &Value) -> Result<Vec<f64>> {
    let all = measured["losses"].as_array().into_iter().flatten();
    let refused = |it: &Value| Failure::new(format!("a loss of {it} is not a number"));
    all.map(|it| it.as_f64().ok_or_else(|| refused(it))).collect()
}

/// Refuses to compare the speed of two things that are not the same.
fn compare(title: &str, ours: &[f64], theirs: &[f64]) -> Result<()> {
    if ours.is_empty() || ours.len() != theirs.len() {
        let (ours, theirs) = (ours.len(), theirs.len());
        return Err(Failure::new(format!("{title}: {ours} losses, PEFT has {theirs}")));
    }
    // Rounding grows from step to step.
    for (step, (ours, theirs)) in ours.iter().zip(theirs).take(3).enumerate() {
        if (ours - theirs).abs() > SAME * theirs.abs() {
            let what = format!("{title}: the loss of step {} is {ours}, PEFT's {theirs}", step + 1);
            return Err(Failure::new(what));
        }
    }
    Ok(())
}

fn row(title: &str, unit: &str, numbers: [f64; 2], ratio: f64, goal: String) -> Vec<String> {
    let [ours, theirs] = numbers.map(report::readable);
    let ratio = format!("{} ×", report::readable(ratio));
    vec![title.to_owned(), unit.to_owned(), ours, theirs, ratio, goal]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_losses_are_refused() {
        assert!(compare("a", &[2.0, 1.5], &[2.0001, 1.5]).is_ok());
        let error = compare("a", &[2.0, 1.5], &[2.0, 1.6]).unwrap_err();
        let message = error.message().unwrap_or_default();
        assert!(message.contains("step 2 is 1.5, PEFT's 1.6"), "{message}");
    }

    #[test]
    fn missing_losses_are_refused() {
        let cases: [(&[f64], &[f64]); 3] =
            [(&[], &[]), (&[2.0], &[2.0, 1.5]), (&[2.0, 1.5], &[2.0])];
        for (ours, theirs) in cases {
            let error = compare("a", ours, theirs).unwrap_err();
            let expected = format!("a: {} losses, PEFT has {}", ours.len(), theirs.len());
            assert_eq!(error.message(), Some(&*expected));
        }
    }

    #[test]
    fn a_loss_is_a_number() {
        assert_eq!(losses(&json!({"losses": [2.0, 1]})).unwrap(), [2.0, 1.0]);
        let error = losses(&json!({"losses": [2.0, null]})).unwrap_err();
        assert_eq!(error.message(), Some("a loss of null is not a number"));
        assert!(losses(&json!({})).unwrap().is_empty());
    }
}
