//! What reads tokens into a cache: a decoder, the hook it runs under, and what is made of a pass.

use mlx_rs::{Array, ops::indexing::TryIndexOp};
use mlxgk_kv_cache::KvCache;
use mlxgk_mlx_models::{Capture, Decoder, HookPoint, ResidualHook};

use crate::{DolaLayers, Error, ErrorKind, Result, budget::within_budget, dola};

/// A decoder, the hook it runs under, and what is made of a pass: what a session has besides its rows.
pub(crate) struct Reader<'a> {
    pub(crate) model: &'a Decoder,
    /// The caller's hook, and after it a look at what it left.
    pub(crate) hook: (Box<dyn ResidualHook + 'a>, Capture),
    /// The layers that DoLa contrasts the last one with.
    dola: Option<Vec<usize>>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(model: &'a Decoder, hook: impl ResidualHook + 'a) -> Self {
        Self { model, hook: (Box::new(hook), Capture::default()), dola: None }
    }

    /// Contrasts the scores with those of earlier layers.
    pub(crate) fn contrast(&mut self, cache: &KvCache, layers: &DolaLayers) -> Result<()> {
        self.refuse_budget(cache, "DoLa")?;
        let layers = layers.of(self.model.layers().len(), self.model.components().tied_head)?;
        self.hook.1 = Capture::new(layers.iter().map(|&it| dola::point(it)));
        self.dola = Some(layers);
        Ok(())
    }

    /// Of several layers DoLa chooses one for all rows, those that have ended included.
    pub(crate) fn couples_rows(&self) -> bool {
        self.dola.as_ref().is_some_and(|it| it.len() > 1)
    }

    /// Keeps what each pass leaves after the final norm.
    pub(crate) fn keep_states(&mut self, cache: &KvCache, strategy: &str) -> Result<()> {
        self.refuse_budget(cache, strategy)?;
        self.hook.1 = Capture::new([HookPoint::FinalNorm]);
        Ok(())
    }

    /// What the last pass left after the final norm, where it was to be kept.
    pub(crate) fn states(&self) -> Result<&Array> {
        self.hook.1.captured().get(&HookPoint::FinalNorm).ok_or_else(|| {
            Error::new(ErrorKind::Model, "the states after the final norm were not kept")
        })
    }

    /// Whether a pass's scores are the model's own.
    pub(crate) fn is_plain(&self, cache: &KvCache) -> bool {
        self.dola.is_none() && !self.has_budget(cache)
    }

    pub(crate) fn has_budget(&self, cache: &KvCache) -> bool {
        cache.row_ids().into_iter().any(|row| self.hook.budget(row).is_some())
    }

    /// The scores after what `feed` feeds, `columns` tokens per row: fp32 `[rows, vocabulary]`. `feed`
    /// returns what the last pass left after the final norm.
    pub(crate) fn read(
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

/// The last position: `[rows, tokens, hidden]` to `[rows, 1, hidden]`.
pub(crate) fn last_position(hidden: &Array) -> Result<Array> {
    let tokens = hidden.dim(1);
    Ok(if tokens == 1 { hidden.clone() } else { hidden.try_index((.., tokens - 1.., ..))? })
}
