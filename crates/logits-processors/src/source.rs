//! Whose tokens the `encoder_*` processors look at.

use crate::{Context, Error, ErrorKind, Result};

/// The source text of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// The padded prompt, for decoder-only models.
    Prompt,
    /// The encoder's input, one list per batch item.
    Encoder(Vec<Vec<u32>>),
}

impl Source {
    pub(crate) fn tokens<'a>(&'a self, context: &Context<'a>) -> Result<&'a [u32]> {
        match self {
            Self::Prompt => Ok(context.prompt()),
            Self::Encoder(rows) => rows.get(context.row).map(Vec::as_slice).ok_or_else(|| {
                let (row, rows) = (context.row, rows.len());
                let message =
                    format!("`encoder_input_ids` has {rows} rows, but row {row} was requested");
                Error::about("encoder_input_ids", ErrorKind::Parameter, message)
            }),
        }
    }
}
