//! Requests that join and leave: each is answered as if it were alone.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::collections::BTreeMap;

use mlx_genkit::{
    Batch, ErrorKind, FinishReason, GenerationConfig, Request, Seed, generate,
    generation_config::OneOrMany,
};

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

#[test]
fn who_shares_the_batch_does_not_show() {
    for name in &FAMILIES[..9] {
        let model = tiny(name);
        let alone: Vec<Vec<u32>> = requests()
            .into_iter()
            .map(|it| generate(&model, it).unwrap().sequences.swap_remove(0).tokens)
            .collect();
        let mut batch = Batch::new(&model).unwrap();
        let mut waiting = requests().into_iter();
        let mut said: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        batch.join(waiting.next().unwrap()).unwrap();
        let mut steps = 0;
        while let Some(step) = batch.next() {
            for piece in step.unwrap() {
                said.entry(piece.id).or_default().push(piece.token);
                let done = said[&piece.id].len() == alone[piece.id].len();
                assert_eq!(piece.finish_reason, done.then_some(FinishReason::Length));
            }
            steps += 1;
            // One more joins every third step; in between, rows end.
            if steps % 3 == 0
                && let Some(request) = waiting.next()
            {
                batch.join(request).unwrap();
            }
        }
        assert!(batch.is_empty() && waiting.next().is_none());
        assert_eq!(said.into_values().collect::<Vec<_>>(), alone, "{name}");
    }
}

#[test]
fn a_request_can_leave_and_the_others_go_on() {
    let model = tiny("gemma3");
    let mut all = requests();
    let alone = generate(&model, requests().swap_remove(2)).unwrap().sequences[0].tokens.clone();
    let mut batch = Batch::new(&model).unwrap();
    let gone = batch.join(all.remove(0)).unwrap();
    let stays = batch.join(all.remove(1)).unwrap();
    let mut said = Vec::new();
    for step in 0.. {
        if step == 4 {
            assert!(batch.leave(gone).unwrap());
            assert!(!batch.leave(gone).unwrap());
            assert_eq!(batch.len(), 1);
        }
        let Some(pieces) = batch.next() else { break };
        let pieces = pieces.unwrap();
        said.extend(pieces.iter().filter(|it| it.id == stays).map(|it| it.token));
    }
    assert_eq!(said, alone);
}

#[test]
fn what_a_batch_cannot_serve_is_refused() {
    let model = tiny("llama");
    let mut batch = Batch::new(&model).unwrap();
    let several = Request::batch([vec![5].into(), vec![6].into()]).config(config(3, false));
    assert_eq!(batch.join(several).unwrap_err().kind(), ErrorKind::Request);
    let lookup = GenerationConfig { prompt_lookup_num_tokens: Some(2), ..config(3, false) };
    let lookup = Request::new(vec![5]).config(lookup);
    assert_eq!(batch.join(lookup).unwrap_err().kind(), ErrorKind::Request);
    assert!(batch.next().is_none());
    assert!(Batch::new(&tiny("phi3-longrope-5x")).is_err());
}
