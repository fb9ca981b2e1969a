//! What ends a sequence, and what is left of its text.

#![cfg(feature = "bundled")]
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use mlx_genkit::{
    AssistedRequest, ComputeDtype, ErrorKind, FinishReason, GenerationConfig, Model, Prompt,
    Request, Sequence, generation_config::OneOrMany, logits_processors::Context,
};

fn bundled() -> Model {
    Model::bundled(ComputeDtype::Float32).unwrap()
}

fn greedy(count: usize) -> GenerationConfig {
    GenerationConfig {
        max_new_tokens: Some(count),
        do_sample: Some(false),
        eos_token_id: Some(OneOrMany::Many(Vec::new())),
        ..GenerationConfig::default()
    }
}

fn at(strings: &[&str], count: usize) -> GenerationConfig {
    let strings = strings.iter().map(|&it| it.to_owned()).collect();
    GenerationConfig { stop_strings: Some(OneOrMany::Many(strings)), ..greedy(count) }
}

const STORY: &str = "Once upon a time";

fn one<'a>(model: &'a Model, request: impl Into<AssistedRequest<'a>>) -> Sequence {
    model.generate(request).unwrap().sequences.swap_remove(0)
}

#[test]
fn text_ends_at_a_string_or_before_it() {
    let model = bundled();
    let whole = one(&model, Request::new(STORY).config(greedy(40)));
    for (start, len) in [(4, 3), (9, 1), (17, 6), (30, 2)] {
        let start = (start..).find(|&it| whole.text.is_char_boundary(it)).unwrap();
        let string: String = whole.text[start..].chars().take(len).collect();
        let request = || Request::new(STORY).config(at(&[&string, "no such text"], 40));
        let kept = one(&model, request());
        assert_eq!(kept.finish_reason, FinishReason::StopString);
        assert!(whole.text.starts_with(&kept.text) && kept.text.contains(&string), "{kept:?}");
        assert_eq!(whole.tokens[..kept.tokens.len()], kept.tokens);
        let before = &kept.text[..kept.text.find(&string).unwrap()];

        let trimmed = one(&model, request().trim_stop(true));
        assert_eq!((trimmed.text.as_str(), &trimmed.tokens), (before, &kept.tokens));
        let mut stream = model.stream(request().trim_stop(true)).unwrap();
        let shown: String = stream.by_ref().map(|it| it.unwrap().text).collect();
        assert_eq!(shown, before);
    }
}

#[test]
fn a_string_may_begin_in_the_prompt() {
    let model = bundled();
    let first = one(&model, Request::new(STORY).config(greedy(1))).text;
    let string = format!("time{first}");
    let config = at(&[&string], 20);
    let sequence = one(&model, Request::new(STORY).config(config.clone()));
    assert_eq!((sequence.tokens.len(), sequence.text), (1, first));
    assert_eq!(one(&model, Request::new(STORY).config(config).trim_stop(true)).text, "");
}

#[test]
fn text_that_only_looks_like_the_beginning_of_a_string_is_not_lost() {
    let model = bundled();
    let whole = one(&model, Request::new(STORY).config(greedy(25)));
    let tail: String =
        whole.text.chars().rev().take(3).collect::<Vec<_>>().into_iter().rev().collect();
    let string = format!("{tail} and what never comes");
    let trimmed = one(&model, Request::new(STORY).config(at(&[&string], 25)).trim_stop(true));
    assert_eq!((trimmed.finish_reason, trimmed.text), (FinishReason::Length, whole.text));
}

#[test]
fn help_stops_where_plain_decoding_does() {
    let model = bundled();
    let whole = one(&model, Request::new(STORY).config(greedy(40)));
    let string = &whole.text[12..15];
    let alone = one(&model, Request::new(STORY).config(at(&[string], 40)));
    let helped = Request::new(STORY).config(at(&[string], 40)).assistant(&model);
    assert_eq!(one(&model, helped), alone);
}

#[test]
fn time_and_criteria() {
    let model = bundled();
    let config = GenerationConfig { max_time: Some(0.0), ..greedy(40) };
    let prompts = [STORY, "The harbour"].map(Prompt::from);
    for sequence in model.generate(Request::batch(prompts).config(config)).unwrap().sequences {
        assert_eq!((sequence.finish_reason, sequence.tokens.len()), (FinishReason::Time, 1));
    }
    let prompts = [STORY, "The harbour"].map(Prompt::from);
    let own = |context: &Context<'_>| context.generated().len() == 3 + context.row;
    let request = Request::batch(prompts).config(greedy(4)).stop_when(own);
    let sequences = model.generate(request).unwrap().sequences;
    assert_eq!(sequences[0].finish_reason, FinishReason::Criterion);
    assert_eq!(sequences[0].tokens.len(), 3);
    assert_eq!(sequences[1].tokens.len(), 4);
}

#[test]
fn beams_stop_at_strings_too() {
    let model = bundled();
    // Short texts win, so that one that was stopped is among the best.
    let beams =
        |config| GenerationConfig { num_beams: Some(3), length_penalty: Some(-1.0), ..config };
    let whole = one(&model, Request::new(STORY).config(beams(greedy(24)))).text;
    let start = (9..).find(|&it| whole.is_char_boundary(it)).unwrap();
    let string: String = whole[start..].chars().take(5).collect();
    let config = GenerationConfig { num_return_sequences: Some(3), ..beams(at(&[&string], 24)) };
    let kept = model.generate(Request::new(STORY).config(config.clone())).unwrap().sequences;
    let trimmed = Request::new(STORY).config(config).trim_stop(true);
    let trimmed = model.generate(trimmed).unwrap().sequences;
    assert!(kept.iter().any(|it| it.finish_reason == FinishReason::StopString), "{kept:?}");
    for (kept, trimmed) in kept.iter().zip(trimmed) {
        let stopped = kept.finish_reason == FinishReason::StopString;
        assert_eq!(kept.text.contains(&string), stopped, "{kept:?}");
        assert_eq!(kept.tokens, trimmed.tokens);
        assert_eq!(trimmed.text, kept.text.split(&string).next().unwrap());
    }
    // A clock that has run out ends every beam with its first token.
    let config = GenerationConfig { max_time: Some(0.0), ..beams(greedy(24)) };
    let sequence = one(&model, Request::new(STORY).config(config));
    assert_eq!((sequence.finish_reason, sequence.tokens.len()), (FinishReason::Time, 1));
}

#[test]
fn what_cannot_be_stopped_at_is_refused() {
    let model = bundled();
    for (config, words) in [
        (at(&[""], 4), "must not be empty"),
        (GenerationConfig { max_time: Some(-1.0), ..greedy(4) }, "`max_time`"),
    ] {
        let error = model.generate(Request::new(STORY).config(config)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Request, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}
