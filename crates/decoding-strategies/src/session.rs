//! A decoder with its cache, as the loops drive it.

use mlx_rs::{
    Array,
    ops::concatenate,
    transforms::{async_eval, eval},
};
use mlxgk_kv_cache::{Column, KvCache};

use crate::{
    DeviceChoice, Join, LanguageModel, Reorder, Result, RowId, Speculative, pending::Pending,
    reader::Reader,
};

/// A decoder in the middle of a batch of sequences.
///
/// ```
/// use mlxgk_decoding_strategies::{DecoderSession, LanguageModel, LeftPadded};
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let prompts = LeftPadded::new(&[vec![5, 9, 14]], 0)?;
/// let mut session = DecoderSession::prefill(&model, &prompts, 64, NoHook)?;
/// session.repeat(2)?; // two samples of one prompt
/// session.feed(&[7, 30])?;
/// assert_eq!(session.scores()?.len(), 2 * model.vocab_size());
/// assert_eq!(session.cache().tokens(1), [5, 9, 14, 30]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct DecoderSession<'a> {
    reader: Reader<'a>,
    cache: KvCache,
    use_cache: bool,
    /// fp32 `[rows, vocabulary]`: what follows the last token fed.
    scores: Pending,
}

impl<'a> DecoderSession<'a> {
    pub(crate) fn new(reader: Reader<'a>, cache: KvCache, scores: Pending) -> Self {
        Self { reader, cache, use_cache: true, scores }
    }

    /// Feeds the whole text again for every token instead of keeping keys and values, to compare with (HF
    /// `use_cache=False`).
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

    /// Keeps the given rows in the given order. Returns how many columns were padding in all of them and
    /// are gone.
    pub(crate) fn select(&mut self, rows: &[usize]) -> Result<usize> {
        let dropped = self.cache.select(rows)?;
        // Not evaluated: where a token is fed next, nobody asks for these scores again.
        self.scores.0 = self.scores.0.take_axis(indices(rows), 0)?;
        Ok(dropped)
    }

    /// Whether `count` tokens can be fed before they are known: as embeddings, under a hook that does not ask
    /// for ids, which is the caller's to know.
    pub(crate) fn can_run_ahead(&self, count: usize) -> bool {
        let model = self.reader.model;
        // Beyond longrope's original context the text is read again, by its tokens; and beyond the context
        // the pass after the last token may be refused, which nobody asked for.
        self.use_cache
            && self.cache.len().saturating_add(count) <= model.max_positions()
            && self.reader.is_plain(&self.cache)
            && model.takes_embeddings()
            && model.original_context().is_none()
    }

    /// Feeds each row the token that the device chooses for it, and returns those tokens once they are
    /// there; the pass that reads them is then under way.
    pub(crate) fn feed_chosen(
        &mut self,
        choice: DeviceChoice,
        quantiles: &[f64],
    ) -> Result<Chosen> {
        let scores = self.scores.0.clone();
        let (tokens, best) = (choice.tokens(&scores, quantiles)?, choice.highest(&scores)?);
        // Apart from the pass, so that the host waits for no more than the tokens.
        async_eval([&tokens, &best])?;
        let model = self.reader.model;
        let embedded = model.embed(&tokens.expand_dims(1)?)?;
        // The pass may be taken back, and a layer's state has no way back of its own.
        self.cache.checkpoint();
        // Named below, once they are known.
        let unknown = vec![[Column::Token(0)]; self.cache.batch()];
        let columns: Vec<&[Column]> = unknown.iter().map(<[Column; 1]>::as_slice).collect();
        self.scores.0 = self.reader.read(&mut self.cache, 1, &mut |cache, hook| {
            Ok(model.hidden_from_embeddings(&embedded, &columns, cache, hook)?)
        })?;
        async_eval([&self.scores.0])?;
        let chosen =
            Chosen { tokens: Pending(tokens), best: Pending(best), scores: Pending(scores) };
        self.cache.set_newest_tokens(chosen.tokens()?)?;
        Ok(chosen)
    }

    /// Names the rows from `first` on: what a hook knows them by.
    ///
    /// # Errors
    /// When the cache cannot.
    pub fn name_rows(&mut self, first: RowId) -> Result<()> {
        let ids = (0..self.cache.batch() as u64).map(|row| RowId::new(first.get() + row));
        Ok(self.cache.set_row_ids(&ids.collect::<Vec<_>>())?)
    }

    /// Gives up the cache.
    pub fn into_cache(self) -> KvCache {
        self.cache
    }

    /// The cache as it stands.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// What the last pass left after the final norm, where it was to be kept.
    pub(crate) fn states(&self) -> Result<&Array> {
        self.reader.states()
    }
}

/// Tokens that the device chose, and what it chose them from.
pub(crate) struct Chosen {
    tokens: Pending,
    /// The highest score of each row.
    best: Pending,
    scores: Pending,
}

impl Chosen {
    /// The tokens, one per row.
    pub(crate) fn tokens(&self) -> Result<&[u32]> {
        self.tokens.read()
    }

    /// The scores of a row whose highest is not finite, which is for the host to judge.
    pub(crate) fn doubtful(&self, row: usize) -> Result<Option<&[f32]>> {
        let best: &[f32] = self.best.read()?;
        if best[row].is_finite() {
            return Ok(None);
        }
        let scores: &[f32] = self.scores.read()?;
        let vocab = scores.len() / best.len();
        Ok(Some(&scores[row * vocab..][..vocab]))
    }
}

/// Rows as MLX indexes them.
pub(crate) fn indices(rows: &[usize]) -> Array {
    let indices: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    Array::from_slice(&indices, &[indices.len() as i32])
}

impl LanguageModel for DecoderSession<'_> {
    fn vocab_size(&self) -> usize {
        self.reader.model.vocab_size()
    }

    fn feed(&mut self, tokens: &[u32]) -> Result<()> {
        let rows: Vec<&[u32]> = tokens.chunks(1).collect();
        let (model, use_cache) = (self.reader.model, self.use_cache);
        self.scores.0 = self.reader.read(&mut self.cache, 1, &mut |cache, hook| {
            Ok(match use_cache {
                true => model.hidden(&rows, cache, hook)?,
                false => model.hidden_anew(&rows, cache, hook)?,
            })
        })?;
        Ok(async_eval([&self.scores.0])?)
    }

    fn scores(&mut self) -> Result<&[f32]> {
        self.scores.read()
    }

    fn into_cache(self) -> Option<KvCache> {
        Some(self.cache)
    }
}

impl Reorder for DecoderSession<'_> {
    fn reorder(&mut self, rows: &[usize]) -> Result<()> {
        self.select(rows).map(drop)
    }

    fn couples_rows(&self) -> bool {
        self.reader.couples_rows()
    }
}

impl Join for DecoderSession<'_> {
    /// The hook of this one has to serve the other's rows too.
    fn join(&mut self, other: Self) -> Result<()> {
        let mut cache = self.cache.fork();
        cache.join(&other.cache)?;
        let scores = Pending(concatenate(&[&self.scores.0, &other.scores.0], 0)?);
        eval(cache.arrays().chain([&scores.0]))?;
        (self.cache, self.scores) = (cache, scores);
        Ok(())
    }
}

impl Speculative for DecoderSession<'_> {
    fn feed_several(&mut self, tokens: &[u32]) -> Result<()> {
        if self.reader.has_budget(&self.cache) {
            // How strongly a token is steered follows from what those before it left.
            let one = |token: &u32| {
                self.feed(std::slice::from_ref(token))?;
                Ok(self.scores.0.clone())
            };
            let scores = tokens.iter().map(one).collect::<Result<Vec<_>>>()?;
            self.scores.0 = concatenate(&scores, 0)?;
            return Ok(async_eval([&self.scores.0])?);
        }
        // Guesses may be rejected, and a layer's state has no way back of its own.
        self.cache.checkpoint();
        let Reader { model, hook, .. } = &mut self.reader;
        let hidden = model.hidden(&[tokens], &mut self.cache, hook)?;
        self.scores.0 = model.logits(&hidden)?.squeeze_axes(&[0])?;
        Ok(async_eval([&self.scores.0])?)
    }

    fn roll_back(&mut self, count: usize) -> Result<()> {
        let Some(left) = self.cache.len().checked_sub(count) else {
            // The cache says it best.
            return Ok(self.cache.trim(count)?);
        };
        let Reader { model, hook, .. } = &mut self.reader;
        Ok(model.roll_back(left, &mut self.cache, hook)?)
    }

    fn room(&self) -> usize {
        let len = self.cache.len();
        let until_long = match self.reader.model.original_context() {
            Some(limit) if len <= limit => limit - len,
            _ => usize::MAX,
        };
        // A pass that begins before that column shows dense columns to tokens after it, too.
        let until_quantized = match self.cache.options().quantization {
            Some(how) if len < how.start => how.start - len,
            _ => usize::MAX,
        };
        until_long.min(until_quantized)
    }
}

impl std::fmt::Debug for DecoderSession<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DecoderSession").field("cache", &self.cache).finish_non_exhaustive()
    }
}
