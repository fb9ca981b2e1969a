//! The command line: which chore, and its help.

#[cfg(any(target_os = "linux", target_os = "macos"))]
use crate::dist;
use crate::failure::{Failure, Result};
#[cfg(target_os = "linux")]
use crate::sanitize;
use crate::{
    bench, book, check, check_adapters, check_convert, examples, features, fuzz, mac_check,
    packages, parity, record, release, run, setup, test, tidy, tokenizers, train_bundled,
};

/// A chore as the user calls it.
struct Chore {
    name: &'static str,
    summary: &'static str,
    help: &'static str,
    run: fn(&[String]) -> Result<()>,
}

const CHORES: &[Chore] = &[
    Chore {
        name: "setup",
        summary: "make MLX ready to be linked (the others do this first)",
        help: setup::HELP,
        run: setup::run,
    },
    Chore {
        name: "run",
        summary: "build and run the mlxgk command line",
        help: run::HELP,
        run: run::run,
    },
    Chore {
        name: "test",
        summary: "run every test, the parity suite among them",
        help: test::HELP,
        run: test::run,
    },
    Chore {
        name: "parity",
        summary: "compare with what was recorded from transformers",
        help: parity::HELP,
        run: parity::run,
    },
    Chore {
        name: "record",
        summary: "record the fixtures again from transformers",
        help: record::HELP,
        run: record::run,
    },
    Chore {
        name: "bench",
        summary: "measure the speed, and that of transformers and mlx-lm beside it",
        help: bench::HELP,
        run: bench::run,
    },
    Chore {
        name: "check-adapters",
        summary: "exchange adapters with PEFT and mlx-lm",
        help: check_adapters::HELP,
        run: check_adapters::run,
    },
    Chore {
        name: "check-convert",
        summary: "compare conversions with those of mlx-lm",
        help: check_convert::HELP,
        run: check_convert::run,
    },
    #[cfg(target_os = "linux")]
    Chore {
        name: "sanitize",
        summary: "run the tests of the C++ operations under sanitizers",
        help: sanitize::HELP,
        run: sanitize::run,
    },
    Chore {
        name: "fuzz",
        summary: "feed random inputs to the fuzz targets",
        help: fuzz::HELP,
        run: fuzz::run,
    },
    Chore {
        name: "features",
        summary: "check the crates with each of their features alone",
        help: features::HELP,
        run: features::run,
    },
    Chore {
        name: "examples",
        summary: "check the programs for other frameworks in examples/",
        help: examples::HELP,
        run: examples::run,
    },
    Chore {
        name: "tokenizers",
        summary: "compare published tokenizers with transformers' (downloads them)",
        help: tokenizers::HELP,
        run: tokenizers::run,
    },
    Chore {
        name: "train-bundled",
        summary: "train the bundled model again",
        help: train_bundled::HELP,
        run: train_bundled::run,
    },
    Chore {
        name: "tidy",
        summary: "check the house rules that no compiler checks",
        help: tidy::HELP,
        run: tidy::run,
    },
    Chore {
        name: "book",
        summary: "build the book of docs/, or refresh what it shows",
        help: book::HELP,
        run: book::run,
    },
    Chore {
        name: "packages",
        summary: "check what is published: metadata, contents, dependency counts",
        help: packages::HELP,
        run: packages::run,
    },
    Chore {
        name: "check",
        summary: "ask other tools: semver, licences, unused dependencies, other targets",
        help: check::HELP,
        run: check::run,
    },
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    Chore {
        name: "dist",
        summary: "pack the program with all it needs",
        help: dist::HELP,
        run: dist::run,
    },
    Chore {
        name: "release",
        summary: "make the next version: changelog, commit, tag",
        help: release::HELP,
        run: release::run,
    },
    Chore {
        name: "mac-check",
        summary: "run on a Mac what only a Mac can show",
        help: mac_check::HELP,
        run: mac_check::run,
    },
];

/// Runs the chore that the first argument names.
pub(crate) fn dispatch(arguments: &[String]) -> Result<()> {
    let Some((name, rest)) = arguments.split_first() else {
        return Err(Failure::usage(format!("which command?\n\n{}", overview())));
    };
    match name.as_str() {
        "help" | "-h" | "--help" => return help(rest),
        #[cfg(target_os = "linux")]
        setup::INNER => return setup::inner(rest),
        _ => {}
    }
    let chore = find(name)?;
    if wants_help(rest) {
        println!("{}", chore.help);
        return Ok(());
    }
    (chore.run)(rest)
}

/// For chores that take no arguments: refuses any.
pub(crate) fn no_arguments(chore: &str, arguments: &[String]) -> Result<()> {
    match arguments.first() {
        None => Ok(()),
        Some(argument) => Err(unexpected(chore, argument)),
    }
}

/// The error for an argument that a chore does not know.
pub(crate) fn unexpected(chore: &str, argument: &str) -> Failure {
    Failure::usage(format!("unexpected argument `{argument}`: see `cargo xtask {chore} --help`"))
}

/// Help is asked for by the first argument alone: what follows may be meant for another program.
fn wants_help(arguments: &[String]) -> bool {
    arguments.first().is_some_and(|first| first == "--help" || first == "-h")
}

fn help(arguments: &[String]) -> Result<()> {
    match arguments.first() {
        None => println!("{}", overview()),
        Some(name) => println!("{}", find(name)?.help),
    }
    Ok(())
}

fn find(name: &str) -> Result<&'static Chore> {
    CHORES.iter().find(|chore| chore.name == name).ok_or_else(|| {
        let names: Vec<&str> = CHORES.iter().map(|chore| chore.name).collect();
        Failure::usage(format!("unknown command `{name}`; expected one of {}", names.join(", ")))
    })
}

fn overview() -> String {
    let mut text = String::from("The project's chores.\n\nUsage: cargo xtask <command>\n\n");
    for chore in CHORES {
        text.push_str(&format!("  {:<15}{}\n", chore.name, chore.summary));
    }
    text.push_str(
        "\nExamples:\n  \
         cargo xtask run generate --prompt \"Tell me a story.\"\n  \
         cargo xtask test\n  \
         cargo xtask help record",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn every_chore_is_listed_and_has_help_with_examples() {
        for chore in CHORES {
            assert!(overview().contains(chore.summary));
            assert!(chore.help.contains(&format!("Usage: cargo xtask {}", chore.name)));
            assert!(chore.help.contains("Example"), "{}", chore.name);
        }
    }

    #[test]
    fn an_unknown_command_is_answered_by_the_known_ones() {
        let failure = dispatch(&strings(&["frobnicate"])).unwrap_err();
        assert_eq!(failure.status(), 2);
        assert!(failure.message().unwrap().contains("setup, run, test"));
    }

    #[test]
    fn an_unknown_argument_is_refused() {
        let failure = dispatch(&strings(&["setup", "--fast"])).unwrap_err();
        assert_eq!(failure.status(), 2);
        assert!(failure.message().unwrap().contains("--fast"));
    }
}
