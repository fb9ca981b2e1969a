//! The loops that hand out tokens as they are made, behind one face.

use mlxgk_decoding_strategies::{
    Acceptance, AssistedDecoding, Contrast, ContrastiveSearch, ContrastiveSession, Decoded,
    DecoderSession, Decoding, DolaLayers, DolaSession, Guided, LeftPadded, Stopping,
};
use mlxgk_generation_config::{self as fields, GenerationMode};
use mlxgk_kv_cache::KvCache;

use crate::{
    Error, Result,
    assistant::generator,
    generate::{Job, chunk, prefill, resume},
};

/// A loop under way.
#[derive(Debug)]
pub(crate) enum Strategy<'a> {
    Plain(Decoding<DecoderSession<'a>>),
    Guided(Decoding<Guided<DecoderSession<'a>>>),
    Assisted(Box<AssistedDecoding<'a, DecoderSession<'a>>>),
    Dola(Decoding<DolaSession<'a>>),
    Contrastive(Box<ContrastiveSearch<ContrastiveSession<'a>>>),
}

/// What a loop leaves.
pub(crate) struct Outcome {
    /// The rows as far as they got.
    pub(crate) rows: Vec<Decoded>,
    /// How well guesses did.
    pub(crate) acceptance: Option<Acceptance>,
    /// What the model was fed, where that is all that a loop reads.
    pub(crate) cache: Option<KvCache>,
}

impl Outcome {
    fn of(rows: Vec<Decoded>) -> Self {
        Self { rows, acceptance: None, cache: None }
    }
}

impl<'a> Strategy<'a> {
    /// Feeds the prompt and starts the loop; `rows` are the prompts, each repeated for its copies.
    pub(crate) fn start(job: Job<'a>, rows: &LeftPadded) -> Result<Self> {
        match job.resolved.mode {
            GenerationMode::AssistedGeneration => Self::assisted(job),
            GenerationMode::ContrastiveSearch => Self::contrastive(job),
            GenerationMode::DolaGeneration => Self::dola(job, rows),
            _ => Self::plain(job, rows),
        }
    }

    fn assisted(job: Job<'a>) -> Result<Self> {
        let prompt = &job.padded.rows()[0];
        let generator = generator(&job.resolved, job.model, job.assistant, prompt)?;
        let session = match job.cache {
            Some(cache) => resume(job.model, &job.resolved, cache, prompt, job.hook)?,
            None => prefill(job.model, &job.resolved, &job.padded, 1, job.hook)?,
        };
        let weight = job.resolved.config.assistant_ensemble_weight;
        let (processors, rule, stopping) = (job.processors, job.rule, job.stopping);
        let decoding =
            AssistedDecoding::new(session, generator, prompt, processors, rule, stopping);
        Ok(Self::Assisted(Box::new(decoding.keep(job.keep).ensemble_weight(weight))))
    }

    fn contrastive(job: Job<'a>) -> Result<Self> {
        let (chunk, rows) = (chunk(&job.resolved), &job.padded);
        let session = ContrastiveSession::prefill(job.model.decoder(), rows, chunk, job.hook)?;
        let contrast = Contrast {
            penalty_alpha: job.resolved.config.penalty_alpha.unwrap_or(0.0),
            top_k: job.resolved.config.top_k.unwrap_or(1),
        };
        let (prompts, padding) = (rows.rows(), rows.padding());
        let (processors, stopping) = (job.processors, job.stopping);
        let search = ContrastiveSearch::new(
            session, prompts, padding, processors, contrast, stopping, job.pad,
        );
        Ok(Self::Contrastive(Box::new(search.keep(job.keep))))
    }

    fn dola(job: Job<'a>, rows: &LeftPadded) -> Result<Self> {
        let (model, chunk) = (job.model.decoder(), chunk(&job.resolved));
        let layers = match job.resolved.config.dola_layers {
            None | Some(fields::DolaLayers::Low) => DolaLayers::Low,
            Some(fields::DolaLayers::High) => DolaLayers::High,
            Some(fields::DolaLayers::Listed(layers)) => DolaLayers::Listed(layers),
        };
        let mut session = DolaSession::prefill(model, &job.padded, chunk, job.hook, &layers)?;
        session.repeat(job.copies)?;
        let (prompts, padding) = (rows.rows(), rows.padding());
        let (processors, rule, stopping) = (job.processors, job.rule, job.stopping);
        let decoding =
            Decoding::new(session, prompts, padding, processors, rule, stopping, job.pad);
        // Of several layers all rows choose one, those that have ended included.
        Ok(Self::Dola(decoding.keep(job.keep).keep_ended_rows()))
    }

    fn plain(job: Job<'a>, rows: &LeftPadded) -> Result<Self> {
        let Job { model, resolved, padded, pad, copies, keep, hooked, .. } = job;
        let (processors, rule, stopping) = (job.processors, job.rule, job.stopping);
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
            Self::Dola(it) => it.stopping(),
            Self::Contrastive(it) => it.stopping(),
            Self::Assisted(it) => it.stopping(),
        }
    }

    pub(crate) fn has_ended(&self, row: usize) -> bool {
        let row = match self {
            Self::Plain(it) => &it.rows()[row],
            Self::Guided(it) => &it.rows()[row],
            Self::Dola(it) => &it.rows()[row],
            Self::Contrastive(it) => &it.rows()[row],
            Self::Assisted(it) => it.row(),
        };
        row.finish_reason.is_some()
    }

    /// Waits for the scores of the first token.
    pub(crate) fn wait(&mut self) -> Result<()> {
        match self {
            Self::Plain(it) => it.wait()?,
            Self::Guided(it) => it.wait()?,
            Self::Dola(it) => it.wait()?,
            Self::Contrastive(it) => it.wait()?,
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
            Self::Dola(it) => it.next().map(|it| it.map(step).map_err(Error::from)),
            Self::Contrastive(it) => it.next().map(|it| it.map(step).map_err(Error::from)),
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
            Self::Guided(it) => Outcome::of(it.into_parts().1),
            Self::Dola(it) => Outcome::of(it.into_parts().1),
            Self::Contrastive(it) => Outcome::of(it.into_parts().1),
            Self::Assisted(it) => {
                let acceptance = Some(it.acceptance());
                let (session, row) = it.into_parts();
                let cache = Some(session.into_cache());
                Outcome { rows: vec![row], acceptance, cache }
            }
        }
    }
}
