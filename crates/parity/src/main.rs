//! `mlxgk-parity [--fixtures DIR] [AREA...]`: runs the areas, prints a table, fails on any miss.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use mlxgk_parity::Report;

type Check = fn(&Path) -> Result<Report, String>;

/// Every area that was compiled in; the folder of an area bears its name.
const AREAS: &[(&str, Check)] = &[
    #[cfg(feature = "generate")]
    ("assisted", mlxgk_parity::assisted::check),
    #[cfg(feature = "generate")]
    ("beams", mlxgk_parity::generate::check),
    #[cfg(feature = "config")]
    ("config", mlxgk_parity::config::check),
    #[cfg(feature = "generate")]
    ("generate", mlxgk_parity::generate::check),
    #[cfg(feature = "generate")]
    ("healing", mlxgk_parity::healing::check),
    #[cfg(feature = "models")]
    ("models", mlxgk_parity::models::check),
    #[cfg(feature = "generate")]
    ("moved", mlxgk_parity::generate::check),
    #[cfg(feature = "generate")]
    ("outputs", mlxgk_parity::outputs::check),
    #[cfg(feature = "processors")]
    ("processors", mlxgk_parity::processors::check),
    #[cfg(feature = "samplers")]
    ("samplers", mlxgk_parity::samplers::check),
    #[cfg(feature = "steering")]
    ("steering", mlxgk_parity::steering::check),
    #[cfg(feature = "generate")]
    ("stopping", mlxgk_parity::stopping::check),
    #[cfg(feature = "templates")]
    ("templates", mlxgk_parity::templates::check),
];

/// What the command line asks for.
struct Arguments {
    fixtures: PathBuf,
    /// All that the folder has, where none is named.
    areas: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(what) => {
            let _ = writeln!(io::stderr(), "mlxgk-parity: {what}");
            return ExitCode::from(2);
        }
    };
    let report = run(&arguments);
    let verdict = if report.passed() { "every case passed" } else { "FAILED" };
    // A closed pipe is the reader's choice; the status still tells.
    let _ = writeln!(io::stdout(), "{report}{verdict}");
    ExitCode::from(u8::from(!report.passed()))
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments { fixtures: "fixtures".into(), areas: Vec::new() };
    while let Some(word) = words.next() {
        if word == "--fixtures" {
            arguments.fixtures = words.next().ok_or("--fixtures needs a folder")?.into();
        } else if AREAS.iter().any(|(name, _)| *name == word) {
            arguments.areas.push(word);
        } else {
            let known: Vec<_> = AREAS.iter().map(|(name, _)| *name).collect();
            return Err(format!("there is no area {word}; there are {}", known.join(", ")));
        }
    }
    if !arguments.fixtures.is_dir() {
        return Err(format!("there is no folder {}", arguments.fixtures.display()));
    }
    Ok(arguments)
}

fn run(arguments: &Arguments) -> Report {
    let mut report = Report::default();
    for (name, check) in AREAS {
        let folder = arguments.fixtures.join(name);
        // Another folder may hold some areas only; one that was asked for by name has to exist.
        let wanted = match arguments.areas.as_slice() {
            [] => folder.is_dir(),
            areas => areas.iter().any(|it| it == name),
        };
        if !wanted {
            continue;
        }
        match check(&folder) {
            Ok(found) => report.extend(found),
            Err(what) => report.book(name, "reading", f64::NAN, Err(what)),
        }
    }
    report
}
