//! What a run says of itself: a line of JSON per step and measurement, and a picture of the losses.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use mlx_genkit::training::loss_plot;
use serde_json::Value;

use crate::{
    failure::{Failure, Result},
    files::{read_text, write_text},
};

/// The lines so far, in memory and in the file that they are appended to.
#[derive(Debug)]
pub(crate) struct Metrics {
    path: PathBuf,
    file: File,
    lines: Vec<Value>,
}

impl Metrics {
    /// A new file, or one of which the lines up to step `step` are kept.
    pub(crate) fn open(path: PathBuf, step: u64) -> Result<Self> {
        let mut lines = Vec::new();
        if step > 0 {
            // A run that was killed may have left half a line, and lines after its last checkpoint.
            let kept = |line: &str| serde_json::from_str::<Value>(line).ok();
            lines = read_text(&path)?.lines().filter_map(kept).collect();
            lines.retain(|line: &Value| line["step"].as_u64().is_some_and(|it| it <= step));
        }
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        write_text(&path, &text)?;
        let file = OpenOptions::new().append(true).open(&path);
        let file = file.map_err(|e| cannot_write(&path, &e))?;
        Ok(Self { path, file, lines })
    }

    /// Appends a line.
    pub(crate) fn add(&mut self, line: Value) -> Result<()> {
        writeln!(self.file, "{line}").map_err(|e| cannot_write(&self.path, &e))?;
        self.lines.push(line);
        Ok(())
    }

    /// The picture.
    pub(crate) fn plot(&self) -> String {
        let points = |field: &str| -> Vec<(u64, f64)> {
            let point = |line: &Value| Some((line["step"].as_u64()?, line[field].as_f64()?));
            self.lines.iter().filter_map(point).collect()
        };
        loss_plot(&points("loss"), &points("eval_loss"))
    }
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    Failure::other(format_args!("cannot write {}: {error}", path.display()))
}
