//! How steering changes the model itself, on given texts.

use mlx_genkit::{
    Capture, HookPoint, Model, NoHook, ResidualHook, Result,
    decoding_strategies::{DEFAULT_PREFILL_CHUNK, DecoderSession, LanguageModel, LeftPadded},
    kv_cache::{KvCache, RowId},
    mlx_models::{Error as ModelError, ErrorKind as ModelErrorKind},
};
use mlx_rs::{
    Array,
    error::Exception,
    ops::{
        indexing::{TryIndexOp, argmax_axis},
        logsumexp_axis,
    },
};

/// A prompt and an answer to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text<'a> {
    pub(crate) prompt: &'a [u32],
    pub(crate) answer: &'a [u32],
}

/// How far the steered model is from the unsteered one over an answer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Distance {
    /// Σ KL(steered ‖ base) over the answer's tokens, in nats.
    pub(crate) kl: f64,
    /// Tokens of the answer at which both would choose the same.
    pub(crate) agreed: f64,
    /// Tokens of the answer.
    pub(crate) tokens: usize,
}

impl Distance {
    /// Counts another text.
    pub(crate) fn add(&mut self, other: Self) {
        self.kl += other.kl;
        self.agreed += other.agreed;
        self.tokens += other.tokens;
    }
}

impl Text<'_> {
    /// How far the model under `hook` is from the unsteered one, whose
    /// [log-probabilities](Self::logprobs) are `base`.
    pub(crate) fn distance(
        self,
        model: &Model,
        base: &Array,
        hook: &mut dyn ResidualHook,
    ) -> Result<Distance> {
        let steered = self.logprobs(model, hook)?;
        let compare = || -> Result<(Array, Array), Exception> {
            let kl = steered.exp()?.multiply(steered.subtract(base)?)?.sum(false)?;
            let agreed = argmax_axis(base, -1, false)?.eq(argmax_axis(&steered, -1, false)?)?;
            Ok((kl, agreed.as_type::<f32>()?.sum(false)?))
        };
        let (kl, agreed) = compare().map_err(|e| failed(&e))?;
        Ok(Distance { kl: item(&kl)?, agreed: item(&agreed)?, tokens: self.answer.len() })
    }

    /// Σ -log p of the answer's tokens under the unsteered model.
    pub(crate) fn surprise(self, model: &Model) -> Result<f64> {
        let logprobs = self.logprobs(model, &mut NoHook)?;
        let ids = Array::from_slice(self.answer, &[1, self.answer.len() as i32, 1]);
        let sum = || logprobs.take_along_axis(&ids, -1)?.sum(false)?.negative();
        item(&sum().map_err(|e| failed(&e))?)
    }

    /// Mean projection of the residual stream on a direction over the answer's tokens.
    pub(crate) fn projection(
        self,
        model: &Model,
        hook: &mut dyn ResidualHook,
        (point, vector): (HookPoint, &[f32]),
    ) -> Result<f64> {
        let mut both = (hook, Capture::new([point]));
        self.hidden(model, &mut both, self.answer.len())?;
        let length = vector.iter().map(|&it| f64::from(it).powi(2)).sum::<f64>().sqrt();
        let unit: Vec<f32> = vector.iter().map(|&it| (f64::from(it) / length) as f32).collect();
        let unit = Array::from_slice(&unit, &[unit.len() as i32, 1]);
        let states = &both.1.captured()[&point];
        let from = self.prompt.len() as i32;
        let mean =
            || states.try_index((.., from.., ..))?.as_type::<f32>()?.matmul(&unit)?.mean(false);
        item(&mean().map_err(|e| failed(&e))?)
    }

    /// Log-probabilities of everything that could have stood at each place of the answer: fp32
    /// `[1, answer, vocabulary]`.
    pub(crate) fn logprobs(self, model: &Model, hook: &mut dyn ResidualHook) -> Result<Array> {
        // The last token predicts nothing.
        let hidden = self.hidden(model, hook, self.answer.len() - 1)?;
        let from = self.prompt.len() as i32 - 1;
        let hidden = hidden.try_index((.., from.., ..)).map_err(|e| failed(&e))?;
        let logits = model.decoder().logits(&hidden)?;
        let sum = logsumexp_axis(&logits, -1, true).map_err(|e| failed(&e))?;
        logits.subtract(sum).map_err(|e| failed(&e))
    }

    fn hidden(self, model: &Model, hook: &mut dyn ResidualHook, answered: usize) -> Result<Array> {
        let tokens = [self.prompt, &self.answer[..answered]].concat();
        let mut cache = model.decoder().new_cache(1);
        if hook.budget(RowId::default()).is_some() {
            // Read as it would have been generated, for how strongly each token is steered.
            cache = self.read_by_token(model, hook, answered)?;
            cache.rewind();
        }
        cache.plan(tokens.len());
        cache.set_prompt_end(self.prompt.len());
        Ok(model.decoder().hidden(&[&tokens], &mut cache, hook)?)
    }

    fn read_by_token(
        self,
        model: &Model,
        hook: &mut dyn ResidualHook,
        answered: usize,
    ) -> Result<KvCache> {
        let prompt = LeftPadded::new(&[self.prompt.to_vec()], 0)?;
        let chunk = DEFAULT_PREFILL_CHUNK;
        let mut session = DecoderSession::prefill(model.decoder(), &prompt, chunk, hook)?;
        for token in &self.answer[..answered] {
            session.feed(std::slice::from_ref(token))?;
        }
        Ok(session.into_cache())
    }
}

fn failed(source: &Exception) -> mlx_genkit::Error {
    ModelError::mlx("measuring the steered model", source).into()
}

fn item(array: &Array) -> Result<f64> {
    let value = array.try_item_exact::<f32>();
    Ok(value.map(f64::from).map_err(|e| ModelError::new(ModelErrorKind::Mlx, e.to_string()))?)
}
