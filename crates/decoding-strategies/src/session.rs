//! An MLX decoder with its cache, as the loops drive it.

use mlx_rs::{
    Array,
    ops::indexing::TryIndexOp,
    transforms::{async_eval, eval},
};
use mlxgk_kv_cache::KvCache;
use mlxgk_mlx_models::{Decoder, ResidualHook};

use crate::{Error, ErrorKind, LanguageModel, LeftPadded, Reorder, Result};

/// Prompt tokens fed per pass where nothing else is asked for (mlx-lm's step).
pub const DEFAULT_PREFILL_CHUNK: usize = 2048;

/// A decoder in the middle of a batch of sequences.
pub struct DecoderSession<'a> {
    model: &'a Decoder,
    cache: KvCache,
    hook: &'a mut dyn ResidualHook,
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
        hook: &'a mut dyn ResidualHook,
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
        hook: &'a mut dyn ResidualHook,
    ) -> Result<Self> {
        let width = rows.first().map_or(0, |row| row.len());
        if width == 0 {
            return Err(Error::new(ErrorKind::Prompt, "there is no token to feed"));
        }
        cache.set_prompt_end(cache.len() + width);
        let mut hidden = None;
        for start in (0..width).step_by(chunk.max(1)) {
            let end = width.min(start.saturating_add(chunk.max(1)));
            let part: Vec<&[u32]> =
                rows.iter().map(|row| row.get(start..end).unwrap_or_default()).collect();
            hidden = Some(model.hidden(&part, &mut cache, hook)?);
            if end < width {
                // A pass ends here, so that its activations are freed before the next begins.
                eval(cache.arrays())?;
            }
        }
        let Some(hidden) = hidden else { unreachable!("width is above 0") };
        let logits = last_logits(model, &hidden)?;
        async_eval([&logits])?;
        Ok(Self { model, cache, hook, logits: Pending(logits) })
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

    /// Gives the cache back to its owner.
    pub fn into_cache(self) -> KvCache {
        self.cache
    }
}

/// An array that the device may still be at work on; waits for it when dropped.
///
/// A session can be dropped at any token. A process that ends while MLX's thread is at work runs
/// into the destructors of MLX and of the BLAS below it, and now and then hangs or crashes there.
struct Pending(Array);

impl Drop for Pending {
    fn drop(&mut self) {
        // Nobody is left to tell of a failure.
        let _ = self.0.eval();
    }
}

/// The head on the last position alone: `[rows, tokens, hidden]` to `[rows, vocabulary]`.
fn last_logits(model: &Decoder, hidden: &Array) -> Result<Array> {
    let tokens = hidden.dim(1);
    let last =
        if tokens == 1 { hidden.clone() } else { hidden.try_index((.., tokens - 1.., ..))? };
    Ok(model.logits(&last)?.squeeze_axes(&[1])?)
}

impl LanguageModel for DecoderSession<'_> {
    fn vocab_size(&self) -> usize {
        self.model.vocab_size()
    }

    fn feed(&mut self, tokens: &[u32]) -> Result<()> {
        let rows: Vec<&[u32]> = tokens.chunks(1).collect();
        let hidden = self.model.hidden(&rows, &mut self.cache, self.hook)?;
        self.logits.0 = last_logits(self.model, &hidden)?;
        Ok(async_eval([&self.logits.0])?)
    }

    fn scores(&mut self) -> Result<&[f32]> {
        self.logits
            .0
            .try_as_slice()
            .map_err(|e| Error::new(ErrorKind::Model, format!("the logits cannot be read: {e}")))
    }
}

impl Reorder for DecoderSession<'_> {
    fn reorder(&mut self, rows: &[usize]) -> Result<()> {
        self.cache.select(rows)?;
        let indices: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        let indices = Array::from_slice(&indices, &[indices.len() as i32]);
        // Not evaluated: where a token is fed next, nobody asks for these scores again.
        self.logits.0 = self.logits.0.take_axis(&indices, 0)?;
        Ok(())
    }
}

impl std::fmt::Debug for DecoderSession<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DecoderSession").field("cache", &self.cache).finish_non_exhaustive()
    }
}
