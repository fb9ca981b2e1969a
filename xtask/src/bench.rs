//! `cargo xtask bench`: how fast the project is, alone or beside other systems.
//!
//! Every measurement is a process of its own, given the same model folder, the same prompt and the
//! same number of threads. The systems take turns within a round, so that whatever else the machine
//! does falls on all of them, and what counts is the median over the rounds.

mod architectures;
mod chart;
mod growth;
mod llama_cpp;
mod machine;
mod measure;
mod report;
mod system;
mod training;

use std::fs;

use serde_json::{Value, json};

use self::llama_cpp::Shape;
use self::machine::Machine;
use self::measure::{Measure, Results};
use self::system::{Bench, System};
use crate::failure::{Context, Failure, Result};
use crate::{cli, process, setup, workspace};

pub(crate) const HELP: &str = "\
Measures decoding, prefill, draws, the time to the first token and the peak memory.

Usage: cargo xtask bench [--peers [llama.cpp|training]] [--shape NAME] [--architectures] [--quick]

  --peers             measure transformers and mlx-lm in the same run, print the ratios beside the
                      goals, and write docs/benchmarks.md with its chart; fails when a goal is missed
  --peers llama.cpp   measure llama.cpp alone, in bf16, 8 and 4 bits, and print the ratios; writes
                      no page
  --peers training    measure steps of LoRA beside PEFT on torch alone, and print the ratios; writes no
                      page
  --shape NAME        with llama.cpp: 0.6b or moe (a mixture of experts); both where it is not given
  --architectures     measure a hybrid of gated delta rules (Qwen3.5-0.8B's shape) and a mixture of
                      experts alone, beside transformers, and print the ratios; writes no page, and
                      fails when a goal is missed
  --quick             a few tokens each, to see that everything runs: the numbers mean nothing

Without --quick it wants a machine that does nothing else: a minute alone, some ten with --peers.
The first run writes a random model of Qwen3-0.6B's shape into build/bench (1.2 GB), --architectures
two more (1.5 and 1 GB). Other systems need python3 with venv: what xtask/bench/requirements.txt and
xtask/record/requirements.txt pin is installed into build/venv (almost 6 GB, most of it CUDA, which
the published torch brings along).
llama.cpp is compiled from its package the first time, with one job: that takes a C++ compiler and
some 20 minutes.

Examples:
  cargo xtask bench
  cargo xtask bench --peers
  cargo xtask bench --peers llama.cpp --shape 0.6b
  cargo xtask bench --peers training
  cargo xtask bench --architectures";

/// Everything is measured on this many threads, draws on one.
const THREADS: usize = 2;

/// How much is measured.
struct Effort {
    rounds: usize,
    new_tokens: usize,
    prefill: usize,
    bundled_tokens: usize,
    draws: usize,
    training_steps: usize,
}

const FULL: Effort = Effort {
    rounds: 3,
    new_tokens: 32,
    prefill: 256,
    bundled_tokens: 256,
    draws: 300,
    training_steps: 8,
};
const QUICK: Effort = Effort {
    rounds: 1,
    new_tokens: 3,
    prefill: 8,
    bundled_tokens: 16,
    draws: 5,
    training_steps: 2,
};

/// mlx-lm makes half a token per second at the large shape: it gets one round and few tokens.
const SLOW_TOKENS: usize = 4;

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let (mut peers, mut quick, mut shape) = (false, false, None);
    let (mut llama_cpp, mut training, mut architectures) = (false, false, false);
    let mut arguments = arguments.iter().map(String::as_str).peekable();
    while let Some(argument) = arguments.next() {
        match argument {
            "--peers" => {
                peers = true;
                llama_cpp = arguments.next_if_eq(&"llama.cpp").is_some();
                training = !llama_cpp && arguments.next_if_eq(&"training").is_some();
            }
            "--shape" => {
                let name = arguments
                    .next()
                    .ok_or_else(|| Failure::usage("--shape wants a name: 0.6b or moe"))?;
                shape = Some(Shape::named(name)?);
            }
            "--architectures" => architectures = true,
            "--quick" => quick = true,
            other => return Err(cli::unexpected("bench", other)),
        }
    }
    if shape.is_some() && !llama_cpp {
        return Err(Failure::usage("--shape goes with `--peers llama.cpp`"));
    }
    if architectures && peers {
        return Err(Failure::usage("--architectures has a table of its own, without --peers"));
    }
    setup::ensure()?;
    build()?;
    let machine = Machine::look()?;
    if !quick && machine.is_busy() {
        eprintln!("bench: the machine is busy ({}); the numbers will be too low", machine.load());
    }
    let effort = if quick { &QUICK } else { &FULL };
    if architectures {
        return architectures::run(effort);
    }
    if llama_cpp {
        let both = [Shape::Small, Shape::Mixture];
        return llama_cpp::run(shape.as_ref().map_or(&both, std::slice::from_ref), effort);
    }
    if training {
        return training::run(effort);
    }
    let bench = Bench::prepare(peers)?;
    let results = measure(&bench, effort)?;
    println!("{}", report::table(&results, bench.systems()));
    for note in results.notes() {
        println!("{note}");
    }
    if quick {
        return Ok(());
    }
    if peers {
        write_report(&results, &bench, &machine)?;
    }
    let missed = results.missed_goals();
    if missed.is_empty() { Ok(()) } else { Err(Failure::new(missed.join("\n"))) }
}

/// Builds what is measured, as a user has it.
fn build() -> Result<()> {
    let mut build = process::cargo();
    build.arg("build").arg("--manifest-path").arg(workspace::root().join("Cargo.toml"));
    process::show(build.args(["--release", "--package", "mlxgk", "--package", "mlxgk-bench"]))
}

fn measure(bench: &Bench, effort: &Effort) -> Result<Results> {
    let mut results = Results::default();
    for round in 0..effort.rounds {
        eprintln!("bench: round {} of {}", round + 1, effort.rounds);
        large_model(bench, effort, round, &mut results)?;
        bundled_model(bench, effort, &mut results)?;
        requests(bench, effort, &mut results)?;
        draws(bench, effort, &mut results)?;
        // No other system has grammars of its own.
        let task = json!({"task": "mask", "masks": 10 * effort.draws});
        let measured = bench.run(System::Ours, &task, 1)?;
        results.add(Measure::Mask, System::Ours, &measured["microseconds"])?;
    }
    Ok(results)
}

/// `count` token ids that both models have.
fn prompt(count: usize) -> Vec<usize> {
    shifted_prompt(count, 0)
}

fn shifted_prompt(count: usize, shift: usize) -> Vec<usize> {
    (0..count).map(|at| (at * 7919 + 13 + shift) % 2000).collect()
}

fn large_model(bench: &Bench, effort: &Effort, round: usize, results: &mut Results) -> Result<()> {
    for &system in bench.systems() {
        let is_slow = matches!(system, System::MlxLm | System::MlxLmBf16);
        if is_slow && round > 0 {
            continue;
        }
        let new_tokens =
            if is_slow { SLOW_TOKENS.min(effort.new_tokens) } else { effort.new_tokens };
        let task = json!({
            "task": "generate", "model": bench.large(), "dtype": system.dtype(),
            "prompt": prompt(32), "new_tokens": new_tokens, "prefill": prompt(effort.prefill),
            "repeats": 1,
        });
        let measured = bench.run(system, &task, THREADS)?;
        results.add(Measure::Decode, system, &measured["decode_tokens_per_second"])?;
        results.add(Measure::Prefill, system, &measured["prefill_tokens_per_second"])?;
        results.add(Measure::PeakMemory, system, &megabytes(&measured["peak_bytes"]))?;
        results.set_weights(&measured["weight_bytes"]);
        results.compare_tokens("the large model", system, &measured["tokens"]);
    }
    Ok(())
}

fn bundled_model(bench: &Bench, effort: &Effort, results: &mut Results) -> Result<()> {
    for &system in bench.systems().iter().filter(|it| it.dtype() == "float32") {
        let task = json!({
            "task": "generate", "model": bench.bundled(), "dtype": system.dtype(),
            "prompt": prompt(32), "new_tokens": effort.bundled_tokens, "prefill": prompt(64),
            "repeats": 3,
        });
        let measured = bench.run(system, &task, THREADS)?;
        results.add(Measure::DecodeBundled, system, &measured["decode_tokens_per_second"])?;
        results.compare_tokens("the bundled model", system, &measured["tokens"]);
        let milliseconds = bench.first_token(system, THREADS)?.as_secs_f64() * 1e3;
        results.add(Measure::FirstToken, system, &milliseconds.into())?;
    }
    Ok(())
}

/// Whole requests, in the modes that do more than one row of work per step.
fn requests(bench: &Bench, effort: &Effort, results: &mut Results) -> Result<()> {
    let (bundled, large) = (bench.bundled(), bench.large());
    let (long, short) = (effort.bundled_tokens, effort.new_tokens);
    let batch: Vec<_> = (0..8).map(|row| shifted_prompt(32, 101 * row)).collect();
    let story = bench.run(
        System::Ours,
        &request(bundled, &json!({}), &json!([prompt(32)]), 96),
        THREADS,
    )?;
    let told = [tokens(&story)?; 3].concat();
    let told = json!([told]);
    let (plain, beams) = (json!({}), json!({"num_beams": 4}));
    let lookup = json!({"prompt_lookup_num_tokens": 10});
    let batch = json!(batch);
    for (measure, model, fields, prompts, new_tokens) in [
        (Measure::Beams, bundled, &beams, &json!([prompt(32)]), long),
        (Measure::Batch, bundled, &plain, &batch, long),
        (Measure::BatchLarge, large, &plain, &batch, short),
        (Measure::Repetitive, bundled, &plain, &told, long),
        (Measure::Lookup, bundled, &lookup, &told, long),
    ] {
        for system in [System::Ours, System::Transformers] {
            if !bench.systems().contains(&system) {
                continue;
            }
            let task = request(model, fields, prompts, new_tokens);
            let measured = bench.run(system, &task, THREADS)?;
            results.add(measure, system, &measured["tokens_per_second"])?;
            results.compare_tokens(measure.title(), system, &measured["tokens"]);
        }
    }
    Ok(())
}

fn request(model: &Value, fields: &Value, prompts: &Value, new_tokens: usize) -> Value {
    let mut fields = fields.clone();
    fields["do_sample"] = false.into();
    fields["max_new_tokens"] = new_tokens.into();
    json!({"task": "request", "model": model, "fields": fields, "prompts": prompts, "repeats": 3})
}

/// A number above 0 of an answer.
fn number(measured: &Value, key: &str) -> Result<f64> {
    let found = measured[key].as_f64().filter(|it| it.is_finite() && *it > 0.0);
    found.ok_or_else(|| Failure::new(format!("`{key}` of {measured} is not a number above 0")))
}

/// The tokens of an answer.
fn tokens(measured: &Value) -> Result<&[Value]> {
    let found = measured["tokens"].as_array().filter(|it| !it.is_empty());
    found.map(Vec::as_slice).ok_or_else(|| Failure::new("mlxgk-measure returned no tokens"))
}

/// The median over the rounds: of an even count the mean of the two in the middle, NaN of none.
fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    (at(values.len().saturating_sub(1) / 2) + at(values.len() / 2)) / 2.0
}

fn draws(bench: &Bench, effort: &Effort, results: &mut Results) -> Result<()> {
    for (measure, fields, rng) in [
        (Measure::DrawUsual, "usual", "fast"),
        (Measure::DrawUsualTorch, "usual", "torch"),
        (Measure::DrawNucleus, "nucleus", "fast"),
    ] {
        for &system in bench.systems().iter().filter(|it| it.dtype() == "float32") {
            // Only ours has a choice of generators; torch's is compared with torch alone.
            if measure == Measure::DrawUsualTorch && system == System::MlxLm {
                continue;
            }
            let task = bench.draw(fields, rng, effort.draws);
            let measured = bench.run(system, &task, 1)?;
            results.add(measure, system, &measured["microseconds"])?;
        }
    }
    Ok(())
}

fn megabytes(bytes: &Value) -> Value {
    bytes.as_f64().map(|it| it / 1e6).into()
}

fn write_report(results: &Results, bench: &Bench, machine: &Machine) -> Result<()> {
    let docs = workspace::root().join("docs");
    let curves = growth::measure(bench)?;
    let before = fs::read_to_string(docs.join("benchmarks.md")).unwrap_or_default();
    let page = report::page(results, bench, machine) + &report::by_hand(&before);
    for (name, text) in [
        ("growth.svg", growth::draw(&curves)),
        ("benchmarks.md", page),
        ("benchmarks.svg", chart::draw(results, bench.systems())),
    ] {
        let path = docs.join(name);
        fs::write(&path, text).context(|| format!("cannot write {}", path.display()))?;
        eprintln!("bench: wrote docs/{name}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_or_between_two() {
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[9.0, 1.0, 2.0, 4.0]), 3.0);
        assert_eq!(median(&[5.0]), 5.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn an_answer_without_tokens_is_refused() {
        assert_eq!(tokens(&json!({"tokens": [1, 2]})).unwrap(), [1, 2]);
        for answer in [json!({}), json!({"tokens": null}), json!({"tokens": []})] {
            let error = tokens(&answer).unwrap_err();
            assert_eq!(error.message(), Some("mlxgk-measure returned no tokens"));
        }
    }

    #[test]
    fn a_number_is_above_0() {
        let measured = json!({"a": 1.5, "b": null, "c": 0.0});
        assert_eq!(number(&measured, "a").unwrap(), 1.5);
        for key in ["b", "c", "d"] {
            let error = number(&measured, key).unwrap_err();
            let message = error.message().unwrap_or_default();
            assert!(message.starts_with(&format!("`{key}` of {{")), "{message}");
        }
    }
}
