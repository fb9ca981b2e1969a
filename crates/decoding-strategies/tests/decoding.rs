//! The loop on a table: who is asked what, who stops when, who draws from which stream.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use mlxgk_decoding_strategies::{
    Chooser, ErrorKind, FinishReason, Join, LanguageModel, LeftPadded, Limits, Reorder, Result,
    RowEvent, RowGroup, RowId, RowOutcome, RowOutput, SampleLoop, StopConditions,
    StoppingCriterion, TokenLoop,
};
use mlxgk_logits_processors::{Context, LogitsProcessor, ProcessorList};
use mlxgk_samplers::{SamplerChain, Streams};

const VOCAB: usize = 8;

/// Scores that depend on the last token alone, and a record of what was fed.
struct Table {
    last: Vec<u32>,
    fed: Vec<Vec<u32>>,
    scores: Vec<f32>,
}

impl Table {
    fn new(last: &[u32]) -> Self {
        let mut table = Self { last: last.to_vec(), fed: Vec::new(), scores: Vec::new() };
        table.fill();
        table
    }

    fn fill(&mut self) {
        let score = |last: u32, id: usize| ((last as usize * 5 + id * 3) % 7) as f32 * 0.5;
        let row = |&last: &u32| (0..VOCAB).map(move |id| score(last, id));
        self.scores = self.last.iter().flat_map(row).collect();
    }
}

impl Reorder for Table {
    fn reorder(&mut self, rows: &[usize]) -> Result<()> {
        self.last = rows.iter().map(|&row| self.last[row]).collect();
        self.fill();
        Ok(())
    }
}

impl LanguageModel for Table {
    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn feed(&mut self, tokens: &[u32]) -> Result<()> {
        self.last = tokens.to_vec();
        self.fed.push(tokens.to_vec());
        self.fill();
        Ok(())
    }

    fn scores(&mut self) -> Result<&[f32]> {
        Ok(&self.scores)
    }
}

impl Join for Table {
    fn join(&mut self, other: Self) -> Result<()> {
        self.last.extend(other.last);
        self.fill();
        Ok(())
    }
}

fn table(prompts: &[Vec<u32>]) -> Table {
    Table::new(&prompts.iter().map(|it| *it.last().unwrap()).collect::<Vec<_>>())
}

fn batch(prompts: &[Vec<u32>]) -> LeftPadded {
    LeftPadded::new(prompts, 7).unwrap()
}

fn limits(max_new_tokens: usize, eos: Vec<u32>) -> Limits {
    Limits { max_new_tokens, eos }
}

fn sample_loop(prompts: &[Vec<u32>], group: RowGroup) -> SampleLoop<Table> {
    SampleLoop::new(table(prompts), &batch(prompts), group.pad(7))
}

/// Steps a loop to its end.
fn run_out(it: &mut impl TokenLoop) -> Vec<Vec<RowEvent>> {
    std::iter::from_fn(|| it.step()).map(|step| step.unwrap()).collect()
}

fn token(event: &RowEvent) -> u32 {
    match event.outcome {
        RowOutcome::Token { token, .. } => token,
        ref other => panic!("{other:?}"),
    }
}

fn greedy(prompts: &[Vec<u32>], limits: Limits) -> Vec<RowOutput> {
    let mut it = sample_loop(prompts, RowGroup::greedy(limits));
    run_out(&mut it);
    it.into_parts().1
}

fn draws(streams: Streams) -> Chooser {
    let (chain, none) = (SamplerChain::default(), ProcessorList::default());
    Chooser::sample(&chain, none, streams)
}

fn sampled(prompts: &[Vec<u32>], streams: Streams, eos: Vec<u32>) -> Vec<Vec<u32>> {
    let group = RowGroup::greedy(limits(12, eos)).chooser(draws(streams));
    let mut it = sample_loop(prompts, group);
    run_out(&mut it);
    it.into_parts().1.into_iter().map(|it| it.tokens).collect()
}

#[test]
fn rows_end_on_their_own_and_leave_the_model() {
    let alone = |last| greedy(&[vec![last]], limits(6, vec![])).swap_remove(0).tokens;
    let alone = [alone(1), alone(2)];
    // An end token that the first row has early and the second one later or never.
    let eos = alone[0][0];
    let group = RowGroup::greedy(limits(6, vec![eos]));
    let mut it = sample_loop(&[vec![1], vec![2]], group);
    let steps = run_out(&mut it);
    assert_eq!(token(&steps[0][0]), eos);
    assert!(steps[1..].iter().flatten().all(|it| it.row == RowId::new(1)));
    let (model, rows) = it.into_parts();
    let model = model.unwrap();
    assert_eq!(rows[0].tokens, [eos]);
    assert_eq!(rows[0].finish_reason, Some(FinishReason::Eos));
    let second: Vec<u32> = match alone[1].iter().position(|&it| it == eos) {
        Some(at) => alone[1][..=at].to_vec(),
        None => alone[1].clone(),
    };
    assert_eq!(rows[1].tokens, second);
    // One of two rows is half of the batch.
    assert!(model.fed.iter().all(|it| it.len() == 1), "{:?}", model.fed);
    // The last token of all is not fed: nobody asks what follows it.
    assert_eq!(model.fed.len(), second.len().max(1) - 1);
}

#[test]
fn a_fast_row_does_not_depend_on_its_neighbours_or_their_ends() {
    let alone = sampled(&[vec![3]], Streams::fast(11), vec![]);
    let together = sampled(&[vec![3], vec![1], vec![4]], Streams::fast(11), vec![]);
    assert_eq!(alone[0], together[0]);
    let early = sampled(&[vec![3], vec![1], vec![4]], Streams::fast(11), vec![together[1][0]]);
    let ends =
        |row: &[u32]| row.iter().position(|&it| it == together[1][0]).map_or(12, |at| at + 1);
    assert_eq!(early[2], together[2][..ends(&together[2])]);
}

#[test]
fn torchs_stream_moves_on_for_rows_that_have_ended() {
    let whole = sampled(&[vec![3], vec![1]], Streams::torch(5), vec![]);
    // The first row ends at once; the second must draw what it drew when the first went on.
    let first = whole[0][0];
    let early = sampled(&[vec![3], vec![1]], Streams::torch(5), vec![first]);
    let ends = whole[1].iter().position(|&it| it == first).map_or(12, |at| at + 1);
    assert_eq!(early[1], whole[1][..ends]);
}

#[test]
fn processors_see_padding_prompt_and_new_tokens() {
    #[derive(Debug)]
    struct Probe;
    impl LogitsProcessor for Probe {
        fn name(&self) -> &'static str {
            "Probe"
        }

        fn process(
            &self,
            context: &Context<'_>,
            scores: &mut [f32],
        ) -> mlxgk_logits_processors::Result<()> {
            assert_eq!(context.prompt_len, 3);
            assert_eq!(context.padding, if context.row == 0 { 0 } else { 2 });
            scores.fill(0.0);
            // Says the length of its history.
            scores[context.tokens.len()] = 1.0;
            Ok(())
        }
    }
    let mut processors = ProcessorList::default();
    processors.push(Probe);
    let prompts = [vec![1, 2, 3], vec![4]];
    let mut it = sample_loop(&prompts, RowGroup::greedy(limits(3, vec![])).processors(processors));
    run_out(&mut it);
    assert!(it.into_parts().1.iter().all(|it| it.tokens == [3, 4, 5]));
}

/// Gives every token of one row the same score.
#[derive(Debug)]
struct Fill {
    row: usize,
    score: f32,
}

impl LogitsProcessor for Fill {
    fn name(&self) -> &'static str {
        "Fill"
    }

    fn process(
        &self,
        context: &Context<'_>,
        scores: &mut [f32],
    ) -> mlxgk_logits_processors::Result<()> {
        if context.row == self.row {
            scores.fill(self.score);
        }
        Ok(())
    }
}

/// Cannot tell of one row whether it ends.
struct Puzzled(usize);

impl StoppingCriterion for Puzzled {
    fn ends(
        &mut self,
        context: &Context<'_>,
    ) -> mlxgk_logits_processors::Result<Option<FinishReason>> {
        use mlxgk_logits_processors::{Error, ErrorKind};
        let puzzled = || Error::new(ErrorKind::Callback, "cannot tell");
        if context.row == self.0 { Err(puzzled()) } else { Ok(None) }
    }
}

#[test]
fn a_row_that_fails_ends_alone() {
    let prompts = [vec![3], vec![1], vec![4]];
    let seeded = || draws(Streams::fast(11));
    let torch = || draws(Streams::torch(5));
    let whole = |rule: Chooser| {
        let mut it = sample_loop(&prompts, RowGroup::greedy(limits(9, vec![])).chooser(rule));
        run_out(&mut it);
        it.into_parts().1
    };
    let choosers: [&dyn Fn() -> Chooser; 3] = [&|| Chooser::Greedy, &seeded, &torch];
    for rule in choosers {
        let expected = whole(rule());
        for failing in 0..3 {
            for (score, criterion) in [(f32::NAN, false), (f32::NEG_INFINITY, false), (0.0, true)] {
                let mut group = RowGroup::greedy(limits(9, vec![]));
                if criterion {
                    let criteria: Vec<Box<dyn StoppingCriterion>> =
                        vec![Box::new(Puzzled(failing))];
                    group = RowGroup::greedy(StopConditions::new(limits(9, vec![]), criteria));
                } else {
                    let mut processors = ProcessorList::default();
                    processors.push(Fill { row: failing, score });
                    group = group.processors(processors);
                }
                let mut it = sample_loop(&prompts, group.chooser(rule()));
                let steps = run_out(&mut it);
                let mut failed = Vec::new();
                for event in steps.iter().flatten() {
                    if let RowOutcome::Failed(error) = &event.outcome {
                        failed.push((event.row.get(), error.to_string()));
                    }
                }
                let [(row, error)] = &failed[..] else { panic!("{failed:?}") };
                assert_eq!(*row, failing as u64);
                if score == f32::NEG_INFINITY {
                    assert_eq!(error, "every token is banned: `Fill` leaves none");
                }
                for (row, (ours, expected)) in it.into_parts().1.iter().zip(&expected).enumerate() {
                    if row == failing {
                        assert_eq!(ours.finish_reason, None);
                    } else {
                        assert_eq!(ours, expected, "row {row} beside {failing}");
                    }
                }
            }
        }
    }
}

#[test]
fn empty_prompts_are_refused() {
    assert_eq!(LeftPadded::new(&[], 0).unwrap_err().kind(), ErrorKind::Prompt);
    let error = LeftPadded::new(&[vec![1], vec![]], 0).unwrap_err();
    assert!(error.to_string().contains("prompt 1 is empty"));
}

/// Requests come and go; what each is given is what it is given alone.
#[test]
fn rows_join_and_leave_without_a_trace() {
    let requests =
        [(vec![3], 7, None), (vec![1], 12, Some(4)), (vec![4], 3, None), (vec![2], 9, Some(8))];
    let group = |count: usize, seed: Option<u64>| {
        let chooser = seed.map_or(Chooser::Greedy, |seed| draws(Streams::fast(seed)));
        RowGroup::greedy(limits(count, vec![])).chooser(chooser)
    };
    let alone: Vec<RowOutput> = requests
        .iter()
        .map(|(prompt, count, seed)| {
            let mut it = sample_loop(std::slice::from_ref(prompt), group(*count, *seed));
            run_out(&mut it);
            it.into_parts().1.swap_remove(0)
        })
        .collect();
    for between in 1..5 {
        let mut all: SampleLoop<Table> = SampleLoop::empty();
        let (mut waiting, mut firsts) = (requests.iter(), Vec::new());
        // One that will leave.
        let gone = all.reserve(1);
        all.join(gone, table(&[vec![5]]), &batch(&[vec![5]]), group(50, None)).unwrap();
        for step in 0.. {
            if step % between == 0
                && let Some((prompt, count, seed)) = waiting.next()
            {
                let (first, prompts) = (all.reserve(1), std::slice::from_ref(prompt));
                all.join(first, table(prompts), &batch(prompts), group(*count, *seed)).unwrap();
                firsts.push(first);
            }
            if step == 6 {
                assert!(all.leave(gone));
                assert!(!all.leave(gone));
            }
            if all.step().is_none() && firsts.len() == requests.len() {
                break;
            }
        }
        for (first, alone) in firsts.into_iter().zip(&alone) {
            assert_eq!(&all.take(first).rows[0], alone, "one joins every {between} steps");
            assert!(all.take(first).rows.is_empty());
        }
    }
}

#[test]
fn no_tokens_are_asked_for() {
    let mut it = sample_loop(&[vec![3], vec![1]], RowGroup::greedy(limits(0, vec![])));
    let steps = run_out(&mut it);
    assert_eq!(steps.len(), 1);
    let finished = RowOutcome::Finished(FinishReason::Length);
    assert!(steps[0].iter().all(|it| it.outcome == finished), "{steps:?}");
}
