//! An MLX decoder with its cache, as the loops drive it.

use mlx_rs::{
    Array,
    ops::{concatenate, indexing::TryIndexOp},
    transforms::{async_eval, eval},
};
use mlxgk_kv_cache::{KvCache, RowId};
use mlxgk_mlx_models::{Decoder, ResidualHook};

use crate::{
    Error, ErrorKind, LanguageModel, LeftPadded, Reorder, Result, Speculative,
    budget::within_budget,
};

/// Prompt tokens fed per pass where nothing else is asked for (mlx-lm's step).
pub const DEFAULT_PREFILL_CHUNK: usize = 2048;

/// A decoder in the middle of a batch of sequences.
pub struct DecoderSession<'a> {
    model: &'a Decoder,
    cache: KvCache,
    hook: Box<dyn ResidualHook + 'a>,
    use_cache: bool,
    /// fp32 `[rows, vocabulary]`: what follows the last token fed.
    logits: Pending,
}

impl<'a> DecoderSession<'a> {
    /// Feeds the prompts in passes of at most `chunk` tokens and starts computing the scores of the
    /// first new token.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, or the hook or the model fails.
    pub fn prefill(
        model: &'a Decoder,
        prompts: &LeftPadded,
        chunk: usize,
        hook: impl ResidualHook + 'a,
    ) -> Result<Self> {
        let mut cache = model.new_padded_cache(prompts.padding());
        cache.plan(prompts.width());
        let rows: Vec<&[u32]> = prompts.rows().iter().map(Vec::as_slice).collect();
        Self::extend(model, cache, &rows, chunk, hook)
    }

    /// Feeds more tokens, one equally long slice per row, after what `cache` already holds.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill), and when `rows` is empty.
    pub fn extend(
        model: &'a Decoder,
        mut cache: KvCache,
        rows: &[&[u32]],
        chunk: usize,
        mut hook: impl ResidualHook + 'a,
    ) -> Result<Self> {
        let width = rows.first().map_or(0, |row| row.len());
        let logits = within_budget(&mut cache, &mut hook, width, &mut |cache, hook| {
            let hidden = feed_in_parts(model, cache, rows, chunk, hook, &mut |_| Ok(()))?;
            last_logits(model, &hidden)
        })?;
        async_eval([&logits])?;
        Ok(Self { model, cache, hook: Box::new(hook), use_cache: true, logits: Pending(logits) })
    }

    /// Feeds one prompt after as much of it as `cache` already holds: what a conversation does, of
    /// which each turn begins with the ones before.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill), and when the cache is another model's or has several rows.
    pub fn resume(
        model: &'a Decoder,
        mut cache: KvCache,
        prompt: &[u32],
        chunk: usize,
        hook: impl ResidualHook + 'a,
    ) -> Result<Self> {
        if cache.batch() != 1 || prompt.is_empty() {
            let what = "only a cache with one row can be resumed, with at least one token";
            return Err(Error::new(ErrorKind::Prompt, what));
        }
        let same = cache.tokens(0).iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // The last token is fed in any case, for the scores behind it.
        let kept = same.min(prompt.len() - 1);
        let rotated_alike = match model.original_context() {
            Some(limit) => cache.len() <= limit || kept > limit,
            None => true,
        };
        if rotated_alike {
            cache.back_to(kept);
        } else {
            cache.clear();
        }
        let rest = &prompt[cache.len()..];
        cache.plan(prompt.len());
        Self::extend(model, cache, &[rest], chunk, hook)
    }

    /// From here on reads the whole text anew for each token (HF `use_cache=False`): the same tokens
    /// for more work, to compare with.
    #[must_use]
    pub fn without_cache(self) -> Self {
        Self { use_cache: false, ..self }
    }

    /// Repeats every row `times` in succession, sharing the work done so far.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn repeat(&mut self, times: usize) -> Result<()> {
        if times == 1 {
            return Ok(());
        }
        let rows: Vec<usize> =
            (0..self.cache.batch()).flat_map(|row| std::iter::repeat_n(row, times)).collect();
        self.reorder(&rows)
    }

    /// The cache as it stands.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// Gives up the cache and the scores of the next token.
    pub(crate) fn into_state(self) -> (KvCache, Pending) {
        (self.cache, self.logits)
    }

    /// Gives the cache back to its owner.
    pub fn into_cache(self) -> KvCache {
        self.cache
    }
}

/// An array that the device may still be at work on; waits for it when dropped.
///
/// A session can be dropped at any token. A process that ends while MLX's thread is at work runs
/// into the destructors of MLX and of the BLAS below it, and now and then hangs or crashes there.
#[derive(Debug)]
pub(crate) struct Pending(pub(crate) Array);

impl Pending {
    /// The values, fp32, once they are there.
    pub(crate) fn read(&mut self) -> Result<&[f32]> {
        self.0
            .try_as_slice()
            .map_err(|e| Error::new(ErrorKind::Model, format!("the scores cannot be read: {e}")))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Nobody is left to tell of a failure.
        let _ = self.0.eval();
    }
}

/// Feeds rows of one length, with which the prompt ends, in passes of at most `chunk` tokens. Returns
/// what the last pass left after the final norm, `[rows, tokens, hidden]`; `each` sees that of every
/// pass.
pub(crate) fn feed_in_parts(
    model: &Decoder,
    cache: &mut KvCache,
    rows: &[&[u32]],
    chunk: usize,
    hook: &mut dyn ResidualHook,
    each: &mut dyn FnMut(&Array) -> Result<()>,
) -> Result<Array> {
    let width = rows.first().map_or(0, |row| row.len());
    if width > 0 {
        cache.set_prompt_end(cache.len() + width);
    }
    let mut hidden = None;
    for start in (0..width).step_by(chunk.max(1)) {
        let end = width.min(start.saturating_add(chunk.max(1)));
        let part: Vec<&[u32]> =
            rows.iter().map(|row| row.get(start..end).unwrap_or_default()).collect();
        let left = model.hidden(&part, cache, hook)?;
        each(&left)?;
        hidden = Some(left);
        if end < width {
            // A pass ends here, so that its activations are freed before the next begins.
            eval(cache.arrays())?;
        }
    }
    hidden.ok_or_else(|| Error::new(ErrorKind::Prompt, "there is no token to feed"))
}

/// Refuses a hook with a budget, which is kept to for plain scores only.
pub(crate) fn refuse_budget(hook: &dyn ResidualHook, rows: usize, strategy: &str) -> Result<()> {
    if RowId::first(rows).into_iter().any(|row| hook.budget(row).is_some()) {
        let what = format!("steering within a KL budget does not go with {strategy}");
        return Err(Error::new(ErrorKind::Prompt, what));
    }
    Ok(())
}

/// The last position: `[rows, tokens, hidden]` to `[rows, 1, hidden]`.
pub(crate) fn last_position(hidden: &Array) -> Result<Array> {
    let tokens = hidden.dim(1);
    Ok(if tokens == 1 { hidden.clone() } else { hidden.try_index((.., tokens - 1.., ..))? })
}

/// The head on the last position alone: `[rows, tokens, hidden]` to `[rows, vocabulary]`.
pub(crate) fn last_logits(model: &Decoder, hidden: &Array) -> Result<Array> {
    Ok(model.logits(&last_position(hidden)?)?.squeeze_axes(&[1])?)
}

/// Rows as MLX indexes them.
pub(crate) fn indices(rows: &[usize]) -> Array {
    let indices: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    Array::from_slice(&indices, &[indices.len() as i32])
}

impl LanguageModel for DecoderSession<'_> {
    fn vocab_size(&self) -> usize {
        self.model.vocab_size()
    }

    fn feed(&mut self, tokens: &[u32]) -> Result<()> {
        let rows: Vec<&[u32]> = tokens.chunks(1).collect();
        let (model, use_cache) = (self.model, self.use_cache);
        self.logits.0 = within_budget(&mut self.cache, &mut *self.hook, 1, &mut |cache, hook| {
            let hidden = if use_cache {
                model.hidden(&rows, cache, hook)?
            } else {
                model.hidden_anew(&rows, cache, hook)?
            };
            last_logits(model, &hidden)
        })?;
        Ok(async_eval([&self.logits.0])?)
    }

    fn scores(&mut self) -> Result<&[f32]> {
        self.logits.read()
    }
}

impl Reorder for DecoderSession<'_> {
    fn reorder(&mut self, rows: &[usize]) -> Result<()> {
        self.cache.select(rows)?;
        // Not evaluated: where a token is fed next, nobody asks for these scores again.
        self.logits.0 = self.logits.0.take_axis(indices(rows), 0)?;
        Ok(())
    }
}

impl Speculative for DecoderSession<'_> {
    fn feed_several(&mut self, tokens: &[u32]) -> Result<()> {
        if self.cache.row_ids().into_iter().any(|row| self.hook.budget(row).is_some()) {
            // How strongly a token is steered follows from what those before it left.
            let one = |token: &u32| {
                self.feed(std::slice::from_ref(token))?;
                Ok(self.logits.0.clone())
            };
            let scores = tokens.iter().map(one).collect::<Result<Vec<_>>>()?;
            self.logits.0 = concatenate(&scores, 0)?;
            return Ok(async_eval([&self.logits.0])?);
        }
        // Guesses may be rejected, and a layer's state has no way back of its own.
        self.cache.checkpoint();
        let hidden = self.model.hidden(&[tokens], &mut self.cache, &mut *self.hook)?;
        self.logits.0 = self.model.logits(&hidden)?.squeeze_axes(&[0])?;
        Ok(async_eval([&self.logits.0])?)
    }

    fn roll_back(&mut self, count: usize) -> Result<()> {
        let Some(left) = self.cache.len().checked_sub(count) else {
            // The cache says it best.
            return Ok(self.cache.trim(count)?);
        };
        Ok(self.model.roll_back(left, &mut self.cache, &mut *self.hook)?)
    }

    fn room(&self) -> usize {
        match self.model.original_context() {
            Some(limit) if self.cache.len() <= limit => limit - self.cache.len(),
            _ => usize::MAX,
        }
    }
}

impl std::fmt::Debug for DecoderSession<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DecoderSession").field("cache", &self.cache).finish_non_exhaustive()
    }
}
