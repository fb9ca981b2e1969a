//! What a comparison found: a table for people, a verdict for programs.

use std::fmt;

/// How one suite of an area fared.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    /// The suite's name: a fixture file or a class.
    pub suite: String,
    /// How many cases ran.
    pub cases: usize,
    /// How many matched (exact tokens; the same kept set and scores within the tolerance).
    pub exact: usize,
    /// The worst error seen, absolute or relative as the suite says.
    pub worst: f64,
}

/// The outcome of an area: its suites, and a line for every miss.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// One entry per suite, in the order they ran.
    pub tallies: Vec<Tally>,
    /// One line per case that missed, naming the file and the case.
    pub misses: Vec<String>,
}

impl Report {
    /// Books one case under `suite`; `Err` carries what differed.
    pub fn book(&mut self, suite: &str, case: &str, error: f64, outcome: Result<(), String>) {
        let at = match self.tallies.iter().position(|it| it.suite == suite) {
            Some(at) => at,
            None => {
                self.tallies.push(Tally { suite: suite.to_owned(), ..Tally::default() });
                self.tallies.len() - 1
            }
        };
        let tally = &mut self.tallies[at];
        tally.cases += 1;
        // A NaN error must not hide behind `max`.
        tally.worst = if error.is_nan() { f64::NAN } else { tally.worst.max(error) };
        match outcome {
            Ok(()) => tally.exact += 1,
            Err(what) => self.misses.push(format!("{suite}: {case}: {what}")),
        }
    }

    /// Appends another area's suites and misses.
    pub fn extend(&mut self, other: Self) {
        self.tallies.extend(other.tallies);
        self.misses.extend(other.misses);
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
        Ok(())
    }
}
