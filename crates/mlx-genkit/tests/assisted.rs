//! Helpers on every family: they change how fast something is said, never what.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::collections::{BTreeMap, BTreeSet};

use mlx_genkit::{
    Assistant, AssistedRequest, ComputeDtype, ErrorKind, Generation, GenerationConfig, HookPoint,
    Model, Prompt, Recording, Request, Seed,
    generation_config::{ForcedWord, OneOrMany},
    logits_processors::Context,
};

mod families;

use families::{FAMILIES, tiny};

fn greedy(count: usize) -> GenerationConfig {
    GenerationConfig {
        max_new_tokens: Some(count),
        do_sample: Some(false),
        eos_token_id: Some(OneOrMany::Many(Vec::new())),
        ..GenerationConfig::default()
    }
}

/// 14 ids, of which the last four occurred before.
fn prompt() -> Vec<u32> {
    vec![11, 48, 85, 122, 9, 46, 83, 120, 7, 44, 11, 48, 85, 122]
}

fn request<'a>(config: GenerationConfig) -> Request<'a> {
    Request::new(prompt()).config(config).seed(Seed::Fast(4))
}

fn tokens(generation: &Generation) -> &[u32] {
    &generation.sequences[0].tokens
}

#[test]
fn greedy_tokens_are_the_same_with_help_and_without() {
    for name in FAMILIES {
        let model = tiny(name);
        let alone = model.generate(request(greedy(40))).unwrap();
        let options = GenerationConfig {
            num_assistant_tokens: Some(7),
            assistant_confidence_threshold: Some(0.0),
            ..GenerationConfig::default()
        };
        let helper = Assistant::new(&model).config(options);
        let helped = model.generate(request(greedy(40)).assistant(helper)).unwrap();
        assert_eq!(tokens(&helped), tokens(&alone), "{name} with a draft");
        let acceptance = helped.acceptance.unwrap();
        assert_eq!(acceptance.accepted, acceptance.guessed, "{name}");
        let lookup = GenerationConfig { prompt_lookup_num_tokens: Some(5), ..greedy(40) };
        let helped = model.generate(request(lookup)).unwrap();
        assert_eq!(tokens(&helped), tokens(&alone), "{name} with prompt lookup");
    }
}

#[test]
fn an_early_exit_changes_nothing_that_is_said() {
    let (mut guessed, mut accepted) = (0, 0);
    for name in FAMILIES {
        let model = tiny(name);
        let alone = model.generate(request(greedy(40))).unwrap();
        let all = model.decoder().layers().len();
        for layers in 1..=all {
            let config = GenerationConfig { assistant_early_exit: Some(layers), ..greedy(40) };
            let own = GenerationConfig {
                num_assistant_tokens: Some(4),
                assistant_confidence_threshold: Some(0.0),
                ..GenerationConfig::default()
            };
            let helper = Assistant::new(&model).config(own);
            let early = model.generate(request(config).assistant(helper)).unwrap();
            assert_eq!(tokens(&early), tokens(&alone), "{name}, {layers} layers");
            let acceptance = early.acceptance.unwrap();
            if layers == all {
                assert_eq!(
                    acceptance.accepted, acceptance.guessed,
                    "{name}: a draft of all layers"
                );
            } else {
                guessed += acceptance.guessed;
                accepted += acceptance.accepted;
            }
        }
    }
    assert!(accepted > 0 && accepted < guessed, "{accepted} of {guessed}");
}

#[test]
fn guidance_stands_beside_helpers_beams_and_steering() {
    let model = tiny("llama");
    let guided = |more| GenerationConfig { guidance_scale: Some(1.8), ..more };
    let lookup = GenerationConfig { prompt_lookup_num_tokens: Some(3), ..greedy(12) };
    let beams = GenerationConfig { num_beams: Some(3), ..greedy(12) };
    for config in [lookup, beams] {
        let run = |config| tokens(&model.generate(request(config)).unwrap()).to_vec();
        assert_ne!(run(guided(config.clone())), run(config.clone()), "{config:?}");
        let mut seen = Recording::new([HookPoint::FinalNorm]);
        let hooked = model.generate(request(guided(config.clone())).hook(&mut seen)).unwrap();
        assert_eq!(tokens(&hooked), run(guided(config)), "a hook that looks on");
    }
}

#[test]
fn a_poor_draft_changes_nothing_either() {
    for (name, draft) in [("llama", "assisted/llama-draft"), ("gemma3", "assisted/gemma3-draft")] {
        let (model, draft) = (tiny(name), tiny(&format!("../{draft}")));
        let alone = model.generate(request(greedy(60))).unwrap();
        let (mut guessed, mut accepted) = (0, 0);
        for count in [1, 3, 20, 70] {
            let options = GenerationConfig {
                num_assistant_tokens: Some(count),
                num_assistant_tokens_schedule: Some("heuristic".to_owned()),
                assistant_confidence_threshold: Some(0.0),
                ..GenerationConfig::default()
            };
            let helper = Assistant::new(&draft).config(options);
            let helped = model.generate(request(greedy(60)).assistant(helper)).unwrap();
            assert_eq!(tokens(&helped), tokens(&alone), "{name}, {count} guesses");
            let acceptance = helped.acceptance.unwrap();
            (guessed, accepted) = (guessed + acceptance.guessed, accepted + acceptance.accepted);
        }
        assert!(accepted < guessed, "{name}: a draft without faults");
    }
}

#[test]
fn a_hook_steers_the_checked_guesses_too() {
    let model = tiny("gemma3");
    let mut alone = Recording::new([HookPoint::ResidPost(1), HookPoint::FinalNorm]);
    let plain = model.generate(request(greedy(20)).hook(&mut alone)).unwrap();
    let mut helped = Recording::new([HookPoint::ResidPost(1), HookPoint::FinalNorm]);
    let lookup = GenerationConfig { prompt_lookup_num_tokens: Some(4), ..greedy(20) };
    let with = model.generate(request(lookup).hook(&mut helped)).unwrap();
    assert_eq!(tokens(&plain), tokens(&with));
    for point in [HookPoint::ResidPost(1), HookPoint::FinalNorm] {
        let values = |it: &Recording| {
            let states = it.states(point).unwrap().unwrap();
            assert_eq!(states.shape(), [1, 33, model.decoder().hidden_size() as i32]);
            states.try_as_slice::<f32>().unwrap().to_vec()
        };
        let (alone, helped) = (values(&alone), values(&helped));
        let worst = alone.iter().zip(&helped).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-3, "{worst}");
    }
    assert!(alone.states(HookPoint::ResidPre(0)).unwrap().is_none());
}

#[test]
fn a_cache_goes_on_where_it_was_left() {
    for name in FAMILIES {
        let model = tiny(name);
        let mut cache = model.decoder().new_cache(1);
        let mut text = prompt();
        for turn in 0..3 {
            let config = greedy(9);
            let whole = Request::new(text.clone()).config(config.clone());
            let whole = model.generate(whole).unwrap();
            // Every other turn with a helper.
            let lookup = (turn % 2 == 1).then_some(3);
            let config = GenerationConfig { prompt_lookup_num_tokens: lookup, ..config };
            let request = Request::new(text.clone()).config(config).cache(cache);
            let mut stream = model.stream(request).unwrap();
            stream.by_ref().for_each(|it| assert!(it.is_ok()));
            let (generation, left) = stream.finish_with_cache().unwrap();
            assert_eq!(tokens(&generation), tokens(&whole), "{name}, turn {turn}");
            assert_eq!(left.len(), text.len() + 8);
            cache = left;
            // The second turn takes back a part of what was said.
            text.extend(&tokens(&whole)[..if turn == 0 { 9 } else { 4 }]);
            text.extend([9, 10]);
        }
    }
}

#[test]
fn guidance_of_a_row_does_not_depend_on_its_neighbours() {
    let model = tiny("qwen3");
    let config = || GenerationConfig { guidance_scale: Some(1.7), ..greedy(12) };
    let prompts = [prompt(), vec![5, 6, 7]];
    let batch = Request::batch(prompts.clone().map(Prompt::from)).config(config());
    let batch = model.generate(batch).unwrap();
    for (prompt, sequence) in prompts.iter().zip(&batch.sequences) {
        let alone = model.generate(Request::new(prompt.clone()).config(config())).unwrap();
        assert_eq!(tokens(&alone), sequence.tokens);
        let plain = model.generate(Request::new(prompt.clone()).config(greedy(12))).unwrap();
        assert_ne!(tokens(&plain), sequence.tokens);
    }
}

#[test]
fn kept_scores_and_logprobs_belong_to_the_tokens() {
    let model = tiny("llama");
    let config =
        GenerationConfig { output_scores: Some(true), repetition_penalty: Some(1.3), ..greedy(10) };
    let generation = model.generate(request(config).logprobs(3)).unwrap();
    let sequence = &generation.sequences[0];
    let scores = sequence.transition_scores(false).unwrap().unwrap();
    assert_eq!(scores.len(), 10);
    for (at, kept) in sequence.recorded.scores.iter().enumerate() {
        assert_eq!(kept.iter().copied().fold(f32::NEG_INFINITY, f32::max), scores[at]);
    }
    for entry in &sequence.recorded.logprobs {
        assert_eq!(entry.top.len(), 3);
        assert!(entry.logprob <= entry.top[0].1);
    }
    assert!(sequence.recorded.logits.is_empty());
    let bare = model.generate(request(greedy(2))).unwrap();
    assert_eq!(bare.sequences[0].transition_scores(true).unwrap(), None);
}

#[track_caller]
fn check_refused<'a>(model: &'a Model, request: impl Into<AssistedRequest<'a>>, words: &str) {
    let error = model.generate(request).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Request, "{error}");
    assert!(error.to_string().contains(words), "{words:?} is not in: {error}");
}

#[test]
fn what_does_not_go_together_is_refused() {
    let (same, other) = (tiny("llama"), tiny("qwen3"));
    let lookup = |more| GenerationConfig { prompt_lookup_num_tokens: Some(3), ..more };
    let default = GenerationConfig::default;
    check_refused(
        &same,
        request(greedy(4)).assistant(&other),
        "its vocabulary has 181 tokens, not 151",
    );
    let two = Request::batch([prompt(), vec![5]]);
    check_refused(
        &same,
        two.assistant(&same),
        "more than one prompt is not available with assisted decoding",
    );
    let several =
        GenerationConfig { do_sample: Some(true), num_return_sequences: Some(2), ..greedy(4) };
    check_refused(&same, request(several.clone()).assistant(&same), "`num_return_sequences`");
    check_refused(&same, request(lookup(several)), "`num_return_sequences`");
    let beams = GenerationConfig { num_beams: Some(2), ..greedy(4) };
    check_refused(
        &same,
        request(beams.clone()).assistant(&same),
        "a draft model, prompt lookup or `use_mtp` is not",
    );
    check_refused(
        &same,
        request(lookup(beams.clone())),
        "a draft model, prompt lookup or `use_mtp` is not",
    );
    let weight = GenerationConfig { assistant_ensemble_weight: Some(0.5), ..greedy(4) };
    check_refused(&same, request(lookup(weight)), "`assistant_ensemble_weight`");
    let guided = GenerationConfig { guidance_scale: Some(2.0), ..greedy(4) };
    let early = |layers, more| GenerationConfig { assistant_early_exit: Some(layers), ..more };
    for layers in [0, 4] {
        check_refused(
            &same,
            request(early(layers, greedy(4))),
            "must be between 1 and the model's 3",
        );
    }
    check_refused(
        &same,
        request(early(1, guided.clone())),
        "`assistant_early_exit` is not available",
    );
    check_refused(
        &same,
        request(early(1, beams.clone())),
        "a draft model, prompt lookup or `use_mtp` is not",
    );
    check_refused(
        &same,
        request(guided).cache(same.decoder().new_cache(1)),
        "a cache to resume is not available together with `guidance_scale`",
    );
    check_refused(&same, request(greedy(4)).negative_prompts([vec![5]]), "`guidance_scale`");
    let words = Some(vec![ForcedWord::Phrase(vec![9])]);
    let words = GenerationConfig { force_words_ids: words, ..beams };
    let stopped = request(words).stop_when(|_: &Context<'_>| true);
    check_refused(
        &same,
        stopped,
        "stopping criterion is not available with constrained beam search",
    );
    let schedule = GenerationConfig {
        num_assistant_tokens_schedule: Some("sometimes".to_owned()),
        ..default()
    };
    let helper = Assistant::new(&same).config(schedule);
    check_refused(&same, request(greedy(4)).assistant(helper), "`num_assistant_tokens_schedule`");
}

/// The recorded pair of models with unlike tokenizers.
fn pair() -> (Model, Model) {
    let folder = |name: &str| {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/assisted/");
        Model::load(format!("{fixtures}{name}"), ComputeDtype::Float32).unwrap()
    };
    (folder("universal"), folder("universal-draft"))
}

fn guessing(draft: &Model, count: usize) -> Assistant<'_> {
    Assistant::new(draft).config(GenerationConfig {
        num_assistant_tokens: Some(count),
        assistant_confidence_threshold: Some(0.0),
        ..GenerationConfig::default()
    })
}

#[test]
fn a_draft_with_another_tokenizer_changes_nothing_that_is_said() {
    let (model, draft) = pair();
    let (mut guessed, mut accepted) = (0, 0);
    for text in ["the red fox and the", "in the morning", "a", "no other text: \u{fc}ber \u{1f98a}"]
    {
        let request = || Request::new(text).config(greedy(40));
        let alone = model.generate(request()).unwrap();
        for count in [1, 4, 20] {
            let helped = model.generate(request().assistant(guessing(&draft, count))).unwrap();
            assert_eq!(tokens(&helped), tokens(&alone), "{text}, {count} guesses");
            let acceptance = helped.acceptance.unwrap();
            (guessed, accepted) = (guessed + acceptance.guessed, accepted + acceptance.accepted);
        }
    }
    assert!(accepted > 0 && accepted < guessed, "{accepted} of {guessed}");
}

/// Each token is distributed as the model has it: over many seeds, the first three tokens come as often with
/// the draft as without.
#[test]
fn draws_with_another_tokenizer_are_distributed_as_the_model_s_own() {
    const RUNS: u64 = 1200;
    let (model, draft) = pair();
    let config = || GenerationConfig {
        do_sample: Some(true),
        temperature: Some(1.5),
        top_k: Some(0),
        ..greedy(3)
    };
    let (mut alone, mut helped) = (BTreeMap::new(), BTreeMap::new());
    let mut accepted = 0;
    for seed in 0..RUNS {
        let request = |seed| Request::new("the red").config(config()).seed(Seed::Fast(seed));
        let plain = model.generate(request(seed)).unwrap();
        let with = request(seed + RUNS).assistant(guessing(&draft, 3));
        let with = model.generate(with).unwrap();
        accepted += with.acceptance.unwrap().accepted;
        for (counts, generation) in [(&mut alone, &plain), (&mut helped, &with)] {
            for (place, &token) in tokens(generation).iter().enumerate() {
                *counts.entry((place, token)).or_insert(0_i64) += 1;
            }
        }
    }
    assert!(accepted > 0);
    let all = alone.keys().chain(helped.keys()).copied().collect::<BTreeSet<_>>();
    for key in all {
        let (a, b) = (alone.get(&key).unwrap_or(&0), helped.get(&key).unwrap_or(&0));
        // Six standard deviations of the difference of two counts.
        let bound = 6.0 * ((a + b + 1) as f64).sqrt();
        assert!(((a - b).abs() as f64) < bound, "{key:?}: {a} times alone, {b} with the draft");
    }
}

#[test]
fn processors_and_guidance_reach_a_draft_with_another_tokenizer() {
    let (model, draft) = pair();
    let penalties = GenerationConfig {
        repetition_penalty: Some(1.4),
        no_repeat_ngram_size: Some(2),
        ..greedy(30)
    };
    let alone = model.generate(Request::new("the sea").config(penalties.clone())).unwrap();
    let helped = Request::new("the sea").config(penalties).assistant(guessing(&draft, 4));
    assert_eq!(tokens(&model.generate(helped).unwrap()), tokens(&alone));
    let guided = GenerationConfig { guidance_scale: Some(1.5), ..greedy(10) };
    let guided = Request::new("the sea").config(guided).assistant(guessing(&draft, 4));
    assert_eq!(tokens(&model.generate(guided).unwrap()).len(), 10);
    // The draft has other tokens for most of them: where none of its own is allowed, it guesses nothing.
    let forced: Vec<u32> = (0..model.decoder().vocab_size() as u32).filter(|it| *it != 3).collect();
    let forced = GenerationConfig {
        suppress_tokens: Some(forced.iter().map(|&it| it.into()).collect()),
        ..greedy(5)
    };
    let helped = Request::new("the sea").config(forced).assistant(guessing(&draft, 4));
    assert_eq!(tokens(&model.generate(helped).unwrap()), [3; 5]);
}
