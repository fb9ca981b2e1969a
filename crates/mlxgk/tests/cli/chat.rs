//! `mlxgk chat`, its messages coming from a pipe.

use mlx_genkit::{HookPoint, steering::SteeringVectors};
use serde_json::{Value, json};

use crate::shared::{bundled, mlxgk, mlxgk_with, write};

#[test]
fn a_conversation_is_answered_saved_and_reset() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (first, second) = (path("first.json"), path("second.json"));
    let input = format!(
        "Hello!\nTell me about the sea.\n/save {first}\n/reset\n\nHello!\n/save {second}\n/dance\n/save\n"
    );
    let args = ["chat", "--system", "You are gloomy.", "--temp", "0", "--max-tokens", "8"];
    let run = mlxgk_with(&args, input.as_bytes());
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    assert!(run.stderr.contains("unknown command /dance"), "{}", run.stderr);
    assert!(run.stderr.contains("/save needs"), "{}", run.stderr);
    let read = |path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let (first, second) = (read(&first), read(&second));
    let roles: Vec<_> = first.as_array().unwrap().iter().map(|it| it["role"].clone()).collect();
    assert_eq!(json!(roles), json!(["system", "user", "assistant", "user", "assistant"]));
    // After the reset, the same message gets the same answer.
    assert_eq!(second.as_array().unwrap()[..], first.as_array().unwrap()[..3]);

    // What the cache had does not show: `generate` reads the whole conversation again.
    let answer = &first[4]["content"];
    let asked = Value::from(first.as_array().unwrap()[..4].to_vec()).to_string();
    let args = ["generate", "--messages-json", &asked, "--temp", "0", "--max-tokens", "8"];
    let run = mlxgk(&[&args[..], &["--format", "json"]].concat());
    let document: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(&document["sequences"][0]["text"], answer);
}

#[test]
fn settings_for_other_ways_of_decoding_serve_a_conversation_or_are_refused() {
    let input = b"Hello!\nTell me about the sea.\n";
    let talk = |more: &[&str]| {
        let args = ["chat", "--max-tokens", "8", "--set", "do_sample=false"];
        mlxgk_with(&[&args[..], more].concat(), input)
    };
    let plain = talk(&[]);
    for more in ["prompt_lookup_num_tokens=3", "use_cache=false"] {
        let run = talk(&["--set", more]);
        assert_eq!((run.status, &run.stdout), (Some(0), &plain.stdout), "{more}: {}", run.stderr);
    }
    let guided = talk(&["--set", "guidance_scale=2"]);
    assert_eq!((guided.status, guided.stdout.lines().count()), (Some(0), 2), "{}", guided.stderr);
    let warned = talk(&["--top-p", "0.5"]);
    assert_eq!(warned.stderr.matches("--top-p (`top_p`) is 0.5").count(), 1, "{}", warned.stderr);
    for more in ["num_beams=2", "token_healing=true"] {
        let run = talk(&["--set", more]);
        assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{more}: {}", run.stderr);
    }
}

#[test]
fn a_conversation_is_steered_and_the_cache_follows() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (file, saved) = (path("joy.safetensors"), path("saved.json"));
    let vector: Vec<f32> = (0..256).map(|it| 0.3 - (it % 5) as f32 / 4.0).collect();
    SteeringVectors::new([(HookPoint::ResidPost(2), vector)]).unwrap().save(&file).unwrap();
    let question = "Tell me about the sea.";
    let input = format!(
        "Hello!\n/steer\n/steer {file} -12\n/steer\n{question}\n/steer off\n{question}\n/save {saved}\n\
         /steer nowhere.safetensors\n/steer {file}:inf\n/steer\n"
    );
    let flags = ["--steer-layers", "0-3", "--temp", "0", "--max-tokens", "8"];
    let begin = format!("{file}:3");
    let run = mlxgk_with(&[&["chat", "--steer", &begin][..], &flags].concat(), input.as_bytes());
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    let shown: Vec<&str> = run.stdout.lines().filter(|it| it.contains("steering")).collect();
    let [first, second, last] = shown[..] else { panic!("{shown:?}") };
    assert!(first.starts_with("steering: add 3 at resid_post.2, all, constant"), "{first}");
    assert!(second.starts_with("steering: add -12 at resid_post.2"), "{second}");
    assert_eq!(last, "no steering");
    assert!(run.stderr.contains("cannot read nowhere.safetensors"), "{}", run.stderr);
    assert!(run.stderr.contains("ALPHA must be finite"), "{}", run.stderr);

    // Each answer is that to the whole conversation under the steering of its turn.
    let saved: Vec<Value> = serde_json::from_slice(&std::fs::read(saved).unwrap()).unwrap();
    let mut answers = Vec::new();
    for (turn, alpha) in [3, -12, 0].into_iter().enumerate() {
        let asked = Value::from(saved[..2 * turn + 1].to_vec()).to_string();
        let dose = format!("{file}:{alpha}");
        let args = ["generate", "--messages-json", &asked, "--format", "json", "--steer", &dose];
        let run = mlxgk(&[&args[..], &flags].concat());
        let document: Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(document["sequences"][0]["text"], saved[2 * turn + 1]["content"], "{turn}");
        answers.push(saved[2 * turn + 1]["content"].clone());
    }
    assert_ne!(answers[1], answers[2]);
}

/// gpt-oss's answers are messages of one text.
#[test]
fn thoughts_are_neither_printed_nor_kept_where_the_form_tells_them_apart() {
    let model = bundled();
    let template = "{% for message in messages %}<|start|>{{ message.role }}<|channel|>final<|message|>{{ message.content }}<|end|>{% endfor %}<|start|>assistant";
    write(model.path(), "chat_template.jinja", template);
    let text = "<|channel|>analysis<|message|>The sea.<|end|><|start|>assistant<|channel|>final<|message|>At noon.";
    let grammar = write(model.path(), "answer.lark", format!("start: {}", Value::from(text)));
    let saved = model.path().join("saved.json");
    let input = format!("When?\nAnd then?\n/save {}\n", saved.display());
    let folder = model.path().to_str().unwrap();
    let args = ["chat", "--model", folder, "--grammar", &grammar, "--max-tokens", "200"];
    for more in [&[][..], &["--guardrails"]] {
        let run = mlxgk_with(&[&args[..], more].concat(), input.as_bytes());
        assert_eq!((run.status, &*run.stdout), (Some(0), "At noon.\nAt noon.\n"), "{}", run.stderr);
        let messages: Value = serde_json::from_slice(&std::fs::read(&saved).unwrap()).unwrap();
        assert_eq!(messages[3], json!({"role": "assistant", "content": "At noon."}));
    }
}

#[test]
fn a_line_that_is_not_utf8_is_left_out() {
    let args = ["chat", "--temp", "0", "--max-tokens", "4"];
    let plain = mlxgk_with(&args, b"Hello!\n");
    let run = mlxgk_with(&args, b"caf\xe9\nHello!\n");
    assert_eq!((run.status, run.stdout), (Some(0), plain.stdout), "{}", run.stderr);
    assert_eq!(run.stderr, "error: the message is not valid UTF-8, and was left out\n");
}
