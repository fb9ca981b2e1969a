//! Tokens chosen on the device are those that the host chooses.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::path::Path;

use mlx_genkit::{
    ComputeDtype, Generation, GenerationConfig, Model, Prompt, Request, Seed,
    decoding_strategies::{
        AheadLoop, Chooser, DecoderSession, DeviceChoice, LeftPadded, Limits, Record, RowGroup,
        SampleLoop, TokenLoop,
    },
    generation_config::OneOrMany,
    logits_processors::ProcessorList,
    mlx_models::NoHook,
    samplers::WarperConfig,
};

fn tiny(name: &str) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name);
    Model::load(folder, ComputeDtype::Float32).unwrap()
}

/// Prompts of unlike lengths.
fn prompts(count: usize) -> Vec<Prompt> {
    let prompt = |row: usize| -> Vec<u32> {
        (0..3 * row + 2).map(|it| (7 * it + row) as u32 % 50 + 3).collect()
    };
    (0..count).map(|row| Prompt::from(prompt(row))).collect()
}

fn both(model: &Model, count: usize, config: &GenerationConfig, seed: u64) -> [Generation; 2] {
    [false, true].map(|on_device| {
        let request = Request::batch(prompts(count)).config(config.clone()).seed(Seed::Fast(seed));
        model.generate(request.choose_on_device(on_device)).unwrap()
    })
}

fn assert_same(model: &Model, count: usize, config: &GenerationConfig, seed: u64) {
    let [host, device] = both(model, count, config, seed);
    assert_eq!(host.sequences, device.sequences, "{count} prompts, seed {seed}, {config:?}");
}

/// Configs whose tokens the device can choose.
fn configs() -> Vec<GenerationConfig> {
    let config = GenerationConfig { max_new_tokens: Some(24), ..GenerationConfig::default() };
    let drawn = GenerationConfig { do_sample: Some(true), ..config.clone() };
    vec![
        config.clone(),
        GenerationConfig { eos_token_id: Some(OneOrMany::Many((0..60).collect())), ..config },
        drawn.clone(),
        GenerationConfig { top_k: Some(0), ..drawn.clone() },
        GenerationConfig { temperature: Some(0.6), top_k: Some(7), ..drawn.clone() },
        GenerationConfig { top_p: Some(0.8), top_k: Some(0), ..drawn.clone() },
        GenerationConfig { top_p: Some(0.0), ..drawn.clone() },
        GenerationConfig { temperature: Some(1.7), top_p: Some(0.95), ..drawn.clone() },
        GenerationConfig { num_return_sequences: Some(3), top_p: Some(0.9), ..drawn },
    ]
}

#[test]
fn families_choose_the_same_tokens_on_the_device() {
    // Plain, sliding, shared columns, states, inputs per layer and longrope; the last two need the host.
    for name in ["llama", "gemma3", "qwen3_5", "gemma4", "phi3-longrope"] {
        let model = tiny(name);
        for (at, config) in configs().iter().enumerate() {
            assert_same(&model, 1, config, at as u64);
            assert_same(&model, 3, config, 100 + at as u64);
        }
    }
}

#[test]
fn the_device_is_asked_where_it_can_choose() {
    let can_choose = |name: &str, group: RowGroup| {
        let model = tiny(name);
        let prompts = LeftPadded::new(&[vec![5, 6, 7]], 0).unwrap();
        let session = DecoderSession::prefill(model.decoder(), &prompts, 64, NoHook).unwrap();
        DeviceChoice::of(&session, &group).is_some()
    };
    let greedy = || RowGroup::greedy(Limits { max_new_tokens: 5, eos: vec![] });
    let drawn = |config: &WarperConfig, seed| {
        greedy().chooser(Chooser::sample(&config.chain().unwrap(), ProcessorList::default(), seed))
    };
    let usual = WarperConfig {
        temperature: Some(0.7),
        top_k: Some(50),
        top_p: Some(0.9),
        ..Default::default()
    };
    for name in ["llama", "gemma3", "qwen3_5"] {
        assert!(can_choose(name, greedy()), "{name}");
        assert!(can_choose(name, drawn(&usual, Seed::Fast(1))), "{name}");
    }
    assert!(!can_choose("gemma4", greedy()) && !can_choose("phi3-longrope", greedy()));
    assert!(!can_choose("llama", drawn(&usual, Seed::Torch(1))));
    let further = WarperConfig { min_p: Some(0.1), ..usual };
    assert!(!can_choose("llama", drawn(&further, Seed::Fast(1))));
    assert!(!can_choose("llama", greedy().guidance(Some(2.0))));
    assert!(!can_choose("llama", greedy().record(Record { scores: true, ..Record::default() })));
}

/// The loops themselves, so that it shows if one were never taken.
#[test]
fn the_loop_on_the_device_gives_the_tokens_of_that_on_the_host() {
    let usual = WarperConfig {
        temperature: Some(0.7),
        top_k: Some(50),
        top_p: Some(0.9),
        ..Default::default()
    };
    for name in ["llama", "gemma3", "qwen3_5"] {
        let model = tiny(name);
        let prompts = LeftPadded::new(&[vec![5, 6, 7], vec![9; 8], vec![4, 30]], 0).unwrap();
        let session = || DecoderSession::prefill(model.decoder(), &prompts, 64, NoHook).unwrap();
        for draws in [false, true] {
            let group = || {
                let group = RowGroup::greedy(Limits { max_new_tokens: 20, eos: vec![11, 23] });
                let chain = usual.chain().unwrap();
                let drawn = Chooser::sample(&chain, ProcessorList::default(), Seed::Fast(5));
                if draws { group.chooser(drawn) } else { group }
            };
            let outputs = |mut it: Box<dyn TokenLoop + '_>| {
                while let Some(step) = it.step() {
                    step.unwrap();
                }
                let rows = it.finish().unwrap().rows;
                rows.into_iter().map(|it| (it.tokens, it.finish_reason)).collect::<Vec<_>>()
            };
            let choice = DeviceChoice::of(&session(), &group()).unwrap();
            let ahead = AheadLoop::new(session(), &prompts, group(), choice);
            let host = SampleLoop::new(session(), &prompts, group());
            assert_eq!(outputs(Box::new(ahead)), outputs(Box::new(host)), "{name}, {draws}");
        }
    }
}

/// The pass after the last token would be the one beyond the context, which is refused here.
#[test]
fn a_text_up_to_the_end_of_the_context_is_the_same() {
    let model = tiny("llama-dynamic");
    let context = model.decoder().max_positions();
    let prompt: Vec<u32> = (0..context as u32 - 5).map(|it| it * it % 60 + 3).collect();
    let config = GenerationConfig {
        max_new_tokens: Some(6),
        eos_token_id: Some(OneOrMany::Many(Vec::new())),
        ..GenerationConfig::default()
    };
    let [host, device] = [false, true].map(|on_device| {
        let request = Request::new(prompt.clone()).config(config.clone());
        model.generate(request.choose_on_device(on_device)).unwrap().sequences
    });
    assert_eq!(host[0].tokens.len(), 6);
    assert_eq!(host, device);
}

#[test]
fn scores_that_a_temperature_makes_infinite_are_refused_as_on_the_host() {
    let model = tiny("llama");
    let config = GenerationConfig {
        do_sample: Some(true),
        temperature: Some(1e-38),
        ..GenerationConfig::default()
    };
    let [host, device] = [false, true].map(|on_device| {
        let request = Request::batch(prompts(1)).config(config.clone()).seed(Seed::Fast(1));
        model.generate(request.choose_on_device(on_device)).unwrap_err().to_string()
    });
    assert_eq!(host, device);
}

#[test]
fn what_the_device_cannot_choose_the_host_chooses() {
    let model = tiny("llama");
    let config = GenerationConfig { max_new_tokens: Some(12), ..GenerationConfig::default() };
    let drawn = GenerationConfig { do_sample: Some(true), ..config.clone() };
    for config in [
        GenerationConfig { repetition_penalty: Some(1.3), ..config.clone() },
        GenerationConfig { guidance_scale: Some(1.5), ..config.clone() },
        GenerationConfig { output_scores: Some(true), ..config.clone() },
        GenerationConfig { use_cache: Some(false), ..config },
        GenerationConfig { min_p: Some(0.1), ..drawn.clone() },
        GenerationConfig { renormalize_logits: Some(true), ..drawn },
    ] {
        assert_same(&model, 2, &config, 5);
    }
    let torch = |on_device| {
        let config = GenerationConfig { do_sample: Some(true), ..GenerationConfig::default() };
        let request = Request::batch(prompts(1)).config(config).seed(Seed::Torch(3));
        model.generate(request.choose_on_device(on_device)).unwrap().sequences
    };
    assert_eq!(torch(true), torch(false));
}

#[test]
fn the_cache_holds_the_text_and_no_more() {
    for name in ["llama", "gemma3", "qwen3_5"] {
        let model = tiny(name);
        for eos in [vec![], (0..60).collect()] {
            let config = GenerationConfig {
                max_new_tokens: Some(20),
                eos_token_id: Some(OneOrMany::Many(eos)),
                ..GenerationConfig::default()
            };
            let caches = [false, true].map(|on_device| {
                let request = Request::batch(prompts(1)).config(config.clone()).seed(Seed::Fast(1));
                let mut stream = model.stream(request.choose_on_device(on_device)).unwrap();
                stream.by_ref().for_each(|it| drop(it.unwrap()));
                stream.finish_with_cache().unwrap().1
            });
            let [host, device] = &caches;
            assert_eq!(host.tokens(0), device.tokens(0), "{name}");
            assert_eq!(host.len(), device.len(), "{name}");
        }
    }
}

#[cfg(feature = "bundled")]
#[test]
fn draws_of_a_trained_model_are_the_same() {
    let model = Model::bundled(ComputeDtype::Float32).unwrap();
    let config = GenerationConfig {
        do_sample: Some(true),
        temperature: Some(0.9),
        top_p: Some(0.95),
        max_new_tokens: Some(40),
        ..GenerationConfig::default()
    };
    for seed in 0..12 {
        assert_same(&model, 2, &config, seed);
    }
}
