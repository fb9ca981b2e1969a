//! A session that remembers its hidden states.

use mlx_rs::{
    Array, Dtype,
    ops::{arange, concatenate, indexing::TryIndexOp, select},
    transforms::async_eval,
};

use super::Lookahead;
use crate::{
    DecoderSession, Error, ErrorKind, LanguageModel, Prefill, Reorder, Result, pending::Pending,
    session::indices,
};

/// A decoder in the middle of a batch of sequences, with what its last layer made of every token.
///
/// See the example of [`ContrastiveLoop`](crate::ContrastiveLoop).
#[derive(Debug)]
pub struct ContrastiveSession<'a> {
    /// While copies are tried, it has a row for each.
    session: DecoderSession<'a>,
    /// The states after the final norm, divided by their length: fp32 `[rows, tokens, hidden]`.
    states: Array,
    /// Those of the copies being tried: `[rows, copies, hidden]`.
    tried: Option<Array>,
}

impl<'a> ContrastiveSession<'a> {
    /// Feeds prompts.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, the hook has a budget, or the hook or the model fails.
    pub fn prefill(prompts: Prefill<'a>) -> Result<Self> {
        let mut prompts = prompts.with_states("contrastive search")?;
        let mut parts = Vec::new();
        loop {
            let before = prompts.remaining();
            let is_fed = prompts.step(usize::MAX)?;
            let states = normalized(prompts.states()?, before - prompts.remaining())?;
            // Computed with the pass that they come from, whose activations are freed after it.
            async_eval([&states])?;
            parts.push(states);
            if is_fed {
                break;
            }
        }
        Ok(Self { session: prompts.finish()?, states: concatenate(&parts, 1)?, tried: None })
    }

    /// The highest cosine of each copy's state with those of its row: `[rows, copies]`.
    fn resemblance(&self, tried: &Array) -> Result<Array> {
        let cosines = tried.matmul(self.states.transpose_axes(&[0, 2, 1])?)?;
        let padding = self.session.cache().padding();
        if padding.iter().all(|it| *it == 0) {
            return Ok(cosines.max_axis(-1, false)?);
        }
        let rows = self.states.dim(0) as usize;
        let copies = padding.len() / rows;
        let padding: Vec<i32> = padding.iter().step_by(copies).map(|&it| it as i32).collect();
        let padding = Array::from_slice(&padding, &[rows as i32, 1, 1]);
        let columns = arange::<i32, i32>(None, self.states.dim(1), None)?;
        let lowest = Array::from_f32(f32::MIN);
        Ok(select(columns.ge(padding)?, cosines, lowest)?.max_axis(-1, false)?)
    }
}

/// The states of the last `count` tokens, divided by their length, in fp32. Where a text was read again,
/// those of its earlier tokens come first.
fn normalized(hidden: &Array, count: usize) -> Result<Array> {
    let from = hidden.dim(1) - count as i32;
    let new = if from == 0 { hidden.clone() } else { hidden.try_index((.., from.., ..))? };
    let hidden = new.as_dtype(Dtype::Float32)?;
    let length = hidden.square()?.sum_axis(-1, true)?.sqrt()?;
    Ok(hidden.divide(length)?)
}

impl LanguageModel for ContrastiveSession<'_> {
    fn vocab_size(&self) -> usize {
        self.session.vocab_size()
    }

    fn feed(&mut self, tokens: &[u32]) -> Result<()> {
        self.look_ahead(tokens, 1)?;
        self.accept(&vec![0; tokens.len()])
    }

    fn scores(&mut self) -> Result<&[f32]> {
        self.session.scores()
    }
}

impl Reorder for ContrastiveSession<'_> {
    fn reorder(&mut self, rows: &[usize]) -> Result<()> {
        let dropped = self.session.select(rows)?;
        self.states = self.states.take_axis(indices(rows), 0)?;
        if dropped > 0 {
            self.states = self.states.try_index((.., dropped as i32.., ..))?;
        }
        Ok(())
    }
}

impl Lookahead for ContrastiveSession<'_> {
    fn look_ahead(&mut self, tokens: &[u32], per_row: usize) -> Result<Vec<f32>> {
        self.session.repeat(per_row)?;
        self.session.feed(tokens)?;
        let hidden = self.session.states()?;
        let shape = [self.states.dim(0), per_row as i32, hidden.dim(2)];
        let tried = normalized(hidden, 1)?.reshape(&shape)?;
        let resemblance = self.resemblance(&tried)?;
        self.tried = Some(tried);
        async_eval([&resemblance])?;
        Ok(Pending(resemblance).read::<f32>()?.to_vec())
    }

    fn accept(&mut self, copies: &[usize]) -> Result<()> {
        let Some(tried) = self.tried.take() else {
            return Err(Error::new(ErrorKind::Model, "no token was tried that could be accepted"));
        };
        let (per_row, width) = (tried.dim(1) as usize, tried.dim(2));
        let rows: Vec<usize> =
            copies.iter().enumerate().map(|(row, copy)| row * per_row + copy).collect();
        self.session.reorder(&rows)?;
        let accepted = tried.reshape(&[-1, 1, width])?.take_axis(indices(&rows), 0)?;
        self.states = concatenate(&[&self.states, &accepted], 1)?;
        Ok(())
    }
}
