//! The vectorised search of transformers 5 (`GenerationMixin._beam_search`), for beams that take
//! the likeliest tokens and for beams that draw.

use std::iter;

use mlxgk_logits_processors::Context;
use mlxgk_torch::{Ranked, TopK};

use super::{
    BeamOptions, EarlyStopping,
    hypothesis::{Candidate, Hypothesis, OUT, Running, length_divisor},
    log_probs::LogProbs,
};
use crate::{
    Chooser, Error, ErrorKind, FinishReason, LeftPadded, Limits, LoopOutput, Reorder, Result,
    RowEvent, RowGroup, RowId, RowOutput, TokenLoop,
};

/// A beam search under way, for a batch of prompts.
///
/// Each step adds one token to every running beam and has no events; what the sequences are is known
/// at the end only. A prompt whose search is over leaves the batch and costs no more.
///
/// Each step chooses among the continuations of all of a prompt's beams the best
/// `max(2, 1 + end tokens) · num_beams`, so that enough are left when many end. Those that end
/// compete, by their score divided by the length, for the places of the finished; the best of the
/// others run on.
///
/// ```
/// use mlxgk_decoding_strategies::{
///     BeamOptions, BeamSearch, DecoderSession, EarlyStopping, LeftPadded, Limits, RowGroup,
///     TokenLoop,
/// };
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let prompts = LeftPadded::new(&[vec![5, 9, 14]], 0)?;
/// let mut session = DecoderSession::prefill(&model, &prompts, 64, NoHook)?;
/// session.repeat(4)?; // a row per beam
/// let options = BeamOptions {
///     num_beams: 4,
///     num_return_sequences: 2,
///     length_penalty: 1.0,
///     early_stopping: EarlyStopping::Heuristic,
/// };
/// let group = RowGroup::greedy(Limits { max_new_tokens: 5, eos: vec![] });
/// let mut search = BeamSearch::new(session, &prompts, group, options)?;
/// while search.step().transpose()?.is_some() {}
/// let sequences = search.into_parts()?.1;
/// let best = sequences[0].beam.as_ref().unwrap();
/// assert!(best.score >= sequences[1].beam.as_ref().unwrap().score);
/// // The mean of the tokens' log-probabilities, since the length penalty is 1.
/// let sum: f32 = best.transition_scores.iter().sum();
/// assert!((best.score - sum / 5.0).abs() < 1e-4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct BeamSearch<M> {
    model: M,
    group: RowGroup,
    options: BeamOptions,
    searches: Vec<Search>,
    log_probs: LogProbs,
    /// The scores of all beams of a prompt, to draw among.
    flat: Vec<f32>,
    failed: bool,
}

/// The search for one prompt.
#[derive(Debug)]
struct Search {
    /// Best first.
    running: Running,
    /// As many places as there are beams, best first.
    finished: Vec<Place>,
    /// The processor that left none of the beams a token.
    banned_by: Option<&'static str>,
    over: bool,
}

/// A place among the finished.
#[derive(Debug)]
struct Place {
    /// Divided by the length; about [`OUT`] where the place is free.
    score: f32,
    finished: Option<(Hypothesis, FinishReason)>,
}

impl<M: Reorder> BeamSearch<M> {
    /// Continues prompts, each of which `model` has been fed `num_beams` times in succession, and where the
    /// group is [guided](RowGroup::guidance) what they are moved away from as often, behind them all.
    ///
    /// As in HF those second rows stay where they are when beams change places: each reads the token of
    /// whichever beam takes the place, whatever that beam's own text is.
    ///
    /// The group's chooser draws or takes the best. One row's [`Sampling`](crate::Sampling) is enough:
    /// it serves all beams. A criterion is asked of every continuation in the choice.
    ///
    /// # Errors
    /// When there are no beams, or fewer than sequences to return.
    pub fn new(
        model: M,
        prompts: &LeftPadded,
        group: RowGroup,
        options: BeamOptions,
    ) -> Result<Self> {
        options.check()?;
        let over = group.limits().max_new_tokens == 0;
        let prompts = prompts.rows().iter().zip(prompts.padding()).enumerate();
        let search = |(index, (prompt, &padding)): (usize, (&Vec<u32>, &usize))| {
            let running = Running::start(index, prompt, padding, options.num_beams);
            let free = || Place { score: OUT, finished: None };
            let finished = iter::repeat_with(free).take(options.num_beams).collect();
            Search { running, finished, banned_by: None, over }
        };
        let searches = prompts.map(search).collect();
        let (log_probs, flat, failed) = (LogProbs::default(), Vec::new(), false);
        Ok(Self { model, group, options, searches, log_probs, flat, failed })
    }

    /// Gives up the model, and the best sequences of each prompt, best first.
    ///
    /// # Errors
    /// When a prompt has fewer finished sequences than are to be returned: before the end of the
    /// search, or because processors banned all others.
    pub fn into_parts(self) -> Result<(M, Vec<RowOutput>)> {
        let wanted = self.options.num_return_sequences;
        let mut rows = Vec::with_capacity(self.searches.len() * wanted);
        for (prompt, search) in self.searches.into_iter().enumerate() {
            let finished: Vec<_> =
                search.finished.into_iter().filter_map(|it| it.finished).collect();
            let found = finished.len();
            if found < wanted {
                let what = format!(
                    "prompt {prompt}: {found} of {wanted} sequences could be finished; all other \
                     continuations are banned{}",
                    search.banned_by.map_or_else(String::new, |it| format!(": `{it}` leaves none"))
                );
                return Err(Error::new(ErrorKind::NoToken, what));
            }
            let best = finished.into_iter().take(wanted);
            rows.extend(best.map(|(it, end)| it.into_output(prompt, end)));
        }
        Ok((self.model, rows))
    }

    fn is_done(&self) -> bool {
        self.failed || self.searches.iter().all(|it| it.over)
    }

    fn advance(&mut self) -> Result<()> {
        let beams = self.options.num_beams;
        self.score()?;
        // Which row of this step each beam of the next goes on from, and with which token.
        let (mut rows, mut tokens, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        let mut first_row = 0;
        for prompt in 0..self.searches.len() {
            if self.searches[prompt].over {
                self.group.rules.chooser.skip(prompt, beams * self.model.vocab_size());
                continue;
            }
            let candidates = self.candidates(prompt, first_row)?;
            let is_banned = |it: &Candidate| it.log_prob == f32::NEG_INFINITY;
            let banned_by = match candidates.iter().all(is_banned) {
                true => self.banning(prompt, first_row)?,
                false => None,
            };
            let search = &mut self.searches[prompt];
            search.banned_by = banned_by;
            let go_on = search.retain(prompt * beams, &candidates, &self.options);
            let stuck = candidates.iter().all(|it| it.end.is_some());
            search.over = stuck || search.is_over(&self.options, self.group.limits());
            if !search.over {
                rows.extend(go_on.iter().map(|it| first_row + it.beam));
                tokens.extend(go_on.iter().map(|it| it.token));
                kept.extend(first_row..first_row + beams);
            }
            first_row += beams;
        }
        if rows.is_empty() {
            return Ok(());
        }
        let mut all = first_row;
        if self.group.is_guided() {
            rows.extend(kept.iter().map(|it| first_row + it));
            tokens.extend_from_within(..);
            all *= 2;
        }
        if !rows.iter().copied().eq(0..all) {
            self.model.reorder(&rows)?;
        }
        self.model.feed(&tokens)
    }

    /// Loads the log-probabilities of all rows, processed and, for draws, warped.
    fn score(&mut self) -> Result<()> {
        let searches = self.searches.iter().filter(|it| !it.over);
        let contexts: Vec<Option<Context<'_>>> =
            searches.flat_map(|it| it.running.contexts()).collect();
        let vocab = self.model.vocab_size();
        let (logits, without) = self.model.scores()?.split_at(contexts.len() * vocab);
        self.log_probs.load(logits, vocab)?;
        if let Some(scale) = self.group.guidance {
            self.log_probs.guide(without, scale)?;
        }
        self.log_probs.process(0, &contexts, &self.group.rules.processors)?;
        if let Chooser::Sample(sampling) = &mut self.group.rules.chooser {
            for (row, context) in contexts.iter().enumerate() {
                if let Some(context) = context {
                    sampling.warp(0, context, self.log_probs.row_mut(row))?;
                }
            }
        }
        Ok(())
    }

    /// The processor that leaves a prompt's best beam no token.
    fn banning(&mut self, prompt: usize, first_row: usize) -> Result<Option<&'static str>> {
        let vocab = self.model.vocab_size();
        let logits = &self.model.scores()?[first_row * vocab..][..vocab];
        let best = self.searches[prompt].running.contexts().next().flatten();
        Ok(best.and_then(|it| self.group.rules.processors.banning_all(&it, logits)))
    }

    /// The continuations to choose from, best first or in the order drawn. The prompt's beams are
    /// the rows from `first_row` on.
    fn candidates(&mut self, prompt: usize, first_row: usize) -> Result<Vec<Candidate>> {
        let (beams, vocab) = (self.options.num_beams, self.model.vocab_size());
        let running = &mut self.searches[prompt].running;
        let count = (1 + self.group.limits().eos.len()).max(2) * beams;
        let candidate = |place: usize| {
            let (beam, token) = (place / vocab, (place % vocab) as u32);
            let log_prob = self.log_probs.row(first_row + beam)[token as usize];
            let score = log_prob + running.beams()[beam].score;
            Candidate { beam, token, log_prob, score, end: None }
        };
        let rows = running.beams().iter().zip(first_row..);
        let mut candidates: Vec<Candidate> = match &mut self.group.rules.chooser {
            Chooser::Greedy => {
                let mut best = TopK::new(count, beams * vocab);
                rows.for_each(|(beam, row)| best.offer(self.log_probs.row(row), beam.score));
                best.finish().into_iter().map(|it| candidate(it.place)).collect()
            }
            Chooser::Sample(sampling) => {
                self.flat.clear();
                for (beam, row) in rows {
                    self.flat.extend(self.log_probs.row(row).iter().map(|it| it + beam.score));
                }
                let drawn = sampling.draw_among(prompt, &self.flat, count)?;
                filled_up(drawn, count, self.flat.len()).into_iter().map(candidate).collect()
            }
        };
        let stop = &mut self.group.rules.stop;
        for it in &mut candidates {
            let end = running.with_token(it.beam, it.token, |context| stop.check(context));
            it.end = end.map_err(Error::of_criterion)?;
        }
        Ok(candidates)
    }
}

/// The places drawn, and where they are fewer than asked for, places of probability 0: torch draws
/// by the highest of `p / q` and takes the zeros in the order of `torch.topk`.
fn filled_up(drawn: &[u32], count: usize, len: usize) -> Vec<usize> {
    let mut ranks = vec![0.0; if drawn.len() < count { len } else { 0 }];
    if ranks.is_empty() {
        return drawn.iter().map(|&it| it as usize).collect();
    }
    for (rank, &place) in drawn.iter().rev().enumerate() {
        ranks[place as usize] = (rank + 1) as f32;
    }
    let mut best = TopK::new(count, len);
    best.offer(&ranks, 0.0);
    best.finish().into_iter().map(|it| it.place).collect()
}

impl Search {
    /// Sorts the candidates into those that have ended and those that run on, which it returns,
    /// best first. `first_row` is the row of the prompt's first beam in a batch that no prompt has
    /// left.
    fn retain(
        &mut self,
        first_row: usize,
        candidates: &[Candidate],
        options: &BeamOptions,
    ) -> Vec<Candidate> {
        let beams = self.running.beams();
        let new_tokens = beams[0].tokens.len() + 1;
        let divisor = length_divisor(new_tokens, options.length_penalty);
        // Candidates that rank lower are there to be continued, not returned. A score that a free place has
        // too is that of a beam that was never filled, and NaN that of a penalty out of range.
        let counts = |at: usize| at < options.num_beams && candidates[at].score / divisor > OUT;
        let ends = |at: usize| candidates[at].end.filter(|_| counts(at));
        // Places and candidates are ranked at once, as in HF: that orders equals.
        let held = self.finished.iter().map(|it| it.score);
        let offered = candidates.iter().enumerate().map(|(at, it)| {
            let score = it.score / divisor;
            if ends(at).is_some() { score } else { score + OUT }
        });
        let scores: Vec<f32> = held.chain(offered).collect();
        let mut best = TopK::new(options.num_beams, scores.len());
        best.offer(&scores, 0.0);
        let mut held: Vec<Option<Place>> = self.finished.drain(..).map(Some).collect();
        for Ranked { score, place } in best.finish() {
            let kept = held.get_mut(place).map(Option::take);
            self.finished.extend(kept.unwrap_or_else(|| {
                let at = place - options.num_beams;
                let row = first_row + candidates[at].beam;
                let sequence = || beams[candidates[at].beam].extended(row, &candidates[at], score);
                Some(Place { score, finished: ends(at).map(|end| (sequence(), end)) })
            }));
        }
        let score = |it: &Candidate| if it.end.is_some() { it.score + OUT } else { it.score };
        let scores: Vec<f32> = candidates.iter().map(score).collect();
        let mut best = TopK::new(options.num_beams, scores.len());
        best.offer(&scores, 0.0);
        let go_on: Vec<Candidate> =
            best.finish().into_iter().map(|it| candidates[it.place]).collect();
        self.running.advance(&go_on, first_row, score);
        go_on
    }

    /// What a sequence has to beat to be among the finished, where no place is free.
    fn worst_finished(&self) -> Option<f32> {
        self.finished.iter().map(|it| it.finished.is_some().then_some(it.score)).next_back()?
    }

    /// Whether nothing can change any more, as HF estimates.
    fn is_over(&self, options: &BeamOptions, limits: &Limits) -> bool {
        let worst = self.worst_finished();
        let best = &self.running.beams()[0];
        let new_tokens = best.tokens.len();
        if worst.is_some() && options.early_stopping == EarlyStopping::WhenFinished {
            return true;
        }
        let hopeful = options.early_stopping == EarlyStopping::Never;
        let length = if hopeful && options.length_penalty > 0.0 {
            limits.max_new_tokens
        } else {
            new_tokens
        };
        let best = best.score / length_divisor(length, options.length_penalty);
        best <= worst.unwrap_or(OUT)
    }
}

impl<M: Reorder> TokenLoop for BeamSearch<M> {
    fn wait(&mut self) -> Result<()> {
        self.model.scores().map(drop)
    }

    fn step(&mut self) -> Option<Result<Vec<RowEvent>>> {
        if self.is_done() {
            return None;
        }
        let step = self.advance();
        self.failed = step.is_err();
        Some(step.map(|()| Vec::new()))
    }

    /// Beams do not end one by one.
    fn leave(&mut self, _: RowId) -> bool {
        false
    }

    fn finish(self: Box<Self>) -> Result<LoopOutput> {
        Ok(LoopOutput { rows: self.into_parts()?.1, ..LoopOutput::default() })
    }
}
