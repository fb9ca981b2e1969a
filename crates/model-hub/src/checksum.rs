//! Sizes and hashes that the hub states for its files.
//!
//! Files in large-file storage have a SHA-256 of their content. The others are git blobs, whose
//! SHA-1 covers a header with the size as well (`blob <size>\0`).

use std::{fs::File, io::Read, path::Path};

use sha1::{Digest, Sha1};
use sha2::Sha256;

use crate::{Error, Result};

/// The hash that a file must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Checksum {
    /// SHA-256 of the content, in lower-case hexadecimal digits.
    Sha256(String),
    /// git's name for the content, in lower-case hexadecimal digits.
    GitSha1(String),
}

impl Checksum {
    /// The digits: the file's name in the cache.
    pub(crate) fn digits(&self) -> &str {
        match self {
            Self::Sha256(digits) | Self::GitSha1(digits) => digits,
        }
    }

    /// Whether the file's content has this hash.
    pub(crate) fn matches(&self, path: &Path, size: u64) -> Result<bool> {
        let mut hasher = match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::GitSha1(_) => {
                Hasher::GitSha1(Sha1::new_with_prefix(format!("blob {size}\0").as_bytes()))
            }
        };
        let failed = |e| Error::file("reading", path, e);
        let mut file = File::open(path).map_err(failed)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer).map_err(failed)? {
                0 => return Ok(hasher.digits() == self.digits()),
                count => hasher.update(&buffer[..count]),
            }
        }
    }
}

enum Hasher {
    Sha256(Sha256),
    GitSha1(Sha1),
}

impl Hasher {
    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::GitSha1(hasher) => hasher.update(bytes),
        }
    }

    fn digits(self) -> String {
        let digits = |bytes: &[u8]| bytes.iter().map(|it| format!("{it:02x}")).collect();
        match self {
            Self::Sha256(hasher) => digits(&hasher.finalize()),
            Self::GitSha1(hasher) => digits(&hasher.finalize()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_hashes_are_those_of_git() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "hello\n").unwrap();
        // `git hash-object file` and `sha256sum file`.
        for checksum in [
            Checksum::GitSha1("ce013625030ba8dba906f756967f9e9ca394464a".into()),
            Checksum::Sha256(
                "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03".into(),
            ),
        ] {
            assert!(checksum.matches(&path, 6).unwrap());
            std::fs::write(folder.path().join("other"), "hello").unwrap();
            assert!(!checksum.matches(&folder.path().join("other"), 5).unwrap());
        }
    }
}
