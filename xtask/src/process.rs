//! Starting other programs.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::failure::{Context, Failure, Result};

/// The cargo that started this program, so that a toolchain override is kept.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a program whose output the user is meant to see; its exit status becomes ours.
pub(crate) fn show(command: &mut Command) -> Result<()> {
    let status = command.status().context(|| format!("cannot start {}", name(command)))?;
    if status.success() {
        return Ok(());
    }
    // No code means a signal ended it; the shell's convention for "killed" is 128 and more.
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(128);
    Err(Failure::silent(code))
}

/// Runs a program whose output the user is meant to see, and hands on each line of it. Returns whether
/// it succeeded.
pub(crate) fn show_lines(command: &mut Command, mut each: impl FnMut(&str)) -> Result<bool> {
    let doing = format!("cannot start {}", name(command));
    // One pipe for both, so that the lines keep their order.
    let (reader, writer) = std::io::pipe().context(|| &doing)?;
    let other = writer.try_clone().context(|| &doing)?;
    let mut child = command.stdout(writer).stderr(other).spawn().context(|| &doing)?;
    // The pipe ends once the command's own ends of it are closed.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut lines = BufReader::new(reader);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).context(|| &doing)? > 0 {
        let text = String::from_utf8_lossy(&line);
        print!("{text}");
        each(&text);
        line.clear();
    }
    Ok(child.wait().context(|| &doing)?.success())
}

/// Runs a program quietly and returns its stdout; when it fails, its stderr is in the message.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .context(|| format!("cannot start {}", name(command)))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!("{} failed ({})\n{}", name(command), output.status, stderr.trim())))
}

/// Whether a program can be started with these arguments and succeeds, its output unseen.
pub(crate) fn works(program: impl AsRef<OsStr>, arguments: &[&str]) -> bool {
    succeeds(Command::new(program).args(arguments))
}

/// The same for a command that is there already.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn name(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().take(3).map(|word| word.to_string_lossy()));
    format!("`{}`", words.join(" "))
}
