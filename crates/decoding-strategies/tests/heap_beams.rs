//! Groups of beams and forced words on a table of numbers.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

mod table;

use std::slice::from_ref;

use mlxgk_decoding_strategies::{
    BeamOptions, Constraint, EarlyStopping, ErrorKind, HeapBeamSearch, Limits, Result, RowGroup,
    TokenLoop, Variant,
};
use mlxgk_logits_processors::{ProcessorList, SuppressTokens};

use table::{Beam, Table, batch, beams};

fn options(num_beams: usize) -> BeamOptions {
    BeamOptions {
        num_beams,
        num_return_sequences: num_beams,
        length_penalty: 1.0,
        early_stopping: EarlyStopping::Heuristic,
    }
}

fn prompts() -> Vec<Vec<u32>> {
    vec![vec![3, 1], vec![4, 1], vec![5, 9]]
}

fn run(
    prompts: &[Vec<u32>],
    variant: Variant,
    processors: ProcessorList,
    options: BeamOptions,
) -> Result<Vec<Beam>> {
    let limits = Limits { max_new_tokens: 10, eos: vec![6] };
    let model = Table::new(prompts, options.num_beams);
    let group = RowGroup::greedy(limits).processors(processors);
    let mut search = HeapBeamSearch::new(model, &batch(prompts), group, options, variant)?;
    std::iter::from_fn(|| search.step()).collect::<Result<Vec<_>>>()?;
    Ok(beams(search.into_parts()?.1))
}

fn words(words: &[&[u32]]) -> Variant {
    Variant::Words(words.iter().map(|it| Constraint::phrase(it.to_vec()).unwrap()).collect())
}

fn contains(tokens: &[u32], phrase: &[u32]) -> bool {
    tokens.windows(phrase.len()).any(|it| it == phrase)
}

#[test]
fn every_sequence_holds_every_word() {
    for constraints in [
        words(&[&[20]]),
        words(&[&[20, 21, 22]]),
        words(&[&[20, 21], &[25], &[20, 27]]),
        Variant::Words(vec![
            Constraint::any_of(vec![vec![12, 13], vec![12, 14, 15], vec![29]]).unwrap(),
            Constraint::phrase(vec![20, 20]).unwrap(),
        ]),
    ] {
        let Variant::Words(list) = &constraints else { unreachable!() };
        let two = BeamOptions { num_return_sequences: 2, ..options(16) };
        let beams = run(&prompts(), constraints.clone(), ProcessorList::default(), two).unwrap();
        assert_eq!(beams.len(), 6);
        for beam in &beams {
            let text = [&prompts()[beam.prompt_index][..], &beam.tokens].concat();
            for constraint in list {
                let met = constraint.alternatives().iter().any(|it| contains(&text, it));
                assert!(met, "{constraint:?} is not in {text:?}");
            }
        }
    }
}

#[test]
fn a_word_that_cannot_be_said_is_an_error_that_names_it() {
    let mut processors = ProcessorList::default();
    processors.push(SuppressTokens::new([21]));
    let error = run(&prompts(), words(&[&[20, 21]]), processors, options(4)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Constraint);
    assert!(error.to_string().contains("[20, 21]"), "{error}");
    // More words than there is room for are refused before the first step.
    let long: Vec<u32> = (12..23).collect();
    let error = run(&prompts(), words(&[&long]), ProcessorList::default(), options(4));
    let error = error.unwrap_err();
    assert!(error.to_string().contains("need 11 tokens, but only 10"), "{error}");
}

#[test]
fn alternatives_that_begin_with_one_another_are_refused() {
    let wrong = |it: Vec<Vec<u32>>| Constraint::any_of(it).unwrap_err();
    let error = wrong(vec![vec![1, 2, 3], vec![1, 2]]);
    assert_eq!(error.kind(), ErrorKind::Constraint);
    assert!(error.to_string().contains("[1, 2] is the beginning of [1, 2, 3]"), "{error}");
    wrong(vec![vec![1], vec![1]]);
    wrong(vec![vec![1], vec![]]);
    wrong(vec![]);
    assert!(Constraint::phrase(vec![]).is_err());
}

#[test]
fn groups_say_different_things() {
    let groups = |diversity_penalty| Variant::Groups { groups: 4, diversity_penalty };
    let first = |penalty| -> Vec<u32> {
        // Groups may end alike: what ends a sequence is nobody's next token.
        let mut no_end = ProcessorList::default();
        no_end.push(SuppressTokens::new([6]));
        let beams = run(&[vec![7]], groups(penalty), no_end, options(4));
        beams.unwrap().iter().map(|it| it.tokens[0]).collect()
    };
    let mut different = first(100.0);
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), 4);
    // A penalty of nothing leaves four searches of one beam, all alike.
    let same = first(0.0);
    assert!(same.iter().all(|it| *it == same[0]), "{same:?}");
}

#[test]
fn a_prompt_does_not_depend_on_its_neighbours() {
    let none = ProcessorList::default;
    for early_stopping in [EarlyStopping::Heuristic, EarlyStopping::WhenFinished] {
        for variant in [Variant::Groups { groups: 2, diversity_penalty: 0.7 }, words(&[&[20, 21]])]
        {
            let options = BeamOptions { early_stopping, num_return_sequences: 2, ..options(6) };
            let together = run(&prompts(), variant.clone(), none(), options).unwrap();
            for (prompt, together) in prompts().iter().zip(together.chunks(2)) {
                let alone = run(from_ref(prompt), variant.clone(), none(), options).unwrap();
                for (alone, together) in alone.iter().zip(together) {
                    assert_eq!((&alone.tokens, alone.score), (&together.tokens, together.score));
                }
            }
        }
    }
}

#[test]
fn beam_indices_lead_back_to_the_rows() {
    // Without a penalty the scores are plain log-probabilities, and the indices stay in the group.
    let variant = Variant::Groups { groups: 2, diversity_penalty: 0.0 };
    let beams = run(&prompts(), variant, ProcessorList::default(), options(4)).unwrap();
    for beam in beams {
        let expected = table::log_probs(&prompts()[beam.prompt_index], &beam.tokens);
        let rows = beam.prompt_index * 4..beam.prompt_index * 4 + 4;
        assert!(beam.beam_indices.iter().all(|it| rows.contains(it)));
        let halves: Vec<usize> = beam.beam_indices.iter().map(|it| it % 4 / 2).collect();
        assert!(halves.iter().all(|it| *it == halves[0]), "{halves:?}");
        for (ours, expected) in beam.transition_scores.iter().zip(&expected) {
            assert!((f64::from(*ours) - expected).abs() < 1e-5);
        }
    }
}
