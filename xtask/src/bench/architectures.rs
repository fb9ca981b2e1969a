//! Architectures by themselves, in the shapes of models that people run: a hybrid of gated delta rules and
//! attention, and a mixture of experts, beside transformers and beside what they are meant to save.
//!
//! Decoding is bound by the weights that a token is multiplied with, so a mixture is held to the dense
//! model's rate of bytes: what it does besides (routing, gathering) must not eat up what it does not read.

use serde_json::{Value, json};

use super::report::{markdown, readable};
use super::system::{Bench, System};
use super::{Effort, THREADS, median, number, prompt, request, tokens};
use crate::failure::{Failure, Result};

/// How many times as fast as transformers the hybrid is meant to decode, and to read a prompt.
const HYBRID_GOAL: f64 = 1.5;
/// How much of the dense model's rate of bytes the mixture is meant to reach.
const MIXTURE_GOAL: f64 = 0.8;
/// Tokens of the text that is told three times, and by how many it is continued.
const STORY: usize = 96;
const CONTINUED: usize = 64;

/// Decoding and prefill of a model by a system, tokens/s in each round.
#[derive(Debug, Default)]
struct Speed {
    decode: Vec<f64>,
    prefill: Vec<f64>,
}

/// Measures, prints, and fails where a goal is missed.
pub(super) fn run(effort: &Effort) -> Result<()> {
    let bench = Bench::with_transformers()?;
    let [dense, hybrid, mixture] = ["dense", "hybrid", "mixture"].map(|it| bench.random(it));
    let (dense, hybrid, mixture) = (dense?, hybrid?, mixture?);
    let story = story(&bench, &hybrid["model"])?;
    let [mut hybrids, mut mixtures] =
        [[Speed::default(), Speed::default()], [Speed::default(), Speed::default()]];
    let mut denses = Speed::default();
    let [mut plain, mut lookup] = [Vec::new(), Vec::new()];
    for round in 0..effort.rounds {
        eprintln!("bench: round {} of {}", round + 1, effort.rounds);
        generate(&bench, System::Ours, &dense, effort, &mut denses)?;
        for (at, system) in [System::Ours, System::Transformers].into_iter().enumerate() {
            generate(&bench, system, &mixture, effort, &mut mixtures[at])?;
            generate(&bench, system, &hybrid, effort, &mut hybrids[at])?;
        }
        let model = &hybrid["model"];
        let said = repetitive(&bench, model, &story, &json!({}), &mut plain)?;
        let fields = json!({"prompt_lookup_num_tokens": 10});
        if repetitive(&bench, model, &story, &fields, &mut lookup)? != said {
            return Err(Failure::new("the hybrid says something else with prompt lookup"));
        }
    }

    let mut table = Table::new();
    for (name, [ours, theirs], goal) in
        [("hybrid", &hybrids, Some(HYBRID_GOAL)), ("mixture", &mixtures, None)]
    {
        let prefill = format!("{name}: prefill of {}", effort.prefill);
        for (title, ours, theirs) in [
            (format!("{name}: decoding"), &ours.decode, &theirs.decode),
            (prefill, &ours.prefill, &theirs.prefill),
        ] {
            let of = (median(theirs), "transformers");
            table.add(&title, "tokens/s", median(ours), Some(of), goal);
        }
    }
    let title = "hybrid: repetitive text";
    table.add(title, "tokens/s", median(&plain), None, None);
    let of = (median(&plain), "plain decoding");
    let title = "hybrid: the same with prompt lookup";
    table.add(title, "tokens/s", median(&lookup), Some(of), None);
    let bytes = |model: &Value, speed: &Speed| {
        number(model, "active_bytes").map(|it| it * median(&speed.decode) / 1e9)
    };
    let of_dense = bytes(&dense, &denses)?;
    table.add("dense: active weights", "GB/s", of_dense, None, None);
    let (of, ours) = ((of_dense, "the dense model"), bytes(&mixture, &mixtures[0])?);
    table.add("mixture: active weights", "GB/s", ours, Some(of), Some(MIXTURE_GOAL));
    println!("{}", markdown(&table.rows));
    if table.missed.is_empty() { Ok(()) } else { Err(Failure::new(table.missed.join("\n"))) }
}

/// Lets a system decode and read a prompt.
fn generate(
    bench: &Bench,
    system: System,
    model: &Value,
    effort: &Effort,
    speed: &mut Speed,
) -> Result<()> {
    let task = json!({
        "task": "generate", "model": model["model"], "dtype": "float32", "prompt": prompt(32),
        "new_tokens": effort.new_tokens, "prefill": prompt(effort.prefill), "repeats": 1,
    });
    let measured = bench.run(system, &task, THREADS)?;
    speed.decode.push(number(&measured, "decode_tokens_per_second")?);
    speed.prefill.push(number(&measured, "prefill_tokens_per_second")?);
    Ok(())
}

/// A text of the model's own, three times.
fn story(bench: &Bench, model: &Value) -> Result<Value> {
    let task = request(model, &json!({}), &json!([prompt(32)]), STORY);
    let told = bench.run(System::Ours, &task, THREADS)?;
    let told = tokens(&told)?;
    let thrice = [told, told, told].concat();
    Ok(json!([thrice]))
}

/// Continues such a text; returns the tokens.
fn repetitive(
    bench: &Bench,
    model: &Value,
    story: &Value,
    fields: &Value,
    rates: &mut Vec<f64>,
) -> Result<Vec<Value>> {
    let task = request(model, fields, story, CONTINUED);
    let measured = bench.run(System::Ours, &task, THREADS)?;
    rates.push(number(&measured, "tokens_per_second")?);
    Ok(tokens(&measured)?.to_vec())
}

/// The table that is printed, and the goals that were missed.
#[derive(Debug)]
struct Table {
    rows: Vec<Vec<String>>,
    missed: Vec<String>,
}

impl Table {
    fn new() -> Self {
        let head = ["", "unit", "mlx-genkit", "against", "ratio", "goal"];
        Self { rows: vec![head.map(str::to_owned).to_vec()], missed: Vec::new() }
    }

    /// A number of ours, beside another by name, of which it is meant to be `goal` times.
    fn add(
        &mut self,
        title: &str,
        unit: &str,
        ours: f64,
        of: Option<(f64, &str)>,
        goal: Option<f64>,
    ) {
        let (mut against, mut ratio) = (String::new(), String::new());
        if let Some((theirs, name)) = of {
            let times = ours / theirs;
            (against, ratio) =
                (format!("{name}: {}", readable(theirs)), format!("{} ×", readable(times)));
            if let Some(goal) = goal.filter(|it| times < *it) {
                self.missed.push(format!("{title}: {times:.2} of {name}, the goal is {goal}"));
            }
        }
        let goal = goal.map_or_else(String::new, |it| it.to_string());
        let row = [title.to_owned(), unit.to_owned(), readable(ours), against, ratio, goal];
        self.rows.push(row.to_vec());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_missed_by_its_ratio() {
        let mut table = Table::new();
        table.add("decoding", "tokens/s", 15.0, Some((10.0, "x")), Some(1.5));
        table.add("prefill", "tokens/s", 14.0, Some((10.0, "x")), Some(1.5));
        table.add("alone", "tokens/s", 1.0, None, None);
        assert_eq!(table.missed, ["prefill: 1.40 of x, the goal is 1.5"]);
        assert_eq!(table.rows[2], ["prefill", "tokens/s", "14.0", "x: 10.0", "1.40 ×", "1.5"]);
    }
}
