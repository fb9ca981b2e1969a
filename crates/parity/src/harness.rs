//! The cases as tests of their own: `cargo test -p mlxgk-samplers --test goldens -- top_p`.

#[cfg(any(feature = "generate", feature = "models", feature = "steering"))]
use std::io::{self, Write};
use std::{path::Path, process::ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::AREAS;

/// The `main` of a test target without libtest: every case of these areas, read from the
/// repository's `fixtures/`, is one test.
///
/// Areas that run on MLX are run one case at a time, because MLX has one default stream; the others
/// in parallel.
pub fn run_tests(areas: &[&str]) -> ExitCode {
    #[cfg(any(feature = "generate", feature = "models", feature = "steering"))]
    if let Err(what) = crate::choose_device() {
        let _ = writeln!(io::stderr(), "error: {what}");
        return ExitCode::from(2);
    }
    let mut arguments = Arguments::from_args();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let mut trials = Vec::new();
    for area in AREAS.iter().filter(|it| areas.contains(&it.name)) {
        if area.on_mlx {
            arguments.test_threads.get_or_insert(1);
        }
        for case in (area.cases)(&fixtures.join(area.name)) {
            let title = case.title();
            let run = move || case.run().map(drop).map_err(Failed::from);
            trials.push(Trial::test(title, run));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
