//! What must hold of every family, whatever its tokens are: neighbours, a missing cache and steps
//! taken back change nothing.

#![cfg(all(feature = "bundled", feature = "grammars"))]
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use mlx_genkit::{
    ComputeDtype, Generation, GenerationConfig, Model, NoHook, Prompt, Request, Seed,
    decoding_strategies::{
        DEFAULT_PREFILL_CHUNK, DecoderSession, LanguageModel, LeftPadded, Speculative,
    },
    generation_config::OneOrMany,
};

mod families;

use families::{FAMILIES, tiny};

/// The model, and a length that all its prompts pass: longrope reads a batch as its longest row
/// demands, so rows are alike only on one side of its original context.
fn families() -> impl Iterator<Item = (Model, usize)> {
    FAMILIES.into_iter().map(|name| {
        let model = tiny(name);
        let least = model.decoder().original_context().unwrap_or(0);
        (model, least)
    })
}

fn ids(len: usize, salt: u32) -> Vec<u32> {
    (0..len as u32).map(|it| (it * it * 7 + it * 37 + salt * 53) % 130 + 3).collect()
}

fn prompts(least: usize) -> Vec<Vec<u32>> {
    vec![ids(least + 4, 1), ids(least + 17, 2), ids(least + 11, 3)]
}

fn config(draw: bool, eos: &[u32]) -> GenerationConfig {
    GenerationConfig {
        max_new_tokens: Some(12),
        do_sample: Some(draw),
        temperature: Some(1.3),
        eos_token_id: Some(OneOrMany::Many(eos.iter().map(|&it| it.into()).collect())),
        pad_token_id: Some(0),
        ..GenerationConfig::default()
    }
}

fn run(model: &Model, prompts: &[Vec<u32>], config: GenerationConfig) -> Generation {
    let prompts = prompts.iter().map(|it| Prompt::from(it.clone()));
    model.generate(Request::batch(prompts).config(config).seed(Seed::Fast(7))).unwrap()
}

fn tokens(generation: &Generation) -> Vec<&[u32]> {
    generation.sequences.iter().map(|it| it.tokens.as_slice()).collect()
}

#[test]
fn a_row_is_continued_as_it_is_alone() {
    for (model, least) in families() {
        let prompts = prompts(least);
        // Rows end at different steps.
        let said = run(&model, &prompts, config(false, &[]));
        let eos = [said.sequences[0].tokens[5], said.sequences[2].tokens[9]];
        let batch = run(&model, &prompts, config(false, &eos));
        for (prompt, row) in prompts.iter().zip(&batch.sequences) {
            let alone = run(&model, std::slice::from_ref(prompt), config(false, &eos));
            assert_eq!(alone.sequences[0].tokens, row.tokens, "{}", model.name());
            assert_eq!(alone.sequences[0].finish_reason, row.finish_reason);
        }
    }
}

#[test]
fn a_rows_draws_are_its_own() {
    for (model, least) in families() {
        let prompts = prompts(least);
        let drawn = run(&model, &prompts, config(true, &[]));
        // Other neighbours, one of which ends at once.
        let others = [ids(least + 9, 8), prompts[1].clone(), ids(least + 2, 9)];
        let said = run(&model, &others, config(true, &[]));
        let eos = said.sequences[0].tokens[0];
        let mixed = run(&model, &others, config(true, &[eos]));
        let end = tokens(&drawn)[1].iter().position(|it| *it == eos).map_or(12, |it| it + 1);
        assert_eq!(tokens(&mixed)[1], &tokens(&drawn)[1][..end], "{}", model.name());
        // Several sequences of a prompt are rows like others.
        let several = GenerationConfig { num_return_sequences: Some(3), ..config(true, &[]) };
        let several = run(&model, &prompts[..1], several);
        let thrice = run(&model, &vec![prompts[0].clone(); 3], config(true, &[]));
        assert_eq!(tokens(&several), tokens(&thrice), "{}", model.name());
        assert_ne!(tokens(&several)[0], tokens(&several)[1], "{}", model.name());
    }
}

#[test]
fn a_text_read_anew_for_each_token_is_continued_alike() {
    for (model, least) in families() {
        let uncached = |config| GenerationConfig { use_cache: Some(false), ..config };
        for draw in [false, true] {
            let with = run(&model, &prompts(least), config(draw, &[]));
            let without = run(&model, &prompts(least), uncached(config(draw, &[])));
            assert_eq!(tokens(&with), tokens(&without), "{}", model.name());
        }
        // Alone, longrope's original context is crossed.
        let short = [ids(13, 5)];
        let with = run(&model, &short, config(false, &[]));
        let without = run(&model, &short, uncached(config(false, &[])));
        assert_eq!(tokens(&with), tokens(&without), "{}", model.name());
        let beams = GenerationConfig { num_beams: Some(3), ..config(false, &[]) };
        let with = run(&model, &prompts(least)[..1], beams.clone());
        let without = run(&model, &prompts(least)[..1], uncached(beams));
        assert_eq!(tokens(&with), tokens(&without), "{}", model.name());
    }
}

#[test]
fn what_is_taken_back_leaves_no_trace() {
    for (model, _) in families() {
        let session = |text: &[u32]| {
            let rows = LeftPadded::new(&[text.to_vec()], 0).unwrap();
            let hook = NoHook::leaked();
            DecoderSession::prefill(model.decoder(), &rows, DEFAULT_PREFILL_CHUNK, hook).unwrap()
        };
        let (text, next) = (ids(30, 4), [9, 44]);
        let mut straight = session(&text);
        straight.feed_several(&next).unwrap();
        let expected = straight.scores().unwrap().to_vec();
        // Some at once, more than a window, more than a sliding layer keeps for it, one by one.
        for (count, step) in [(3, 3), (20, 20), (70, 70), (24, 1)] {
            let mut session = session(&text);
            for part in ids(count, 6).chunks(step) {
                session.feed_several(part).unwrap();
            }
            session.roll_back(count).unwrap();
            assert_eq!(session.cache().tokens(0), text);
            session.feed_several(&next).unwrap();
            let worst = session.scores().unwrap().iter().zip(&expected).map(|(a, b)| (a - b).abs());
            let worst = worst.fold(0.0, f32::max);
            assert!(worst < 1e-4, "{}: {count} taken back: {worst}", model.name());
        }
    }
}

#[cfg(all(feature = "bundled", feature = "grammars"))]
#[test]
fn what_a_grammar_forces_costs_no_pass_of_its_own() {
    let model = Model::bundled(ComputeDtype::Float32).unwrap();
    let schema = serde_json::json!({
        "type": "object", "required": ["temperature", "description"], "additionalProperties": false,
        "properties": {"temperature": {"type": "integer"}, "description": {"enum": ["warm", "wet"]}}
    });
    for draw in [false, true] {
        let plain = GenerationConfig {
            json_schema: Some(schema.clone()),
            max_new_tokens: Some(60),
            ..config(draw, &[2])
        };
        let request =
            |config| Request::new("The weather is wonderful.").config(config).seed(Seed::Fast(3));
        let alone = model.generate(request(plain.clone())).unwrap();
        let lookup = GenerationConfig { prompt_lookup_num_tokens: Some(3), ..plain.clone() };
        let lookup = model.generate(request(lookup)).unwrap();
        let draft = model.generate(request(plain).assistant(&model)).unwrap();
        assert_eq!(tokens(&alone), tokens(&lookup));
        // A draft's guesses use up other random numbers.
        assert!(draw || tokens(&alone) == tokens(&draft));
        for (helped, generation) in [("lookup", &lookup), ("draft", &draft)] {
            let acceptance = generation.acceptance.unwrap();
            let said = generation.sequences[0].tokens.len();
            assert!(acceptance.forced >= 8, "{helped}: {acceptance:?} of {said}");
            assert_eq!(acceptance.turns + acceptance.forced + acceptance.accepted, said);
        }
    }
}
