//! The searches that transformers 5 has moved out: beams in groups that avoid one another, and
//! beams that have to say given words.
//!
//! Both are written on the older loop (`_group_beam_search` and `_constrained_beam_search` of 4.46),
//! in which each prompt or group keeps a heap of finished sequences and stops for itself.

use mlxgk_logits_processors::{Context, ProcessorList, Stage};
use mlxgk_torch::TopK;

use super::{
    BeamOptions,
    constrained::with_advancing,
    constraint::{Constraint, Progress},
    heap::{Finished, Heap},
    hypothesis::{Candidate, Hypothesis, Running},
    log_probs::LogProbs,
};
use crate::{
    Error, ErrorKind, FinishReason, LeftPadded, Limits, LoopOutput, Reorder, Result, RowEvent,
    RowGroup, RowId, RowOutput, TokenLoop,
};

/// What sets a search apart.
///
/// See the example of [`HeapBeamSearch`].
#[derive(Debug, Clone, PartialEq)]
pub enum Variant {
    /// Diverse beam search (Vijayakumar et al., arXiv 1610.02424): in every step the groups choose
    /// one after the other, and a token that earlier groups have chosen in it costs
    /// `diversity_penalty` for each time.
    Groups {
        /// How many groups the beams are divided into.
        groups: usize,
        /// Taken from a token's log-probability.
        diversity_penalty: f64,
    },
    /// Constrained beam search (Post and Vilar, arXiv 1804.06609): every sequence returned meets
    /// every constraint, with its own tokens or the prompt's.
    Words(Vec<Constraint>),
}

/// A search in groups or for given words, under way; stepped like [`BeamSearch`](crate::BeamSearch).
///
/// Sequences that end with any of several end tokens are returned with the first of them, as in HF.
///
/// ```
/// use mlxgk_decoding_strategies::{
///     BeamOptions, Constraint, DecoderSession, EarlyStopping, HeapBeamSearch, LeftPadded, Limits,
///     RowGroup, TokenLoop, Variant,
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
///     num_return_sequences: 1,
///     length_penalty: 1.0,
///     early_stopping: EarlyStopping::Heuristic,
/// };
/// let group = RowGroup::greedy(Limits { max_new_tokens: 5, eos: vec![] });
/// let words = Variant::Words(vec![Constraint::phrase(vec![20, 21])?]);
/// let mut search = HeapBeamSearch::new(session, &prompts, group, options, words)?;
/// while search.step().transpose()?.is_some() {}
/// let best = search.into_parts()?.1.remove(0);
/// assert!(best.tokens.windows(2).any(|it| it == [20, 21]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct HeapBeamSearch<M> {
    model: M,
    /// Up to HF's place for the diversity penalty, and after it.
    processors: [ProcessorList; 2],
    diversity_penalty: f64,
    constraints: Vec<Constraint>,
    limits: Limits,
    pad: u32,
    options: BeamOptions,
    /// Of each prompt.
    searches: Vec<Vec<Group>>,
    log_probs: LogProbs,
    steps: usize,
    failed: bool,
}

/// Some beams of one prompt that compete with one another.
#[derive(Debug)]
struct Group {
    running: Running,
    /// Of each beam, with the constraints.
    progress: Vec<Progress>,
    heap: Heap,
    done: bool,
}

impl<M: Reorder> HeapBeamSearch<M> {
    /// Continues prompts as [`BeamSearch::new`](crate::BeamSearch::new) does, always with the likeliest
    /// tokens. HF feeds the group's padding to beams whose search is done; other groups of the prompt
    /// avoid it like their other tokens.
    ///
    /// # Errors
    /// When there are no beams, or fewer than sequences to return; when groups do not divide the
    /// beams; when the constraints need more tokens than there may be; when there are stopping
    /// criteria, which these searches do not ask.
    pub fn new(
        model: M,
        prompts: &LeftPadded,
        group: RowGroup,
        options: BeamOptions,
        variant: Variant,
    ) -> Result<Self> {
        options.check()?;
        if group.rules.stop.has_criteria() {
            let what =
                "group and constrained beam search stop only at end tokens and the length limit";
            return Err(Error::new(ErrorKind::Prompt, what));
        }
        let limits = group.limits().clone();
        let (groups, diversity_penalty, constraints) = match variant {
            Variant::Groups { groups, diversity_penalty } => (groups, diversity_penalty, vec![]),
            Variant::Words(constraints) => (1, 0.0, constraints),
        };
        if groups == 0 || !options.num_beams.is_multiple_of(groups) {
            let what =
                format!("{} beams cannot be divided into {groups} groups", options.num_beams);
            return Err(Error::new(ErrorKind::Prompt, what));
        }
        let size = options.num_beams / groups;
        let mut searches = Vec::with_capacity(prompts.rows().len());
        for (index, (prompt, &padding)) in prompts.rows().iter().zip(prompts.padding()).enumerate()
        {
            let progress = Progress::after(prompt, &constraints);
            check_room(index, progress.missing(&constraints), &limits)?;
            let group = || Group {
                running: Running::start(index, prompt, padding, size),
                progress: vec![progress.clone(); size],
                heap: Heap::new(size),
                done: false,
            };
            searches.push((0..groups).map(|_| group()).collect());
        }
        let mut before = group.rules.processors;
        let place = before.iter().take_while(|it| it.stage() <= Stage::SequenceBias).count();
        let after = before.split_off(place);
        Ok(Self {
            model,
            processors: [before, after],
            diversity_penalty,
            constraints,
            limits,
            pad: group.pad,
            options,
            searches,
            log_probs: LogProbs::default(),
            steps: 0,
            failed: false,
        })
    }

    /// Gives up the model, and the best sequences of each prompt, best first.
    ///
    /// # Errors
    /// When too few sequences of a prompt meet the constraints; the message names one that is
    /// missing.
    pub fn into_parts(self) -> Result<(M, Vec<RowOutput>)> {
        let mut rows = Vec::new();
        for (prompt, groups) in self.searches.into_iter().enumerate() {
            let mut found: Vec<Finished> = Vec::new();
            let mut unmet = None;
            for mut group in groups {
                unmet = unmet.or(group.unmet(&self.constraints).cloned());
                if !group.done {
                    group.close(self.steps, &self.options);
                }
                found.extend(group.heap.entries);
            }
            let wanted = self.options.num_return_sequences;
            if found.len() < wanted {
                return Err(too_few(prompt, found.len(), wanted, unmet.as_ref(), self.steps));
            }
            // The last of equals comes first, as from the end of a list that Python has sorted.
            found.reverse();
            found.sort_by(|a, b| b.score.total_cmp(&a.score));
            rows.extend(found.into_iter().take(wanted).map(|it| {
                let hypothesis = Hypothesis { score: it.score as f32, ..it.hypothesis };
                hypothesis.into_output(prompt, it.finish_reason)
            }));
        }
        Ok((self.model, rows))
    }

    fn is_done(&self) -> bool {
        self.failed
            || self.steps >= self.limits.max_new_tokens
            || self.searches.iter().flatten().all(|it| it.done)
    }

    fn advance(&mut self) -> Result<()> {
        let vocab = self.model.vocab_size();
        self.log_probs.load(self.model.scores()?, vocab)?;
        self.steps += 1;
        let (mut rows, mut tokens) = (Vec::new(), Vec::new());
        let mut first_row = 0;
        for prompt in 0..self.searches.len() {
            // What the groups of this prompt have chosen in this step.
            let mut chosen = Vec::new();
            for at in 0..self.searches[prompt].len() {
                let size = self.searches[prompt][at].progress.len();
                if self.searches[prompt][at].done {
                    chosen.extend(std::iter::repeat_n(self.pad, size));
                    continue;
                }
                let go_on = self.advance_group(prompt, at, first_row, &chosen)?;
                chosen.extend(go_on.iter().map(|it| it.token));
                if !self.searches[prompt][at].done {
                    rows.extend(go_on.iter().map(|it| first_row + it.beam));
                    tokens.extend(go_on.iter().map(|it| it.token));
                }
                first_row += size;
            }
        }
        if self.is_done() {
            return Ok(());
        }
        if !rows.iter().copied().eq(0..first_row) {
            self.model.reorder(&rows)?;
        }
        self.model.feed(&tokens)
    }

    /// Gives every beam of a group, the rows from `first_row` on, its next token.
    fn advance_group(
        &mut self,
        prompt: usize,
        at: usize,
        first_row: usize,
        chosen: &[u32],
    ) -> Result<Vec<Candidate>> {
        let group = &self.searches[prompt][at];
        let contexts: Vec<Option<Context<'_>>> = group.running.contexts().collect();
        let beams = group.running.beams();
        let rows = first_row..first_row + beams.len();
        self.log_probs.process(first_row, &contexts, &self.processors[0])?;
        for row in rows.clone() {
            avoid(self.log_probs.row_mut(row), chosen, self.diversity_penalty);
        }
        self.log_probs.process(first_row, &contexts, &self.processors[1])?;

        let vocab = self.model.vocab_size();
        let count = (1 + self.limits.eos.len()).max(2) * beams.len();
        let mut best = TopK::new(count, beams.len() * vocab);
        for (beam, row) in beams.iter().zip(rows) {
            best.offer(self.log_probs.row(row), beam.score);
        }
        let candidate = |beam: usize, token: u32| {
            let log_prob = self.log_probs.row(first_row + beam)[token as usize];
            let end = self.limits.eos.contains(&token).then_some(FinishReason::Eos);
            Candidate { beam, token, log_prob, score: log_prob + beams[beam].score, end }
        };
        let places = best.finish().into_iter().map(|it| it.place);
        let candidates: Vec<Candidate> =
            places.map(|place| candidate(place / vocab, (place % vocab) as u32)).collect();

        // Where the beams would stand if nothing had left the batch.
        let whole_row = prompt * self.options.num_beams + at * beams.len();
        let group = &mut self.searches[prompt][at];
        let mut go_on =
            group.sort_out(&candidates, whole_row, self.steps, &self.options, &self.limits);
        if !self.constraints.is_empty() {
            let candidate = |beam: usize, token: u32| {
                let log_prob = self.log_probs.row(first_row + beam)[token as usize];
                let score = log_prob + group.running.beams()[beam].score;
                Candidate { beam, token, log_prob, score, end: None }
            };
            let (running, progress) = (group.running.beams(), &group.progress);
            go_on = with_advancing(go_on, running, progress, &self.constraints, candidate);
        }
        group.go_on(&go_on, whole_row, &self.constraints);
        let best = candidates.first().map_or(f32::NEG_INFINITY, |it| it.score);
        group.done =
            group.heap.is_done(best, self.steps, self.limits.max_new_tokens, &self.options);
        Ok(go_on)
    }
}

impl Group {
    /// Puts what has ended into the heap, and returns the best of the rest, one for each beam.
    fn sort_out(
        &mut self,
        candidates: &[Candidate],
        first_row: usize,
        new_tokens: usize,
        options: &BeamOptions,
        limits: &Limits,
    ) -> Vec<Candidate> {
        let size = self.progress.len();
        let mut go_on = Vec::with_capacity(size);
        for (rank, candidate) in candidates.iter().enumerate() {
            match candidate.end {
                None => go_on.push(*candidate),
                Some(end) if rank < size && self.progress[candidate.beam].is_complete() => {
                    let first = Candidate { token: limits.eos[0], ..*candidate };
                    let (row, parent) = (first_row + first.beam, &self.running.beams()[first.beam]);
                    let hypothesis = || parent.extended(row, &first, first.score);
                    let penalty = options.length_penalty;
                    self.heap.add(first.score, new_tokens, penalty, end, hypothesis);
                }
                Some(_) => {}
            }
            if go_on.len() == size {
                break;
            }
        }
        go_on
    }

    /// Makes the chosen continuations the running beams.
    fn go_on(&mut self, chosen: &[Candidate], first_row: usize, constraints: &[Constraint]) {
        let progress = |it: &Candidate| {
            let mut progress = self.progress[it.beam].clone();
            progress.add(it.token, constraints);
            progress
        };
        self.progress = chosen.iter().map(progress).collect();
        self.running.advance(chosen, first_row, |it| it.score);
    }

    /// Lets the beams that still run, and lack nothing, compete with the finished.
    fn close(&mut self, new_tokens: usize, options: &BeamOptions) {
        for (beam, progress) in self.running.beams().iter().zip(&self.progress) {
            if progress.is_complete() && beam.score > f32::NEG_INFINITY {
                let end = FinishReason::Length;
                let penalty = options.length_penalty;
                self.heap.add(beam.score, new_tokens, penalty, end, || beam.clone());
            }
        }
    }

    /// A constraint that the best running beam does not meet.
    fn unmet<'a>(&self, constraints: &'a [Constraint]) -> Option<&'a Constraint> {
        self.progress.iter().find_map(|it| it.unmet(constraints))
    }
}

/// Takes the penalty from every token as often as it was chosen.
fn avoid(scores: &mut [f32], chosen: &[u32], penalty: f64) {
    for (at, &token) in chosen.iter().enumerate() {
        let count = chosen.iter().filter(|it| **it == token).count();
        let is_first = !chosen[..at].contains(&token);
        if let Some(score) = scores.get_mut(token as usize).filter(|_| is_first) {
            *score -= penalty as f32 * count as f32;
        }
    }
}

fn check_room(prompt: usize, missing: usize, limits: &Limits) -> Result<()> {
    if missing > limits.max_new_tokens {
        let what = format!(
            "prompt {prompt}: the forced words need {missing} tokens, but only {} may be generated",
            limits.max_new_tokens
        );
        return Err(Error::new(ErrorKind::Constraint, what));
    }
    Ok(())
}

fn too_few(
    prompt: usize,
    found: usize,
    wanted: usize,
    unmet: Option<&Constraint>,
    steps: usize,
) -> Error {
    let Some(unmet) = unmet else {
        let what = format!(
            "prompt {prompt}: {found} of {wanted} sequences could be finished; all other continuations are banned"
        );
        return Error::new(ErrorKind::NoToken, what);
    };
    let words = match unmet.alternatives() {
        [phrase] => format!("{phrase:?}"),
        alternatives => format!("any of {alternatives:?}"),
    };
    let what = format!(
        "prompt {prompt}: after {steps} tokens {found} of {wanted} sequences hold every forced \
         word; others lack {words}: allow more tokens or more beams"
    );
    Error::new(ErrorKind::Constraint, what)
}

impl<M: Reorder> TokenLoop for HeapBeamSearch<M> {
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
