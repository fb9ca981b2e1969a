//! Requests that join and leave: each is answered as if it were alone.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::collections::BTreeMap;

use mlx_genkit::{
    AssistedRequest, Batch, BatchOutcome, ComputeDtype, Generation, GenerationConfig, Model,
    Prompt, Request, Seed, Sequence,
    generation_config::{Kwargs, OneOrMany},
    logits_processors::{Context, LogitsProcessor},
};
use serde_json::{Value, json};

mod families;

use families::{FAMILIES, tiny};

fn config(count: usize, draw: bool) -> GenerationConfig {
    GenerationConfig {
        max_new_tokens: Some(count),
        do_sample: Some(draw),
        eos_token_id: Some(OneOrMany::Many(Vec::new())),
        ..GenerationConfig::default()
    }
}

/// Requests of different lengths, half of them drawn.
fn requests<'a>() -> Vec<Request<'a>> {
    [(23, 9), (3, 30), (14, 17), (1, 4), (9, 25)]
        .iter()
        .enumerate()
        .map(|(at, &(len, count))| {
            let prompt: Vec<u32> = (0..len).map(|it| (it * 37 + at as u32) % 130 + 3).collect();
            let draw = at % 2 == 1;
            Request::new(prompt).config(config(count, draw)).seed(Seed::Fast(at as u64))
        })
        .collect()
}

/// What became of each request of a batch that is stepped to its end, `before` each step.
fn serve<'a>(
    batch: &mut Batch<'a>,
    mut before: impl FnMut(usize, &mut Batch<'a>),
) -> BTreeMap<usize, Generation> {
    let mut said: BTreeMap<(usize, usize), Vec<u32>> = BTreeMap::new();
    let mut finished = BTreeMap::new();
    for step in 0.. {
        before(step, batch);
        if batch.is_empty() {
            break;
        }
        for event in batch.step().unwrap() {
            match event.outcome {
                BatchOutcome::Piece(it) => {
                    said.entry((event.id, it.sequence)).or_default().push(it.token)
                }
                BatchOutcome::Finished(it) => _ = finished.insert(event.id, *it),
                other => panic!("{other:?}"),
            }
        }
    }
    for (id, generation) in &finished {
        for (at, sequence) in generation.sequences.iter().enumerate() {
            if let Some(said) = said.get(&(*id, at)) {
                assert!(sequence.tokens.ends_with(said));
            }
        }
    }
    finished
}

/// Joins one request more in every third step.
fn joining<'a, R: Into<AssistedRequest<'a>>>(
    requests: Vec<R>,
) -> impl FnMut(usize, &mut Batch<'a>) {
    let mut waiting = requests.into_iter();
    move |step, batch| {
        if step % 3 == 0
            && let Some(request) = waiting.next()
        {
            batch.join(request).unwrap();
        }
    }
}

#[test]
fn who_shares_the_batch_does_not_show() {
    for name in FAMILIES {
        let model = tiny(name);
        let alone: Vec<Sequence> = requests()
            .into_iter()
            .map(|it| model.generate(it).unwrap().sequences.swap_remove(0))
            .collect();
        let together = serve(&mut Batch::new(&model), joining(requests()));
        let together: Vec<Sequence> =
            together.into_values().map(|mut it| it.sequences.swap_remove(0)).collect();
        assert_eq!(together, alone, "{name}");
    }
}

#[test]
fn a_request_can_leave_and_the_others_continue() {
    let model = tiny("gemma3");
    let mut all = requests();
    let alone = model.generate(requests().swap_remove(2)).unwrap().sequences[0].tokens.clone();
    let mut batch = Batch::new(&model);
    let gone = batch.join(all.remove(0)).unwrap();
    let stays = batch.join(all.remove(1)).unwrap();
    // One that never gets its turn.
    let never = batch.join(all.remove(1)).unwrap();
    assert!(batch.leave(never));
    let found = serve(&mut batch, |step, batch| {
        if step == 4 {
            assert!(batch.leave(gone));
            assert!(!batch.leave(gone));
            assert_eq!(batch.len(), 1);
        }
    });
    assert_eq!(found[&stays].sequences[0].tokens, alone);
    assert_eq!(found.len(), 1);
}

/// Whether no two are apart by more than 1e-5 of the largest: fp32 sums in another order.
fn near(a: &[f32], b: &[f32]) -> bool {
    let finite = b.iter().filter(|it| it.is_finite());
    let size = finite.fold(1.0_f32, |size, it| size.max(it.abs()));
    let close = |(a, b): (&f32, &f32)| a == b || (a - b).abs() <= 1e-5 * size;
    a.len() == b.len() && a.iter().zip(b).all(close)
}

/// Whatever `generate` serves, a batch serves.
#[test]
fn every_kind_of_request_is_served_as_alone() {
    let model = tiny("qwen3");
    let prompt = |salt: u32| -> Vec<u32> { (0..11).map(|it| (it * 37 + salt) % 130 + 3).collect() };
    let fields = [
        json!({"guidance_scale": 1.6, "output_scores": true}),
        json!({"do_sample": true, "num_return_sequences": 3, "output_logits": true}),
        json!({"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "output_scores": true}),
        json!({"do_sample": true, "guidance_scale": 1.3, "num_return_sequences": 2}),
        json!({"num_beams": 3, "num_return_sequences": 2}),
        json!({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}),
        json!({"penalty_alpha": 0.6, "top_k": 4}),
        json!({"dola_layers": [1]}),
        json!({"prompt_lookup_num_tokens": 3}),
        json!({"use_cache": false}),
        json!({"output_hidden_states": true}),
    ];
    let request = |(at, fields): (usize, &Value)| {
        let several = at % 2 == 1 && fields.get("prompt_lookup_num_tokens").is_none();
        let prompts =
            if several { vec![prompt(1), prompt(2)[..4].to_vec()] } else { vec![prompt(3)] };
        let request = Request::batch(prompts).config(config(9, false)).seed(Seed::Torch(at as u64));
        let request = request.overrides(Kwargs::from_json(fields).unwrap());
        let third = |it: &Context<'_>| it.generated().len() == 6;
        let beams = fields.get("num_beams").is_some();
        let request = if beams { request } else { request.logprobs(2) };
        if at % 3 == 0 && !beams { request.stop_when(third) } else { request }
    };
    let all = || fields.iter().enumerate().map(request).collect::<Vec<_>>();
    let alone: Vec<Vec<Sequence>> =
        all().into_iter().map(|it| model.generate(it).unwrap().sequences).collect();
    let together = serve(&mut Batch::new(&model), joining(all()));
    assert_eq!(together.len(), alone.len());
    for ((id, together), alone) in together.into_iter().zip(&alone) {
        assert_eq!(together.sequences.len(), alone.len(), "{}", fields[id]);
        for (ours, alone) in together.sequences.iter().zip(alone) {
            assert_eq!((&ours.tokens, ours.finish_reason), (&alone.tokens, alone.finish_reason));
            assert_eq!(
                (ours.prompt_index, &ours.beam_indices),
                (alone.prompt_index, &alone.beam_indices)
            );
            let rows = |a: &[Vec<f32>], b: &[Vec<f32>]| {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| near(a, b))
            };
            assert!(rows(&ours.recorded.scores, &alone.recorded.scores), "{}", fields[id]);
            assert!(rows(&ours.recorded.logits, &alone.recorded.logits), "{}", fields[id]);
            let logprobs = |it: &Sequence| -> Vec<f32> {
                it.recorded.logprobs.iter().map(|it| it.logprob).collect()
            };
            assert!(near(&logprobs(ours), &logprobs(alone)), "{}", fields[id]);
            let states = |it: &Sequence| it.hidden_states.clone().map(|it| it.steps.concat());
            let (a, b) = (states(ours).unwrap_or_default(), states(alone).unwrap_or_default());
            assert!(near(&a.concat(), &b.concat()), "{}", fields[id]);
        }
    }
}

/// Leaves no token at the fourth step, by this score.
#[derive(Debug)]
struct DeadEnd(f32);

impl LogitsProcessor for DeadEnd {
    fn name(&self) -> &'static str {
        "DeadEnd"
    }

    fn process(
        &self,
        context: &Context<'_>,
        scores: &mut [f32],
    ) -> Result<(), mlx_genkit::logits_processors::Error> {
        if context.generated().len() == 3 && context.row == 0 {
            scores.fill(self.0);
        }
        Ok(())
    }
}

#[test]
fn a_sequence_that_fails_ends_alone() {
    let model = tiny("llama");
    let alone: Vec<Vec<u32>> = requests()
        .into_iter()
        .map(|it| model.generate(it).unwrap().sequences.swap_remove(0).tokens)
        .collect();
    for (score, says) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "`DeadEnd` leaves none")] {
        let failing = || {
            let prompts = [vec![9, 8, 7], vec![4, 5]];
            let processors: Vec<Box<dyn LogitsProcessor>> = vec![Box::new(DeadEnd(score))];
            Request::batch(prompts).config(config(12, false)).processors(processors)
        };
        let mut batch = Batch::new(&model);
        for request in requests() {
            batch.join(request).unwrap();
        }
        let half = batch.join(failing()).unwrap();
        let (mut errors, mut finished) = (Vec::new(), BTreeMap::new());
        while !batch.is_empty() {
            for event in batch.step().unwrap() {
                match event.outcome {
                    BatchOutcome::Failed { sequence, error } => {
                        errors.push((event.id, sequence, error.to_string()));
                    }
                    BatchOutcome::Finished(it) => _ = finished.insert(event.id, it),
                    _ => {}
                }
            }
        }
        let [(id, 0, error)] = &errors[..] else { panic!("{errors:?}") };
        assert_eq!(*id, half);
        assert!(error.starts_with("prompt 0: ") && error.contains(says), "{error}");
        // Its other sequence is answered.
        let other = &finished[&half].sequences;
        assert_eq!((other.len(), other[0].prompt_index, other[0].tokens.len()), (1, 1, 12));
        for (id, alone) in alone.iter().enumerate() {
            assert_eq!(&finished[&id].sequences[0].tokens, alone);
        }
        let error = model.generate(failing()).unwrap_err().to_string();
        assert!(error.starts_with("prompt 0: ") && error.contains(says), "{error}");
    }
}

/// Between two tokens of a running request at most a chunk of another's prompt is read.
#[test]
fn a_long_prompt_joins_in_chunks() {
    let model = tiny("llama");
    let long: Vec<u32> = (0..40).map(|it| it * 7 % 130 + 3).collect();
    let chunked = || {
        let config = GenerationConfig { prefill_chunk_size: Some(8), ..config(5, false) };
        Request::new(long.clone()).config(config)
    };
    let alone = model.generate(chunked()).unwrap().sequences[0].tokens.clone();
    let mut batch = Batch::new(&model);
    let short = batch.join(Request::new([5, 6]).config(config(30, false))).unwrap();
    assert_eq!(batch.step().unwrap().len(), 1);
    let joined = batch.join(chunked()).unwrap();
    // 40 tokens in chunks of 8: four steps without a token of it, and one with.
    for step in 0..5 {
        let ids: Vec<usize> = batch.step().unwrap().iter().map(|it| it.id).collect();
        assert_eq!(ids, if step < 4 { vec![short] } else { vec![short, joined] });
    }
    let found = serve(&mut batch, |_, _| {});
    assert_eq!(found[&joined].sequences[0].tokens, alone);
}

/// A batch of so many short prompts, each of which is then answered alone.
fn each_as_alone(count: u32) {
    let model = Model::bundled(ComputeDtype::Auto).unwrap();
    let vocab = model.decoder().vocab_size() as u32;
    let prompts: Vec<Vec<u32>> = (0..count)
        .map(|at| (0..1 + at % 4).map(|it| (at * 131 + it * 977) % (vocab - 10) + 5).collect())
        .collect();
    let batch = Request::batch(prompts.iter().cloned().map(Prompt::from)).config(config(4, false));
    let together = model.generate(batch).unwrap().sequences;
    assert_eq!(together.len(), prompts.len());
    for (prompt, sequence) in prompts.iter().zip(&together) {
        let alone = model.generate(Request::new(prompt.clone()).config(config(4, false))).unwrap();
        assert_eq!(sequence.tokens, alone.sequences[0].tokens, "{prompt:?}");
    }
}

#[test]
fn hundreds_of_short_prompts_are_each_answered_as_alone() {
    each_as_alone(600);
}

#[test]
#[ignore = "the same at eight times the size, which takes a minute"]
fn thousands_of_short_prompts_are_each_answered_as_alone() {
    each_as_alone(5000);
}
