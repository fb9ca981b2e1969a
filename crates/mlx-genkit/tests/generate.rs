//! The facade on real models. What the tokens are is for the parity suite; here it is how the parts
//! of a request bear on one another.

#![cfg(feature = "bundled")]
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::path::Path;

use mlx_genkit::{
    Capture, ComputeDtype, ErrorKind, FinishReason, Generation, GenerationConfig, HookPoint,
    Message, Model, Prompt, Request, ResidualHook, Seed, generation_config::OneOrMany,
    kv_cache::Step, mlx_models, mlx_rs::Array,
};

fn bundled() -> Model {
    Model::bundled(ComputeDtype::Float32).unwrap()
}

/// A recorded model, far smaller than the bundled one, without a tokenizer.
fn tiny(name: &str) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name);
    Model::load(folder, ComputeDtype::Float32).unwrap()
}

/// Greedy, `count` tokens, with no end token to cut it short.
fn greedy(count: usize) -> GenerationConfig {
    GenerationConfig {
        max_new_tokens: Some(count),
        eos_token_id: Some(OneOrMany::Many(Vec::new())),
        ..GenerationConfig::default()
    }
}

fn sampled(count: usize) -> GenerationConfig {
    GenerationConfig { do_sample: Some(true), temperature: Some(1.5), ..greedy(count) }
}

fn tokens(generation: &Generation) -> Vec<Vec<u32>> {
    generation.sequences.iter().map(|it| it.tokens.clone()).collect()
}

fn run(model: &Model, prompt: &[u32], config: GenerationConfig) -> Vec<Vec<u32>> {
    let request = Request::new(prompt.to_vec()).config(config).seed(Seed::Fast(3));
    tokens(&model.generate(request).unwrap())
}

/// 23 ids that every model has.
fn prompt() -> Vec<u32> {
    (0..23).map(|it| (it * 37 + 11) % 150).collect()
}

#[test]
fn pieces_add_up_to_the_generation() {
    let model = bundled();
    let chat = |text| Prompt::from(vec![Message::new("user", text)]);
    let prompts = [chat("Hello, who are you?"), chat("Tell me a story.")];
    let request = || Request::batch(prompts.clone()).overrides(greedy(16));
    let mut stream = model.stream(request()).unwrap();
    let mut seen = vec![(Vec::new(), String::new()); stream.num_sequences()];
    assert_eq!(stream.max_tokens(), 32);
    for piece in stream.by_ref() {
        let piece = piece.unwrap();
        seen[piece.sequence].0.push(piece.token);
        seen[piece.sequence].1 += &piece.text;
    }
    let generation = stream.finish().unwrap();
    for (sequence, (tokens, text)) in generation.sequences.iter().zip(seen) {
        assert_eq!((&sequence.tokens, &sequence.text), (&tokens, &text));
        assert_eq!(sequence.finish_reason, FinishReason::Length);
    }
    assert_eq!(generation.generated_tokens(), 32);
    assert_eq!(tokens(&model.generate(request()).unwrap()), tokens(&generation));
}

#[test]
fn an_unfinished_stream_can_be_dropped_or_gathered() {
    let model = bundled();
    let request = || Request::new("Once upon a time").config(greedy(12));
    let whole = model.generate(request()).unwrap();
    let mut some = model.stream(request()).unwrap();
    some.by_ref().take(3).for_each(|it| assert!(it.is_ok()));
    let some = some.finish().unwrap();
    assert_eq!(some.sequences[0].tokens, whole.sequences[0].tokens[..3]);
    assert!(whole.sequences[0].text.starts_with(&some.sequences[0].text));
    drop(model.stream(request()).unwrap());
}

#[test]
fn the_size_of_a_prefill_chunk_changes_nothing() {
    // Full and sliding layers, one row and several, greedy and drawn.
    for model in [tiny("qwen3"), tiny("mistral")] {
        for config in [greedy(12), sampled(12)] {
            let batch = || [prompt(), prompt()[5..].to_vec(), vec![9]].map(Prompt::from);
            let with = |prefill_chunk_size| {
                let config = GenerationConfig { prefill_chunk_size, ..config.clone() };
                let request = Request::batch(batch()).config(config).seed(Seed::Torch(5));
                tokens(&model.generate(request).unwrap())
            };
            let whole = with(None);
            for size in [1, 2, 7, 22, 23, 24] {
                assert_eq!(with(Some(size)), whole, "{} in chunks of {size}", model.name());
            }
        }
    }
}

#[test]
fn seeds_reproduce_and_differ() {
    let model = tiny("llama");
    let drawn = |seed| {
        let request = Request::new(prompt()).config(sampled(12)).seed(seed);
        tokens(&model.generate(request).unwrap())
    };
    let seeds = [Seed::Fast(1), Seed::Fast(2), Seed::Torch(1), Seed::Torch(2), Seed::random()];
    let rows = seeds.map(drawn);
    for (index, row) in rows.iter().enumerate() {
        assert_eq!(&drawn(seeds[index]), row);
        assert!(!rows[..index].contains(row), "{:?} repeats an earlier draw", seeds[index]);
    }
}

#[test]
fn sequences_are_ordered_by_prompt() {
    let model = tiny("llama");
    let config = GenerationConfig { num_return_sequences: Some(3), ..sampled(6) };
    let prompts = [prompt(), vec![9, 10]].map(Prompt::from);
    let request = Request::batch(prompts).config(config.clone()).seed(Seed::Fast(3));
    let generation = model.generate(request).unwrap();
    let indices: Vec<usize> = generation.sequences.iter().map(|it| it.prompt_index).collect();
    assert_eq!(indices, [0, 0, 0, 1, 1, 1]);
    assert_eq!(generation.prompt_tokens, [23, 2]);
    assert_eq!(tokens(&generation)[..3], run(&model, &prompt(), config));
}

#[test]
fn overrides_win_over_the_config_and_the_model() {
    let model = tiny("llama");
    let count = |request: Request<'_>| model.generate(request).unwrap().generated_tokens();
    assert_eq!(count(Request::new(prompt()).config(greedy(5))), 5);
    assert_eq!(count(Request::new(prompt()).config(greedy(5)).overrides(greedy(2))), 2);
    // HF's own default where nothing sets a length.
    let free = GenerationConfig { max_new_tokens: None, ..greedy(1) };
    let generation = model.generate(Request::new(prompt()).config(free)).unwrap();
    assert_eq!(generation.generated_tokens(), 20);
    assert!(generation.warnings.iter().any(|it| it.field() == "max_length"));
}

#[test]
fn a_chat_is_what_its_template_renders() {
    let model = bundled();
    let messages = vec![Message::new("system", "You are gloomy."), Message::new("user", "Hello!")];
    let options = mlx_genkit::tokenizer_bridge::RenderOptions {
        add_generation_prompt: true,
        ..Default::default()
    };
    let text = model.chat_template().unwrap().render(&messages, &options).unwrap();
    let ids = model.tokenizer().unwrap().encode(&text, false).unwrap();
    assert_eq!(Prompt::from(messages).ids(&model).unwrap(), ids);
}

/// Adds the same vector to the stream after one block.
struct Push {
    layer: usize,
    vector: Array,
}

impl ResidualHook for Push {
    fn apply(&mut self, at: HookPoint, hidden: Array, _: &Step) -> mlx_models::Result<Array> {
        match at == HookPoint::ResidPost(self.layer) {
            true => Ok(hidden.add(&self.vector)?),
            false => Ok(hidden),
        }
    }
}

#[test]
fn a_hook_steers_and_a_hook_of_no_strength_does_not() {
    let model = tiny("llama");
    let width = model.decoder().hidden_size();
    let direction: Vec<f32> = (0..width).map(|it| ((it * 7919) as f32).sin()).collect();
    let steered = |alpha: f32, chunk: usize| {
        let vector: Vec<f32> = direction.iter().map(|it| alpha * it).collect();
        let mut push = Push { layer: 2, vector: Array::from_slice(&vector, &[width as i32]) };
        let config = GenerationConfig { prefill_chunk_size: Some(chunk), ..sampled(16) };
        let prompts = [prompt(), vec![9, 10]].map(Prompt::from);
        let request = Request::batch(prompts).config(config).seed(Seed::Torch(1)).hook(&mut push);
        tokens(&model.generate(request).unwrap())
    };
    let prompts = [prompt(), vec![9, 10]].map(Prompt::from);
    let plain = Request::batch(prompts).config(sampled(16)).seed(Seed::Torch(1));
    let plain = tokens(&model.generate(plain).unwrap());
    assert_eq!(steered(0.0, 512), plain);
    let strong = steered(5.0, 512);
    assert_ne!(strong, plain);
    assert_ne!(steered(-5.0, 512), strong);
    assert_eq!(steered(5.0, 3), strong, "the chunk must not show");
}

#[test]
fn a_hook_that_looks_sees_what_the_decoder_computes() {
    let model = tiny("llama");
    let mut capture = Capture::new([HookPoint::ResidPost(1)]);
    let ids = prompt();
    let with = model.score(Request::new(ids.clone()).hook(&mut capture)).unwrap();
    assert_eq!(with, model.score(Request::new(ids.clone())).unwrap());
    // The last token predicts nothing and is not fed.
    let fed = &ids[..ids.len() - 1];
    let (_, hidden) = model.decoder().forward_with_hidden(&[fed], &[1]).unwrap();
    let values = |it: &Array| it.try_as_slice::<f32>().unwrap().to_vec();
    assert_eq!(values(&capture.captured()[&HookPoint::ResidPost(1)]), values(&hidden[0]));
}

#[test]
fn a_failing_hook_fails_the_request() {
    struct Fail;
    impl ResidualHook for Fail {
        fn apply(&mut self, _: HookPoint, _: Array, _: &Step) -> mlx_models::Result<Array> {
            Err(mlx_models::Error::new(mlx_models::ErrorKind::Hook, "no vector for this layer"))
        }
    }
    let error = tiny("llama").generate(Request::new(prompt()).hook(&mut Fail)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Run);
    assert!(error.to_string().contains("no vector for this layer"), "{error}");
}

#[test]
fn a_model_without_a_tokenizer_takes_and_gives_ids() {
    let model = tiny("llama");
    assert!(!model.has_tokenizer() && !model.has_chat_template());
    let generation = model.generate(Request::new(vec![5, 6]).config(greedy(4))).unwrap();
    assert_eq!(generation.sequences[0].tokens.len(), 4);
    assert_eq!(generation.sequences[0].text, "");
    let error = model.generate(Request::new("Hello")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Model);
    assert!(error.to_string().contains("no tokenizer.json"), "{error}");
}

#[track_caller]
fn check_refused(request: Request<'_>, words: &str) {
    let error = tiny("llama").generate(request).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Request, "{error}");
    assert!(error.to_string().contains(words), "{words:?} is not in: {error}");
}

#[test]
fn wrong_requests_are_refused() {
    let one = || Request::new(vec![5, 6]);
    let with = |config| one().config(config);
    let config = GenerationConfig::default;
    let vocab = tiny("llama").decoder().vocab_size() as u32;
    let context = tiny("llama").decoder().max_positions();
    check_refused(Request::batch(Vec::<Prompt>::new()), "no prompt");
    check_refused(Request::new(Vec::<u32>::new()), "the prompt is empty");
    check_refused(Request::new(vec![vocab]), "outside the vocabulary");
    // HF caps the default length at the context, and then has no room.
    check_refused(Request::new(vec![5; context + 1]), "`max_length`");
    check_refused(Request::batch([vec![5], Vec::new()]), "prompt 1: the prompt is empty");
    check_refused(with(GenerationConfig { num_beams: Some(0), ..config() }), "`num_beams`");
    let many = GenerationConfig { num_beams: Some(usize::MAX), ..config() };
    check_refused(with(many), "`num_beams`");
    check_refused(with(GenerationConfig { max_length: Some(2), ..config() }), "`max_length`");
    if cfg!(target_os = "linux") {
        // More than any machine has.
        let many = GenerationConfig {
            do_sample: Some(true),
            num_return_sequences: Some(60_000),
            max_new_tokens: Some(1),
            ..config()
        };
        check_refused(
            Request::new(vec![5; 200_000]).config(many),
            "`num_return_sequences` smaller",
        );
    }
    check_refused(
        with(GenerationConfig { bad_words_ids: Some(vec![vec![vocab.into()]]), ..config() }),
        "`bad_words_ids`",
    );
    let many = GenerationConfig { num_return_sequences: Some(usize::MAX), ..sampled(1) };
    check_refused(with(many), "`num_return_sequences`");
    let far = GenerationConfig { pad_token_id: Some(vocab.into()), ..greedy(1) };
    // A single row needs no padding.
    assert!(tiny("llama").generate(with(far.clone())).is_ok());
    check_refused(Request::batch([vec![5], vec![5, 6]]).config(far), "`pad_token_id`");
}

#[test]
fn a_score_sums_up() {
    let model = bundled();
    let scored = model.score(Request::new("The harbour is quiet.")).unwrap();
    assert_eq!(scored.logprobs.len() + 1, scored.tokens.len());
    assert!(scored.logprobs.iter().all(|it| *it < 0.0));
    let mean = scored.sum() / scored.logprobs.len() as f64;
    assert!((scored.perplexity().unwrap() - (-mean).exp()).abs() < 1e-9);
}
