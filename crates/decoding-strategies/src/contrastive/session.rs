//! An MLX decoder that remembers its hidden states.

use mlx_rs::{
    Array, Dtype,
    ops::{arange, concatenate, indexing::TryIndexOp, select},
    transforms::async_eval,
};
use mlxgk_kv_cache::KvCache;
use mlxgk_mlx_models::{Decoder, ResidualHook};

use super::Rehearse;
use crate::{
    Error, ErrorKind, LanguageModel, LeftPadded, Reorder, Result,
    session::{Pending, feed_in_parts, indices, last_logits, refuse_budget},
};

/// A decoder in the middle of a batch of sequences, with what its last layer made of every token.
pub struct ContrastiveSession<'a> {
    model: &'a Decoder,
    cache: KvCache,
    hook: Box<dyn ResidualHook + 'a>,
    /// fp32 `[rows, vocabulary]`; while copies are tried, `[rows · copies, vocabulary]`.
    logits: Pending,
    /// The states after the final norm, divided by their length: fp32 `[rows, tokens, hidden]`.
    states: Array,
    /// Those of the copies being tried: `[rows, copies, hidden]`.
    tried: Option<Array>,
}

impl<'a> ContrastiveSession<'a> {
    /// Feeds the prompts as [`DecoderSession::prefill`](crate::DecoderSession::prefill) does.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, or the hook or the model fails.
    pub fn prefill(
        model: &'a Decoder,
        prompts: &LeftPadded,
        chunk: usize,
        mut hook: impl ResidualHook + 'a,
    ) -> Result<Self> {
        refuse_budget(&hook, prompts.rows().len(), "contrastive search")?;
        let mut cache = model.new_padded_cache(prompts.padding());
        cache.plan(prompts.width());
        let rows: Vec<&[u32]> = prompts.rows().iter().map(Vec::as_slice).collect();
        let mut parts = Vec::new();
        let hidden = feed_in_parts(model, &mut cache, &rows, chunk, &mut hook, &mut |part| {
            let states = normalized(part)?;
            // Computed with the pass that they come from, whose activations are freed after it.
            async_eval([&states])?;
            parts.push(states);
            Ok(())
        })?;
        let states = concatenate(&parts, 1)?;
        let logits = last_logits(model, &hidden)?;
        async_eval([&logits, &states])?;
        let hook = Box::new(hook);
        Ok(Self { model, cache, hook, logits: Pending(logits), states, tried: None })
    }

    /// The highest cosine of each copy's state with those of its row: `[rows, copies]`.
    fn resemblance(&self, tried: &Array) -> Result<Array> {
        let cosines = tried.matmul(self.states.transpose_axes(&[0, 2, 1])?)?;
        let padding = self.cache.padding();
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

/// Hidden states divided by their length, in fp32.
fn normalized(hidden: &Array) -> Result<Array> {
    let hidden = hidden.as_dtype(Dtype::Float32)?;
    let length = hidden.square()?.sum_axis(-1, true)?.sqrt()?;
    Ok(hidden.divide(length)?)
}

impl LanguageModel for ContrastiveSession<'_> {
    fn vocab_size(&self) -> usize {
        self.model.vocab_size()
    }

    fn feed(&mut self, tokens: &[u32]) -> Result<()> {
        self.rehearse(tokens, 1)?;
        self.keep(&vec![0; tokens.len()])
    }

    fn scores(&mut self) -> Result<&[f32]> {
        self.logits.read()
    }
}

impl Reorder for ContrastiveSession<'_> {
    fn reorder(&mut self, rows: &[usize]) -> Result<()> {
        let dropped = self.cache.select(rows)?;
        let rows = indices(rows);
        self.logits.0 = self.logits.0.take_axis(&rows, 0)?;
        self.states = self.states.take_axis(&rows, 0)?;
        if dropped > 0 {
            self.states = self.states.try_index((.., dropped as i32.., ..))?;
        }
        Ok(())
    }
}

impl Rehearse for ContrastiveSession<'_> {
    fn rehearse(&mut self, tokens: &[u32], per_row: usize) -> Result<Vec<f32>> {
        let rows = 0..self.cache.batch();
        let copies: Vec<usize> = rows.flat_map(|row| std::iter::repeat_n(row, per_row)).collect();
        self.cache.select(&copies)?;
        let fed: Vec<&[u32]> = tokens.chunks(1).collect();
        let hidden = self.model.hidden(&fed, &mut self.cache, &mut *self.hook)?;
        self.logits.0 = last_logits(self.model, &hidden)?;
        let shape = [self.states.dim(0), per_row as i32, hidden.dim(2)];
        let tried = normalized(&hidden)?.reshape(&shape)?;
        let resemblance = self.resemblance(&tried)?;
        self.tried = Some(tried);
        async_eval([&self.logits.0, &resemblance])?;
        Ok(Pending(resemblance).read()?.to_vec())
    }

    fn keep(&mut self, copies: &[usize]) -> Result<()> {
        let Some(tried) = self.tried.take() else {
            return Err(Error::new(ErrorKind::Model, "no token was tried that could be kept"));
        };
        let per_row = tried.dim(1) as usize;
        let rows: Vec<usize> =
            copies.iter().enumerate().map(|(row, copy)| row * per_row + copy).collect();
        self.cache.select(&rows)?;
        let (rows, width) = (indices(&rows), tried.dim(2));
        self.logits.0 = self.logits.0.take_axis(&rows, 0)?;
        let kept = tried.reshape(&[-1, 1, width])?.take_axis(&rows, 0)?;
        self.states = concatenate(&[&self.states, &kept], 1)?;
        Ok(())
    }
}

impl std::fmt::Debug for ContrastiveSession<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContrastiveSession").field("cache", &self.cache).finish_non_exhaustive()
    }
}
