//! What is fed to the loop: tokens or embeddings, new or a second time.

use std::{ops::Range, sync::Arc};

use mlx_rs::{Array, ops::indexing::TryIndexOp};
use mlxgk_kv_cache::{Column, KvCache, LayerSpec, Step};

use crate::{Decoder, Error, ErrorKind, ResidualHook, Result, decoder::NO_TOKENS, pass::BlockPass};

/// A text that is read again is read in passes of so many columns, or of as many as the widest pass
/// before had: no more memory is needed than there was.
pub(crate) const READ_AGAIN: usize = 256;

impl Decoder {
    /// As [`forward`](Self::forward), but stops after the final norm: `[batch, tokens, hidden]`. For
    /// long prompts, where the head is needed for the last position only.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn hidden(
        &self,
        rows: &[&[u32]],
        cache: &mut KvCache,
        hook: &mut dyn ResidualHook,
    ) -> Result<Array> {
        let columns = self.columns(rows)?;
        self.feed(&slices(&columns), None, cache, hook)
    }

    /// As [`hidden`](Self::hidden), for embeddings instead of token ids, `[batch, columns, hidden]`:
    /// soft prompts, or what stands for an image. They are what the first block is given, so a factor
    /// that a family multiplies its embeddings by is theirs already ([`embed`](Self::embed) makes
    /// those of tokens). `columns` says, row by row, what stands in each place, so that the cache is
    /// not taken for that of another text.
    ///
    /// ```
    /// use mlx_rs::{Array, ops::concatenate};
    /// use mlxgk_kv_cache::Column;
    /// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
    ///
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
    /// let model = Decoder::load(folder, ComputeDtype::Float32)?;
    /// let soft = vec![0.1; model.hidden_size()];
    /// let ids = Array::from_slice(&[5_u32, 9], &[1, 2]);
    /// let prompt = concatenate(
    ///     &[&Array::from_slice(&soft, &[1, 1, soft.len() as i32]), &model.embed(&ids)?],
    ///     1,
    /// )?;
    /// let columns = [Column::embedded(&soft), Column::Token(5), Column::Token(9)];
    /// let mut cache = model.new_cache(1);
    /// let hidden = model.hidden_from_embeddings(&prompt, &[&columns], &mut cache, &mut NoHook)?;
    /// assert_eq!(hidden.shape()[..2], [1, 3]);
    /// assert_eq!((cache.len(), cache.tokens(0).len()), (3, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and when the embeddings have another shape, the text would have to
    /// be read again (beyond longrope's original context), for which their numbers are gone, or the
    /// model has inputs for each layer, which are looked up by tokens (Gemma 4 E2B and E4B).
    pub fn hidden_from_embeddings(
        &self,
        embeddings: &Array,
        columns: &[&[Column]],
        cache: &mut KvCache,
        hook: &mut dyn ResidualHook,
    ) -> Result<Array> {
        if self.per_layer.is_some() {
            return Err(Error::new(ErrorKind::Tokens, NO_TOKENS));
        }
        self.check_embeddings(embeddings, columns)?;
        self.feed(columns, Some(embeddings), cache, hook)
    }

    /// Some of the blocks alone, in a pass that nothing follows: `hidden`, `[batch, columns, hidden]`,
    /// is what the first of them is given, and the result what the last returns, after the final norm
    /// where it is the model's last block. Run one after the other, all stretches give what
    /// [`hidden_from_embeddings`](Self::hidden_from_embeddings) gives with an empty cache.
    ///
    /// Training recomputes a long text's activations piece by piece, so that not all have to
    /// be kept (gradient checkpointing).
    ///
    /// # Errors
    /// When there are no such layers or they share columns with layers before them, they are not all of a
    /// model with several residual streams (Gemma 3n), `hidden` has another
    /// shape, or the hook or MLX fails; and for embeddings as
    /// [`hidden_from_embeddings`](Self::hidden_from_embeddings).
    pub fn run_layers(
        &self,
        layers: Range<usize>,
        hidden: &Array,
        columns: &[&[Column]],
        hook: &mut dyn ResidualHook,
    ) -> Result<Array> {
        if layers.is_empty() || layers.end > self.blocks.len() {
            let what = format!("layers {layers:?} of a model with {} layers", self.blocks.len());
            return Err(Error::new(ErrorKind::Hook, what));
        }
        if self.streams.is_some() && layers != (0..self.blocks.len()) {
            let what = format!("layers {layers:?} alone of a model with several residual streams");
            return Err(Error::new(ErrorKind::Hook, what));
        }
        self.check_embeddings(hidden, columns)?;
        let is_embedded = |row: &&[Column]| row.iter().any(|it| it.token().is_none());
        if self.per_layer.is_some() && columns.iter().any(is_embedded) {
            return Err(Error::new(ErrorKind::Tokens, NO_TOKENS));
        }
        let begin = layers.start;
        let is_cut = |it: &LayerSpec| matches!(it, LayerSpec::Shared { owner } if *owner < begin);
        if self.layers[layers.clone()].iter().any(is_cut) {
            let what = format!("layers {layers:?} share the keys and values of earlier ones");
            return Err(Error::new(ErrorKind::Hook, what));
        }
        let mut cache = self.single_pass(columns.len());
        let long = self.is_long(columns.first().map_or(0, |row| row.len()), &cache);
        let pass = cache.begin(columns, &names(&cache, hook))?;
        let is_last = layers.end == self.blocks.len();
        let mut pass = BlockPass::new(pass, long);
        pass.gradients = true;
        self.run(layers, is_last, hidden.clone(), &mut pass, hook)
    }

    /// As [`hidden`](Self::hidden), but reads the whole text again instead of continuing from what the
    /// cache holds of it: HF's `use_cache=False`. The states are those of the new tokens alone.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and when the cache holds embeddings.
    pub fn hidden_anew(
        &self,
        rows: &[&[u32]],
        cache: &mut KvCache,
        hook: &mut dyn ResidualHook,
    ) -> Result<Array> {
        let columns = self.columns(rows)?;
        self.check(columns.len(), cache)?;
        self.feed_again(&slices(&columns), None, cache, hook)
    }

    /// Takes back all but the first `columns` columns, as if no more had been fed. Where the cache can
    /// return to a place before them only (a layer's state, a window that has moved on, longrope's
    /// original context), the text from there is fed again.
    ///
    /// # Errors
    /// When fewer are held, or what has to be fed again are embeddings, or the hook or MLX fails.
    pub fn roll_back(
        &self,
        columns: usize,
        cache: &mut KvCache,
        hook: &mut dyn ResidualHook,
    ) -> Result<()> {
        if columns > cache.len() {
            let held = cache.len();
            let what = format!("cannot go back to column {columns} of a cache of {held}");
            return Err(Error::new(ErrorKind::Cache, what));
        }
        cache.check_steering(&names(cache, hook))?;
        let rows: Vec<Vec<Column>> =
            (0..cache.batch()).map(|row| cache.columns(row)[..columns].to_vec()).collect();
        // Keys that were rotated for a longer text are of no use.
        let long = |columns| {
            let longest = cache.longest(columns);
            self.options.original_context.is_some_and(|limit| longest > limit)
        };
        let rotated_alike = long(columns) == long(cache.len());
        let reached = if rotated_alike {
            cache.back_to(columns)
        } else {
            cache.rewind();
            0
        };
        self.read_again(&rows, reached, columns, cache, hook)
    }

    /// Feeds the columns `from..to` of `rows` a second time, in passes as wide as the widest before.
    fn read_again(
        &self,
        rows: &[Vec<Column>],
        from: usize,
        to: usize,
        cache: &mut KvCache,
        hook: &mut dyn ResidualHook,
    ) -> Result<()> {
        let width = cache.widest_pass().max(READ_AGAIN);
        for start in (from..to).step_by(width) {
            let end = to.min(start + width);
            let part: Vec<&[Column]> = rows.iter().map(|row| &row[start..end]).collect();
            self.pass(&part, None, end - start, cache, hook)?;
            cache.evaluate()?;
        }
        Ok(())
    }

    /// Refuses embeddings of another shape than the columns ask for.
    fn check_embeddings(&self, embeddings: &Array, columns: &[&[Column]]) -> Result<()> {
        let count = columns.first().map_or(0, |row| row.len());
        let wanted = [columns.len(), count, self.dims.hidden].map(|it| it as i32);
        if embeddings.shape() != wanted {
            let what = format!("embeddings of shape {:?}, not {wanted:?}", embeddings.shape());
            return Err(Error::new(ErrorKind::Tokens, what));
        }
        Ok(())
    }

    /// Refuses a cache of other rows, or of another model.
    fn check(&self, rows: usize, cache: &KvCache) -> Result<()> {
        if rows != cache.batch() {
            let what = format!("{rows} rows of tokens for a cache of {} rows", cache.batch());
            return Err(Error::new(ErrorKind::Tokens, what));
        }
        let layers = cache.options().early_exit.unwrap_or(self.layers.len());
        if !cache.layers().eq(self.layers.iter().copied().take(layers)) {
            return Err(Error::new(ErrorKind::Cache, "the cache was made for another model"));
        }
        Ok(())
    }

    /// Whether a text of so many columns is read with longrope's long factors.
    fn is_long(&self, columns: usize, cache: &KvCache) -> bool {
        let longest = cache.longest(columns.max(cache.planned()));
        self.options.original_context.is_some_and(|limit| longest > limit)
    }

    /// Feeds columns after those that the cache holds.
    pub(crate) fn feed(
        &self,
        columns: &[&[Column]],
        embeddings: Option<&Array>,
        cache: &mut KvCache,
        hook: &mut dyn ResidualHook,
    ) -> Result<Array> {
        self.check(columns.len(), cache)?;
        let all = cache.len() + columns.first().map_or(0, |row| row.len());
        if cache.longest(cache.len()) > 0
            && !self.is_long(cache.len(), cache)
            && self.is_long(all, cache)
        {
            // Longrope rotates all keys differently from here on (HF drops its cache at the same
            // place).
            return self.feed_again(columns, embeddings, cache, hook);
        }
        self.pass(columns, embeddings, 0, cache, hook)
    }

    /// Feeds everything again that the cache holds, and the new columns after it.
    fn feed_again(
        &self,
        columns: &[&[Column]],
        embeddings: Option<&Array>,
        cache: &mut KvCache,
        hook: &mut dyn ResidualHook,
    ) -> Result<Array> {
        cache.check_steering(&names(cache, hook))?;
        let (held, count) = (cache.len(), columns.first().map_or(0, |row| row.len()));
        let rows: Vec<Vec<Column>> =
            (0..cache.batch()).map(|row| cache.columns(row).to_vec()).collect();
        let mut fresh = cache.fork();
        fresh.rewind();
        fresh.plan(held + count);
        // The last of the old columns share a pass with the new ones, if those are tokens.
        let width = cache.widest_pass().max(READ_AGAIN);
        let along = if embeddings.is_none() { width.saturating_sub(count).min(held) } else { 0 };
        self.read_again(&rows, 0, held - along, &mut fresh, hook)?;
        let last: Vec<Vec<Column>> = rows
            .iter()
            .zip(columns)
            .map(|(old, new)| [&old[held - along..], new].concat())
            .collect();
        let hidden = self.pass(&slices(&last), embeddings, along, &mut fresh, hook)?;
        *cache = fresh;
        let doing = |e| Error::mlx("feeding the context again", &e);
        hidden.try_index((.., along as i32.., ..)).map_err(doing)
    }

    /// One forward pass, of whose columns the first `again` are read a second time.
    fn pass(
        &self,
        columns: &[&[Column]],
        embeddings: Option<&Array>,
        again: usize,
        cache: &mut KvCache,
        hook: &mut dyn ResidualHook,
    ) -> Result<Array> {
        let all = cache.len() + columns.first().map_or(0, |row| row.len());
        let long = self.is_long(all, cache);
        let layers = 0..cache.layers().len().min(self.blocks.len());
        let pass = cache.begin(columns, &names(cache, hook))?.reading_again(again);
        let embedded = match embeddings {
            Some(embeddings) => embeddings.clone(),
            None => self.embed_step(columns, pass.step())?,
        };
        let mut pass = BlockPass::new(pass, long);
        let hidden = self.run(layers, true, embedded, &mut pass, hook)?;
        pass.cache.commit()?;
        Ok(hidden)
    }

    /// The embeddings of a step's tokens.
    fn embed_step(&self, columns: &[&[Column]], step: &Step) -> Result<Array> {
        match step.tokens() {
            Some(tokens) if columns.iter().all(|row| row.iter().all(|it| it.token().is_some())) => {
                self.embed(tokens)
            }
            _ => {
                let what = "the text has to be read again, but holds embeddings, whose numbers the \
                            cache does not keep";
                Err(Error::new(ErrorKind::Cache, what))
            }
        }
    }

    /// Rows of ids as columns, after checking that they are equally long and in the vocabulary.
    fn columns(&self, rows: &[&[u32]]) -> Result<Vec<Vec<Column>>> {
        let count = rows.first().map_or(0, |row| row.len());
        if count == 0 || rows.iter().any(|row| row.len() != count) {
            let what = "a batch needs rows of one length, with at least one token each";
            return Err(Error::new(ErrorKind::Tokens, what));
        }
        rows.iter().try_for_each(|row| self.check_ids(row))?;
        Ok(rows.iter().map(|row| row.iter().copied().map(Column::Token).collect()).collect())
    }

    /// Refuses ids outside the vocabulary, which MLX does not check.
    pub(crate) fn check_ids(&self, tokens: &[u32]) -> Result<()> {
        let vocab = self.dims.vocab;
        match tokens.iter().find(|&&id| id as usize >= vocab) {
            None => Ok(()),
            Some(id) => {
                let what = format!("token id {id} is outside the vocabulary of {vocab}");
                Err(Error::new(ErrorKind::Tokens, what))
            }
        }
    }
}

/// What a hook does to each of a cache's rows, by name.
fn names(cache: &KvCache, hook: &dyn ResidualHook) -> Vec<Option<Arc<str>>> {
    cache.row_ids().into_iter().map(|row| hook.name(row)).collect()
}

fn slices(rows: &[Vec<Column>]) -> Vec<&[Column]> {
    rows.iter().map(Vec::as_slice).collect()
}
