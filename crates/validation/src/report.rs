//! What a validation found: a table for people, JSON for programs.

use std::fmt;

use serde_json::{Value, json};

use crate::words::number;

/// Where a cell was steered to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Nowhere.
    Base,
    /// Along the vectors.
    Steered,
    /// Against them.
    Negated,
    /// Along random vectors of the same norms.
    Random,
}

impl Direction {
    /// The name in the table and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Steered => "steered",
            Self::Negated => "negated",
            Self::Random => "random",
        }
    }
}

/// One line of the table: all prompts and seeds at one direction and alpha. Shares are in 0..=1.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Where to.
    pub direction: Direction,
    /// How strongly.
    pub alpha: f64,
    /// How many answers.
    pub answers: usize,
    /// Share that is not the unsteered answer.
    pub differs: Option<f64>,
    /// Share that looks broken.
    pub suspect: f64,
    /// Share that was drawn twice.
    pub resampled: f64,
    /// Share that came out the same in a second run.
    pub same: f64,
    /// Mean KL(steered ‖ base) per token of the unsteered answers, in nats.
    pub kl: Option<f64>,
    /// Share of those tokens at which both models would choose the same.
    pub top_1: Option<f64>,
    /// Mean projection on the vector over the answers, less that of the unsteered answers.
    pub shift: Option<f64>,
    /// Of the answers, under the unsteered model.
    pub perplexity: f64,
    /// Distinct words per word.
    pub distinct_1: f64,
    /// Distinct pairs of neighbouring words per pair.
    pub distinct_2: f64,
    /// Share in which the wanted voice is heard.
    pub words: Option<f64>,
    /// The first answer.
    pub example: String,
}

/// The whole table.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// Prompts per seed.
    pub prompts: usize,
    /// Runs per cell.
    pub seeds: usize,
    /// The voice whose words are counted.
    pub wanted: Option<String>,
    /// The unsteered cell first, then by direction and alpha.
    pub cells: Vec<Cell>,
}

/// A column: its name, and a cell's value as text.
type Column = (&'static str, fn(&Cell) -> String);

const COLUMNS: [Column; 13] = [
    ("direction", |it| it.direction.as_str().to_owned()),
    ("alpha", |it| format!("{}", it.alpha)),
    ("words", |it| percent(it.words)),
    ("differs", |it| percent(it.differs)),
    ("suspect", |it| percent(Some(it.suspect))),
    ("resampled", |it| percent(Some(it.resampled))),
    ("same", |it| percent(Some(it.same))),
    ("KL", |it| it.kl.map_or_else(dash, |it| format!("{it:.3}"))),
    ("top-1", |it| percent(it.top_1)),
    ("shift", |it| it.shift.map_or_else(dash, |it| format!("{it:.2}"))),
    ("ppl", |it| format!("{:.2}", it.perplexity)),
    ("d-1", |it| format!("{:.2}", it.distinct_1)),
    ("d-2", |it| format!("{:.2}", it.distinct_2)),
];

fn percent(share: Option<f64>) -> String {
    share.map_or_else(dash, |it| format!("{:.1} %", 100.0 * it))
}

fn dash() -> String {
    "-".to_owned()
}

impl Report {
    /// The table's head and rows; the column of words only where some are counted.
    pub(crate) fn rows(&self) -> (Vec<&'static str>, Vec<Vec<String>>) {
        let shown: Vec<&Column> =
            COLUMNS.iter().filter(|it| it.0 != "words" || self.wanted.is_some()).collect();
        let row = |cell: &Cell| shown.iter().map(|it| it.1(cell)).collect();
        (shown.iter().map(|it| it.0).collect(), self.cells.iter().map(row).collect())
    }

    /// The report for programs: numbers as they are, shares in 0..=1.
    pub fn json(&self) -> Value {
        let cells: Vec<Value> = self
            .cells
            .iter()
            .map(|it| {
                json!({
                    "direction": it.direction.as_str(),
                    "alpha": it.alpha,
                    "answers": it.answers,
                    "words": number(it.words),
                    "differs": number(it.differs),
                    "suspect": it.suspect,
                    "resampled": it.resampled,
                    "same": it.same,
                    "kl": number(it.kl),
                    "top_1": number(it.top_1),
                    "projection_shift": number(it.shift),
                    "perplexity": it.perplexity,
                    "distinct_1": it.distinct_1,
                    "distinct_2": it.distinct_2,
                    "example": it.example,
                })
            })
            .collect();
        json!({
            "model": self.model,
            "prompts": self.prompts,
            "seeds": self.seeds,
            "words": self.wanted,
            "cells": cells,
        })
    }
}

/// The table, columns flush.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (head, rows) = self.rows();
        let head: Vec<String> = head.into_iter().map(str::to_owned).collect();
        let width = |at: usize| {
            std::iter::once(&head).chain(&rows).map(|it| it[at].len()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        for (index, row) in std::iter::once(&head).chain(&rows).enumerate() {
            let cells = row.iter().zip(&widths).enumerate().map(|(at, (cell, &width))| match at {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            f.write_str(line.trim_end())?;
            if index < rows.len() {
                f.write_str("\n")?;
            }
        }
        Ok(())
    }
}
