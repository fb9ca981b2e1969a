//! An MLX decoder with its cache, as the loops drive it.

use mlx_rs::{
    Array,
    ops::{concatenate, indexing::TryIndexOp},
    transforms::{async_eval, eval},
};
use mlxgk_kv_cache::KvCache;
use mlxgk_mlx_models::{Capture, Decoder, HookPoint, ResidualHook};

use crate::{
    DolaLayers, Error, ErrorKind, Join, LanguageModel, LeftPadded, Reorder, Result, RowId,
    Speculative, budget::within_budget, dola,
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
    fed: usize,
    chunk: usize,
    /// fp32 `[rows, vocabulary]`, once all is fed.
    scores: Option<Pending>,
}

impl<'a> Prefill<'a> {
    /// Prompts to be fed to a fresh cache.
    pub fn new(model: &'a Decoder, prompts: &LeftPadded, hook: impl ResidualHook + 'a) -> Self {
        let mut cache = model.new_padded_cache(prompts.padding());
        cache.plan(prompts.width());
        Self::after(model, cache, prompts.rows().to_vec(), hook)
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
        Self { reader, cache, rows, fed: 0, chunk: DEFAULT_PREFILL_CHUNK, scores: None }
    }

    /// Feeds at most so many tokens per row and step.
    #[must_use]
    pub fn chunk(self, tokens: usize) -> Self {
        Self { chunk: tokens.max(1), ..self }
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
        let chunk = self.chunk.min(most).max(1);
        let (model, rows, cache) = (self.reader.model, &self.rows, &mut self.cache);
        let part = |from: usize, to: usize| -> Vec<&[u32]> {
            rows.iter().map(|row| row.get(from..to).unwrap_or_default()).collect()
        };
        if !self.reader.has_budget(cache) && chunk < width - from {
            self.fed = from + chunk;
            model.hidden(&part(from, self.fed), cache, &mut self.reader.hook)?;
            // A pass ends here, so that its activations are freed before the next begins.
            eval(cache.arrays())?;
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
        self.fed = width;
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
        match self.reader.model.original_context() {
            Some(limit) if self.cache.len() <= limit => limit - self.cache.len(),
            _ => usize::MAX,
        }
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
