//! Guardrails of a request: what is drawn once more, and what is said of it.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::sync::{Arc, Mutex};

use mlx_genkit::{
    ComputeDtype, ErrorKind, GenerationConfig, Guardrails, HookPoint, Model, Recording, Request,
    Seed,
    logits_processors::{Context, Error, LogitsProcessor},
    steering::{Reason, Suspicion},
};

fn config(draws: bool) -> GenerationConfig {
    GenerationConfig {
        do_sample: Some(draws),
        max_new_tokens: Some(12),
        ..GenerationConfig::default()
    }
}

fn prompts() -> [&'static str; 3] {
    ["The sea is", "A fox", "In the morning"]
}

fn request<'a>(draws: bool) -> Request<'a> {
    Request::batch(prompts()).config(config(draws)).seed(Seed::Torch(3))
}

#[test]
fn what_is_sound_and_new_stays_as_it_was_drawn() {
    let model = Model::bundled(ComputeDtype::Auto).unwrap();
    let plain = model.generate(request(true)).unwrap();
    let guarded = model.generate(request(true).guardrails(Guardrails::new())).unwrap();
    for (plain, guarded) in plain.sequences.iter().zip(&guarded.sequences) {
        let verdict = guarded.verdict.as_ref().unwrap();
        assert_eq!((&verdict.suspicions[..], &verdict.resampled), (&[][..], &None));
        assert_eq!(plain.tokens, guarded.tokens);
        assert_eq!(plain.verdict, None);
    }
}

#[test]
fn the_unsteered_answer_is_drawn_once_more_and_no_other() {
    let model = Model::bundled(ComputeDtype::Auto).unwrap();
    let first = model.generate(request(true)).unwrap().sequences;
    let mut base: Vec<Vec<u32>> = first.iter().map(|it| it.tokens.clone()).collect();
    base[1].push(7);
    let guardrails = Guardrails::new().differing_from(base).seed(Seed::Torch(99));
    let guarded = model.generate(request(true).guardrails(guardrails)).unwrap().sequences;
    assert_eq!(guarded[1].tokens, first[1].tokens);
    assert_eq!(guarded[1].verdict.as_ref().unwrap().resampled, None);
    // The two that are drawn once more are a request of their own.
    let two = Request::batch([prompts()[0], prompts()[2]]).config(config(true));
    let second = model.generate(two.seed(Seed::Torch(99))).unwrap().sequences;
    for (at, second) in [(0, &second[0]), (2, &second[1])] {
        assert_eq!(guarded[at].verdict.as_ref().unwrap().resampled, Some(Reason::SameAsBase));
        assert_eq!((guarded[at].prompt_index, &guarded[at].tokens), (at, &second.tokens));
        assert_ne!(guarded[at].tokens, first[at].tokens);
    }
}

#[test]
fn a_sequence_of_several_is_drawn_once_more_in_its_place() {
    let model = Model::bundled(ComputeDtype::Auto).unwrap();
    let several = |seed| {
        let config = GenerationConfig { num_return_sequences: Some(3), ..config(true) };
        Request::new("A fox").config(config).seed(Seed::Torch(seed))
    };
    let first = model.generate(several(5)).unwrap().sequences;
    let mut base: Vec<Vec<u32>> = first.iter().map(|it| it.tokens.clone()).collect();
    base[0].pop();
    base[2].pop();
    let guardrails = Guardrails::new().differing_from(base).seed(Seed::Torch(6));
    let guarded = model.generate(several(5).guardrails(guardrails)).unwrap().sequences;
    let second = model.generate(several(6)).unwrap().sequences;
    let expected = [&first[0].tokens, &second[1].tokens, &first[2].tokens];
    let tokens: Vec<_> = guarded.iter().map(|it| &it.tokens).collect();
    assert_eq!(tokens, expected);
}

/// Lets one token through.
#[derive(Debug)]
struct Only(u32);

impl LogitsProcessor for Only {
    fn name(&self) -> &'static str {
        "Only"
    }

    fn process(&self, _: &Context<'_>, scores: &mut [f32]) -> Result<(), Error> {
        let others = scores.iter_mut().enumerate().filter(|(id, _)| *id != self.0 as usize);
        others.for_each(|(_, score)| *score = f32::NEG_INFINITY);
        Ok(())
    }
}

#[test]
fn a_loop_is_suspect_and_the_second_draw_stands() {
    let model = Model::bundled(ComputeDtype::Auto).unwrap();
    let word = model.tokenizer().unwrap().encode(" the", false).unwrap()[0];
    for draws in [true, false] {
        let recording = Arc::new(Mutex::new(Recording::new([HookPoint::FinalNorm])));
        let request = Request::new("A fox")
            .config(config(draws))
            .processors(vec![Box::new(Only(word))])
            .stop_when(|context: &Context<'_>| context.generated().len() == 9)
            .hook(Arc::clone(&recording))
            .guardrails(Guardrails::new());
        let sequence = model.generate(request).unwrap().sequences.swap_remove(0);
        assert_eq!(sequence.tokens, [word; 9]);
        let verdict = sequence.verdict.unwrap();
        assert_eq!(verdict.suspicions, [Suspicion::Loop]);
        let reason = draws.then(|| Reason::Suspect(vec![Suspicion::Loop]));
        assert_eq!(verdict.resampled, reason, "greedy text is looked at only");
    }
}

#[test]
fn a_conversation_goes_on_from_the_draw_that_stands() {
    let model = Model::bundled(ComputeDtype::Auto).unwrap();
    let first = model.generate(Request::new("A fox").config(config(true)).seed(Seed::Fast(1)));
    let base = first.unwrap().sequences.swap_remove(0).tokens;
    let cache = model.decoder().new_cache(1);
    let request = Request::new("A fox").config(config(true)).seed(Seed::Fast(1)).cache(cache);
    let guardrails = Guardrails::new().differing_from([base]);
    let (generation, cache) = model.generate_with_cache(request.guardrails(guardrails)).unwrap();
    let mut text = model.tokenizer().unwrap().encode("A fox", true).unwrap();
    text.extend(&generation.sequences[0].tokens);
    let held = cache.tokens(0);
    assert!(held.len() + 1 >= text.len() && text.starts_with(&held));
}

#[test]
fn what_guardrails_cannot_serve_is_refused() {
    let model = Model::bundled(ComputeDtype::Auto).unwrap();
    let guarded = || request(true).guardrails(Guardrails::new());
    let error = model.stream(guarded()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Request);
    assert!(error.to_string().contains("guardrails look at whole texts"), "{error}");
    let few = Guardrails::new().differing_from([vec![1]]);
    let error = model.generate(request(true).guardrails(few)).unwrap_err();
    assert!(error.to_string().contains("1 sequences to differ from for 3"), "{error}");
}
