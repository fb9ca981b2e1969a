//! What a run says of itself: a table of losses, and a picture of it.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use mlxgk_training::loss_plot;

use crate::Result;

const HEAD: &str = "step,tokens,seconds,learning_rate,train_loss,held_out_loss";

/// The table so far.
pub(crate) struct Log {
    path: PathBuf,
    rows: Vec<Row>,
}

/// A step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) step: u64,
    pub(crate) tokens: u64,
    pub(crate) seconds: f64,
    pub(crate) learning_rate: f64,
    pub(crate) loss: f64,
    /// Of held-out documents, where it was measured.
    pub(crate) held_out: Option<f64>,
}

impl Log {
    /// A table in this file, of which the rows up to step `step` are kept.
    pub(crate) fn open(path: PathBuf, step: u64) -> Result<Self> {
        let mut rows = Vec::new();
        if step > 0 {
            let text = fs::read_to_string(&path)
                .map_err(|e| format!("cannot read {}: {e}", path.display()))?;
            for line in text.lines().skip(1) {
                let row = Row::read(line).ok_or_else(|| format!("{}: `{line}`", path.display()))?;
                rows.push(row);
            }
            rows.retain(|it| it.step <= step);
        }
        Ok(Self { path, rows })
    }

    /// Adds a row, and writes the table and its picture.
    pub(crate) fn add(&mut self, row: Row) -> Result<()> {
        self.rows.push(row);
        let mut table = format!("{HEAD}\n");
        for it in &self.rows {
            let held_out = it.held_out.map_or_else(String::new, |it| format!("{it:.4}"));
            // Writing to a String cannot fail.
            let _ = writeln!(
                table,
                "{},{},{:.1},{:.2e},{:.4},{held_out}",
                it.step, it.tokens, it.seconds, it.learning_rate, it.loss
            );
        }
        fs::write(&self.path, table)?;
        let training: Vec<(u64, f64)> = self.rows.iter().map(|it| (it.step, it.loss)).collect();
        let held_out: Vec<(u64, f64)> =
            self.rows.iter().filter_map(|it| Some((it.step, it.held_out?))).collect();
        Ok(fs::write(self.path.with_extension("svg"), loss_plot(&training, &held_out))?)
    }
}

impl Row {
    fn read(line: &str) -> Option<Self> {
        let mut fields = line.split(',');
        let mut next = || fields.next();
        Some(Self {
            step: next()?.parse().ok()?,
            tokens: next()?.parse().ok()?,
            seconds: next()?.parse().ok()?,
            learning_rate: next()?.parse().ok()?,
            loss: next()?.parse().ok()?,
            held_out: match next()? {
                "" => None,
                it => Some(it.parse().ok()?),
            },
        })
    }
}
