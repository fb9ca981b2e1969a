//! `mlxgk-parity [--fixtures DIR] [AREA|TEXT...]`: runs the cases, prints a table, fails on any miss.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use mlxgk_parity::{AREAS, Case, Report};

/// What the command line asks for.
struct Arguments {
    fixtures: PathBuf,
    /// Areas, or texts in the titles of cases; all cases where there is none.
    chosen: Vec<String>,
}

fn main() -> ExitCode {
    let report = parse(std::env::args().skip(1)).and_then(|arguments| {
        #[cfg(any(feature = "generate", feature = "models", feature = "steering"))]
        mlxgk_parity::choose_device()?;
        let cases = cases(&arguments);
        if cases.is_empty() && !arguments.chosen.is_empty() {
            let known: Vec<_> = AREAS.iter().map(|it| it.name).collect();
            let (chosen, known) = (arguments.chosen.join(" "), known.join(", "));
            return Err(format!("no case matches `{chosen}`; the areas are {known}"));
        }
        Ok(Report::of(cases))
    });
    match report {
        Ok(report) => {
            // A closed pipe is the reader's choice; the status still tells.
            let _ = write!(io::stdout(), "{report}");
            ExitCode::from(u8::from(!report.passed()))
        }
        Err(what) => {
            let _ = writeln!(io::stderr(), "mlxgk-parity: {what}");
            ExitCode::from(2)
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments { fixtures: "fixtures".into(), chosen: Vec::new() };
    while let Some(word) = words.next() {
        if word == "--fixtures" {
            arguments.fixtures = words.next().ok_or("--fixtures needs a folder")?.into();
        } else {
            arguments.chosen.push(word);
        }
    }
    if !arguments.fixtures.is_dir() {
        return Err(format!("there is no folder {}", arguments.fixtures.display()));
    }
    Ok(arguments)
}

/// The chosen cases. Another folder may hold some areas only; one that is asked for by name has to
/// exist.
fn cases(arguments: &Arguments) -> Vec<Case> {
    let mut cases = Vec::new();
    for area in AREAS {
        let folder = arguments.fixtures.join(area.name);
        let by_name = arguments.chosen.iter().any(|it| it == area.name);
        if !by_name && !folder.is_dir() {
            continue;
        }
        let texts = || arguments.chosen.iter().filter(|it| AREAS.iter().all(|a| a.name != **it));
        let chosen = |case: &Case| texts().any(|it| case.title().contains(it.as_str()));
        let found = (area.cases)(&folder);
        if by_name || arguments.chosen.is_empty() {
            cases.extend(found);
        } else {
            cases.extend(found.into_iter().filter(chosen));
        }
    }
    cases
}
