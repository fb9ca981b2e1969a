//! An answer does not depend on who else asks.

use std::thread;

use mlx_genkit::steering::{HookPoint, SteeringVectors};
use mlxgk_server::Options;
use serde_json::{Value, json};

use crate::client::{CHAT, COMPLETIONS, chat, start_with};

#[test]
fn unlike_requests_at_once_are_answered_as_alone() {
    let vector = (0..256).map(|it| (it % 13) as f32 - 6.0).collect();
    let joy = SteeringVectors::new([(HookPoint::ResidPost(2), vector)]).unwrap();
    let server =
        start_with(Options { vectors: vec![("joy".to_owned(), joy)], ..Options::default() });
    let long: Vec<u32> = (0..700).map(|it| 100 + it * 7 % 2000).collect();
    let requests = [
        (CHAT, chat("Tell me a story.", json!({"temperature": 0.9, "seed": 1, "max_tokens": 60}))),
        (CHAT, chat("How is the weather?", json!({"temperature": 0, "max_tokens": 40}))),
        (
            CHAT,
            chat(
                "Tell me a story.",
                json!({"temperature": 1.2, "seed": 2, "n": 3, "max_tokens": 50}),
            ),
        ),
        (
            CHAT,
            chat(
                "Hello",
                json!({"temperature": 0, "max_tokens": 40, "steering": {"name": "joy", "alpha": 0.7}}),
            ),
        ),
        (
            CHAT,
            chat(
                "When?",
                json!({"regex": "(Today|Tomorrow) at [0-9]+ o'clock\\.", "temperature": 1, "seed": 4}),
            ),
        ),
        (CHAT, chat("Hello", json!({"num_beams": 3, "max_tokens": 20}))),
        (COMPLETIONS, json!({"prompt": long, "temperature": 1, "seed": 5, "max_tokens": 30})),
        (
            COMPLETIONS,
            json!({"prompt": ["The sea", "A lamp"], "temperature": 0.8, "top_p": 0.9, "seed": 6, "max_tokens": 45, "stop": [". "]}),
        ),
    ];
    let choices = |(path, body): &(&str, Value)| server.document(path, body)["choices"].clone();
    let alone: Vec<Value> = requests.iter().map(choices).collect();
    for round in 0..3 {
        let together: Vec<Value> = thread::scope(|scope| {
            let asked: Vec<_> =
                requests.iter().map(|it| scope.spawn(move || choices(it))).collect();
            asked.into_iter().map(|it| it.join().unwrap()).collect()
        });
        for (at, (together, alone)) in together.iter().zip(&alone).enumerate() {
            assert_eq!(together, alone, "request {at}, round {round}");
        }
    }
}
