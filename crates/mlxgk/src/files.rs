//! Files that the command line names: texts are read in one way, and written so that no half of one is
//! ever there.
//!
//! A file or folder that is missing, damaged or does not fit the model is a wrong command line, whichever
//! flag named it: exit status 2. So [`named`] is around whatever reads one. A model is not one of them: its
//! name may stand for a download. Nor is a file that cannot be written.

use std::{fmt::Display, io, path::Path};

use mlx_genkit::steering::{read_file, write_file};
use serde::de::DeserializeOwned;

use crate::failure::{Failure, Result};

/// The longest text file that is read, in bytes: none that is written for a command line is longer.
const LONGEST: u64 = 256 << 20;

/// What was read of a file or folder that the command line names.
pub(crate) fn named<T>(read: std::result::Result<T, impl Display>) -> Result<T> {
    read.map_err(Failure::usage)
}

/// The content of a text file.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let name = path.display();
    let bytes = read_file(path, LONGEST)
        .map_err(|e| Failure::usage(format_args!("cannot read {name}: {e}")))?;
    utf8(bytes, &name.to_string())
}

/// The content of stdin, every byte of it; no more than of a file.
pub(crate) fn read_all_of_stdin() -> Result<String> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(io::stdin(), LONGEST + 1), &mut bytes)
        .map_err(|e| Failure::other(format_args!("cannot read stdin: {e}")))?;
    if bytes.len() as u64 > LONGEST {
        let most = LONGEST >> 20;
        let what = format_args!("stdin has more than {most} MiB, and at most {most} are read");
        return Err(Failure::usage(what));
    }
    utf8(bytes, "stdin")
}

/// The content of stdin, without the line break at its end: `echo Hello |` means what `--prompt Hello`
/// means.
pub(crate) fn read_stdin() -> Result<String> {
    let mut text = read_all_of_stdin()?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

/// The content of a JSON file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_str(&read_text(path)?)
        .map_err(|e| Failure::usage(format_args!("{} is not valid JSON: {e}", path.display())))
}

/// Writes a text file, or leaves what was there as it was.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    write_file(path, text.as_bytes())
        .map_err(|e| Failure::other(format_args!("cannot write {}: {e}", path.display())))
}

fn utf8(bytes: Vec<u8>, name: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Failure::usage(format_args!("{name} is not valid UTF-8 at byte {at}"))
    })
}
