//! Assisted decoding on a table: what is fed, what is taken back, what stands.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use mlxgk_decoding_strategies::{
    AssistantOptions, AssistedLoop, CandidateGenerator, Candidates, Chooser, DraftContext,
    DraftModel, Guide, LanguageModel, LeftPadded, Limits, PromptLookup, Record, Reorder, Result,
    RowEvent, RowGroup, RowOutcome, RowOutput, SampleLoop, Schedule, Speculative, TokenLoop,
};
use mlxgk_logits_processors::{NoRepeatNGram, ProcessorList, guide};
use mlxgk_samplers::{Mirostat, SamplerChain, Streams, Warper};

const VOCAB: usize = 9;

/// Scores that depend on the last two tokens, and everything that was fed and not taken back.
struct Table {
    text: Vec<u32>,
    scores: Vec<f32>,
    /// Added to how it weighs tokens, so that two tables disagree now and then.
    bent: usize,
}

impl Table {
    fn new(prompt: &[u32], bent: usize) -> Self {
        let mut table = Self { text: Vec::new(), scores: Vec::new(), bent };
        table.feed_several(prompt).unwrap();
        let last = table.scores.len() - VOCAB;
        table.scores.drain(..last);
        table
    }

    fn row(&self) -> impl Iterator<Item = f32> + use<> {
        let at = |back: usize| self.text.iter().rev().nth(back).map_or(0, |&it| it as usize);
        let (one, two, bent) = (at(0), at(1), self.bent);
        let bend = move |id: usize| if (one + two + id) % 4 == 1 { bent as f32 * 0.5 } else { 0.0 };
        (0..VOCAB).map(move |id| ((one * 5 + two * 3 + id * 7) % 11) as f32 * 0.4 + bend(id))
    }
}

impl LanguageModel for Table {
    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn feed(&mut self, tokens: &[u32]) -> Result<()> {
        self.feed_several(tokens)
    }

    fn scores(&mut self) -> Result<&[f32]> {
        Ok(&self.scores)
    }
}

impl Reorder for Table {
    fn reorder(&mut self, _: &[usize]) -> Result<()> {
        Ok(())
    }
}

impl Speculative for Table {
    fn feed_several(&mut self, tokens: &[u32]) -> Result<()> {
        self.scores.clear();
        for &token in tokens {
            self.text.push(token);
            self.scores.extend(self.row());
        }
        Ok(())
    }

    fn roll_back(&mut self, count: usize) -> Result<()> {
        self.text.truncate(self.text.len() - count);
        self.scores.clear();
        Ok(())
    }
}

fn stop(eos: &[u32]) -> Limits {
    Limits { max_new_tokens: 30, eos: eos.to_vec() }
}

fn rule(seed: Option<u64>) -> Chooser {
    match seed {
        None => Chooser::Greedy,
        Some(seed) => {
            let (chain, none) = (SamplerChain::default(), ProcessorList::default());
            Chooser::sample(&chain, none, Streams::fast(seed))
        }
    }
}

fn processors(bans: bool) -> ProcessorList {
    let mut list = ProcessorList::default();
    if bans {
        list.push(NoRepeatNGram::new(3).unwrap());
    }
    list
}

fn group(bans: bool, seed: Option<u64>, limits: Limits) -> RowGroup {
    RowGroup::greedy(limits).processors(processors(bans)).chooser(rule(seed))
}

fn tokens(events: &[RowEvent]) -> Vec<u32> {
    let token = |it: &RowEvent| match it.outcome {
        RowOutcome::Token { token, .. } => token,
        ref other => panic!("{other:?}"),
    };
    events.iter().map(token).collect()
}

fn turns(it: &mut impl TokenLoop) -> Vec<Vec<u32>> {
    std::iter::from_fn(|| it.step()).map(|step| tokens(&step.unwrap())).collect()
}

fn alone(prompt: &[u32], group: RowGroup) -> RowOutput {
    let prompts = LeftPadded::new(&[prompt.to_vec()], 0).unwrap();
    let mut it = SampleLoop::new(Table::new(prompt, 0), &prompts, group);
    turns(&mut it);
    it.into_parts().1.swap_remove(0)
}

fn plain(prompt: &[u32], bans: bool, seed: Option<u64>, eos: &[u32]) -> Vec<u32> {
    alone(prompt, group(bans, seed, stop(eos))).tokens
}

fn helped<'a>(
    prompt: &[u32],
    generator: impl CandidateGenerator + 'a,
    bans: bool,
    seed: Option<u64>,
    eos: &[u32],
) -> AssistedLoop<'a, Table> {
    AssistedLoop::new(Table::new(prompt, 0), generator, prompt, group(bans, seed, stop(eos)))
}

fn draft(prompt: &[u32], bent: usize, num_tokens: usize) -> DraftModel<Table> {
    let options =
        AssistantOptions { num_tokens, confidence_threshold: 0.0, ..AssistantOptions::default() };
    DraftModel::new(Table::new(prompt, bent), prompt, options)
}

/// Greedy tokens under guidance by what is fed to it: HF's order of calls, spelled out.
fn guided_alone(prompt: &[u32], scale: f64, negative: &[u32], count: usize) -> Vec<u32> {
    let mut text = prompt.to_vec();
    let (mut model, mut without) = (Table::new(prompt, 0), Table::new(negative, 0));
    for _ in 0..count {
        let mut scores = model.scores.clone();
        guide(&mut scores, &without.scores, scale).unwrap();
        let best = (0..VOCAB).max_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(b.cmp(&a)));
        let token = best.unwrap() as u32;
        text.push(token);
        model.feed(&[token]).unwrap();
        without.feed(&[token]).unwrap();
    }
    text.split_off(prompt.len())
}

#[test]
fn guidance_without_guesses_is_plain_guidance() {
    for (scale, negative) in [(1.8, vec![3]), (0.4, vec![3]), (2.5, vec![8, 8, 1])] {
        // Nothing is found, so that each turn is a token of the model's own.
        let lookup = PromptLookup::new(3, 7).unwrap();
        let silent = Silent;
        let it = helped(&PROMPT, silent, false, None, &[]);
        let mut it = it.guide(Some(Guide::new(Table::new(&negative, 0), scale)));
        let said: Vec<u32> = turns(&mut it).concat();
        assert_eq!(said, guided_alone(&PROMPT, scale, &negative, 30));
        let it = helped(&PROMPT, lookup, false, None, &[]);
        let mut it = it.guide(Some(Guide::new(Table::new(&negative, 0), scale)));
        assert_eq!(turns(&mut it).concat().len(), 30);
    }
}

/// Guesses nothing.
struct Silent;

impl CandidateGenerator for Silent {
    fn candidates(&mut self, _: &mut DraftContext<'_, '_>, _: &mut Chooser) -> Result<Candidates> {
        Ok(Candidates::default())
    }

    fn update(&mut self, _: usize, _: usize) {}
}

const PROMPT: [u32; 7] = [1, 2, 3, 4, 1, 2, 3];

#[test]
fn help_changes_nothing_that_is_said() {
    for (bans, eos) in [(false, vec![]), (true, vec![]), (true, vec![4]), (false, vec![7])] {
        let alone = plain(&PROMPT, bans, None, &eos);
        for count in [1, 2, 5, 40] {
            for bent in [0, 1, 3] {
                let mut it = helped(&PROMPT, draft(&PROMPT, bent, count), bans, None, &eos);
                let turns = turns(&mut it);
                assert_eq!(turns.concat(), alone, "{count} guesses of a draft bent by {bent}");
                let acceptance = it.acceptance();
                assert!(acceptance.accepted <= acceptance.guessed);
                assert_eq!(acceptance.turns, turns.len());
                if bent == 0 && count == 5 && eos.is_empty() {
                    assert_eq!(acceptance.rate(), Some(1.0));
                }
                // The model holds what was said, but for the last token, as if it had fed it singly.
                let (model, row) = it.into_parts();
                assert_eq!(row.tokens, alone);
                let said = [PROMPT.to_vec(), alone.clone()].concat();
                assert_eq!(model.text, said[..said.len() - 1]);
            }
            let lookup = PromptLookup::new(count, 2).unwrap();
            let mut it = helped(&PROMPT, lookup, bans, None, &eos);
            assert_eq!(turns(&mut it).concat(), alone, "lookup of {count}");
        }
    }
}

#[test]
fn looked_up_guesses_leave_draws_alone_too() {
    for seed in 0..8 {
        let alone = plain(&PROMPT, false, Some(seed), &[]);
        let mut it = helped(&PROMPT, PromptLookup::new(3, 2).unwrap(), false, Some(seed), &[]);
        assert_eq!(turns(&mut it).concat(), alone);
    }
}

#[test]
fn a_draft_leaves_the_distribution_of_draws_as_it_is() {
    const RUNS: u64 = 4000;
    let count = |tokens: &mut dyn Iterator<Item = Vec<u32>>| {
        let mut counts = [[0.0_f64; VOCAB]; 3];
        for row in tokens {
            for (at, counts) in counts.iter_mut().enumerate() {
                counts[row[at] as usize] += 1.0 / RUNS as f64;
            }
        }
        counts
    };
    let short = || Limits { max_new_tokens: 3, eos: vec![] };
    let plain =
        count(&mut (0..RUNS).map(|seed| alone(&PROMPT, group(false, Some(seed), short())).tokens));
    let with = count(&mut (0..RUNS).map(|seed| {
        let group = group(false, Some(seed + RUNS), short());
        let helper = draft(&PROMPT, 3, 2);
        turns(&mut AssistedLoop::new(Table::new(&PROMPT, 0), helper, &PROMPT, group)).concat()
    }));
    for (alone, with) in plain.iter().flatten().zip(with.iter().flatten()) {
        // Four standard deviations of the difference of two shares of one half.
        assert!((alone - with).abs() < 4.0 * (0.5 / RUNS as f64).sqrt(), "{alone} and {with}");
    }
}

#[test]
fn schedules_and_confidence() {
    let mut options = AssistantOptions {
        num_tokens: 3,
        schedule: Schedule::Heuristic,
        confidence_threshold: 0.0,
    };
    let mut model = DraftModel::new(Table::new(&PROMPT, 0), &PROMPT, options);
    model.update(3, 3);
    assert_eq!(model.options().num_tokens, 5);
    (0..9).for_each(|_| model.update(5, 1));
    assert_eq!(model.options().num_tokens, 1);
    // Certainty that no guess has: each turn's first is its last.
    options = AssistantOptions { confidence_threshold: 1.1, ..AssistantOptions::default() };
    let model = DraftModel::new(Table::new(&PROMPT, 0), &PROMPT, options);
    let mut it = helped(&PROMPT, model, false, None, &[]);
    assert!(turns(&mut it).iter().all(|it| it.len() <= 2));
}

#[test]
fn what_is_recorded_is_what_plain_decoding_records() {
    let record = Record { scores: true, logits: true, logprobs: Some(2) };
    let group = || group(true, None, stop(&[])).record(record);
    let alone = alone(&PROMPT, group());
    let (table, helper) = (Table::new(&PROMPT, 0), draft(&PROMPT, 1, 4));
    let mut with = AssistedLoop::new(table, helper, &PROMPT, group());
    turns(&mut with);
    let (_, with) = with.into_parts();
    assert_eq!(with.recorded, alone.recorded);
    for (token, entry) in with.tokens.iter().zip(&with.recorded.logprobs) {
        assert_eq!(entry.token, *token);
        assert!(entry.top.len() == 2 && entry.top[0].1 >= entry.top[1].1);
        assert!(entry.logprob <= entry.top[0].1);
    }
}

/// Draws with Mirostat, whose next cut follows from the tokens that the row got.
fn mirostat(seed: u64) -> Chooser {
    let chain = SamplerChain::new(vec![Warper::Mirostat(Mirostat::v2(1.5, 0.9).unwrap())]).unwrap();
    Chooser::sample(&chain, ProcessorList::default(), Streams::fast(seed))
}

/// Has the warpers remember tokens that the row never gets, and guesses nothing.
struct Dreamer;

impl CandidateGenerator for Dreamer {
    fn candidates(
        &mut self,
        draft: &mut DraftContext<'_, '_>,
        chooser: &mut Chooser,
    ) -> Result<Candidates> {
        let mut dream = mirostat(99);
        let scores: Vec<f32> = (0..VOCAB).map(|it| it as f32 * 0.7).collect();
        for _ in 0..5 {
            dream.choose(0, &draft.context, &scores)?;
        }
        assert_ne!(dream.state(0), chooser.state(0));
        chooser.set_state(0, dream.state(0));
        Ok(Candidates::default())
    }

    fn update(&mut self, _: usize, _: usize) {}
}

#[test]
fn mirostat_learns_from_the_tokens_that_stand_alone() {
    for seed in 0..8 {
        let group = || RowGroup::greedy(stop(&[])).chooser(mirostat(seed));
        let alone = alone(&PROMPT, group()).tokens;
        let mut it = AssistedLoop::new(Table::new(&PROMPT, 0), Dreamer, &PROMPT, group());
        assert_eq!(turns(&mut it).concat(), alone);
    }
}
