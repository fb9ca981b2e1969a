//! llama.cpp beside the project: the same shapes with random weights, in bf16, 8 and 4 bits.
//!
//! llama.cpp comes as source in the `llama-cpp-python` package. A build for the machine's own processor
//! (`GGML_NATIVE`) can hold instructions that a virtual machine names and does not have, so the
//! instructions are named one by one, as the system lists them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::system::{Bench, System, limit, parse};
use super::{Effort, THREADS, median, number, prompt, report, request, shifted_prompt};
use crate::failure::{Failure, Result};
use crate::{process, python, workspace};

const REQUIREMENTS: &str = "xtask/bench/llama_cpp.txt";

/// What a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Qwen3-0.6B's.
    Small,
    /// A mixture with the ratios of Qwen3-30B-A3B.
    Mixture,
}

impl Shape {
    pub(super) fn named(name: &str) -> Result<Self> {
        match name {
            "0.6b" => Ok(Self::Small),
            "moe" => Ok(Self::Mixture),
            _ => Err(Failure::usage(format!("unknown shape `{name}`; expected one of 0.6b, moe"))),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Small => "0.6b",
            Self::Mixture => "moe",
        }
    }
}

/// A width, as llama.cpp and as we call it, and how many times as fast we mean to decode.
const WIDTHS: [(&str, &str, Option<&str>, f64); 3] = [
    ("bf16", "bf16", None, 1.2),
    ("8 bits", "q8_0", Some("8"), 1.0),
    ("4 bits", "q4_0", Some("4"), 1.0),
];

/// How many times as many tokens a batch of eight is to make at 4 bits.
const BATCH_GOAL: f64 = 3.0;

/// Measures and prints.
pub(super) fn run(shapes: &[Shape], effort: &Effort) -> Result<()> {
    let bench = Bench::prepare(false)?;
    let python = environment()?;
    let mut rows =
        vec![["", "unit", "mlx-genkit", "llama.cpp", "ratio", "goal"].map(str::to_owned).to_vec()];
    for &shape in shapes {
        let folder = prepare(&bench, &python, shape)?;
        for (width, gguf, bits, goal) in WIDTHS {
            let ours = match bits {
                None => folder.clone(),
                Some(bits) => packed(&folder, bits)?,
            };
            let theirs = folder.join(format!("{gguf}.gguf"));
            let [mut decode, mut prefill] = [[vec![], vec![]], [vec![], vec![]]];
            for _ in 0..effort.rounds {
                let measured = [
                    bench.run(System::Ours, &task(&ours, effort), THREADS)?,
                    peer(&python, &task(&theirs, effort))?,
                ];
                for (of, measured) in measured.iter().enumerate() {
                    decode[of].push(number(measured, "decode_tokens_per_second")?);
                    prefill[of].push(number(measured, "prefill_tokens_per_second")?);
                }
            }
            let name = shape.name();
            // The goals are for the dense model.
            let goal = (shape == Shape::Small).then_some(goal);
            rows.push(row(format!("{name}, {width}: decoding"), decode, goal));
            rows.push(row(
                format!("{name}, {width}: prefill of {}", effort.prefill),
                prefill,
                None,
            ));
        }
        if shape == Shape::Small {
            rows.push(batch(&bench, &packed(&folder, "4")?, effort)?);
        }
    }
    println!("{}", report::markdown(&rows));
    Ok(())
}

/// A batch of eight rows beside one of them, at 4 bits.
fn batch(bench: &Bench, model: &Path, effort: &Effort) -> Result<Vec<String>> {
    let rate_of = |prompts: usize| -> Result<Vec<f64>> {
        let prompts: Vec<_> = (0..prompts).map(|row| shifted_prompt(32, 101 * row)).collect();
        let task = request(&json!(model), &json!({}), &json!(prompts), effort.new_tokens);
        let once = || number(&bench.run(System::Ours, &task, THREADS)?, "tokens_per_second");
        (0..effort.rounds).map(|_| once()).collect()
    };
    let title = "0.6b, 4 bits: batch of 8, and one row".to_owned();
    Ok(row(title, [rate_of(8)?, rate_of(1)?], Some(BATCH_GOAL)))
}

fn task(model: &Path, effort: &Effort) -> Value {
    json!({
        "task": "generate", "model": model, "dtype": "float32", "prompt": prompt(32),
        "new_tokens": effort.new_tokens, "prefill": prompt(effort.prefill), "repeats": 1,
    })
}

fn row(title: String, rates: [Vec<f64>; 2], goal: Option<f64>) -> Vec<String> {
    let [ours, theirs] = rates.map(|it| median(&it));
    let goal = goal.map_or_else(String::new, |it| it.to_string());
    let ratio = format!("{} ×", report::readable(ours / theirs));
    let [ours, theirs] = [ours, theirs].map(report::readable);
    vec![title, "tokens/s".to_owned(), ours, theirs, ratio, goal]
}

/// The folder of the model, with llama.cpp's files in it.
fn prepare(bench: &Bench, python: &Path, shape: Shape) -> Result<PathBuf> {
    let folder = match shape {
        Shape::Small => bench.large().as_str().map(PathBuf::from),
        Shape::Mixture => bench.random("mixture")?["model"].as_str().map(PathBuf::from),
    };
    let folder = folder.ok_or_else(|| Failure::new("mlxgk-measure named no folder"))?;
    let script = workspace::root().join("xtask/bench/gguf_model.py");
    eprintln!("bench: writing what is missing of the models in {}", folder.display());
    process::show(Command::new(python).arg(script).arg(&folder))?;
    Ok(folder)
}

/// The model in so many bits, by our own conversion.
fn packed(folder: &Path, bits: &str) -> Result<PathBuf> {
    let mut name = folder.as_os_str().to_owned();
    name.push(format!("-{bits}bit"));
    let out = PathBuf::from(name);
    if !out.exists() {
        let mut convert = Command::new(workspace::target()?.join("release/mlxgk"));
        convert
            .args(["convert", "--bits", bits, "--group-size", "64", "--out"])
            .arg(&out)
            .arg(folder);
        process::show(&mut convert)?;
    }
    Ok(out)
}

fn peer(python: &Path, task: &Value) -> Result<Value> {
    let mut command = Command::new(python);
    command
        .current_dir(workspace::root())
        .arg("xtask/bench/llama_cpp_peer.py")
        .arg(task.to_string());
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    parse(&process::capture(limit(&mut command, THREADS))?)
}

/// The interpreter of an environment with llama.cpp, which is compiled with one job.
fn environment() -> Result<PathBuf> {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let arguments = instructions(&flags);
    let variables = [("CMAKE_ARGS", arguments.as_str()), ("CMAKE_BUILD_PARALLEL_LEVEL", "1")];
    python::environment_with("llama_cpp", REQUIREMENTS, &variables)
}

/// CMake's arguments for a processor of which /proc/cpuinfo says this.
fn instructions(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find(|it| it.starts_with("flags")).unwrap_or_default();
    let has = |name: &str| line.split_whitespace().any(|it| it == name);
    let mut arguments = "-DGGML_NATIVE=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
                         -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_CURL=OFF \
                         -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF"
        .to_owned();
    for (option, flag) in [
        ("SSE42", "sse4_2"),
        ("AVX", "avx"),
        ("AVX2", "avx2"),
        ("FMA", "fma"),
        ("F16C", "f16c"),
        ("BMI2", "bmi2"),
        ("AVX512", "avx512bw"),
        ("AVX512_VNNI", "avx512_vnni"),
    ] {
        let state = if has(flag) { "ON" } else { "OFF" };
        arguments.push_str(&format!(" -DGGML_{option}={state}"));
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_instructions_that_the_processor_names_are_compiled_for() {
        let found = instructions("model name : x\nflags\t\t: fpu avx avx2 fma avx512f\n");
        for expected in ["NATIVE=OFF", "AVX=ON", "AVX2=ON", "FMA=ON", "AVX512=OFF", "BMI2=OFF"] {
            assert!(found.contains(&format!("-DGGML_{expected}")), "{found}");
        }
    }

    #[test]
    fn a_row_has_the_medians_and_their_ratio() {
        let row = row("a".to_owned(), [vec![9.0, 30.0, 10.0], vec![5.0]], Some(1.2));
        assert_eq!(row[2..], ["10.0", "5.00", "2.00 ×", "1.2"]);
    }

    #[test]
    fn an_unknown_shape_is_refused() {
        assert_eq!(Shape::named("moe").unwrap(), Shape::Mixture);
        assert!(
            Shape::named("7b")
                .unwrap_err()
                .message()
                .unwrap()
                .contains("expected one of 0.6b, moe")
        );
    }
}
