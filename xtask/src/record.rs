//! `cargo xtask record`: the goldens, recorded again from transformers.

use std::process::Command;

use crate::failure::Result;
use crate::{process, python, workspace};

pub(crate) const HELP: &str = "\
Records the fixtures again from transformers on torch, into fixtures/.

Usage: cargo xtask record [AREA...]

  AREA   a part of the fixtures, as xtask/record names its files; all of them when none is given

Needs python3 with venv. The first time it installs the versions pinned in
xtask/record/requirements.txt into build/venv/record: on Linux almost 6 GB, since the published
torch brings CUDA along. For the area `moved` it puts two older releases of transformers beside it,
into build/venv/transformers-*, for `training` PEFT, into build/venv/peft, and for `metrics`
scikit-learn and rouge-score, into build/venv/metrics. Everyone else reads the committed files and
needs none of this.

Examples:
  cargo xtask record
  cargo xtask record processors samplers";

/// The releases that still ran what transformers 5 has moved out.
const OLDER: [&str; 2] = ["transformers-4.46.3", "transformers-4.51.3"];

/// The subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let python = python::environment("record", "xtask/record/requirements.txt")?;
    if arguments.is_empty() || arguments.iter().any(|it| it == "moved") {
        for name in OLDER {
            python::packages(&python, name, &format!("xtask/record/{name}.txt"))?;
        }
    }
    for (area, name) in [("training", "peft"), ("metrics", "metrics")] {
        if arguments.is_empty() || arguments.iter().any(|it| it == area) {
            python::packages(&python, name, &format!("xtask/record/{name}.txt"))?;
        }
    }
    process::show(
        Command::new(python).current_dir(workspace::root()).arg("xtask/record").args(arguments),
    )
}
