//! An MLX decoder with its cache, as the loops drive it.

use mlx_rs::{
    Array, Dtype,
    ops::{concatenate, indexing::TryIndexOp},
    transforms::{async_eval, eval},
};
use mlxgk_kv_cache::{CacheOptions, Column, KvCache, PrefixScope, PrefixStore};
use mlxgk_mlx_models::{Capture, Decoder, HookPoint, ResidualHook};

use crate::{
    DolaLayers, Error, ErrorKind, Join, LanguageModel, LeftPadded, Reorder, Result, RowId,
    Speculative,
    budget::within_budget,
    dola,
    prefixes::{self, Prefixes},
};

/// Prompt tokens fed per pass where nothing else is asked for (mlx-lm's step).
pub const DEFAULT_PREFILL_CHUNK: usize = 2048;

/// A decoder, the hook it runs under, and what is made of a pass: what a session has besides its rows.
struct Reader<'a> {
    model: &'a Decoder,
    /// The caller's hook, and after it a look at what it left.
    hook: (Box<dyn ResidualHook + 'a>, Capture),
    /// The layers that DoLa contrasts the last one with.
    dola: Option<Vec<usize>>,
}

impl Reader<'_> {
    fn has_budget(&self, cache: &KvCache) -> bool {
        cache.row_ids().into_iter().any(|row| self.hook.budget(row).is_some())
    }

    /// The scores after what `feed` feeds, `columns` tokens per row: fp32 `[rows, vocabulary]`. `feed`
    /// returns what the last pass left after the final norm.
    fn read(
        &mut self,
        cache: &mut KvCache,
        columns: usize,
        feed: &mut dyn FnMut(&mut KvCache, &mut dyn ResidualHook) -> Result<Array>,
    ) -> Result<Array> {
        let model = self.model;
        if let Some(layers) = &self.dola {
            let hidden = feed(cache, &mut self.hook)?;
            return dola::contrasted(model, &hidden, &self.hook.1, layers);
        }
        within_budget(cache, &mut self.hook, columns, &mut |cache, hook| {
            Ok(model.logits(&last_position(&feed(cache, hook)?)?)?.squeeze_axes(&[1])?)
        })
    }

    /// Refuses a hook with a budget, which is kept for plain scores only.
    fn refuse_budget(&self, cache: &KvCache, strategy: &str) -> Result<()> {
        if self.has_budget(cache) {
            let what = format!("a KL budget is not available with {strategy}");
            return Err(Error::new(ErrorKind::Prompt, what));
        }
        Ok(())
    }
}

/// Prompts on their way into a cache, a chunk at a time.
///
/// ```no_run
/// use mlxgk_decoding_strategies::{LeftPadded, Prefill};
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let model = Decoder::load("models/qwen3", ComputeDtype::Auto)?;
/// let prompts = LeftPadded::new(&[vec![5, 6, 7], vec![8]], 0)?;
/// let mut prefill = Prefill::new(&model, &prompts, NoHook).chunk(512);
/// while !prefill.step(usize::MAX)? {
///     println!("{} tokens to go", prefill.remaining());
/// }
/// let session = prefill.finish()?;
/// # Ok(())
/// # }
/// ```
pub struct Prefill<'a> {
    reader: Reader<'a>,
    cache: KvCache,
    /// What is to be fed, rows of one length.
    rows: Vec<Vec<u32>>,
    /// What stands before each row's first token, and is fed with all of the prompts in one pass.
    soft_prompt: Option<Array>,
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
        let hook: (Box<dyn ResidualHook + 'a>, _) = (Box::new(hook), Capture::default());
        let reader = Reader { model, hook, dola: None };
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

    /// Feeds at most so many tokens per row and step.
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
        let hidden = self.reader.model.hidden_size() as i32;
        let &[count, width] = soft_prompt.shape() else {
            let what = format!("a soft prompt of shape {:?} is no matrix", soft_prompt.shape());
            return Err(Error::new(ErrorKind::Prompt, what));
        };
        if count == 0 || width != hidden || self.fed > 0 || !self.cache.is_empty() {
            let what = format!(
                "a soft prompt for this model is [virtual tokens, {hidden}] before anything is fed, found \
                 [{count}, {width}]"
            );
            return Err(Error::new(ErrorKind::Prompt, what));
        }
        let columns = count as usize + self.rows.first().map_or(0, Vec::len);
        self.cache.plan(columns);
        self.cache.set_prompt_end(columns);
        self.soft_prompt = Some(soft_prompt.clone());
        Ok(self)
    }

    /// The columns of a soft prompt and the prompts behind it, and their embeddings: padding, the soft
    /// prompt, the row's own tokens.
    fn behind(&self, soft_prompt: &Array) -> Result<(Vec<Vec<Column>>, Array)> {
        let model = self.reader.model;
        let soft = soft_prompt.as_dtype(Dtype::Float32)?;
        let numbers: Vec<f32> =
            soft.to_vec_exact().map_err(|e| Error::new(ErrorKind::Model, e.to_string()))?;
        let virtual_tokens: Vec<Column> =
            numbers.chunks(model.hidden_size()).map(Column::embedded).collect();
        let (mut columns, mut embedded) = (Vec::new(), Vec::new());
        for (row, padding) in self.rows.iter().zip(self.cache.padding()) {
            let (padding, own) = row.split_at(padding.min(row.len()));
            let tokens = |ids: &[u32]| ids.iter().copied().map(Column::Token).collect::<Vec<_>>();
            columns.push([tokens(padding), virtual_tokens.clone(), tokens(own)].concat());
            let embed = |ids: &[u32]| model.embed(&Array::from_slice(ids, &[1, ids.len() as i32]));
            let own = embed(own)?;
            let soft = soft_prompt.as_dtype(own.dtype())?.expand_dims(0)?;
            embedded.push(if padding.is_empty() {
                concatenate(&[&soft, &own], 1)?
            } else {
                concatenate(&[&embed(padding)?, &soft, &own], 1)?
            });
        }
        let embedded: Vec<&Array> = embedded.iter().collect();
        Ok((columns, concatenate(&embedded, 0)?))
    }

    /// Makes room for so many columns at once: [`KvCache::reserve`].
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
        self.reader.refuse_budget(&self.cache, "DoLa")?;
        let model = self.reader.model;
        let layers = layers.of(model.layers().len(), model.components().tied_head)?;
        self.reader.hook.1 = Capture::new(layers.iter().map(|&it| dola::point(it)));
        self.reader.dola = Some(layers);
        Ok(self)
    }

    /// Keeps what each pass leaves after the final norm.
    pub(crate) fn with_states(mut self, strategy: &str) -> Result<Self> {
        self.reader.refuse_budget(&self.cache, strategy)?;
        self.reader.hook.1 = Capture::new([HookPoint::FinalNorm]);
        Ok(self)
    }

    /// What the last step left after the final norm, where it was to be kept.
    pub(crate) fn states(&self) -> Result<&Array> {
        states(&self.reader)
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
        Ok(self.cache.set_row_ids(&ids)?)
    }

    /// Feeds the next chunk, of at most `most` tokens per row, and starts computing the scores of the
    /// next token after the last one. Returns whether all is fed. Under a
    /// [budget](ResidualHook::budget), which gives a prompt one strength, all is one chunk.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, or the hook or the model fails.
    pub fn step(&mut self, most: usize) -> Result<bool> {
        let (width, from) = (self.fed + self.remaining(), self.fed);
        if from == width && self.scores.is_some() {
            return Ok(true);
        }
        if let Some(soft_prompt) = self.soft_prompt.take() {
            return self.step_behind(&soft_prompt);
        }
        let mut chunk = self.chunk.min(most).max(1);
        if self.prefixes.is_some() {
            chunk = chunk.min(Prefixes::until_block_end(&self.cache));
        }
        let (model, rows, cache) = (self.reader.model, &self.rows, &mut self.cache);
        let part = |from: usize, to: usize| -> Vec<&[u32]> {
            rows.iter().map(|row| row.get(from..to).unwrap_or_default()).collect()
        };
        if !self.reader.has_budget(cache) && chunk < width - from {
            self.fed = from + chunk;
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

    /// Feeds a soft prompt and all that stands behind it.
    fn step_behind(&mut self, soft_prompt: &Array) -> Result<bool> {
        if let Some(id) = out_of_vocabulary(self.reader.model, &self.rows) {
            let vocab = self.reader.model.vocab_size();
            let what = format!("token id {id} is outside the vocabulary of {vocab}");
            return Err(Error::new(ErrorKind::Prompt, what));
        }
        let (columns, embedded) = self.behind(soft_prompt)?;
        let model = self.reader.model;
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
        Ok(DecoderSession { reader: self.reader, cache: self.cache, use_cache: true, scores })
    }
}

/// A decoder in the middle of a batch of sequences.
pub struct DecoderSession<'a> {
    reader: Reader<'a>,
    cache: KvCache,
    use_cache: bool,
    /// fp32 `[rows, vocabulary]`: what follows the last token fed.
    scores: Pending,
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

    /// From here on reads the whole text again for each token (HF `use_cache=False`): the same tokens
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

    /// Keeps the given rows in the given order. Returns how many columns were padding in all of them and
    /// are gone.
    pub(crate) fn select(&mut self, rows: &[usize]) -> Result<usize> {
        let dropped = self.cache.select(rows)?;
        // Not evaluated: where a token is fed next, nobody asks for these scores again.
        self.scores.0 = self.scores.0.take_axis(indices(rows), 0)?;
        Ok(dropped)
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
        states(&self.reader)
    }
}

/// The first id that the model does not know.
fn out_of_vocabulary(model: &Decoder, rows: &[Vec<u32>]) -> Option<u32> {
    rows.iter().flatten().copied().find(|&it| it as usize >= model.vocab_size())
}

fn states<'a>(reader: &'a Reader<'_>) -> Result<&'a Array> {
    reader.hook.1.captured().get(&HookPoint::FinalNorm).ok_or_else(|| {
        Error::new(ErrorKind::Model, "the states after the final norm were not kept")
    })
}

/// An array that the device may still be at work on; waits for it when dropped.
///
/// A session can be dropped at any token. A process that ends while MLX's thread is at work runs
/// into the destructors of MLX and of the BLAS below it, and now and then hangs or crashes there.
#[derive(Debug)]
pub(crate) struct Pending(pub(crate) Array);

impl Pending {
    /// The values, fp32, once they are there.
    pub(crate) fn read(&self) -> Result<&[f32]> {
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

/// The last position: `[rows, tokens, hidden]` to `[rows, 1, hidden]`.
pub(crate) fn last_position(hidden: &Array) -> Result<Array> {
    let tokens = hidden.dim(1);
    Ok(if tokens == 1 { hidden.clone() } else { hidden.try_index((.., tokens - 1.., ..))? })
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

    /// Of several layers DoLa chooses one for all rows, those that have ended included.
    fn couples_rows(&self) -> bool {
        self.reader.dola.as_ref().is_some_and(|it| it.len() > 1)
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
        // A pass that begins before that column shows dense columns to tokens behind it, too.
        let until_quantized = match self.cache.options().quantization {
            Some(how) if len < how.start => how.start - len,
            _ => usize::MAX,
        };
        until_long.min(until_quantized)
    }
}

impl std::fmt::Debug for Prefill<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prefill").field("remaining", &self.remaining()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for DecoderSession<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DecoderSession").field("cache", &self.cache).finish_non_exhaustive()
    }
}
