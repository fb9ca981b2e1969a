//! The vectorised search of transformers 5 (`GenerationMixin._beam_search`), for beams that take
//! the likeliest tokens and for beams that draw.

use mlxgk_logits_processors::{Context, ProcessorList};

use super::{
    Beam, BeamOptions, EarlyStopping,
    hypothesis::{Candidate, Hypothesis, OUT, length_divisor},
    log_probs::LogProbs,
};
use crate::{Error, ErrorKind, FinishReason, Reorder, Result, Rule, Stop, Stopping, top_k::TopK};

/// A beam search under way, for a batch of prompts.
///
/// An iterator over steps, each of which adds one token to every running beam; nothing can be said
/// of the outcome before the end. A prompt whose search is over leaves the batch and costs no more.
///
/// Each step chooses among the continuations of all of a prompt's beams the best
/// `max(2, 1 + end tokens) · num_beams`, so that enough are left when many end. Those that end
/// compete, by their score divided by the length, for the places of the finished; the best of the
/// others run on.
#[derive(Debug)]
pub struct BeamSearch<M> {
    model: M,
    processors: ProcessorList,
    rule: Rule,
    stopping: Stopping,
    options: BeamOptions,
    prompt_len: usize,
    padding: Vec<usize>,
    searches: Vec<Search>,
    log_probs: LogProbs,
    /// The scores of all beams of a prompt, to draw among.
    flat: Vec<f32>,
    /// A continuation as a whole, for criteria to look at.
    text: Vec<u32>,
    failed: bool,
}

/// The search for one prompt.
#[derive(Debug)]
struct Search {
    /// Best first.
    running: Vec<Hypothesis>,
    /// At most `num_beams`, best first; the scores are divided by the length.
    finished: Vec<(Hypothesis, FinishReason)>,
    over: bool,
}

impl<M: Reorder> BeamSearch<M> {
    /// Continues `prompts`, padded rows of one length, `padding[i]` tokens at the left of prompt
    /// *i* being padding. `model` has been fed each prompt `num_beams` times in succession.
    ///
    /// `rule` draws or takes the best. One row's [`Sampling`](crate::Sampling) is enough: it serves
    /// all beams. A criterion is asked of every continuation in the choice.
    ///
    /// # Errors
    /// When there are no beams, or fewer than sequences to return.
    pub fn new(
        model: M,
        prompts: &[Vec<u32>],
        padding: &[usize],
        processors: ProcessorList,
        rule: Rule,
        stopping: impl Into<Stopping>,
        options: BeamOptions,
    ) -> Result<Self> {
        options.check()?;
        let stopping = stopping.into();
        let search = |prompt: &Vec<u32>| Search {
            running: Hypothesis::start(prompt, options.num_beams),
            finished: Vec::new(),
            over: stopping.stop().max_new_tokens == 0,
        };
        Ok(Self {
            prompt_len: prompts.first().map_or(0, Vec::len),
            searches: prompts.iter().map(search).collect(),
            padding: padding.to_vec(),
            log_probs: LogProbs::default(),
            flat: Vec::new(),
            text: Vec::new(),
            failed: false,
            model,
            processors,
            rule,
            stopping,
            options,
        })
    }

    /// When sequences end.
    pub fn stopping(&self) -> &Stopping {
        &self.stopping
    }

    /// Waits until the scores of the next token are there: the end of the prefill, when called
    /// before the first step.
    ///
    /// # Errors
    /// When the model fails.
    pub fn wait(&mut self) -> Result<()> {
        self.model.scores().map(|_| ())
    }

    /// Gives up the model, and the best sequences of each prompt, best first.
    ///
    /// # Errors
    /// When a prompt has fewer finished sequences than are to be returned: before the end of the
    /// iteration, or because processors banned all others.
    pub fn finish(self) -> Result<(M, Vec<Beam>)> {
        let wanted = self.options.num_return_sequences;
        let mut beams = Vec::with_capacity(self.searches.len() * wanted);
        for (prompt, search) in self.searches.into_iter().enumerate() {
            let found = search.finished.len();
            if found < wanted {
                let what = format!(
                    "prompt {prompt}: {found} of {wanted} sequences could be finished; all other \
                     continuations are banned"
                );
                return Err(Error::new(ErrorKind::NoToken, what));
            }
            let best = search.finished.into_iter().take(wanted);
            beams.extend(best.map(|(it, end)| it.into_beam(prompt, self.prompt_len, end)));
        }
        Ok((self.model, beams))
    }

    fn is_done(&self) -> bool {
        self.failed || self.searches.iter().all(|it| it.over)
    }

    fn step(&mut self) -> Result<()> {
        let beams = self.options.num_beams;
        self.score()?;
        // Which row of this step each beam of the next goes on from, and with which token.
        let (mut rows, mut tokens) = (Vec::new(), Vec::new());
        let mut first_row = 0;
        for prompt in 0..self.searches.len() {
            if self.searches[prompt].over {
                self.rule.skip(prompt, beams * self.model.vocab_size());
                continue;
            }
            let candidates = self.candidates(prompt, first_row)?;
            let search = &mut self.searches[prompt];
            let go_on = search.retain(prompt * beams, &candidates, &self.options);
            let stuck = candidates.iter().all(|it| it.end.is_some());
            search.over = stuck || search.is_over(&self.options, self.stopping.stop());
            if !search.over {
                rows.extend(go_on.iter().map(|it| first_row + it.beam));
                tokens.extend(go_on.iter().map(|it| it.token));
            }
            first_row += beams;
        }
        if rows.is_empty() {
            return Ok(());
        }
        if !rows.iter().copied().eq(0..first_row) {
            self.model.reorder(&rows)?;
        }
        self.model.feed(&tokens)
    }

    /// Loads the log-probabilities of all rows, processed and, for draws, warped.
    fn score(&mut self) -> Result<()> {
        let running = self.searches.iter().enumerate().filter(|(_, it)| !it.over);
        let contexts: Vec<Option<Context<'_>>> = running
            .flat_map(|(prompt, search)| search.running.iter().map(move |beam| (prompt, beam)))
            .map(|(prompt, beam)| beam.context(prompt, self.prompt_len, self.padding[prompt]))
            .collect();
        let vocab = self.model.vocab_size();
        self.log_probs.load(self.model.scores()?, vocab)?;
        self.log_probs.process(0, &contexts, &self.processors)?;
        if let Rule::Sample(sampling) = &mut self.rule {
            for (row, context) in contexts.iter().enumerate() {
                if let Some(context) = context {
                    sampling.warp(0, context, self.log_probs.row_mut(row))?;
                }
            }
        }
        Ok(())
    }

    /// The continuations to choose from, best first or in the order drawn. The prompt's beams are
    /// the rows from `first_row` on.
    fn candidates(&mut self, prompt: usize, first_row: usize) -> Result<Vec<Candidate>> {
        let (beams, vocab) = (self.options.num_beams, self.model.vocab_size());
        let search = &self.searches[prompt];
        let count = (1 + self.stopping.stop().eos.len()).max(2) * beams;
        let candidate = |place: usize| {
            let (beam, token) = (place / vocab, (place % vocab) as u32);
            let log_prob = self.log_probs.row(first_row + beam)[token as usize];
            let score = log_prob + search.running[beam].score;
            Candidate { beam, token, log_prob, score, end: None }
        };
        let rows = search.running.iter().zip(first_row..);
        let mut candidates: Vec<Candidate> = match &mut self.rule {
            Rule::Greedy => {
                let mut best = TopK::new(count);
                rows.for_each(|(beam, row)| best.offer(self.log_probs.row(row), beam.score));
                best.finish().into_iter().map(|it| candidate(it.place)).collect()
            }
            Rule::Sample(sampling) => {
                self.flat.clear();
                for (beam, row) in rows {
                    self.flat.extend(self.log_probs.row(row).iter().map(|it| it + beam.score));
                }
                let drawn = sampling.draw_among(prompt, &self.flat, count)?;
                filled_up(drawn, count, self.flat.len()).into_iter().map(candidate).collect()
            }
        };
        for it in &mut candidates {
            self.text.clear();
            self.text.extend_from_slice(&search.running[it.beam].tokens);
            self.text.push(it.token);
            let (prompt_len, padding) = (self.prompt_len, self.padding[prompt]);
            let context = Context { tokens: &self.text, prompt_len, padding, row: prompt };
            it.end = self.stopping.check(&context)?;
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
    let mut best = TopK::new(count);
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
        let extended = |running: &[Hypothesis], it: &Candidate, score| {
            running[it.beam].extended(first_row + it.beam, it, score)
        };
        let new_tokens = self.running[0].transition_scores.len() + 1;
        let divisor = length_divisor(new_tokens, options.length_penalty);
        // What ranks lower is there to run on, not to be returned.
        for candidate in candidates.iter().take(options.num_beams) {
            let score = candidate.score / divisor;
            if let Some(end) = candidate.end
                && score > self.worst_finished(options)
            {
                let place = self.finished.partition_point(|(it, _)| it.score >= score);
                self.finished.insert(place, (extended(&self.running, candidate, score), end));
                self.finished.truncate(options.num_beams);
            }
        }
        let score = |it: &Candidate| if it.end.is_some() { it.score + OUT } else { it.score };
        let mut go_on = candidates.to_vec();
        go_on.sort_by(|a, b| score(b).total_cmp(&score(a)));
        go_on.truncate(options.num_beams);
        self.running = go_on.iter().map(|it| extended(&self.running, it, score(it))).collect();
        go_on
    }

    /// What a sequence has to beat to be among the finished.
    fn worst_finished(&self, options: &BeamOptions) -> f32 {
        match self.finished.get(options.num_beams - 1) {
            Some((worst, _)) => worst.score,
            None => OUT,
        }
    }

    /// Whether nothing can change any more, as HF estimates.
    fn is_over(&self, options: &BeamOptions, stop: &Stop) -> bool {
        let full = self.finished.len() == options.num_beams;
        let new_tokens = self.running[0].transition_scores.len();
        if full && options.early_stopping == EarlyStopping::WhenFinished {
            return true;
        }
        let hopeful = options.early_stopping == EarlyStopping::Never;
        let length =
            if hopeful && options.length_penalty > 0.0 { stop.max_new_tokens } else { new_tokens };
        let best = self.running[0].score / length_divisor(length, options.length_penalty);
        best <= self.worst_finished(options)
    }
}

impl<M: Reorder> Iterator for BeamSearch<M> {
    type Item = Result<()>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done() {
            return None;
        }
        let step = self.step();
        self.failed = step.is_err();
        Some(step)
    }
}
