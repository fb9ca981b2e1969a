//! What the pages show is what happens: every command of a page is run, in the page's order.
//!
//! A page has a folder of its own, in which `examples`, `crates` and `fixtures` are those of the checkout, and is read
//! from top to bottom by a shell that knows `mlxgk`. A block in `sh` has to succeed. In `console` each
//! line after `$ ` is a command, continued by lines after `> `, and the lines below it are what it prints,
//! where `…` stands for anything within a line and, alone in a line, for any lines. A block in `sh,background` is
//! one command that runs until the page ends, and has begun when it has printed a line. Pages serve at port 8080,
//! and the test at one that is free. A block that is marked `no_run` takes what a test has not: the network, a
//! Mac, Python, or minutes. Where there is no `curl`, pages that ask a server are ignored.
//!
//! The pages show what is printed on Linux, in fp32. Elsewhere a GPU computes in the model's own precision
//! and may choose other words, so there the commands have to succeed, and no more.
//!
//! With `MLXGK_REFRESH=1` (`cargo xtask book --refresh`) outputs that differ are written into the pages.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};

/// `cargo xtask run` is `mlxgk`; nothing else of cargo is for a page's test.
const CARGO: &str = "#!/bin/sh
[ \"$1 $2\" = 'xtask run' ] || { echo \"a page runs cargo $*\" >&2; exit 1; }
shift 2
exec mlxgk \"$@\"
";

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let mut pages = vec![root.join("README.md"), root.join("crates/mlxgk/README.md")];
    pages_below(&root.join("docs"), &mut pages);
    pages.retain(|it| blocks(&fs::read_to_string(it).unwrap()).iter().any(Block::is_run));
    pages.sort();
    let has_curl = Command::new("curl").arg("--version").output().is_ok();
    let trials = pages.into_iter().map(|page| {
        let name = page.strip_prefix(&root).unwrap().display().to_string();
        let asks = fs::read_to_string(&page).unwrap().contains("curl ");
        let root = root.clone();
        Trial::test(name, move || run_page(&root, &page)).with_ignored_flag(asks && !has_curl)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

fn pages_below(folder: &Path, pages: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            pages_below(&path, pages);
        } else if path.extension().is_some_and(|it| it == "md") {
            pages.push(path);
        }
    }
}

/// A fenced block of a page.
struct Block {
    /// The words after the fence.
    info: String,
    /// Its first line within the page, counted from 0.
    begin: usize,
    lines: Vec<String>,
}

impl Block {
    fn is(&self, language: &str) -> bool {
        self.info == language
    }

    fn is_run(&self) -> bool {
        self.is("sh") || self.is("console") || self.is("sh,background")
    }
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (index, line) in page.lines().enumerate() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(info), None) => {
                open = Some(Block { info: info.to_owned(), begin: index + 1, lines: Vec::new() });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => block.lines.push(line.to_owned()),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block that does not end");
    blocks
}

fn run_page(root: &Path, path: &Path) -> Result<(), Failed> {
    let page = fs::read_to_string(path)?;
    let mut shell = Shell::new(root)?;
    let refresh = std::env::var_os("MLXGK_REFRESH").is_some();
    let mut lines: Vec<String> = page.lines().map(str::to_owned).collect();
    // From the last block to the first, so that what is written moves no block; but run in order.
    let mut changed = Vec::new();
    for block in blocks(&page) {
        if block.is("sh") {
            shell.run(&block.lines.join("\n"), block.begin)?;
        } else if block.is("sh,background") {
            shell.begin(&block.lines.join("\n"), block.begin)?;
        } else if block.is("console") {
            let found = shell.show(&block, refresh)?;
            if found != block.lines {
                changed.push((block.begin..block.begin + block.lines.len(), found));
            }
        }
    }
    for (range, found) in changed.into_iter().rev() {
        lines.splice(range, found);
    }
    if refresh {
        fs::write(path, lines.join("\n") + "\n")?;
    }
    Ok(())
}

/// A shell in a page's folder.
struct Shell {
    folder: tempfile::TempDir,
    /// Where its programs lie.
    programs: tempfile::TempDir,
    /// What runs until the page ends.
    background: Vec<Child>,
    /// Stands in place of [`PORT`].
    port: String,
}

/// Where the pages say that a server is.
const PORT: &str = "8080";

impl Drop for Shell {
    fn drop(&mut self) {
        for child in &mut self.background {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Shell {
    fn new(root: &Path) -> std::io::Result<Self> {
        let (folder, programs) = (tempfile::tempdir()?, tempfile::tempdir()?);
        for name in ["crates", "examples", "fixtures"] {
            symlink(root.join(name), folder.path().join(name))?;
        }
        symlink(env!("CARGO_BIN_EXE_mlxgk"), programs.path().join("mlxgk"))?;
        let cargo = programs.path().join("cargo");
        fs::write(&cargo, CARGO)?;
        fs::set_permissions(cargo, fs::Permissions::from_mode(0o755))?;
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port().to_string();
        Ok(Self { folder, programs, background: Vec::new(), port })
    }

    /// A script that is to run in the page's folder.
    fn command(&self, script: &str) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("sh");
        command
            .args(["-e", "-c", &script.replace(PORT, &self.port)])
            .current_dir(&self.folder)
            .env("PATH", format!("{}:{path}", self.programs.path().display()))
            .env("HF_HOME", self.programs.path())
            // Tests run side by side, where BLAS's threads would mostly wait for each other.
            .env("OPENBLAS_NUM_THREADS", "1")
            .stdin(Stdio::null());
        command
    }

    /// Runs a script; returns its exit status, and what it printed on either stream, in order.
    fn output(&self, script: &str) -> std::io::Result<(Option<i32>, String)> {
        let output = self.command(&format!("exec 2>&1\n{script}")).output()?;
        let printed = String::from_utf8_lossy(&output.stdout).replace(&self.port, PORT);
        Ok((output.status.code(), printed))
    }

    /// Starts a command that runs until the page ends, and waits for its first line.
    fn begin(&mut self, script: &str, line: usize) -> Result<(), Failed> {
        // A server that a page leaves at its default port.
        let script = script.replace("mlxgk serve", &format!("mlxgk serve --port {PORT}"));
        let mut child = self.command(&format!("exec {script}")).stdout(Stdio::piped()).spawn()?;
        let mut first = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut first)?;
        }
        self.background.push(child);
        match first.is_empty() {
            true => Err(format!("line {line}: {script} ends without a line").into()),
            false => Ok(()),
        }
    }

    fn run(&self, script: &str, line: usize) -> Result<(), Failed> {
        match self.output(script)? {
            (Some(0), _) => Ok(()),
            (status, output) => {
                Err(format!("line {line}: status {status:?} of\n{script}\n{output}").into())
            }
        }
    }

    /// The block as it should stand: its commands, each with what it prints.
    fn show(&self, block: &Block, refresh: bool) -> Result<Vec<String>, Failed> {
        let mut shown = Vec::new();
        let mut lines = block.lines.iter().peekable();
        while let Some(line) = lines.next() {
            let Some(command) = line.strip_prefix("$ ") else {
                return Err(format!("line {}: {line} is below no command", block.begin).into());
            };
            shown.push(line.clone());
            let mut script = command.to_owned();
            while let Some(more) = lines.next_if(|it| it.starts_with("> ")) {
                script += &format!("\n{}", &more[2..]);
                shown.push(more.clone());
            }
            let mut expected = Vec::new();
            while let Some(line) = lines.next_if(|it| !it.starts_with("$ ")) {
                expected.push(line.as_str());
            }
            // Sessions have empty lines between commands.
            let gap = expected.len()
                - expected.iter().rposition(|it| !it.is_empty()).map_or(0, |it| it + 1);
            let expected = &expected[..expected.len() - gap];
            let (status, output) = self.output(&script)?;
            let found: Vec<&str> = output.trim_end().lines().map(str::trim_end).collect();
            // A page may show a refusal, and a shell that goes on after one.
            let refused = found.iter().any(|it| it.starts_with("error: "));
            if status != Some(0) && !refused {
                return Err(format!(
                    "line {}: status {status:?} of {script}\n{output}",
                    block.begin
                )
                .into());
            }
            if !cfg!(target_os = "linux") || is_like(expected, &found) {
                shown.extend(expected.iter().map(|it| (*it).to_owned()));
            } else if refresh {
                shown.extend(found.iter().map(|it| (*it).to_owned()));
            } else {
                return Err(format!("line {}: {script}\nprints\n{output}", block.begin).into());
            }
            shown.extend((0..gap).map(|_| String::new()));
        }
        Ok(shown)
    }
}

/// Whether a command printed what the page shows.
fn is_like(expected: &[&str], found: &[&str]) -> bool {
    match expected.split_first() {
        None => found.is_empty(),
        Some((&"…", rest)) => (0..=found.len()).any(|skipped| is_like(rest, &found[skipped..])),
        Some((line, rest)) => found
            .split_first()
            .is_some_and(|(first, others)| is_line_like(line, first) && is_like(rest, others)),
    }
}

/// The same for one line.
fn is_line_like(expected: &str, found: &str) -> bool {
    let Some((before, after)) = expected.split_once('…') else { return expected == found };
    let Some(found) = found.strip_prefix(before) else { return false };
    (0..=found.len())
        .filter(|at| found.is_char_boundary(*at))
        .any(|at| is_line_like(after, &found[at..]))
}
