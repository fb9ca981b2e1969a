//! The mask of a JSON schema at a vocabulary of 151,936.
//!
//! `cargo bench -p mlxgk-grammars`

#![allow(clippy::expect_used, reason = "a bench that cannot be set up has nothing to measure")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use mlxgk_grammars::{Grammar, GrammarProcessor, Vocabulary};
use mlxgk_logits_processors::{Context, LogitsProcessor};

const VOCAB: usize = 151_936;
const END: u32 = VOCAB as u32 - 1;

/// Every byte, then words of letters with and without a leading space: the shape of a real byte-pair
/// vocabulary, without its content.
fn tokens() -> Vec<Vec<u8>> {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    let mut state = 1_u64;
    let mut random = |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    while tokens.len() < VOCAB - 1 {
        let mut word = if random(2) == 0 { vec![b' '] } else { Vec::new() };
        word.extend((0..2 + random(7)).map(|_| b'a' + random(26) as u8));
        tokens.push(word);
    }
    tokens.push(b"\xff<|end|>".to_vec());
    tokens
}

fn mask(criterion: &mut Criterion) {
    let vocabulary = Vocabulary::new(&tokens(), &[END]).expect("a vocabulary");
    let schema = serde_json::json!({
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer"},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": false,
    });
    let grammar = Grammar::json_schema(&schema).expect("a schema");
    let processor = GrammarProcessor::new(&vocabulary, &grammar).expect("a grammar");
    let text = br#"{"name": "Ada Lovelace", "age": 36, "tags": ["mathematics", "engine"]}"#;
    let tokens: Vec<u32> = text.iter().map(|&byte| u32::from(byte)).collect();
    let mut scores = vec![0.0; VOCAB];

    // One iteration walks the whole document; divide by its length for the average step.
    let name = format!("json_schema_document_of_{}_tokens", tokens.len());
    criterion.bench_function(&name, |bencher| {
        bencher.iter(|| {
            for end in 0..tokens.len() {
                let context = Context::new(&tokens[..end], 0);
                processor.process(&context, black_box(&mut scores)).expect("a mask");
            }
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = mask
}
criterion_main!(benches);
