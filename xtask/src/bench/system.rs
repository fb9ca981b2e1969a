//! The systems that are measured, and how each is given a task.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::failure::{Context, Failure, Result};
use crate::{process, python, workspace};

/// One way to run a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum System {
    Ours,
    Transformers,
    TransformersBf16,
    MlxLm,
    /// As it comes: in the checkpoint's own precision.
    MlxLmBf16,
}

impl System {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ours => "mlx-genkit",
            Self::Transformers => "transformers",
            Self::TransformersBf16 => "transformers, bf16",
            Self::MlxLm => "mlx-lm",
            Self::MlxLmBf16 => "mlx-lm, bf16",
        }
    }

    /// The precision it computes in.
    pub(super) fn dtype(self) -> &'static str {
        match self {
            Self::TransformersBf16 | Self::MlxLmBf16 => "bfloat16",
            Self::Ours | Self::Transformers | Self::MlxLm => "float32",
        }
    }
}

/// Everything that a measurement needs, made ready.
pub(super) struct Bench {
    systems: Vec<System>,
    /// Where our own programs lie.
    binaries: PathBuf,
    /// The interpreters of the environments with transformers and with mlx-lm, where they take part.
    transformers: Option<PathBuf>,
    mlx_lm: Option<PathBuf>,
    /// What mlxgk-measure wrote, and where.
    prepared: Value,
    versions: RefCell<BTreeMap<String, String>>,
}

/// What the first token is waited for.
const FIRST_PROMPT: &str = "Tell me a story.";

impl Bench {
    /// Writes the models and, where peers are wanted, installs them.
    pub(super) fn prepare(peers: bool) -> Result<Self> {
        let mut bench = if peers { Self::with_transformers()? } else { Self::alone()? };
        if peers {
            bench.systems.extend([System::TransformersBf16, System::MlxLm, System::MlxLmBf16]);
            bench.mlx_lm = Some(python::environment("peers", "xtask/bench/requirements.txt")?);
        }
        bench.prepared = bench.written(&json!({"task": "prepare", "folder": Self::folder()}))?;
        Ok(bench)
    }

    /// Beside transformers, which is installed; no model is written yet.
    pub(super) fn with_transformers() -> Result<Self> {
        let python = python::environment("record", "xtask/record/requirements.txt")?;
        let systems = vec![System::Ours, System::Transformers];
        Ok(Self { systems, transformers: Some(python), ..Self::alone()? })
    }

    fn alone() -> Result<Self> {
        let ours = format!("{} (MLX 0.32.2)", env!("CARGO_PKG_VERSION"));
        Ok(Self {
            systems: vec![System::Ours],
            binaries: workspace::target()?.join("release"),
            transformers: None,
            mlx_lm: None,
            prepared: Value::Null,
            versions: RefCell::new(BTreeMap::from([("mlx-genkit".to_owned(), ours)])),
        })
    }

    fn folder() -> PathBuf {
        workspace::build().join("bench")
    }

    /// Lets our own program write models, and say where they are.
    fn written(&self, task: &Value) -> Result<Value> {
        parse(&process::capture(&mut measure(&self.binaries, task))?)
    }

    /// Writes the random model of a shape (`dense`, `hybrid`, `mixture`) where it is missing: its folder
    /// as `model`, and the bytes of weights that a token takes as `active_bytes`.
    pub(super) fn random(&self, shape: &str) -> Result<Value> {
        self.written(&json!({"task": "random", "folder": Self::folder(), "shape": shape}))
    }

    /// Who is measured, ourselves first.
    pub(super) fn systems(&self) -> &[System] {
        &self.systems
    }

    /// The folder of the random model of Qwen3-0.6B's shape.
    pub(super) fn large(&self) -> &Value {
        &self.prepared["large"]
    }

    /// The folder of the bundled model that never ends.
    pub(super) fn bundled(&self) -> &Value {
        &self.prepared["bundled"]
    }

    /// A task that draws with the fields called `usual` or `nucleus`.
    pub(super) fn draw(&self, fields: &str, rng: &str, draws: usize) -> Value {
        let at = |key: &str| &self.prepared[key];
        json!({
            "task": "draw", "fields": at(fields), "rng": rng, "scores": at("scores"),
            "history": at("history"), "vocab": at("vocab"), "draws": draws,
        })
    }

    /// The packages that took part, with their versions, by name.
    pub(super) fn versions(&self) -> BTreeMap<String, String> {
        self.versions.borrow().clone()
    }

    /// Lets a system do a task in a process of its own.
    pub(super) fn run(&self, system: System, task: &Value, threads: usize) -> Result<Value> {
        let mut command = self.command(system, task)?;
        let answer = parse(&process::capture(limit(&mut command, threads))?)?;
        for (package, version) in answer["versions"].as_object().into_iter().flatten() {
            let version = version.as_str().unwrap_or_default().to_owned();
            self.versions.borrow_mut().insert(package.clone(), version);
        }
        Ok(answer)
    }

    /// The time from the start of a process that loads the bundled model and says one token to its
    /// end. It may end its text here: the folder is the original.
    pub(super) fn first_token(&self, system: System, threads: usize) -> Result<Duration> {
        let mut command = if system == System::Ours {
            let mut mlxgk = Command::new(self.binaries.join("mlxgk"));
            mlxgk.args(["generate", "--max-tokens", "1", "--prompt", FIRST_PROMPT]);
            mlxgk
        } else {
            let model = workspace::root().join("crates/mlx-genkit/bundled");
            let task = json!({"task": "first_token", "model": model, "text": FIRST_PROMPT});
            self.command(system, &task)?
        };
        limit(&mut command, threads).stdin(Stdio::null());
        let begun = Instant::now();
        let output = command.output().context(|| format!("cannot start {}", system.name()))?;
        let took = begun.elapsed();
        if output.status.success() {
            return Ok(took);
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        Err(Failure::new(format!("{} gave no token\n{}", system.name(), stderr.trim())))
    }

    fn command(&self, system: System, task: &Value) -> Result<Command> {
        if system == System::Ours {
            return Ok(measure(&self.binaries, task));
        }
        let (python, script) = match system {
            System::MlxLm | System::MlxLmBf16 => (&self.mlx_lm, "xtask/bench/mlx_lm_peer.py"),
            _ => (&self.transformers, "xtask/bench/transformers_peer.py"),
        };
        let Some(python) = python else {
            return Err(Failure::new(format!("{} was not installed", system.name())));
        };
        let mut command = Command::new(python);
        command.current_dir(workspace::root()).arg(script).arg(task.to_string());
        // Nothing is fetched, so that a wrong path is an error and not a download.
        command.env("HF_HUB_OFFLINE", "1").env("PYTHONDONTWRITEBYTECODE", "1");
        Ok(command)
    }
}

/// Holds the numeric libraries of every system to a number of threads.
pub(super) fn limit(command: &mut Command, threads: usize) -> &mut Command {
    for variable in ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"] {
        command.env(variable, threads.to_string());
    }
    command
}

/// Our own measuring program with a task.
fn measure(binaries: &Path, task: &Value) -> Command {
    let mut command = Command::new(binaries.join("mlxgk-measure"));
    command.arg(task.to_string());
    command
}

pub(super) fn parse(answer: &str) -> Result<Value> {
    // What a library prints on its own account comes before.
    let line = answer.trim().lines().last().unwrap_or_default();
    serde_json::from_str(line).context(|| format!("`{line}` is not a measurement"))
}
