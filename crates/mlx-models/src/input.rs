//! What comes from outside: files that are none, and text of any length.

use std::{fs, path::Path};

use crate::{Error, ErrorKind, Result};

/// The length of a file, after making sure that it is one: opening a pipe would wait for a writer.
pub(crate) fn regular_file(path: &Path) -> Result<u64> {
    let refused = |what: String| Error::new(ErrorKind::File, what);
    let name = path.display();
    let metadata = fs::metadata(path).map_err(|e| refused(format!("cannot read {name}: {e}")))?;
    match metadata.is_file() {
        true => Ok(metadata.len()),
        false if metadata.is_dir() => Err(refused(format!("{name} is a folder, not a file"))),
        false => Err(refused(format!("{name} is a device or a pipe, not a file"))),
    }
}

/// The longest JSON file of a model's folder, in bytes: the index of a thousand shards has 15 MB.
const LONGEST: u64 = 128 << 20;

/// Reads a JSON file of a model's folder.
pub(crate) fn read_json_file(path: &Path) -> Result<Vec<u8>> {
    let refused = |what: String| Error::new(ErrorKind::File, what);
    let (name, length) = (path.display(), regular_file(path)?);
    if length > LONGEST {
        let (length, most) = (length >> 20, LONGEST >> 20);
        return Err(refused(format!("{name} has {length} MiB, and at most {most} are read")));
    }
    fs::read(path).map_err(|e| refused(format!("cannot read {name}: {e}")))
}

/// `text` in backticks, on one line and of bearable length: files may hold names of megabytes.
pub(crate) fn quoted(text: &str) -> String {
    format!("`{}`", shortened(text))
}

/// `text` on one line, its middle left out where it is longer than a hundred characters.
pub(crate) fn shortened(text: &str) -> String {
    shortened_to(100, text)
}

/// As [`shortened`], to a length of one's own.
pub(crate) fn shortened_to(most: usize, text: &str) -> String {
    let escaped = |text: &str| -> String {
        text.chars()
            .map(|it| if it.is_control() { it.escape_default().to_string() } else { it.into() })
            .collect()
    };
    let count = text.chars().count();
    if count <= most {
        return escaped(text);
    }
    let start: String = text.chars().take(most / 2).collect();
    let end: String = text.chars().skip(count - most / 2).collect();
    format!("{}…{}", escaped(&start), escaped(&end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_lose_their_middle_and_control_characters() {
        assert_eq!(quoted("model.norm.weight"), "`model.norm.weight`");
        assert_eq!(quoted("a\nb"), "`a\\nb`");
        let long = format!("start{}end", "é".repeat(1_000_000));
        let quoted = quoted(&long);
        assert!(quoted.starts_with("`starté") && quoted.ends_with("éend`"), "{quoted}");
        assert_eq!(quoted.chars().count(), 103);
    }
}
