//! What the cases came to: a table for people, a verdict for programs.

use std::fmt;

use crate::{Case, Outcome};

/// How many cases of a suite passed, and how closely.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    /// The suite's name: the area and a fixture file or a class.
    pub suite: String,
    /// How many cases ran.
    pub cases: usize,
    /// How many matched (exact tokens; the same kept set and scores within the tolerance).
    pub exact: usize,
    /// The worst error seen, absolute or relative as the suite says.
    pub worst: f64,
}

/// The outcome of all cases: their suites, and a line for every miss.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// One entry per suite, in the order they ran.
    pub tallies: Vec<Tally>,
    /// One line per case that missed, naming the suite and the case.
    pub misses: Vec<String>,
}

impl Report {
    /// Runs cases.
    pub fn of(cases: impl IntoIterator<Item = Case>) -> Self {
        let mut report = Self::default();
        for case in cases {
            let (suite, name) = (case.suite.clone(), case.name.clone());
            report.record(&suite, &name, case.run());
        }
        report
    }

    fn record(&mut self, suite: &str, name: &str, outcome: Outcome) {
        let at = match self.tallies.iter().position(|it| it.suite == suite) {
            Some(at) => at,
            None => {
                self.tallies.push(Tally { suite: suite.to_owned(), ..Tally::default() });
                self.tallies.len() - 1
            }
        };
        let tally = &mut self.tallies[at];
        tally.cases += 1;
        match outcome {
            Ok(error) => {
                tally.exact += 1;
                // A NaN error must not hide behind `max`.
                tally.worst = if error.is_nan() { f64::NAN } else { tally.worst.max(error) };
            }
            Err(what) => self.misses.push(format!("{suite}: {name}: {what}")),
        }
    }

    /// Whether something ran and nothing missed.
    pub fn passed(&self) -> bool {
        !self.tallies.is_empty() && self.misses.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.tallies.iter().map(|it| it.suite.len()).max().unwrap_or(0).max(5);
        writeln!(f, "{:width$}  {:>6}  {:>6}  {:>11}", "suite", "cases", "exact", "worst error")?;
        for it in &self.tallies {
            writeln!(
                f,
                "{:width$}  {:>6}  {:>6}  {:>11.2e}",
                it.suite, it.cases, it.exact, it.worst
            )?;
        }
        for miss in &self.misses {
            writeln!(f, "miss: {miss}")?;
        }
        let verdict = if self.passed() { "ok" } else { "FAILED" };
        let cases: usize = self.tallies.iter().map(|it| it.cases).sum();
        let failed = self.misses.len();
        writeln!(f, "test result: {verdict}. {} passed; {failed} failed", cases - failed)
    }
}
