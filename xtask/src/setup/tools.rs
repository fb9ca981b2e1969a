//! Are the programs that setup needs there?

use crate::failure::{Failure, Result};
use crate::process;

/// A program that setup starts.
pub(super) struct Tool {
    pub(super) program: &'static str,
    /// Arguments with which it does nothing and succeeds.
    pub(super) probe: &'static [&'static str],
    /// What to say when it is not there.
    pub(super) missing: &'static str,
}

/// Fails with one sentence for every tool that does not answer.
pub(super) fn require(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&str> = tools
        .iter()
        .filter(|tool| !process::works(tool.program, tool.probe))
        .map(|tool| tool.missing)
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(Failure::usage(missing.join("\nerror: "))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THERE: Tool = Tool { program: "true", probe: &[], missing: "true is missing" };
    const NOT_THERE: Tool = Tool { program: "no-such-program", probe: &[], missing: "get it" };

    #[test]
    fn a_tool_that_answers_is_there() {
        assert!(require(&[THERE]).is_ok());
    }

    #[test]
    fn every_missing_tool_is_named_and_the_status_is_2() {
        let failing = Tool { program: "false", probe: &[], missing: "get the other" };
        let failure = require(&[NOT_THERE, THERE, failing]).unwrap_err();
        assert_eq!(failure.message(), Some("get it\nerror: get the other"));
        assert_eq!(failure.status(), 2);
    }
}
