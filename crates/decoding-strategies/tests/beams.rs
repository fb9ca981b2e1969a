//! Beam search on a table of numbers: what holds whatever the model says.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

mod table;

use mlxgk_decoding_strategies::{
    BeamOptions, BeamSearch, Chooser, EarlyStopping, ErrorKind, FinishReason, Limits, Result,
    RowGroup, SampleLoop, StopConditions, TokenLoop,
};
use mlxgk_logits_processors::{Context, ProcessorList, SuppressTokens};
use mlxgk_samplers::{SamplerChain, Streams};

use table::{Beam, Table, VOCAB, batch, beams, log_probs, run_out};

fn options(num_beams: usize) -> BeamOptions {
    BeamOptions {
        num_beams,
        num_return_sequences: num_beams,
        length_penalty: 1.0,
        early_stopping: EarlyStopping::Heuristic,
    }
}

fn stop(eos: &[u32]) -> Limits {
    Limits { max_new_tokens: 9, eos: eos.to_vec() }
}

fn draws() -> Chooser {
    let (chain, none) = (SamplerChain::default(), ProcessorList::default());
    Chooser::sample(&chain, none, Streams::fast(5))
}

fn search(
    prompts: &[Vec<u32>],
    rule: Chooser,
    stop: impl Into<StopConditions>,
    options: BeamOptions,
) -> (Table, Vec<Beam>) {
    let model = Table::new(prompts, options.num_beams);
    let group = RowGroup::greedy(stop).chooser(rule);
    let mut search = BeamSearch::new(model, &batch(prompts), group, options).unwrap();
    assert!(run_out(&mut search).is_empty());
    let (model, rows) = search.into_parts().unwrap();
    (model, beams(rows))
}

fn prompts() -> Vec<Vec<u32>> {
    vec![vec![3, 1], vec![4, 1], vec![5, 9]]
}

/// With one end token or none as many continuations are in the choice, so both ways must agree.
#[test]
fn a_criterion_ends_beams_as_an_end_token_does() {
    for early_stopping in [EarlyStopping::Heuristic, EarlyStopping::WhenFinished] {
        for token in 0..VOCAB as u32 {
            for rule in [|| Chooser::Greedy, draws] {
                let options = BeamOptions { early_stopping, ..options(4) };
                let (_, expected) = search(&prompts(), rule(), stop(&[token]), options);
                let says = move |it: &Context<'_>| it.generated().last() == Some(&token);
                let stopping = StopConditions::new(stop(&[]), vec![Box::new(says)]);
                let (_, beams) = search(&prompts(), rule(), stopping, options);
                for (beam, expected) in beams.iter().zip(&expected) {
                    assert_eq!((&beam.tokens, beam.score), (&expected.tokens, expected.score));
                    let ended = expected.finish_reason == FinishReason::Eos;
                    assert_eq!(beam.finish_reason == FinishReason::Criterion, ended);
                }
            }
        }
    }
}

#[test]
fn one_beam_without_an_end_token_is_greedy() {
    let (_, beams) = search(&prompts(), Chooser::Greedy, stop(&[]), options(1));
    let model = Table::new(&prompts(), 1);
    let mut greedy = SampleLoop::new(model, &batch(&prompts()), RowGroup::greedy(stop(&[])));
    run_out(&mut greedy);
    for (beam, row) in beams.iter().zip(greedy.into_parts().1) {
        assert_eq!(beam.tokens, row.tokens);
        assert_eq!(beam.finish_reason, FinishReason::Length);
    }
}

/// With as many beams as there are texts, nothing is lost: the best is the best of all.
#[test]
fn enough_beams_find_the_best_text() {
    let prompt = vec![8, 2];
    let short = Limits { max_new_tokens: 2, eos: vec![] };
    let (_, beams) = search(std::slice::from_ref(&prompt), Chooser::Greedy, short, options(VOCAB));
    let score = |a, b| log_probs(&prompt, &[a, b]).iter().sum::<f64>() / 2.0;
    let all = (0..VOCAB as u32).flat_map(|a| (0..VOCAB as u32).map(move |b| (a, b)));
    let best = all.max_by(|&(a, b), &(c, d)| score(a, b).total_cmp(&score(c, d))).unwrap();
    assert_eq!(beams[0].tokens, [best.0, best.1]);
}

#[test]
fn scores_are_those_of_the_tokens() {
    for penalty in [1.0, 0.0, 2.0, -0.5] {
        for rule in [Chooser::Greedy, draws()] {
            let options = BeamOptions { length_penalty: penalty, ..options(4) };
            let (_, beams) = search(&prompts(), rule, stop(&[6, 11]), options);
            for beam in &beams {
                let expected = log_probs(&prompts()[beam.prompt_index], &beam.tokens);
                let length = (beam.tokens.len() as f64).powf(penalty);
                let sum: f64 = expected.iter().sum();
                assert!((f64::from(beam.score) - sum / length).abs() < 1e-4, "{beam:?}");
                for (ours, expected) in beam.transition_scores.iter().zip(&expected) {
                    assert!((f64::from(*ours) - expected).abs() < 1e-5, "{beam:?}");
                }
                assert_eq!(beam.transition_scores.len(), beam.tokens.len());
                assert_eq!(beam.beam_indices.len(), beam.tokens.len());
                let rows = beam.prompt_index * 4..beam.prompt_index * 4 + 4;
                assert!(beam.beam_indices.iter().all(|it| rows.contains(it)), "{beam:?}");
            }
            assert!(beams.chunks(4).all(|it| it.is_sorted_by(|a, b| a.score >= b.score)));
        }
    }
}

#[test]
fn a_prompt_does_not_depend_on_its_neighbours() {
    for early_stopping in
        [EarlyStopping::Heuristic, EarlyStopping::WhenFinished, EarlyStopping::Never]
    {
        let options = BeamOptions { early_stopping, ..options(3) };
        // Searches that end at different steps: the rows of the first to end leave the batch.
        let (_, together) = search(&prompts(), Chooser::Greedy, stop(&[6, 11, 20]), options);
        for (prompt, together) in prompts().iter().zip(together.chunks(3)) {
            let alone = vec![prompt.clone()];
            let (_, alone) = search(&alone, Chooser::Greedy, stop(&[6, 11, 20]), options);
            for (alone, together) in alone.iter().zip(together) {
                assert_eq!((&alone.tokens, alone.score), (&together.tokens, together.score));
            }
        }
    }
}

#[test]
fn beams_without_a_token_to_take_say_what_bans_all() {
    for prompts in [&prompts()[..1], &prompts()] {
        let mut processors = ProcessorList::default();
        processors.push(SuppressTokens::new([3]));
        processors.push(SuppressTokens::new((0..VOCAB as u32).collect::<Vec<_>>()));
        let group = RowGroup::greedy(stop(&[6])).processors(processors);
        let model = Table::new(prompts, 3);
        let mut search = BeamSearch::new(model, &batch(prompts), group, options(3)).unwrap();
        run_out(&mut search);
        let error = search.into_parts().map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoToken);
        let expected = "prompt 0: 0 of 3 sequences could be finished; all other continuations are banned: \
                        `SuppressTokensLogitsProcessor` leaves none";
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn a_search_that_is_over_costs_nothing_more() {
    let early = BeamOptions { early_stopping: EarlyStopping::WhenFinished, ..options(2) };
    let eos: Vec<u32> = (0..12).collect();
    let work = |prompts: &[Vec<u32>]| search(prompts, Chooser::Greedy, stop(&eos), early).0.work;
    let alone: usize = prompts().iter().map(|it| work(std::slice::from_ref(it))).sum();
    assert_eq!(work(&prompts()), alone);
    assert!(alone < 3 * 2 * 8, "{alone}");
}

#[test]
fn every_end_token_ends_a_sequence_and_stays_in_it() {
    for rule in [Chooser::Greedy, draws()] {
        let (_, beams) = search(&prompts(), rule, stop(&[6, 11, 20]), options(4));
        for beam in &beams {
            let (last, before) = beam.tokens.split_last().unwrap();
            assert!(before.iter().all(|it| ![6, 11, 20].contains(it)), "{beam:?}");
            let ended = [6, 11, 20].contains(last);
            assert_eq!(beam.finish_reason == FinishReason::Eos, ended, "{beam:?}");
            assert!(ended || beam.tokens.len() == 9, "{beam:?}");
        }
        assert!(beams.iter().any(|it| it.finish_reason == FinishReason::Eos));
    }
}

#[test]
fn bans_that_leave_too_little_are_an_error() {
    let only = |allowed: u32| {
        let mut processors = ProcessorList::default();
        let others: Vec<u32> = (0..VOCAB as u32).filter(|it| *it != allowed).collect();
        processors.push(SuppressTokens::new(others));
        processors
    };
    let run = |num_return_sequences| {
        let options = BeamOptions { num_return_sequences, ..options(3) };
        let model = Table::new(&[vec![1]], 3);
        let group = RowGroup::greedy(stop(&[6])).processors(only(6));
        let mut search = BeamSearch::new(model, &batch(&[vec![1]]), group, options)?;
        std::iter::from_fn(|| search.step()).collect::<Result<Vec<_>>>()?;
        search.into_parts()
    };
    // There is one text: the end token.
    assert_eq!(run(1).unwrap().1[0].tokens, [6]);
    let error = run(2).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NoToken);
    assert!(error.to_string().contains("1 of 2 sequences"), "{error}");
}

#[test]
fn too_few_beams_are_refused() {
    for (num_beams, num_return_sequences) in [(0, 0), (2, 3)] {
        let options = BeamOptions { num_return_sequences, ..options(num_beams) };
        let model = Table::new(&[vec![1]], num_beams);
        let group = RowGroup::greedy(stop(&[]));
        assert!(BeamSearch::new(model, &batch(&[vec![1]]), group, options).is_err());
    }
}
