//! The loop on a table: who is asked what, who stops when, who draws from which stream.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use mlxgk_decoding_strategies::{
    Decoding, ErrorKind, FinishReason, LanguageModel, LeftPadded, Reorder, Result, Rule, Sampling,
    Stop,
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

fn greedy(prompts: &[Vec<u32>], stop: Stop) -> Decoding<Table> {
    let last: Vec<u32> = prompts.iter().map(|it| *it.last().unwrap()).collect();
    let padding = vec![0; prompts.len()];
    let processors = ProcessorList::default();
    Decoding::new(Table::new(&last), prompts, &padding, processors, Rule::Greedy, stop, 7)
}

fn sampled(prompts: &[Vec<u32>], streams: Streams, eos: Vec<u32>) -> Vec<Vec<u32>> {
    let last: Vec<u32> = prompts.iter().map(|it| *it.last().unwrap()).collect();
    let none = ProcessorList::default;
    let sampling = Sampling::new(SamplerChain::default(), none(), streams);
    let padding = vec![0; prompts.len()];
    let (rule, stop) = (Rule::Sample(Box::new(sampling)), Stop { max_new_tokens: 12, eos });
    let mut decoding = Decoding::new(Table::new(&last), prompts, &padding, none(), rule, stop, 0);
    for step in decoding.by_ref() {
        step.unwrap();
    }
    decoding.rows().iter().map(|it| it.tokens.clone()).collect()
}

#[test]
fn rows_end_on_their_own_and_leave_the_model() {
    let alone: Vec<Vec<u32>> = [vec![1], vec![2]]
        .iter()
        .map(|prompt| {
            let stop = Stop { max_new_tokens: 6, eos: vec![] };
            let mut decoding = greedy(std::slice::from_ref(prompt), stop);
            decoding.by_ref().for_each(|step| assert!(step.is_ok()));
            decoding.rows()[0].tokens.clone()
        })
        .collect();
    // An end token that the first row says early and the second one later or never.
    let eos = alone[0][0];
    let mut decoding = greedy(&[vec![1], vec![2]], Stop { max_new_tokens: 6, eos: vec![eos] });
    let steps: Vec<_> = decoding.by_ref().map(|it| it.unwrap()).collect();
    assert_eq!(steps[0][0], Some(eos));
    assert!(steps[1..].iter().all(|it| it[0].is_none()));
    let (model, rows) = decoding.into_parts();
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
    let batch = LeftPadded::new(&[vec![1, 2, 3], vec![4]], 0).unwrap();
    let mut processors = ProcessorList::default();
    processors.push(Probe);
    let stop = Stop { max_new_tokens: 3, eos: vec![] };
    let mut decoding = Decoding::new(
        Table::new(&[3, 4]),
        batch.rows(),
        batch.padding(),
        processors,
        Rule::Greedy,
        stop,
        0,
    );
    decoding.by_ref().for_each(|step| assert!(step.is_ok()));
    assert!(decoding.rows().iter().all(|it| it.tokens == [3, 4, 5]));
}

/// Gives every token the same score.
#[derive(Debug)]
struct Fill(f32);

impl LogitsProcessor for Fill {
    fn name(&self) -> &'static str {
        "Fill"
    }

    fn process(&self, _: &Context<'_>, scores: &mut [f32]) -> mlxgk_logits_processors::Result<()> {
        scores.fill(self.0);
        Ok(())
    }
}

#[test]
fn an_error_ends_the_iteration() {
    let sample = || {
        let none = ProcessorList::default();
        let sampling = Sampling::new(SamplerChain::default(), none, Streams::fast(0));
        Rule::Sample(Box::new(sampling))
    };
    let decoding = |score, rule| {
        let mut processors = ProcessorList::default();
        processors.push(Fill(score));
        let stop = Stop { max_new_tokens: 3, eos: vec![] };
        Decoding::new(Table::new(&[1]), &[vec![1]], &[0], processors, rule, stop, 0)
    };
    for (score, rule) in
        [(f32::NEG_INFINITY, sample()), (f32::NAN, sample()), (f32::NAN, Rule::Greedy)]
    {
        let mut decoding = decoding(score, rule);
        assert_eq!(decoding.next().unwrap().unwrap_err().kind(), ErrorKind::NoToken);
        assert!(decoding.next().is_none());
    }
    // Greedy says id 0 where everything is banned, as HF does.
    let mut decoding = decoding(f32::NEG_INFINITY, Rule::Greedy);
    assert_eq!(decoding.next().unwrap().unwrap(), [Some(0)]);
}

#[test]
fn empty_prompts_are_refused() {
    assert_eq!(LeftPadded::new(&[], 0).unwrap_err().kind(), ErrorKind::Prompt);
    let error = LeftPadded::new(&[vec![1], vec![]], 0).unwrap_err();
    assert!(error.to_string().contains("prompt 1 is empty"));
}
