//! Contrastive search on a table of numbers, against the definition spelt out.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

mod table;

use mlxgk_decoding_strategies::{
    ContrastiveLoop, ContrastiveOptions, FinishReason, LanguageModel, Limits, Lookahead, Record,
    Reorder, Result, RowGroup, RowOutcome, RowOutput, SampleLoop, StopConditions,
};
use mlxgk_logits_processors::{Context, LogitsProcessor, ProcessorList, SuppressTokens};

use table::{Table, VOCAB, batch, probabilities, run_out};

const PAD: u32 = 30;

/// A table with hidden states, which depend on the token and all before it.
struct States {
    table: Table,
    /// The table with a copy of each row for each candidate.
    tried: Option<Table>,
    /// Tokens that were tried, over all rows.
    work: usize,
}

impl States {
    fn new(prompts: &[Vec<u32>]) -> Self {
        Self { table: Table::new(prompts, 1), tried: None, work: 0 }
    }
}

/// The hidden state of the last of `tokens`.
fn state(tokens: &[u32]) -> [f64; 3] {
    let sum = tokens.iter().fold(1_u32, |sum, it| sum.wrapping_mul(17).wrapping_add(it + 5));
    let part = |by: u32| f64::from(sum.wrapping_mul(by) >> 8 & 0xff) / 128.0 - 1.0 + 1e-3;
    [part(2_654_435_761), part(40_503), part(2_246_822_519)]
}

fn cosine(a: [f64; 3], b: [f64; 3]) -> f64 {
    let dot = |a: [f64; 3], b: [f64; 3]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The highest cosine of the last state with those before it.
fn resemblance(tokens: &[u32]) -> f64 {
    let last = state(tokens);
    let before = (1..tokens.len()).map(|end| cosine(last, state(&tokens[..end])));
    before.fold(f64::NEG_INFINITY, f64::max)
}

impl LanguageModel for States {
    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn feed(&mut self, tokens: &[u32]) -> Result<()> {
        self.table.feed(tokens)
    }

    fn scores(&mut self) -> Result<&[f32]> {
        self.table.scores()
    }
}

impl Reorder for States {
    fn reorder(&mut self, rows: &[usize]) -> Result<()> {
        self.table.reorder(rows)
    }
}

impl Lookahead for States {
    fn look_ahead(&mut self, tokens: &[u32], per_row: usize) -> Result<Vec<f32>> {
        let rows = self.table.rows().len();
        assert_eq!(tokens.len(), rows * per_row);
        let copies: Vec<usize> = (0..tokens.len()).map(|it| it / per_row).collect();
        let mut tried = self.table.clone();
        tried.reorder(&copies)?;
        tried.feed(tokens)?;
        self.work += tokens.len();
        let found = tried.rows().iter().map(|row| resemblance(row) as f32).collect();
        self.tried = Some(tried);
        Ok(found)
    }

    fn accept(&mut self, copies: &[usize]) -> Result<()> {
        let mut tried = self.tried.take().unwrap();
        let per_row = tried.rows().len() / copies.len();
        let rows: Vec<usize> =
            copies.iter().enumerate().map(|(row, copy)| row * per_row + copy).collect();
        tried.reorder(&rows)?;
        self.table = tried;
        Ok(())
    }
}

fn prompts() -> Vec<Vec<u32>> {
    vec![vec![3, 1, 8], vec![4, 1, 2], vec![5, 9, 7]]
}

fn run(
    prompts: &[Vec<u32>],
    contrast: ContrastiveOptions,
    processors: ProcessorList,
    stop: impl Into<StopConditions>,
) -> (States, Vec<RowOutput>) {
    let group = RowGroup::greedy(stop)
        .processors(processors)
        .record(Record { scores: true, logits: true, logprobs: None })
        .pad(PAD);
    let mut search = ContrastiveLoop::new(States::new(prompts), &batch(prompts), group, contrast);
    run_out(&mut search);
    search.into_parts()
}

fn stop(count: usize, eos: &[u32]) -> Limits {
    Limits { max_new_tokens: count, eos: eos.to_vec() }
}

/// What the paper says, token by token, in doubles.
fn spelt_out(
    prompt: &[u32],
    contrast: ContrastiveOptions,
    banned: &[u32],
    count: usize,
) -> Vec<u32> {
    let mut text = prompt.to_vec();
    for _ in 0..count {
        let probabilities = probabilities(&text, banned);
        let mut ids: Vec<u32> = (0..VOCAB as u32).filter(|it| !banned.contains(it)).collect();
        ids.sort_by(|a, b| probabilities[*b as usize].total_cmp(&probabilities[*a as usize]));
        ids.truncate(contrast.top_k);
        let worth = |id: u32| {
            let alike = resemblance(&[&text[..], &[id]].concat());
            let alpha = contrast.penalty_alpha;
            (1.0 - alpha) * probabilities[id as usize] - alpha * alike
        };
        let best = ids.into_iter().max_by(|a, b| worth(*a).total_cmp(&worth(*b)));
        text.push(best.unwrap());
    }
    text.split_off(prompt.len())
}

#[test]
fn it_does_what_is_defined() {
    let mut different = 0;
    for (penalty_alpha, top_k) in [(0.6, 4), (0.1, 3), (0.9, 8), (1.0, 5), (0.4, 2), (0.5, 40)] {
        let contrast = ContrastiveOptions { penalty_alpha, top_k };
        for banned in [&[][..], &[2, 9, 17, 20]] {
            let mut processors = ProcessorList::default();
            processors.push(SuppressTokens::new(banned));
            let (_, rows) = run(&prompts(), contrast, processors, stop(12, &[]));
            for (prompt, row) in prompts().iter().zip(rows) {
                let expected = spelt_out(prompt, contrast, banned, 12);
                assert_eq!(row.tokens, expected, "{contrast:?}, without {banned:?}");
                let likeliest = ContrastiveOptions { top_k: 1, ..contrast };
                different += usize::from(expected != spelt_out(prompt, likeliest, banned, 12));
            }
        }
    }
    assert!(different > 30, "the contrast has an effect in {different} of 36 cases only");
}

#[test]
fn without_a_penalty_or_a_choice_it_is_greedy() {
    let none = ProcessorList::default;
    let (model, stop) = (Table::new(&prompts(), 1), stop(10, &[6]));
    let mut greedy = SampleLoop::new(model, &batch(&prompts()), RowGroup::greedy(stop.clone()));
    run_out(&mut greedy);
    let greedy = greedy.into_parts().1;
    for (penalty_alpha, top_k) in [(0.0, 6), (0.7, 1)] {
        let contrast = ContrastiveOptions { penalty_alpha, top_k };
        let (_, rows) = run(&prompts(), contrast, none(), stop.clone());
        for (ours, greedy) in rows.iter().zip(&greedy) {
            assert_eq!(ours.tokens, greedy.tokens);
            assert_eq!(ours.finish_reason, greedy.finish_reason);
        }
    }
}

#[test]
fn rows_are_alone_and_cost_nothing_once_they_have_ended() {
    let contrast = ContrastiveOptions { penalty_alpha: 0.6, top_k: 3 };
    let none = ProcessorList::default;
    // The first row ends with its third token, the last with its fifth.
    let full = run(&prompts(), contrast, none(), stop(14, &[])).1;
    let ends = [full[0].tokens[2], full[2].tokens[4]];
    let (model, together) = run(&prompts(), contrast, none(), stop(14, &ends));
    let mut steps = Vec::new();
    for (prompt, together) in prompts().iter().zip(&together) {
        let (_, alone) = run(std::slice::from_ref(prompt), contrast, none(), stop(14, &ends));
        assert_eq!(&alone[0], together);
        steps.push(together.tokens.len());
        let ended = ends.contains(together.tokens.last().unwrap());
        let reason = if ended { FinishReason::Eos } else { FinishReason::Length };
        assert_eq!(together.finish_reason, Some(reason));
    }
    steps.sort_unstable();
    assert!(steps[1] < 14, "two rows were to end: {steps:?}");
    // Three rows until two have ended, then one.
    let rows = 3 * steps[1] + (steps[2] - steps[1]);
    assert_eq!(model.work, rows * contrast.top_k);
}

/// Novelty never brings back what processors have banned, though a candidate is missing then.
#[test]
fn what_is_banned_is_never_said() {
    let allowed = [11, 23];
    let mut processors = ProcessorList::default();
    let banned: Vec<u32> = (0..VOCAB as u32).filter(|it| !allowed.contains(it)).collect();
    processors.push(SuppressTokens::new(banned));
    let contrast = ContrastiveOptions { penalty_alpha: 1.0, top_k: 6 };
    let (_, rows) = run(&prompts(), contrast, processors, stop(12, &[]));
    for row in rows {
        assert!(row.tokens.iter().all(|it| allowed.contains(it)), "{:?}", row.tokens);
    }
}

#[test]
fn a_row_without_a_token_to_take_fails_alone() {
    let mut processors = ProcessorList::default();
    processors.push(BanAll { row: 1 });
    let options = ContrastiveOptions { penalty_alpha: 0.5, top_k: 3 };
    let group = RowGroup::greedy(stop(4, &[])).processors(processors);
    let mut search =
        ContrastiveLoop::new(States::new(&prompts()), &batch(&prompts()), group, options);
    let events = run_out(&mut search);
    let failed = events.iter().filter_map(|it| match &it.outcome {
        RowOutcome::Failed(e) => Some((it.row.get(), e.to_string())),
        _ => None,
    });
    let failed: Vec<_> = failed.collect();
    assert!(matches!(&failed[..], [(1, e)] if e.contains("every token is banned")), "{failed:?}");
    let rows = search.into_parts().1;
    assert_eq!(rows.iter().map(|it| it.tokens.len()).collect::<Vec<_>>(), [4, 0, 4]);
    let alone = run(&prompts()[2..], options, ProcessorList::default(), stop(4, &[])).1;
    assert_eq!(rows[2].tokens, alone[0].tokens);
}

/// Leaves a row nothing.
#[derive(Debug)]
struct BanAll {
    row: usize,
}

impl LogitsProcessor for BanAll {
    fn name(&self) -> &'static str {
        "BanAll"
    }

    fn process(
        &self,
        context: &Context<'_>,
        scores: &mut [f32],
    ) -> mlxgk_logits_processors::Result<()> {
        if context.row == self.row {
            scores.fill(f32::NEG_INFINITY);
        }
        Ok(())
    }
}

#[test]
fn criteria_end_rows_and_scores_are_kept() {
    let third = |context: &Context<'_>| context.generated().len() == 3 && context.row == 1;
    let stopping = StopConditions::new(stop(5, &[]), vec![Box::new(third)]);
    let mut processors = ProcessorList::default();
    processors.push(SuppressTokens::new([4]));
    let contrast = ContrastiveOptions { penalty_alpha: 0.6, top_k: 4 };
    let (_, rows) = run(&prompts(), contrast, processors, stopping);
    assert_eq!(rows[1].finish_reason, Some(FinishReason::Criterion));
    assert_eq!(rows.iter().map(|it| it.tokens.len()).collect::<Vec<_>>(), [5, 3, 5]);
    for (prompt, row) in prompts().iter().zip(rows) {
        let mut model = Table::new(std::slice::from_ref(prompt), 1);
        for ((token, logits), scores) in
            row.tokens.iter().zip(row.recorded.logits).zip(row.recorded.scores)
        {
            assert_eq!(model.scores().unwrap(), logits);
            assert_eq!(scores[4], f32::NEG_INFINITY);
            assert_eq!(scores[5], logits[5]);
            model.feed(&[*token]).unwrap();
        }
    }
}
