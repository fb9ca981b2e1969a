//! Groups of beams, forced words, contrastive search and DoLa on real models: what holds in every
//! family, whatever its caches.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::slice::from_ref;

use mlx_genkit::{
    AssistedRequest, ErrorKind, GenerationConfig, HookPoint, Model, Prompt, Request, ResidualHook,
    Seed, Sequence,
    generation_config::{DolaLayers, ForcedWord, OneOrMany},
    kv_cache::Step,
    mlx_models,
    mlx_rs::Array,
};

mod families;

use families::{FAMILIES, tiny};

fn config(eos: &[i64]) -> GenerationConfig {
    GenerationConfig {
        do_sample: Some(false),
        max_new_tokens: Some(14),
        eos_token_id: Some(OneOrMany::Many(eos.to_vec())),
        pad_token_id: Some(0),
        ..GenerationConfig::default()
    }
}

fn groups() -> GenerationConfig {
    GenerationConfig {
        num_beams: Some(6),
        num_beam_groups: Some(3),
        diversity_penalty: Some(0.8),
        num_return_sequences: Some(4),
        ..config(&[20, 40, 60, 80, 100])
    }
}

fn words(words: Vec<ForcedWord>) -> GenerationConfig {
    GenerationConfig {
        num_beams: Some(10),
        num_return_sequences: Some(2),
        force_words_ids: Some(words),
        ..config(&[20, 40, 60, 80, 100])
    }
}

fn phrase(tokens: &[i64]) -> ForcedWord {
    ForcedWord::Phrase(tokens.to_vec())
}

fn contrastive() -> GenerationConfig {
    GenerationConfig { penalty_alpha: Some(0.6), top_k: Some(5), ..config(&[20, 60, 100]) }
}

fn dola(layers: &[usize]) -> GenerationConfig {
    let dola_layers = Some(DolaLayers::Listed(layers.to_vec()));
    GenerationConfig { dola_layers, ..config(&[20, 60, 100]) }
}

/// A config of every mode.
fn modes() -> [(&'static str, GenerationConfig); 4] {
    [
        ("groups", groups()),
        ("words", words(vec![phrase(&[71, 9])])),
        ("contrastive", contrastive()),
        ("dola", dola(&[1, 2])),
    ]
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

fn contains(tokens: &[u32], phrase: &[i64]) -> bool {
    tokens.windows(phrase.len()).any(|it| it.iter().zip(phrase).all(|(a, b)| i64::from(*a) == *b))
}

#[test]
fn every_forced_word_is_in_every_sequence() {
    let either = ForcedWord::AnyOf(vec![vec![90, 91, 92], vec![17], vec![90, 55]]);
    let wanted = [
        vec![phrase(&[71])],
        vec![phrase(&[71, 9, 130])],
        vec![either.clone()],
        vec![phrase(&[71, 9]), either, phrase(&[71, 12])],
    ];
    let (mut found, mut missing) = (0, 0);
    for name in FAMILIES {
        let model = tiny(name);
        for wanted in &wanted {
            let penalties = GenerationConfig {
                repetition_penalty: Some(1.2),
                no_repeat_ngram_size: Some(2),
                num_beams: Some(16),
                ..words(wanted.clone())
            };
            for config in [words(wanted.clone()), penalties] {
                let prompts = prompts().into_iter().map(Prompt::from);
                match model.generate(Request::batch(prompts).config(config)) {
                    Ok(generation) => {
                        found += 1;
                        check_words(name, &generation.sequences, wanted);
                    }
                    Err(e) => {
                        missing += 1;
                        let reason = e.to_string();
                        assert!(reason.contains("hold every forced word; others lack"), "{reason}");
                    }
                }
            }
        }
    }
    assert!(found > 4 * missing, "{found} searches found the words, {missing} did not");
}

fn check_words(name: &str, sequences: &[Sequence], wanted: &[ForcedWord]) {
    assert_eq!(sequences.len(), 6);
    for it in sequences {
        let text = [&prompts()[it.prompt_index][..], &it.tokens].concat();
        for word in wanted {
            let met = word.alternatives().iter().any(|it| contains(&text, it));
            assert!(met, "{name}: {word:?} is not in {text:?}");
        }
    }
}

#[test]
fn what_cannot_be_forced_is_an_error_that_names_it() {
    let model = tiny("qwen3");
    let refused = |config: GenerationConfig, expected: &str| {
        let request = Request::new(vec![5, 6, 7]).config(config);
        let error = model.generate(request).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Request);
        assert!(error.to_string().contains(expected), "{error}");
    };
    // A word that is banned; one that is too long; more words than the beams find room for.
    let banned = words(vec![phrase(&[71]), phrase(&[9, 12])]);
    refused(GenerationConfig { suppress_tokens: Some(vec![12]), ..banned }, "others lack [9, 12]");
    refused(words(vec![phrase(&[9; 15])]), "need 15 tokens, but only 14 may be generated");
    refused(words(vec![phrase(&[999])]), "999, which is outside the vocabulary");
    refused(words(vec![phrase(&[9, 40])]), "40, which ends a sequence");
    refused(words(vec![phrase(&[])]), "at least one token");
    let subset = ForcedWord::AnyOf(vec![vec![5, 6], vec![5]]);
    refused(words(vec![subset]), "[5] is the beginning of [5, 6]");
    let one = GenerationConfig {
        num_beams: Some(1),
        num_return_sequences: None,
        ..words(vec![phrase(&[9])])
    };
    refused(one, "set `num_beams`");
}

/// With one layer DoLa's rows are apart too; with several they choose one together.
#[test]
fn rows_of_a_batch_equal_single_rows() {
    // Longrope reads a short row next to a long one differently.
    for name in FAMILIES.iter().filter(|it| **it != "phi3-longrope-5x") {
        let model = tiny(name);
        for (mode, config) in [
            ("groups", groups()),
            ("words", words(vec![phrase(&[71, 9])])),
            ("contrastive", contrastive()),
            ("dola", dola(&[1])),
        ] {
            let together = run(&model, &prompts(), config.clone());
            let each = together.len() / prompts().len();
            for (prompt, together) in prompts().iter().zip(together.chunks(each)) {
                let alone = run(&model, from_ref(prompt), config.clone());
                for (alone, together) in alone.iter().zip(together) {
                    assert_eq!(alone.tokens, together.tokens, "{name}, {mode}");
                    assert_eq!(alone.finish_reason, together.finish_reason, "{name}, {mode}");
                    let (alone, together) = (alone.score, together.score);
                    let error = alone.unwrap_or(0.0) - together.unwrap_or(0.0);
                    assert!(error.abs() < 1e-4, "{name}, {mode}: {error}");
                }
            }
        }
    }
}

/// HF's identity: what the tokens added, divided by their number to the length penalty, is the score.
#[test]
fn beam_scores_sum_up_to_the_score() {
    let drawn = GenerationConfig {
        do_sample: Some(true),
        num_beams: Some(4),
        num_return_sequences: Some(3),
        ..config(&[20, 40, 60, 80])
    };
    let plain = GenerationConfig { do_sample: Some(false), ..drawn.clone() };
    let words = words(vec![phrase(&[71, 9]), phrase(&[12])]);
    let words = GenerationConfig { num_return_sequences: Some(1), ..words };
    let modes = [plain, drawn, groups(), words];
    for name in FAMILIES {
        let model = tiny(name);
        for config in &modes {
            for power in [0.0, 0.6, 1.7] {
                let config = GenerationConfig { length_penalty: Some(power), ..config.clone() };
                for it in run(&model, &prompts(), config) {
                    let scores = it.transition_scores(false).unwrap().unwrap();
                    assert_eq!(scores.len(), it.tokens.len());
                    let length = (scores.len() as f32).powf(power as f32);
                    let error = it.score.unwrap() - scores.iter().sum::<f32>() / length;
                    assert!(error.abs() < 1e-4, "{name}: {error}");
                }
            }
        }
    }
}

/// Adds to the residual stream after the second block.
struct Push(f32);

impl ResidualHook for Push {
    fn apply(&mut self, at: HookPoint, hidden: Array, _: &Step) -> mlx_models::Result<Array> {
        match at {
            HookPoint::ResidPost(1) => Ok(hidden.add(Array::from_f32(self.0))?),
            _ => Ok(hidden),
        }
    }
}

#[test]
fn hooks_reach_every_mode() {
    for name in ["llama", "gemma2", "gemma3", "qwen3-moe"] {
        let model = tiny(name);
        for (mode, config) in modes() {
            let steered = |strength: f32| {
                let request = Request::batch(prompts()).config(config.clone()).hook(Push(strength));
                model.generate(request).unwrap().sequences
            };
            let bare = run(&model, &prompts(), config.clone());
            assert_eq!(bare, steered(0.0), "{name}, {mode}");
            assert_ne!(bare, steered(1.5), "{name}, {mode}");
            if mode == "words" {
                // The probabilities are those of the steered model.
                for it in steered(1.5) {
                    let text = [&prompts()[it.prompt_index][..], &it.tokens].concat();
                    let found = model.score(Request::new(text).hook(Push(1.5))).unwrap();
                    let new = &found.logprobs[found.logprobs.len() - it.tokens.len()..];
                    for (ours, found) in it.beam_scores.unwrap().iter().zip(new) {
                        assert!((ours - found).abs() < 1e-4, "{name}: {ours} {found}");
                    }
                }
            }
        }
    }
}

/// The caches followed the beams: a pass over the whole text finds the same probabilities.
#[test]
fn forced_words_are_as_likely_as_the_text_says() {
    for name in FAMILIES {
        let model = tiny(name);
        for it in run(&model, &prompts()[..1], words(vec![phrase(&[71, 9]), phrase(&[12])])) {
            let text = [&prompts()[0][..], &it.tokens].concat();
            let found = model.score(Request::new(text)).unwrap().logprobs;
            let new = &found[found.len() - it.tokens.len()..];
            for (ours, found) in it.beam_scores.unwrap().iter().zip(new) {
                assert!((ours - found).abs() < 1e-4, "{name}: {ours} {found}");
            }
        }
    }
}

#[test]
fn prompts_may_come_in_chunks() {
    for name in FAMILIES {
        let model = tiny(name);
        for (mode, config) in modes() {
            let whole = run(&model, &prompts(), config.clone());
            for size in [1, 3, 16] {
                let config = GenerationConfig { prefill_chunk_size: Some(size), ..config.clone() };
                let parts = run(&model, &prompts(), config);
                for (whole, parts) in whole.iter().zip(parts) {
                    assert_eq!(whole.tokens, parts.tokens, "{name}, {mode}, chunks of {size}");
                }
            }
        }
    }
}

#[test]
fn contrastive_search_and_dola_stream() {
    let model = tiny("llama");
    for config in [contrastive(), dola(&[0, 1, 2])] {
        let whole = run(&model, &prompts(), config.clone());
        let prompts = prompts().into_iter().map(Prompt::from);
        let mut pieces = model.stream(Request::batch(prompts).config(config)).unwrap();
        assert_eq!(pieces.warnings(), []);
        let mut said = vec![Vec::new(); whole.len()];
        for piece in pieces.by_ref() {
            let piece = piece.unwrap();
            said[piece.sequence].push(piece.token);
        }
        let whole: Vec<Vec<u32>> = whole.into_iter().map(|it| it.tokens).collect();
        assert_eq!(said, whole);
        let error = pieces.finish_with_cache().unwrap_err();
        assert!(error.to_string().contains("leaves no cache"), "{error}");
    }
}

#[test]
fn kept_scores_belong_to_the_tokens() {
    let model = tiny("qwen2");
    for config in [contrastive(), dola(&[0, 2])] {
        let config = GenerationConfig { output_scores: Some(true), ..config };
        let config = GenerationConfig { output_logits: Some(true), ..config };
        for it in run(&model, &prompts(), config) {
            assert_eq!(it.recorded.scores.len(), it.tokens.len());
            assert_eq!(it.recorded.logits.len(), it.tokens.len());
            let scores = it.transition_scores(true).unwrap().unwrap();
            assert!(scores.iter().all(|it| it.is_finite() && *it <= 0.0), "{scores:?}");
        }
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let model = tiny("llama");
    let refused = |request: AssistedRequest<'_>, expected: &str| {
        let error = model.generate(request).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Request, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    let request = |config: GenerationConfig| Request::new(vec![5, 6, 7]).config(config);
    for (_, config) in modes() {
        let guided = GenerationConfig { guidance_scale: Some(1.5), ..config.clone() };
        refused(request(guided).into(), "`guidance_scale` is not available with");
        let helped = request(config.clone()).assistant(&model);
        refused(helped, "is not available with");
        if config.dola_layers.is_none() {
            let resumed = request(config).cache(model.decoder().new_cache(1));
            refused(resumed.into(), "a cache to resume is not available with");
        }
    }
    for config in [groups(), words(vec![phrase(&[9])])] {
        let error = model.stream(request(config.clone())).unwrap_err();
        assert!(error.to_string().contains("streaming is not available with"), "{error}");
        let drawn = GenerationConfig { do_sample: Some(true), ..config.clone() };
        refused(request(drawn).into(), "searched, not drawn");
        let many = GenerationConfig { num_return_sequences: Some(11), ..config };
        refused(request(many).into(), "`num_return_sequences` is 11");
    }
    let several = GenerationConfig { num_return_sequences: Some(2), ..contrastive() };
    refused(request(several).into(), "`num_return_sequences` is 2");
    let beams = GenerationConfig { num_beams: Some(3), ..dola(&[1]) };
    refused(
        request(beams).into(),
        "`dola_layers` is not available with beam search, only with DoLa",
    );
    refused(
        request(dola(&[3, 9])).into(),
        "`dola_layers` names no layer below the last, which is 3",
    );
    let uneven = GenerationConfig { num_beam_groups: Some(4), ..groups() };
    refused(request(uneven).into(), "must divide `num_beams`");
    let alike = GenerationConfig { diversity_penalty: None, ..groups() };
    refused(request(alike).into(), "`diversity_penalty`");
}
