//! The loops that hand out tokens as they are made, behind one face.

use mlxgk_decoding_strategies::{
    Acceptance, AssistedDecoding, Decoded, DecoderSession, Decoding, Guided, LeftPadded, Stopping,
};
use mlxgk_generation_config::GenerationMode;
use mlxgk_kv_cache::KvCache;

use crate::{
    Error, Result,
    assistant::generator,
    generate::{Job, prefill, resume},
};

/// A loop under way.
#[derive(Debug)]
pub(crate) enum Strategy<'a> {
    Plain(Decoding<DecoderSession<'a>>),
    Guided(Decoding<Guided<DecoderSession<'a>>>),
    Assisted(Box<AssistedDecoding<'a, DecoderSession<'a>>>),
}

/// What a loop leaves.
pub(crate) struct Outcome {
    /// The rows as far as they got.
    pub(crate) rows: Vec<Decoded>,
    /// How well guesses did.
    pub(crate) acceptance: Option<Acceptance>,
    /// What the model was fed; none where the rows ran twice.
    pub(crate) cache: Option<KvCache>,
}

impl<'a> Strategy<'a> {
    /// Feeds the prompt and starts the loop; `rows` are the prompts, each repeated for its copies.
    pub(crate) fn start(job: Job<'a>, rows: &LeftPadded) -> Result<Self> {
        let Job { model, resolved, padded, pad, copies, keep, hooked, .. } = job;
        let (processors, rule, stopping) = (job.processors, job.rule, job.stopping);
        if resolved.mode == GenerationMode::AssistedGeneration {
            let prompt = &padded.rows()[0];
            let generator = generator(&resolved, model, job.assistant, prompt)?;
            let session = match job.cache {
                Some(cache) => resume(model, &resolved, cache, prompt, job.hook)?,
                None => prefill(model, &resolved, &padded, 1, job.hook)?,
            };
            let weight = resolved.config.assistant_ensemble_weight;
            let decoding =
                AssistedDecoding::new(session, generator, prompt, processors, rule, stopping);
            return Ok(Self::Assisted(Box::new(decoding.keep(keep).ensemble_weight(weight))));
        }
        let (prompts, padding) = (rows.rows(), rows.padding());
        if let Some(guidance) = job.guidance {
            let session = prefill(model, &resolved, &guidance.rows, copies, job.hook)?;
            let guided = Guided::new(session, guidance.scale);
            let decoding =
                Decoding::new(guided, prompts, padding, processors, rule, stopping, pad).keep(keep);
            return Ok(Self::Guided(if hooked { decoding.keep_ended_rows() } else { decoding }));
        }
        let session = match job.cache {
            Some(cache) => resume(model, &resolved, cache, &prompts[0], job.hook)?,
            None => prefill(model, &resolved, &padded, copies, job.hook)?,
        };
        let decoding =
            Decoding::new(session, prompts, padding, processors, rule, stopping, pad).keep(keep);
        Ok(Self::Plain(if hooked { decoding.keep_ended_rows() } else { decoding }))
    }

    pub(crate) fn stopping(&self) -> &Stopping {
        match self {
            Self::Plain(it) => it.stopping(),
            Self::Guided(it) => it.stopping(),
            Self::Assisted(it) => it.stopping(),
        }
    }

    pub(crate) fn has_ended(&self, row: usize) -> bool {
        let row = match self {
            Self::Plain(it) => &it.rows()[row],
            Self::Guided(it) => &it.rows()[row],
            Self::Assisted(it) => it.row(),
        };
        row.finish_reason.is_some()
    }

    /// Waits for the scores of the first token.
    pub(crate) fn wait(&mut self) -> Result<()> {
        match self {
            Self::Plain(it) => it.wait()?,
            Self::Guided(it) => it.wait()?,
            Self::Assisted(it) => it.wait()?,
        }
        Ok(())
    }

    /// The next tokens, each with its row; a row's are in order.
    pub(crate) fn next(&mut self) -> Option<Result<Vec<(usize, u32)>>> {
        let step = |step: Vec<Option<u32>>| {
            step.into_iter().enumerate().filter_map(|(row, token)| Some((row, token?))).collect()
        };
        let turn = |turn: Vec<u32>| turn.into_iter().map(|token| (0, token)).collect();
        match self {
            Self::Plain(it) => it.next().map(|it| it.map(step).map_err(Error::from)),
            Self::Guided(it) => it.next().map(|it| it.map(step).map_err(Error::from)),
            Self::Assisted(it) => it.next().map(|it| it.map(turn).map_err(Error::from)),
        }
    }

    /// Ends the loop.
    pub(crate) fn finish(self) -> Outcome {
        match self {
            Self::Plain(it) => {
                let (session, rows) = it.into_parts();
                Outcome { rows, acceptance: None, cache: Some(session.into_cache()) }
            }
            Self::Guided(it) => Outcome { rows: it.into_parts().1, acceptance: None, cache: None },
            Self::Assisted(it) => {
                let acceptance = Some(it.acceptance());
                let (session, row) = it.into_parts();
                let cache = Some(session.into_cache());
                Outcome { rows: vec![row], acceptance, cache }
            }
        }
    }
}
