//! Beams on real models: what holds in every family, whatever its caches.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use mlx_genkit::{
    ErrorKind, GenerationConfig, Model, NoHook, Prompt, Request, Seed, Sequence,
    decoding_strategies::{
        BeamOptions, BeamSearch, EarlyStopping, HeapBeamSearch, LeftPadded, Limits, Prefill,
        RowGroup, TokenLoop, Variant,
    },
    generation_config::OneOrMany,
};

mod families;

use families::{FAMILIES, tiny};

fn beams(count: usize, eos: &[i64]) -> GenerationConfig {
    GenerationConfig {
        do_sample: Some(false),
        num_beams: Some(count),
        num_return_sequences: Some(count),
        max_new_tokens: Some(12),
        eos_token_id: Some(OneOrMany::Many(eos.to_vec())),
        pad_token_id: Some(0),
        ..GenerationConfig::default()
    }
}

fn run(model: &Model, prompts: &[Vec<u32>], config: GenerationConfig) -> Vec<Sequence> {
    let prompts = prompts.iter().map(|it| Prompt::from(it.clone()));
    let request = Request::batch(prompts).config(config).seed(Seed::Torch(1));
    model.generate(request).unwrap().sequences
}

/// Prompts of different lengths; the longest is longer than every window.
fn prompts() -> Vec<Vec<u32>> {
    [4, 19, 1]
        .iter()
        .map(|&len| (0..len).map(|it| (it * 37 + len * 11) % 125 + 3).collect())
        .collect()
}

#[test]
fn rows_of_a_batch_equal_single_rows() {
    for name in &FAMILIES[..10] {
        let model = tiny(name);
        let config = beams(3, &[20, 40, 60, 80, 100]);
        let together = run(&model, &prompts(), config.clone());
        for (prompt, together) in prompts().iter().zip(together.chunks(3)) {
            let alone = run(&model, std::slice::from_ref(prompt), config.clone());
            for (alone, together) in alone.iter().zip(together) {
                assert_eq!(alone.tokens, together.tokens, "{name}");
                let error = alone.score.unwrap() - together.score.unwrap();
                assert!(error.abs() < 1e-4, "{name}: {error}");
            }
        }
    }
}

/// The caches followed the beams: a pass over the whole text finds the same probabilities.
#[test]
fn scores_are_those_of_the_text() {
    for name in &FAMILIES[..10] {
        let model = tiny(name);
        let config = GenerationConfig { length_penalty: Some(0.7), ..beams(4, &[30, 60, 90]) };
        for sequence in run(&model, &prompts(), config) {
            let text = [&prompts()[sequence.prompt_index][..], &sequence.tokens].concat();
            let log_probs = model.score(Request::new(text)).unwrap().logprobs;
            let new = &log_probs[log_probs.len() - sequence.tokens.len()..];
            let expected = new.iter().sum::<f32>() / (new.len() as f32).powf(0.7);
            let error = (sequence.score.unwrap() - expected).abs();
            assert!(error < 1e-4, "{name}: {error}");
            assert_eq!(sequence.beam_indices.unwrap().len(), new.len());
        }
    }
}

#[test]
fn one_beam_is_greedy() {
    let model = tiny("qwen3");
    let one = run(&model, &prompts(), GenerationConfig { num_beams: Some(1), ..beams(1, &[30]) });
    let none = run(&model, &prompts(), GenerationConfig { num_beams: None, ..beams(1, &[30]) });
    assert_eq!(one, none);
    assert!(one.iter().all(|it| it.score.is_none()));
}

/// The search itself with one beam, where no end token lets it weigh lengths.
#[test]
fn a_search_with_one_beam_is_greedy() {
    for name in &FAMILIES[..10] {
        let model = tiny(name);
        let greedy = GenerationConfig { num_beams: None, ..beams(1, &[]) };
        for prompt in prompts() {
            let greedy = run(&model, std::slice::from_ref(&prompt), greedy.clone());
            let options = BeamOptions {
                num_beams: 1,
                num_return_sequences: 1,
                length_penalty: 1.0,
                early_stopping: EarlyStopping::Heuristic,
            };
            let prompts = LeftPadded::new(std::slice::from_ref(&prompt), 0).unwrap();
            let session = || Prefill::new(model.decoder(), &prompts, NoHook).finish().unwrap();
            let group = || RowGroup::greedy(Limits { max_new_tokens: 12, eos: vec![] });
            let variant = Variant::Groups { groups: 1, diversity_penalty: 0.0 };
            let plain = BeamSearch::new(session(), &prompts, group(), options).unwrap();
            let heaps =
                HeapBeamSearch::new(session(), &prompts, group(), options, variant).unwrap();
            let searches: [Box<dyn TokenLoop>; 2] = [Box::new(plain), Box::new(heaps)];
            for mut search in searches {
                while let Some(step) = search.step() {
                    step.unwrap();
                }
                assert_eq!(search.finish().unwrap().rows[0].tokens, greedy[0].tokens, "{name}");
            }
        }
    }
}

#[test]
fn beams_cannot_be_streamed() {
    let model = tiny("llama");
    let request = Request::new(vec![5, 6]).config(beams(2, &[]));
    let plan = model.plan(request).unwrap();
    assert!(!plan.streams());
    let error = plan.stream().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Request);
    assert!(error.to_string().contains("streaming is not available with beam search"), "{error}");
}
