//! Prompts on their way into a cache.

use mlx_rs::{
    Array,
    transforms::{async_eval, eval},
};
use mlxgk_kv_cache::{CacheOptions, Column, KvCache, PrefixScope, PrefixStore};
use mlxgk_mlx_models::{Decoder, ResidualHook};

use crate::{
    DecoderSession, DolaLayers, Error, ErrorKind, LeftPadded, Result, RowId,
    pending::Pending,
    prefixes::{self, Prefixes},
    reader::Reader,
    soft_prompt::SoftPrompt,
};

/// Prompt tokens fed per pass where nothing else is asked for (mlx-lm's step).
pub const DEFAULT_PREFILL_CHUNK: usize = 2048;

/// Prompts on their way into a cache, a chunk at a time.
///
/// ```
/// use mlxgk_decoding_strategies::{LanguageModel, LeftPadded, Prefill};
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let prompts = LeftPadded::new(&[vec![5, 6, 7], vec![8]], 0)?;
/// let mut prefill = Prefill::new(&model, &prompts, NoHook).chunk(2);
/// let mut to_go = Vec::new();
/// while !prefill.step(usize::MAX)? {
///     to_go.push(prefill.remaining());
/// }
/// assert_eq!(to_go, [1]); // after the first two of three columns
/// let mut session = prefill.finish()?;
/// assert_eq!(session.scores()?.len(), 2 * model.vocab_size());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Prefill<'a> {
    reader: Reader<'a>,
    cache: KvCache,
    /// What is to be fed, rows of one length.
    rows: Vec<Vec<u32>>,
    /// What precedes each row's first token, and is fed with all of the prompts in one pass.
    soft_prompt: Option<SoftPrompt>,
    fed: usize,
    /// Columns that were there before.
    cached: usize,
    prefixes: Option<Prefixes>,
    chunk: usize,
    /// fp32 `[rows, vocabulary]`, once all is fed.
    scores: Option<Pending>,
}

impl<'a> Prefill<'a> {
    /// Prompts to be fed to a fresh cache.
    pub fn new(model: &'a Decoder, prompts: &LeftPadded, hook: impl ResidualHook + 'a) -> Self {
        Self::of(model, model.new_padded_cache(prompts.padding()), prompts, hook)
    }

    /// As [`new`](Self::new), for a cache that keeps its columns as `options` say.
    ///
    /// # Errors
    /// When the options do not fit a layer.
    pub fn with_options(
        model: &'a Decoder,
        prompts: &LeftPadded,
        hook: impl ResidualHook + 'a,
        options: &CacheOptions,
    ) -> Result<Self> {
        let cache = model.new_cache_with(prompts.padding(), options)?;
        Ok(Self::of(model, cache, prompts, hook))
    }

    fn of(
        model: &'a Decoder,
        mut cache: KvCache,
        prompts: &LeftPadded,
        hook: impl ResidualHook + 'a,
    ) -> Self {
        cache.plan(prompts.width());
        Self::after(model, cache, prompts.rows().to_vec(), hook)
    }

    /// A prompt of which `store` may hold the beginning, as read by `scope`'s model under what the hook does
    /// to row `row`; and which is given to the store, block by block. It is read in passes that end where
    /// blocks do, so that what the store held of it changes nothing, not by a bit.
    ///
    /// A hook that looks on without a [name](ResidualHook::name) does not see the tokens that were found.
    ///
    /// # Errors
    /// When the hook or MLX fails, or the options do not fit a layer.
    pub fn shared(
        model: &'a Decoder,
        prompt: &[u32],
        hook: impl ResidualHook + 'a,
        (options, row): (&CacheOptions, RowId),
        (store, scope): (PrefixStore, PrefixScope),
    ) -> Result<Self> {
        let effects = prefixes::effects(model, &hook, row, prompt)?;
        let prefixes = Prefixes::new(store, scope, effects);
        let mut cache = match prefixes.find(prompt)? {
            Some(cache) => cache,
            None => model.new_cache_with(&[0], options)?,
        };
        let rest = prompt[cache.len()..].to_vec();
        cache.plan(prompt.len());
        cache.reserve(prompt.len());
        Ok(Self { prefixes: Some(prefixes), ..Self::after(model, cache, vec![rest], hook) })
    }

    /// A prompt of which `cache` may hold the beginning already, as in a conversation, of which each
    /// turn begins with the ones before.
    ///
    /// # Errors
    /// When the cache has several rows, or the prompt is empty.
    pub fn resume(
        model: &'a Decoder,
        mut cache: KvCache,
        prompt: &[u32],
        hook: impl ResidualHook + 'a,
    ) -> Result<Self> {
        if cache.batch() != 1 || prompt.is_empty() {
            let what = "only a single-row cache can be resumed, with at least one new token";
            return Err(Error::new(ErrorKind::Prompt, what));
        }
        let same = cache.tokens(0).iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // The last token is fed in any case, for the scores after it.
        let kept = same.min(prompt.len() - 1);
        // Longrope rotates all of a text differently once it passes the original context.
        let len = cache.len();
        if model.original_context().is_none_or(|limit| len <= limit || kept > limit) {
            cache.back_to(kept);
        } else {
            cache.clear();
        }
        let rest = prompt[cache.len()..].to_vec();
        cache.plan(prompt.len());
        Ok(Self::after(model, cache, vec![rest], hook))
    }

    fn after(
        model: &'a Decoder,
        mut cache: KvCache,
        rows: Vec<Vec<u32>>,
        hook: impl ResidualHook + 'a,
    ) -> Self {
        cache.set_prompt_end(cache.len() + rows.first().map_or(0, Vec::len));
        let reader = Reader::new(model, hook);
        let cached = cache.len();
        Self {
            reader,
            cache,
            rows,
            soft_prompt: None,
            fed: 0,
            cached,
            prefixes: None,
            chunk: DEFAULT_PREFILL_CHUNK,
            scores: None,
        }
    }

    /// Feeds at most `tokens` tokens per row and step.
    #[must_use]
    pub fn chunk(self, tokens: usize) -> Self {
        Self { chunk: tokens.max(1), ..self }
    }

    /// Puts a soft prompt, `[virtual tokens, hidden]`, before the first token of each row: embeddings as
    /// [`Decoder::hidden_from_embeddings`] takes them. Prompts are then read in one pass.
    ///
    /// # Errors
    /// When it has another shape, something was fed already, or MLX fails.
    pub fn soft_prompt(mut self, soft_prompt: &Array) -> Result<Self> {
        if self.fed > 0 || !self.cache.is_empty() {
            let what = "a soft prompt stands before the first token, and tokens were fed already";
            return Err(Error::new(ErrorKind::Prompt, what));
        }
        let soft_prompt = SoftPrompt::new(soft_prompt, self.reader.model)?;
        let columns = soft_prompt.len() + self.rows.first().map_or(0, Vec::len);
        self.cache.plan(columns);
        self.cache.set_prompt_end(columns);
        self.soft_prompt = Some(soft_prompt);
        Ok(self)
    }

    /// Makes room for `columns` columns at once: [`KvCache::reserve`].
    #[must_use]
    pub fn reserve(mut self, columns: usize) -> Self {
        self.cache.reserve(columns);
        self
    }

    /// Contrasts the scores with those of earlier layers.
    ///
    /// # Errors
    /// When no layer is left to contrast with, or the hook has a [budget](ResidualHook::budget).
    pub fn dola(mut self, layers: &DolaLayers) -> Result<Self> {
        self.reader.contrast(&self.cache, layers)?;
        Ok(self)
    }

    /// Keeps what each pass leaves after the final norm.
    pub(crate) fn with_states(mut self, strategy: &str) -> Result<Self> {
        self.reader.keep_states(&self.cache, strategy)?;
        Ok(self)
    }

    /// What the last step left after the final norm, where it was to be kept.
    pub(crate) fn states(&self) -> Result<&Array> {
        self.reader.states()
    }

    /// The model.
    pub fn model(&self) -> &'a Decoder {
        self.reader.model
    }

    /// Columns that a cache held before, and that are not fed again.
    pub fn cached(&self) -> usize {
        self.cached
    }

    /// Tokens per row that are still to be fed.
    pub fn remaining(&self) -> usize {
        self.rows.first().map_or(0, Vec::len) - self.fed
    }

    /// Names the rows from `first` on, each by the first of the `copies` it will have: what a hook
    /// knows them by.
    ///
    /// # Errors
    /// When the cache cannot.
    pub fn name_rows(&mut self, first: RowId, copies: usize) -> Result<()> {
        let id = |row| RowId::new(first.get() + (row * copies) as u64);
        let ids: Vec<RowId> = (0..self.cache.batch()).map(id).collect();
        self.set_row_ids(&ids)
    }

    /// Names the rows.
    ///
    /// # Errors
    /// When the cache cannot.
    pub fn set_row_ids(&mut self, ids: &[RowId]) -> Result<()> {
        Ok(self.cache.set_row_ids(ids)?)
    }

    /// Feeds the next chunk, of at most `most` tokens per row, and starts computing the scores of the
    /// next token after the last one. Returns whether all is fed. Under a
    /// [budget](ResidualHook::budget), which gives a prompt one strength, all is one chunk.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, or the hook or the model fails.
    pub fn step(&mut self, most: usize) -> Result<bool> {
        let (begun, most) = (self.fed, self.chunk.min(most).max(1));
        loop {
            let until_end = |it: &Prefixes| it.until_block_end(&self.cache).min(most);
            let columns = self.prefixes.as_ref().map_or(most, until_end);
            if self.fed > begun && columns > most - (self.fed - begun) {
                return Ok(false);
            }
            if self.pass(columns)? {
                return Ok(true);
            }
        }
    }

    /// Feeds so many tokens per row, or all that are left.
    fn pass(&mut self, columns: usize) -> Result<bool> {
        let (width, from) = (self.fed + self.remaining(), self.fed);
        if from == width && self.scores.is_some() {
            return Ok(true);
        }
        if let Some(soft_prompt) = self.soft_prompt.take() {
            return self.step_behind(&soft_prompt);
        }
        let (model, rows, cache) = (self.reader.model, &self.rows, &mut self.cache);
        let part = |from: usize, to: usize| -> Vec<&[u32]> {
            rows.iter().map(|row| row.get(from..to).unwrap_or_default()).collect()
        };
        if !self.reader.has_budget(cache) && columns < width - from {
            self.fed = from + columns;
            model.hidden(&part(from, self.fed), cache, &mut self.reader.hook)?;
            // A pass ends here, so that its activations are freed before the next begins.
            eval(cache.arrays())?;
            if let Some(prefixes) = &self.prefixes {
                prefixes.publish(cache)?;
            }
            return Ok(false);
        }
        let chunk = self.chunk;
        let scores = self.reader.read(cache, width - from, &mut |cache, hook| {
            let mut at = from;
            while width - at > chunk {
                model.hidden(&part(at, at + chunk), cache, hook)?;
                eval(cache.arrays())?;
                at += chunk;
            }
            Ok(model.hidden(&part(at, width), cache, hook)?)
        })?;
        async_eval([&scores])?;
        if let Some(prefixes) = &self.prefixes {
            prefixes.publish(&self.cache)?;
        }
        self.fed = width;
        self.scores = Some(Pending(scores));
        Ok(true)
    }

    /// Feeds a soft prompt and all that follows it.
    fn step_behind(&mut self, soft_prompt: &SoftPrompt) -> Result<bool> {
        let model = self.reader.model;
        let (columns, embedded) = soft_prompt.before(&self.rows, &self.cache.padding(), model)?;
        let columns: Vec<&[Column]> = columns.iter().map(Vec::as_slice).collect();
        let count = columns.first().map_or(0, |it| it.len());
        let scores = self.reader.read(&mut self.cache, count, &mut |cache, hook| {
            Ok(model.hidden_from_embeddings(&embedded, &columns, cache, hook)?)
        })?;
        async_eval([&scores])?;
        self.fed = self.rows.first().map_or(0, Vec::len);
        self.scores = Some(Pending(scores));
        Ok(true)
    }

    /// Feeds what is left.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn finish(mut self) -> Result<DecoderSession<'a>> {
        while !self.step(usize::MAX)? {}
        let Some(scores) = self.scores else {
            return Err(Error::new(ErrorKind::Prompt, "there is no token to feed"));
        };
        Ok(DecoderSession::new(self.reader, self.cache, scores))
    }
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
        Prefill::new(model, prompts, hook).chunk(chunk).finish()
    }
}

impl std::fmt::Debug for Prefill<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prefill").field("remaining", &self.remaining()).finish_non_exhaustive()
    }
}
