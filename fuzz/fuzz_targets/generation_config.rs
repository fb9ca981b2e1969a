//! A config of any bytes: it is refused in a sentence, or it merges, resolves, and makes processors
//! and warpers that leave no NaN and draw a token that exists.
//!
//! A JSON object with `kwargs`, `passed` and `model` is taken apart; any other is the arguments.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mlxgk_generation_config::{GenerationConfig, Kwargs, Resolved, Sources};
use mlxgk_logits_processors::{Context, LogitsProcessor};
use mlxgk_sampling::{Rules, Seed};
use serde_json::Value;

const VOCAB: usize = 64;

fuzz_target!(|data: &[u8]| {
    let Ok(value) = serde_json::from_slice::<Value>(data) else { return };
    if let Ok(resolved) = resolve(&value) {
        run(&resolved);
    }
});

fn resolve(value: &Value) -> mlxgk_generation_config::Result<Resolved> {
    let config = |key: &str| match value.get(key) {
        Some(part) => GenerationConfig::from_json(part),
        None => Ok(GenerationConfig::default()),
    };
    let kwargs = Kwargs::from_json(value.get("kwargs").unwrap_or(value))?;
    let (passed, model) = (config("passed")?, config("model")?);
    Sources { kwargs: &kwargs, passed: &passed, model: &model }.merge()?.resolve(3, Some(100))
}

fn run(resolved: &Resolved) {
    let Ok(mut rules) = Rules::new(resolved, VOCAB, None, Seed::Fast(1)) else { return };
    let mut tokens = vec![5, 9, 5];
    for step in 0..4 {
        let mut scores: Vec<f32> =
            (0..VOCAB).map(|id| ((id * 37 + step * 11) % 64) as f32 / 8.0).collect();
        let context = Context::new(&tokens, 3);
        if rules.processors.process(&context, &mut scores).is_err() {
            return;
        }
        assert!(!scores.iter().any(|it| it.is_nan()), "{:?}", rules.processors);
        let Ok(token) = rules.chooser.choose(0, &context, &scores) else { return };
        assert!((token as usize) < VOCAB);
        assert!(scores[token as usize] > f32::NEG_INFINITY, "a banned token was chosen");
        tokens.push(token);
        if rules.stop.check(&Context::new(&tokens, 3)).is_err() {
            return;
        }
    }
}
