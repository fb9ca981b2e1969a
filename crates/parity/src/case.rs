//! One comparison that can be named, chosen and run by itself.

use std::fmt;

/// The worst error of a comparison that holds (0 where only equality counts), or what differs.
pub type Outcome = Result<f64, String>;

/// A comparison with a recorded answer.
pub struct Case {
    /// The area and the fixture file or class, as in `samplers/warpers`.
    pub suite: String,
    /// What the case is about.
    pub name: String,
    check: Box<dyn FnOnce() -> Outcome + Send>,
}

impl Case {
    /// A case that runs `check`.
    pub fn new(
        suite: &str,
        name: impl Into<String>,
        check: impl FnOnce() -> Outcome + Send + 'static,
    ) -> Self {
        Self { suite: suite.to_owned(), name: name.into(), check: Box::new(check) }
    }

    /// A case that fails: its fixture cannot be read.
    pub fn unreadable(suite: &str, what: String) -> Self {
        Self::new(suite, "reading", move || Err(what))
    }

    /// Suite and name.
    pub fn title(&self) -> String {
        format!("{}/{}", self.suite, self.name)
    }

    /// Compares.
    ///
    /// # Errors
    /// What differs.
    pub fn run(self) -> Outcome {
        (self.check)()
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("title", &self.title()).finish_non_exhaustive()
    }
}
