//! Names of models on a hub: `owner/name`, or `owner/name@revision`.

use std::{fmt, str::FromStr};

use crate::{Error, ErrorKind, Result};

/// The revision that is meant where none is named.
const DEFAULT_REVISION: &str = "main";

/// A model on a hub, at a branch, tag or commit.
///
/// ```
/// use mlxgk_model_hub::ModelId;
///
/// let id: ModelId = "Qwen/Qwen3-0.6B@v1.0".parse()?;
/// assert_eq!((id.repo(), id.revision()), ("Qwen/Qwen3-0.6B", "v1.0"));
/// assert_eq!("gpt2".parse::<ModelId>()?.revision(), "main");
/// assert!("../weights".parse::<ModelId>().is_err());
/// # Ok::<(), mlxgk_model_hub::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelId {
    repo: String,
    revision: String,
}

impl ModelId {
    /// `owner/name`, or just `name` for the few models without an owner.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// A branch, a tag or a commit; `main` where none was named.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The model's folder in the cache.
    pub(crate) fn folder_name(&self) -> String {
        format!("models--{}", self.repo.replace('/', "--"))
    }
}

impl FromStr for ModelId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (repo, revision) = text.split_once('@').unwrap_or((text, DEFAULT_REVISION));
        let parts: Vec<&str> = repo.split('/').collect();
        let is_repo = parts.len() <= 2 && parts.iter().all(|it| is_part(it));
        // A revision may hold slashes (`refs/pr/1`), each part of which becomes a folder.
        let is_revision = revision.split('/').all(is_part);
        if !is_repo || !is_revision || repo.contains("--") {
            let what = format!(
                "{text:?} is not a model: expected a folder, or a hub id such as Qwen/Qwen3-0.6B \
                 or Qwen/Qwen3-0.6B@main"
            );
            return Err(Error::new(ErrorKind::Name, what));
        }
        Ok(Self { repo: repo.to_owned(), revision: revision.to_owned() })
    }
}

/// What the hub allows between slashes.
fn is_part(part: &str) -> bool {
    let allowed = |it: char| it.is_ascii_alphanumeric() || matches!(it, '-' | '_' | '.');
    !part.is_empty()
        && part.len() <= 96
        && part.chars().all(allowed)
        && !part.starts_with(['.', '-'])
        && !part.ends_with('.')
        && !part.contains("..")
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repo, self.revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_leave_the_cache_folder_is_refused() {
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "a/b/c",
            "..",
            "a/..",
            "a/../b",
            "a\\b",
            "a/b@",
            "a/b@..",
            "a/b@../x",
            "a/b@x/../y",
            "a/.git",
            "-a/b",
            "a/b c",
            "a/b@x y",
            "a--b/c",
            "a/b?x",
            "a/b#x",
            "http://a/b",
            "a/\0",
        ] {
            let error = text.parse::<ModelId>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Name, "{text:?}");
        }
    }

    #[test]
    fn revisions_may_be_branches_tags_commits_and_pull_requests() {
        for revision in ["main", "v1.0", "refs/pr/1", "0123456789abcdef0123456789abcdef01234567"] {
            let id: ModelId = format!("a/b@{revision}").parse().unwrap();
            assert_eq!(id.revision(), revision);
            assert_eq!(id.to_string(), format!("a/b@{revision}"));
        }
    }
}
