//! Hidden states and attention weights: what they are is for the parity suite; here it is that no way of getting to the
//! same tokens changes them.

#![cfg(feature = "bundled")]
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::path::Path;

use mlx_genkit::{
    AttentionWeights, Attentions, Batch, BatchOutcome, ComputeDtype, ErrorKind, GenerationConfig,
    HiddenStates, Model, Request, generation_config::OneOrMany,
};

fn tiny(name: &str) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name);
    Model::load(folder, ComputeDtype::Float32).unwrap()
}

fn greedy() -> GenerationConfig {
    GenerationConfig {
        max_new_tokens: Some(12),
        do_sample: Some(false),
        eos_token_id: Some(OneOrMany::Many(Vec::new())),
        output_hidden_states: Some(true),
        ..GenerationConfig::default()
    }
}

fn prompt() -> Vec<u32> {
    [5, 90, 33, 7].repeat(3)
}

fn states(model: &Model, request: Request<'_>) -> Vec<HiddenStates> {
    let sequences = model.generate(request).unwrap().sequences;
    sequences.into_iter().map(|it| it.hidden_states.unwrap()).collect()
}

fn assert_near(ours: &HiddenStates, theirs: &HiddenStates) {
    assert_eq!((&ours.layers, ours.steps.len()), (&theirs.layers, theirs.steps.len()));
    for (token, (ours, theirs)) in ours.steps.iter().zip(&theirs.steps).enumerate() {
        for (layer, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
            assert_eq!(ours.len(), theirs.len(), "token {token}, layer {layer}");
            let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-3, "token {token}, layer {layer}: {worst}");
        }
    }
}

#[test]
fn helpers_chunks_and_neighbours_leave_them_alone() {
    for name in ["gemma3", "phi3-longrope-5x", "mistral"] {
        let model = tiny(name);
        let plain = states(&model, Request::new(prompt()).config(greedy())).remove(0);
        let layers = model.decoder().layers().len() + 1;
        assert_eq!(plain.layers, (0..layers).collect::<Vec<_>>());
        assert_eq!(plain.steps[0][0].len(), prompt().len() * plain.hidden_size);

        let lookup = GenerationConfig { prompt_lookup_num_tokens: Some(4), ..greedy() };
        let chunks = GenerationConfig { prefill_chunk_size: Some(5), ..greedy() };
        for config in [lookup, chunks] {
            assert_near(&states(&model, Request::new(prompt()).config(config))[0], &plain);
        }
        // Longrope reads a batch as its longest row demands.
        let other = if name == "phi3-longrope-5x" { vec![9, 3] } else { (3..40).collect() };
        let prompts = [prompt(), other];
        let batch = states(&model, Request::batch(prompts.clone()).config(greedy()));
        assert_near(&batch[0], &plain);

        // With guidance, the rows that have their prompts are shown.
        let guided = GenerationConfig { guidance_scale: Some(1e-9 + 1.0), ..greedy() };
        if name != "phi3-longrope-5x" {
            assert_near(&states(&model, Request::batch(prompts).config(guided))[0], &plain);
        }
    }
}

#[test]
fn attention_weights_are_the_same_however_the_tokens_were_fed() {
    let looked = |config: GenerationConfig| GenerationConfig {
        output_hidden_states: None,
        output_attentions: Some(true),
        ..config
    };
    let near = |ours: &Attentions, theirs: &Attentions| {
        assert_eq!((&ours.layers, ours.steps.len()), (&theirs.layers, theirs.steps.len()));
        for (ours, theirs) in ours.steps.iter().flatten().zip(theirs.steps.iter().flatten()) {
            let shape = |it: &AttentionWeights| (it.heads, it.positions, it.columns);
            assert_eq!(shape(ours), shape(theirs));
            let apart = ours.values.iter().zip(&theirs.values).map(|(a, b)| (a - b).abs());
            assert!(apart.fold(0.0, f32::max) < 1e-4);
        }
    };
    for name in ["gemma3", "mistral", "qwen3-moe"] {
        let model = tiny(name);
        let attentions = |request: Request<'_>| -> Vec<Attentions> {
            let sequences = model.generate(request).unwrap().sequences;
            sequences.into_iter().map(|it| it.attentions.unwrap()).collect()
        };
        let plain = attentions(Request::new(prompt()).config(looked(greedy()))).remove(0);
        assert_eq!(plain.layers, (0..model.decoder().layers().len()).collect::<Vec<_>>());
        for (token, step) in plain.steps.iter().enumerate() {
            for weights in step {
                assert_eq!(weights.columns, prompt().len() + token);
                let rows = weights.values.chunks(weights.columns);
                assert!(rows.clone().all(|it| (it.iter().sum::<f32>() - 1.0).abs() < 1e-5));
            }
        }
        let lookup = GenerationConfig { prompt_lookup_num_tokens: Some(4), ..looked(greedy()) };
        let chunks = GenerationConfig { prefill_chunk_size: Some(5), ..looked(greedy()) };
        for config in [lookup, chunks] {
            near(&attentions(Request::new(prompt()).config(config))[0], &plain);
        }
        let prompts = [prompt(), (3..30).collect()];
        near(&attentions(Request::batch(prompts).config(looked(greedy())))[0], &plain);

        // Rows with unlike hooks in one pass, one of which joins late.
        let mut batch = Batch::new(&model);
        let other = batch.join(Request::new(vec![7, 8, 9]).config(greedy())).unwrap();
        batch.step().unwrap();
        let wanted = batch.join(Request::new(prompt()).config(looked(greedy()))).unwrap();
        while !batch.is_empty() {
            for event in batch.step().unwrap() {
                if let BatchOutcome::Finished(generation) = event.outcome {
                    let sequence = &generation.sequences[0];
                    match &sequence.attentions {
                        Some(found) if event.id == wanted => near(found, &plain),
                        found => assert!(event.id == other && found.is_none()),
                    }
                }
            }
        }
    }
}

#[test]
fn chosen_layers_are_those_of_all() {
    let model = tiny("qwen3");
    let all = states(&model, Request::new(prompt()).config(greedy())).remove(0);
    let last = all.layers.len() - 1;
    let some = Request::new(prompt()).config(greedy()).hidden_states([last, 1]);
    let some = states(&model, some).remove(0);
    assert_eq!(some.layers, [last, 1]);
    for (some, all) in some.steps.iter().zip(&all.steps) {
        assert_eq!([&some[0], &some[1]], [&all[last], &all[1]]);
    }
}

#[test]
fn a_cache_that_holds_the_prompt_leaves_its_end() {
    let model = tiny("qwen3");
    let plain = states(&model, Request::new(prompt()).config(greedy())).remove(0);
    let mut cache = model.decoder().new_cache(1);
    for held in [0, 7] {
        let prompt = if held == 0 { prompt()[..7].to_vec() } else { prompt() };
        let mut stream = model.stream(Request::new(prompt).config(greedy()).cache(cache)).unwrap();
        stream.by_ref().for_each(|it| drop(it.unwrap()));
        let (generation, left) = stream.finish_with_cache().unwrap();
        cache = left;
        if held > 0 {
            let mut expected = plain.clone();
            expected.steps[0].iter_mut().for_each(|it| drop(it.drain(..held * plain.hidden_size)));
            assert_near(generation.sequences[0].hidden_states.as_ref().unwrap(), &expected);
        }
    }
}

#[test]
fn what_cannot_be_had_is_refused() {
    let model = tiny("llama");
    let refused = |request: Request<'_>| {
        let error = model.generate(request).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Request, "{error}");
        error.to_string()
    };
    let beams = GenerationConfig { num_beams: Some(2), ..greedy() };
    assert!(
        refused(Request::new(prompt()).config(beams))
            .contains("a record of hidden states is not available with beam search")
    );
    let layer = refused(Request::new(prompt()).config(greedy()).hidden_states([99]));
    assert!(layer.contains("layer 99"), "{layer}");
    let layer = refused(Request::new(prompt()).config(greedy()).attentions([99]));
    assert!(layer.contains("layer 99"), "{layer}");
    let bounded = GenerationConfig {
        output_hidden_states: None,
        output_attentions: Some(true),
        max_kv_size: Some(16),
        ..greedy()
    };
    assert!(
        refused(Request::new(prompt()).config(bounded))
            .contains("not available together with a record of attention weights")
    );
    let uncached = || GenerationConfig { use_cache: Some(false), ..greedy() };
    let lookup = GenerationConfig { prompt_lookup_num_tokens: Some(2), ..uncached() };
    assert!(
        refused(Request::new(prompt()).config(lookup))
            .contains("`use_cache` = false is not available with assisted")
    );
    let cache = Request::new(prompt()).config(uncached()).cache(model.decoder().new_cache(1));
    assert!(refused(cache).contains("not available together with `use_cache` = false"));
}

#[cfg(feature = "bundled")]
#[test]
fn a_healed_prompt_and_the_text_make_one_text() {
    let model = Model::bundled(ComputeDtype::Float32).unwrap();
    let healing = |config: GenerationConfig| GenerationConfig {
        token_healing: Some(true),
        output_hidden_states: None,
        ..config
    };
    let tokenizer = model.tokenizer().unwrap();
    let texts = ["Once upon a ti", "Tell me a stor", "The weather is fin", "In the wood", "Hello"];
    let mut changed = 0;
    for text in texts {
        let generation = model.generate(Request::new(text).config(healing(greedy()))).unwrap();
        let (prompt, sequence) = (&generation.healed_prompts[0], &generation.sequences[0]);
        let whole = [&prompt[..], &sequence.tokens].concat();
        assert_eq!(tokenizer.decode(&whole, true).unwrap(), text.to_owned() + &sequence.text);
        changed += usize::from(prompt != &tokenizer.encode(text, true).unwrap());

        let mut stream = model.stream(Request::new(text).config(healing(greedy()))).unwrap();
        let pieces: String = stream.by_ref().map(|it| it.unwrap().text).collect();
        assert_eq!(pieces, sequence.text);
        let beams = GenerationConfig { num_beams: Some(2), ..healing(greedy()) };
        let beams = model.generate(Request::new(text).config(beams)).unwrap();
        assert_eq!(beams.healed_prompts, generation.healed_prompts);
    }
    assert!(changed >= 2, "{changed} prompts were healed");

    let batch = model.generate(Request::batch(texts).config(healing(greedy()))).unwrap();
    for (text, row) in texts.iter().zip(&batch.sequences) {
        let alone = model.generate(Request::new(*text).config(healing(greedy()))).unwrap();
        assert_eq!(row.text, alone.sequences[0].text);
    }
}

#[test]
fn healing_needs_a_text() {
    let model = tiny("llama");
    let config = GenerationConfig { token_healing: Some(true), ..greedy() };
    let error = model.generate(Request::new(prompt()).config(config)).unwrap_err();
    assert!(error.to_string().contains("no tokenizer.json"), "{error}");
}
