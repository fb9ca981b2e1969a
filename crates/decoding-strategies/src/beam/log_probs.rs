//! From logits to what a token adds to a beam's score.

use mlxgk_logits_processors::{Context, LogitsProcessor, ProcessorList, Row, guide, log_softmax};

use crate::{Error, ErrorKind, Result};

/// The processed log-probabilities of every row of the batch.
///
/// HF takes the log-softmax first and lets processors work on that; what they leave is not
/// normalised again.
#[derive(Debug, Default)]
pub(super) struct LogProbs {
    scores: Vec<f32>,
    vocab: usize,
}

impl LogProbs {
    /// Takes the logits of all rows.
    pub(super) fn load(&mut self, logits: &[f32], vocab: usize) -> Result<()> {
        self.vocab = vocab;
        self.scores.clear();
        self.scores.extend_from_slice(logits);
        for row in self.scores.chunks_exact_mut(vocab) {
            log_softmax(row)?;
            // One NaN or infinity among the logits makes all of the row NaN.
            if row[0].is_nan() {
                let what = "no token can be chosen: the model's scores hold NaN or infinity";
                return Err(Error::new(ErrorKind::NoToken, what));
            }
        }
        Ok(())
    }

    /// Moves each row away from the logits of another (classifier-free guidance).
    pub(super) fn guide(&mut self, without: &[f32], scale: f64) -> Result<()> {
        let rows = self.scores.chunks_exact_mut(self.vocab);
        for (row, without) in rows.zip(without.chunks_exact(self.vocab)) {
            guide(row, without, scale)?;
        }
        Ok(())
    }

    /// Lets processors work on the rows from `first_row` on, each with its history. A row without
    /// one has lost already and is spared: processors may not know what to do with it.
    pub(super) fn process(
        &mut self,
        first_row: usize,
        contexts: &[Option<Context<'_>>],
        processors: &ProcessorList,
    ) -> Result<()> {
        if processors.is_empty() {
            return Ok(());
        }
        let rows = self.scores.chunks_exact_mut(self.vocab).skip(first_row).zip(contexts);
        let mut rows: Vec<Row<'_>> = rows
            .filter_map(|(scores, context)| context.map(|context| Row { context, scores }))
            .collect();
        Ok(processors.process_rows(&mut rows)?)
    }

    /// A row's values.
    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.scores[row * self.vocab..][..self.vocab]
    }

    /// A row's values, to be rewritten.
    pub(super) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.scores[row * self.vocab..][..self.vocab]
    }
}
