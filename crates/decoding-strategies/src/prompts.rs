//! Prompts of different lengths as one batch.

use crate::{Error, ErrorKind, Result};

/// Prompts padded on the left to one length, as decoder-only models need them.
///
/// ```
/// use mlxgk_decoding_strategies::LeftPadded;
///
/// let batch = LeftPadded::new(&[vec![5, 6, 7], vec![8]], 0)?;
/// assert_eq!(batch.rows(), [vec![5, 6, 7], vec![0, 0, 8]]);
/// assert_eq!(batch.padding(), [0, 2]);
/// # Ok::<(), mlxgk_decoding_strategies::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftPadded {
    rows: Vec<Vec<u32>>,
    padding: Vec<usize>,
}

impl LeftPadded {
    /// Pads `prompts` with `pad`, which no row ever attends to.
    ///
    /// # Errors
    /// When there is no prompt, or one is empty.
    pub fn new(prompts: &[Vec<u32>], pad: u32) -> Result<Self> {
        let len = prompts.iter().map(Vec::len).max().unwrap_or(0);
        if let Some(row) = prompts.iter().position(Vec::is_empty) {
            let what =
                format!("prompt {row} is empty; a model needs at least one token to continue");
            return Err(Error::new(ErrorKind::Prompt, what));
        }
        if len == 0 {
            return Err(Error::new(ErrorKind::Prompt, "there is no prompt"));
        }
        let padding: Vec<usize> = prompts.iter().map(|it| len - it.len()).collect();
        let pad_row = |(prompt, &count): (&Vec<u32>, &usize)| {
            [vec![pad; count].as_slice(), prompt.as_slice()].concat()
        };
        Ok(Self { rows: prompts.iter().zip(&padding).map(pad_row).collect(), padding })
    }

    /// The padded rows, all of one length.
    pub fn rows(&self) -> &[Vec<u32>] {
        &self.rows
    }

    /// Padding tokens at the left of each row.
    pub fn padding(&self) -> &[usize] {
        &self.padding
    }

    /// Tokens per row, padding included; at least 1.
    pub fn width(&self) -> usize {
        self.rows[0].len()
    }

    /// Some of the rows, with their padding.
    ///
    /// # Panics
    /// When there is no row of such an index.
    #[must_use]
    pub fn part(&self, rows: &[usize]) -> Self {
        Self {
            rows: rows.iter().map(|&at| self.rows[at].clone()).collect(),
            padding: rows.iter().map(|&at| self.padding[at]).collect(),
        }
    }

    /// Each row `times` in succession (HF `repeat_interleave`): several samples of each prompt.
    #[must_use]
    pub fn repeat(&self, times: usize) -> Self {
        let each = |row| std::iter::repeat_n(row, times);
        Self {
            rows: self.rows.iter().flat_map(each).cloned().collect(),
            padding: self.padding.iter().flat_map(|it| std::iter::repeat_n(*it, times)).collect(),
        }
    }
}
