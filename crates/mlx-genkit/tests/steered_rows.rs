//! Prompts of one batch that are steered each in its own way: whatever the mode, each gives the
//! tokens of the prompt alone.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use mlx_genkit::{
    ComputeDtype, GenerationConfig, HookPoint, Model, Prompt, Request, ResidualHook, Sequence,
    generation_config::{Kwargs, OneOrMany},
    kv_cache::RowId,
    mlx_models::RowHooks,
    steering::{Injection, Operation, Steering, SteeringHook, SteeringVectors},
};
use serde_json::{Value, json};

fn tiny(name: &str) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name);
    Model::load(folder, ComputeDtype::Float32).unwrap()
}

fn steering(model: &Model, seed: u64, operation: Operation, rest: [&str; 2]) -> Steering {
    let width = model.decoder().hidden_size();
    let one = vec![6.0 / (width as f32).sqrt(); width];
    let places = [HookPoint::ResidPost(0), HookPoint::ResidPost(1)];
    let ones = SteeringVectors::new(places.map(|it| (it, one.clone()))).unwrap();
    Injection::new(ones.random_like(seed).unwrap(), 1.0)
        .operation(operation)
        .schedule(rest[0].parse().unwrap())
        .positions(rest[1].parse().unwrap())
        .into()
}

fn answers(
    model: &Model,
    prompts: &[Vec<u32>],
    fields: &Value,
    hook: &mut dyn ResidualHook,
) -> Vec<Sequence> {
    let config = GenerationConfig {
        do_sample: Some(false),
        max_new_tokens: Some(10),
        eos_token_id: Some(OneOrMany::Many(Vec::new())),
        pad_token_id: Some(0),
        ..GenerationConfig::default()
    };
    let prompts = prompts.iter().map(|it| Prompt::from(it.clone()));
    let kwargs = Kwargs::from_json(fields).unwrap();
    let request = Request::batch(prompts).config(config).overrides(kwargs).hook(hook);
    model.generate(request).unwrap().sequences
}

#[test]
fn every_prompt_of_a_batch_has_its_own_steering() {
    let prompts = [
        vec![5, 9, 40, 7, 7, 61, 7, 9],
        (1..14).collect(),
        vec![30, 2, 7],
        vec![8, 8, 3, 52],
        vec![61, 40, 9, 2, 5],
    ];
    for name in ["llama", "gemma2", "qwen3-moe"] {
        let model = tiny(name);
        let steerings = [
            Some(steering(&model, 1, Operation::Add, ["constant", "all"])),
            Some(steering(&model, 2, Operation::Clamp, ["constant", "generation"])),
            None,
            Some(steering(&model, 3, Operation::AddUnit, ["warmup:4", "prompt[1..],generation"])),
            Some(steering(&model, 4, Operation::Add, ["pulse:3:0.5", "tokens[7;40;52]"])),
        ];
        for (mode, bounded, fields) in [
            ("greedy", true, json!({})),
            ("chunks", true, json!({"prefill_chunk_size": 3})),
            ("no cache", true, json!({"use_cache": false})),
            ("beams", true, json!({"num_beams": 3, "num_return_sequences": 2})),
            ("contrastive search", false, json!({"penalty_alpha": 0.6, "top_k": 4})),
            ("DoLa", false, json!({"dola_layers": "low"})),
        ] {
            let mut hooks = RowHooks::default();
            let mut alone: Vec<Option<SteeringHook>> = Vec::new();
            for (row, steering) in (0..).zip(&steerings) {
                // The last but one within a budget, where budgets go.
                let bound =
                    |it: &Steering| if row == 3 { it.clone().budget(0.02) } else { it.clone() };
                let steering =
                    steering.as_ref().map(|it| if bounded { bound(it) } else { it.clone() });
                let hook = steering.map(|it| it.hook(model.decoder()).unwrap());
                if let Some(hook) = &hook {
                    hooks.insert(RowId::new(row), Arc::new(Mutex::new(hook.clone())));
                }
                alone.push(hook);
            }
            let together = answers(&model, &prompts, &fields, &mut hooks);
            let each = together.len() / prompts.len();
            let (mut found, mut moved) = (together.chunks(each), 0);
            for (row, (prompt, hook)) in prompts.iter().zip(alone).enumerate() {
                let prompt = std::slice::from_ref(prompt);
                let bare = answers(&model, prompt, &fields, &mut mlx_genkit::NoHook);
                let expected = match hook {
                    Some(mut hook) => answers(&model, prompt, &fields, &mut hook),
                    None => bare.clone(),
                };
                moved += usize::from(expected[0].tokens != bare[0].tokens);
                for (expected, found) in expected.iter().zip(found.next().unwrap()) {
                    assert_eq!(found.tokens, expected.tokens, "{name}, {mode}, row {row}");
                }
            }
            assert!(moved >= 2, "{name}, {mode}: steering that changes nothing tests nothing");
        }
    }
}
