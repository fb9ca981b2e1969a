//! The files of a model folder that concern text, read once and handed to all parts that need them.
//!
//! A tokenizer, its special ids and its chat template are spread over half a dozen files, and each
//! part needs several of them. They may also come from memory (a model inside the binary), so the
//! parts are built from [`Files`], not from a path. Nothing is parsed here beyond UTF-8: a broken
//! chat template must not keep someone from counting tokens.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};

/// The longest file that is read, in bytes: the largest published `tokenizer.json` has 35 MB.
const LONGEST: u64 = 128 << 20;

pub(crate) const TOKENIZER: &str = "tokenizer.json";
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(crate) const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
pub(crate) const ADDED_TOKENS: &str = "added_tokens.json";
pub(crate) const CHAT_TEMPLATE: &str = "chat_template.jinja";
pub(crate) const ADDITIONAL_TEMPLATES: &str = "additional_chat_templates";
pub(crate) const CONFIG: &str = "config.json";
pub(crate) const GENERATION_CONFIG: &str = "generation_config.json";

/// The content of a model folder's text files, each as it stands there; what is absent is `None`.
///
/// For a model folder use [`Files::from_folder`]. For a model held in memory set the fields:
///
/// ```
/// use mlxgk_tokenizer_bridge::Files;
///
/// let files = Files {
///     tokenizer_config: Some(br#"{"eos_token": "</s>"}"#.into()),
///     ..Files::default()
/// };
/// assert!(files.tokenizer.is_none());
/// ```
#[derive(Debug, Clone, Default)]
pub struct Files<'a> {
    /// `tokenizer.json`: the vocabulary and the whole pipeline, as the `tokenizers` library saves it.
    pub tokenizer: Option<Cow<'a, [u8]>>,
    /// `tokenizer_config.json`: named special tokens, further added tokens, often a chat template.
    pub tokenizer_config: Option<Cow<'a, [u8]>>,
    /// `special_tokens_map.json`: named special tokens, in older folders.
    pub special_tokens_map: Option<Cow<'a, [u8]>>,
    /// `added_tokens.json`: further tokens and their ids, in older folders.
    pub added_tokens: Option<Cow<'a, [u8]>>,
    /// `chat_template.jinja`: the default chat template, in newer folders.
    pub chat_template: Option<Cow<'a, [u8]>>,
    /// `additional_chat_templates/{name}.jinja`: name and content of further chat templates.
    pub additional_chat_templates: Vec<(String, Cow<'a, [u8]>)>,
    /// `config.json`: the model's config, of which only the token ids are read here.
    pub config: Option<Cow<'a, [u8]>>,
    /// `generation_config.json`, of which only the token ids are read here.
    pub generation_config: Option<Cow<'a, [u8]>>,
    /// Where the files were read from, for messages; `None` for files held in memory.
    pub folder: Option<PathBuf>,
}

impl Files<'static> {
    /// Reads the files of a model folder; absent files are `None`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] when the folder does not exist or a file in it cannot be read.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        if !folder.is_dir() {
            let what = if folder.exists() { "is not a folder" } else { "does not exist" };
            return Err(Error::new(ErrorKind::Io, format!("{} {what}", folder.display())));
        }
        let file = |name: &str| read_if_there(&folder.join(name));
        Ok(Self {
            tokenizer: file(TOKENIZER)?,
            tokenizer_config: file(TOKENIZER_CONFIG)?,
            special_tokens_map: file(SPECIAL_TOKENS_MAP)?,
            added_tokens: file(ADDED_TOKENS)?,
            chat_template: file(CHAT_TEMPLATE)?,
            additional_chat_templates: additional_templates(&folder.join(ADDITIONAL_TEMPLATES))?,
            config: file(CONFIG)?,
            generation_config: file(GENERATION_CONFIG)?,
            folder: Some(folder.to_owned()),
        })
    }
}

impl Files<'_> {
    /// A file's name as messages give it: with its folder where there is one.
    pub(crate) fn name(&self, file: &str) -> String {
        match &self.folder {
            Some(folder) => folder.join(file).display().to_string(),
            None => file.to_owned(),
        }
    }

    /// A file's content as text.
    pub(crate) fn text<'f>(&self, file: &str, content: &'f [u8]) -> Result<&'f str> {
        // A checkout without `git lfs` leaves a three-line pointer where the file should be.
        if content.starts_with(b"version https://git-lfs") {
            let what =
                "is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder";
            return Err(Error::new(ErrorKind::File, format!("{} {what}", self.name(file))));
        }
        std::str::from_utf8(content).map_err(|error| {
            Error::file(self.name(file), format!("not UTF-8 at byte {}", error.valid_up_to()))
        })
    }

    /// A JSON file's content; `None` where the file is absent.
    pub(crate) fn json<T: DeserializeOwned>(
        &self,
        file: &str,
        content: Option<&[u8]>,
    ) -> Result<Option<T>> {
        let Some(content) = content else { return Ok(None) };
        let text = self.text(file, content)?;
        let value = serde_json::from_str(text).or_else(|error| match without_infinities(text) {
            Some(text) => serde_json::from_str(&text),
            None => Err(error),
        });
        value.map(Some).map_err(|error| Error::file(self.name(file), error))
    }
}

/// Python writes and reads `Infinity`, `-Infinity` and `NaN`, which JSON does not have. No field that
/// is read here holds one, so they become `null`; nothing where there is none.
fn without_infinities(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let (mut rest, mut found) = (text, false);
    while let Some(first) = rest.chars().next() {
        let word = ["-Infinity", "Infinity", "NaN"].into_iter().find(|it| rest.starts_with(it));
        let len = match (first, word) {
            (_, Some(word)) => {
                plain.push_str("null");
                found = true;
                rest = &rest[word.len()..];
                continue;
            }
            ('"', _) => {
                let mut escaped = false;
                let end = rest.char_indices().skip(1).find(|&(_, it)| {
                    let ends = it == '"' && !escaped;
                    escaped = it == '\\' && !escaped;
                    ends
                });
                end.map_or(rest.len(), |(at, _)| at + 1)
            }
            (first, _) => first.len_utf8(),
        };
        plain.push_str(&rest[..len]);
        rest = &rest[len..];
    }
    found.then_some(plain)
}

fn read_if_there(path: &Path) -> Result<Option<Cow<'static, [u8]>>> {
    match std::fs::metadata(path) {
        // Reading a pipe or a device might never end.
        Ok(it) if !it.is_file() => {
            Err(Error::new(ErrorKind::Io, format!("{} is not a file", path.display())))
        }
        Ok(it) if it.len() > LONGEST => {
            let (name, length, most) = (path.display(), it.len() >> 20, LONGEST >> 20);
            let what = format!("{name} has {length} MiB, and at most {most} are read");
            Err(Error::new(ErrorKind::Io, what))
        }
        Ok(_) => match std::fs::read(path) {
            Ok(content) => Ok(Some(content.into())),
            Err(error) => Err(unreadable(path, &error)),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, &error)),
    }
}

/// The `*.jinja` files of a folder, by name; none when the folder is absent.
fn additional_templates(folder: &Path) -> Result<Vec<(String, Cow<'static, [u8]>)>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(folder, &error)),
    };
    let mut templates = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| unreadable(folder, &error))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(name) = name.and_then(|name| name.strip_suffix(".jinja"))
            && let Some(content) = read_if_there(&path)?
        {
            templates.push((name.to_owned(), content));
        }
    }
    templates.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(templates)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("cannot read {}: {error}", path.display()))
}
