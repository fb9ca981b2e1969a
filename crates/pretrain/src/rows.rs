//! Rows of tokens, made from documents one after the other.

use std::fs::File;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};

use mlxgk_tokenizer_bridge::Tokenizer;
use mlxgk_training::{Batch, Example};
use serde_json::Value;

use crate::Result;

/// The texts of a file, in order.
pub(crate) struct Texts {
    path: PathBuf,
    lines: Lines<BufReader<File>>,
    /// How many were read.
    read: usize,
}

impl Texts {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        Ok(Self { path: path.to_owned(), lines: BufReader::new(file).lines(), read: 0 })
    }
}

impl Iterator for Texts {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        let line = self.lines.next()?;
        self.read += 1;
        let place = || format!("{}:{}", self.path.display(), self.read);
        let text = || -> Result<String> {
            let row: Value =
                serde_json::from_str(&line?).map_err(|e| format!("{}: {e}", place()))?;
            let text = row["text"].as_str();
            Ok(text.ok_or_else(|| format!("{}: has no `text`", place()))?.to_owned())
        };
        Some(text())
    }
}

/// Rows of one length. Each begins with the first token of a document, as in use; what is left of its last
/// one is dropped.
pub(crate) struct Rows<'t> {
    texts: Texts,
    tokenizer: &'t Tokenizer,
    end: u32,
    length: usize,
}

impl<'t> Rows<'t> {
    /// Rows of `length` tokens, without the first `read` documents.
    pub(crate) fn open(
        path: &Path,
        tokenizer: &'t Tokenizer,
        end: u32,
        length: usize,
        read: usize,
    ) -> Result<Self> {
        let mut texts = Texts::open(path)?;
        for text in texts.by_ref().take(read) {
            text?;
        }
        Ok(Self { texts, tokenizer, end, length })
    }

    /// Tokens of a row.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// How many documents were read.
    pub(crate) fn read(&self) -> usize {
        self.texts.read
    }

    /// The next so many rows.
    pub(crate) fn batch(&mut self, rows: usize) -> Result<Batch> {
        let rows: Vec<Example> =
            (0..rows).map(|_| Ok(Example::text(self.row()?))).collect::<Result<_>>()?;
        Ok(Batch::new(&rows)?)
    }

    fn row(&mut self) -> Result<Vec<u32>> {
        let mut row = Vec::new();
        while row.len() < self.length {
            let Some(text) = self.texts.next() else {
                let (path, read) = (self.texts.path.display(), self.texts.read);
                return Err(
                    format!("{path}: ends after {read} documents, before the run does").into()
                );
            };
            row.extend(self.tokenizer.encode(&text?, false)?);
            row.push(self.end);
        }
        row.truncate(self.length);
        Ok(row)
    }
}
