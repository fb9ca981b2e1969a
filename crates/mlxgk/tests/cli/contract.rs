//! What other programs rely on: the JSON, its order, the merge of settings, the exit status.

use std::{
    fs,
    process::{Command, Stdio},
};

use crate::shared::{Run, copy, fixture, mlxgk, mlxgk_with, set, write};
use serde_json::{Value, json};

fn text_of(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

fn llama() -> String {
    text_of(&fixture("llama")).to_owned()
}

#[track_caller]
fn succeeded(run: Run) -> String {
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    run.stdout
}

/// The one JSON document on stdout.
#[track_caller]
fn document(args: &[&str]) -> Value {
    let stdout = succeeded(mlxgk(&[args, &["--format", "json"]].concat()));
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    serde_json::from_str(&stdout).unwrap()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// The tokens of every sequence.
fn tokens(document: &Value) -> Vec<Vec<u64>> {
    let row = |it: &Value| serde_json::from_value(it["tokens"].clone()).unwrap();
    document["sequences"].as_array().unwrap().iter().map(row).collect()
}

fn count(document: &Value) -> u64 {
    document["generated_tokens"].as_u64().unwrap()
}

#[test]
fn generate_prints_the_documented_fields() {
    let run = mlxgk(&[
        "generate",
        "--model",
        &llama(),
        "--prompt-ids",
        "5,17",
        "--max-tokens",
        "4",
        "--format",
        "json",
    ]);
    assert_eq!(run.stderr, "");
    let it: Value = serde_json::from_str(&succeeded(run)).unwrap();
    assert_eq!(
        keys(&it),
        [
            "sequences",
            "prompt_tokens",
            "generated_tokens",
            "seconds",
            "tokens_per_second",
            "mode",
            "seed",
            "warnings",
            "settings",
            "versions"
        ]
    );
    assert_eq!((&it["mode"], &it["seed"]), (&json!("greedy_search"), &Value::Null));
    assert_eq!(it["warnings"], json!([]));
    assert_eq!(
        (&it["settings"]["max_new_tokens"], &it["settings"]["top_k"]),
        (&json!(4), &json!(50))
    );
    assert_eq!(it["versions"], json!({"mlxgk": env!("CARGO_PKG_VERSION"), "transformers": "5.23"}));
    let sequence = &it["sequences"][0];
    assert_eq!(keys(sequence), ["prompt_index", "tokens", "text", "finish_reason", "score"]);
    assert_eq!(sequence["prompt_index"], 0);
    assert_eq!(sequence["tokens"].as_array().unwrap().len(), 4);
    assert_eq!(sequence["text"], "");
    assert_eq!(sequence["finish_reason"], "length");
    assert_eq!(sequence["score"], Value::Null);
    assert_eq!(it["prompt_tokens"], json!([2]));
    assert_eq!(it["generated_tokens"], 4);
    assert_eq!(keys(&it["seconds"]), ["load", "prefill", "decode"]);
    for part in ["load", "prefill", "decode"] {
        assert!(it["seconds"][part].as_f64().unwrap() > 0.0, "{part}");
    }
    let speed = 4.0 / it["seconds"]["decode"].as_f64().unwrap();
    assert!((it["tokens_per_second"].as_f64().unwrap() / speed - 1.0).abs() < 1e-6);
}

#[test]
fn an_end_token_is_the_last_one() {
    let folder = copy("llama");
    let base =
        ["generate", "--model", text_of(folder.path()), "--prompt-ids", "5,6", "--max-tokens", "6"];
    let free = tokens(&document(&base)).remove(0);
    let end = free.iter().position(|it| *it != free[0]).unwrap();
    for eos in [json!(free[end]), json!([free[end], 3])] {
        let config = write(folder.path(), "gen.json", json!({"eos_token_id": eos}).to_string());
        let stopped = document(&[&base[..], &["--generation-config", &config]].concat());
        assert_eq!(stopped["sequences"][0]["finish_reason"], "eos");
        assert_eq!(tokens(&stopped), [free[..=end].to_vec()]);
    }
}

#[test]
fn text_mode_prints_the_text_of_the_json() {
    let base = ["generate", "--prompt", "How are you?", "--max-tokens", "30"];
    let it = document(&base);
    let text = it["sequences"][0]["text"].as_str().unwrap();
    assert!(!text.is_empty() && !text.contains("<|") && !text.contains("How are you?"), "{text}");
    let run = mlxgk(&base);
    assert_eq!(run.stderr, "");
    assert_eq!(succeeded(run), format!("{text}\n"));
}

#[test]
fn text_mode_prints_ids_where_there_is_no_tokenizer() {
    let base = ["generate", "--model", &llama(), "--prompt-ids", "5,6", "--max-tokens", "3"];
    let ids: Vec<String> = tokens(&document(&base))[0].iter().map(u64::to_string).collect();
    assert_eq!(succeeded(mlxgk(&base)), format!("{}\n", ids.join(",")));
}

#[test]
fn a_prompt_may_come_from_any_source() {
    let base = ["generate", "--max-tokens", "8", "--format", "json"];
    let sequences = |args: &[&str], stdin: &[u8]| {
        let run = mlxgk_with(&[&base[..], args].concat(), stdin);
        serde_json::from_str::<Value>(&succeeded(run)).unwrap()["sequences"].clone()
    };
    let flag = sequences(&["--prompt", "Ahoy!"], b"");
    assert_eq!(sequences(&["--prompt", "-"], b"Ahoy!"), flag);
    assert_eq!(sequences(&["--prompt", "-"], b"Ahoy!\n"), flag);
    let messages = r#"[{"role": "user", "content": "Ahoy!"}]"#;
    assert_eq!(sequences(&["--messages-json", messages], b""), flag);
    assert_eq!(sequences(&["--prompt", "Ahoy!", "--assume-user-chat"], b""), flag);
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "prompts.json", r#"["Ahoy!"]"#);
    assert_eq!(sequences(&["--prompts-file", &file], b""), flag);

    let system = sequences(&["--prompt", "Ahoy!", "--system", "You are a pirate."], b"");
    let messages = r#"[{"role": "system", "content": "You are a pirate."},
                       {"role": "user", "content": "Ahoy!"}]"#;
    assert_eq!(sequences(&["--messages-json", messages], b""), system);
    // The same under the names of the Python original.
    let set = r#"system_prompt="You are a pirate.""#;
    assert_eq!(sequences(&["--prompt", "Ahoy!", "--set", set], b""), system);
    let config = r#"{"system_prompt": "You are a pirate.", "auto_chat_template": true}"#;
    let config = write(folder.path(), "config.json", config);
    assert_eq!(sequences(&["--prompt", "Ahoy!", "--generation-config", &config], b""), system);
    let never = write(folder.path(), "never.json", r#"{"auto_chat_template": false}"#);
    let unwrapped = ["--prompt", "Ahoy!", "--generation-config", &never];
    let plain = sequences(&["--prompt", "Ahoy!", "--no-auto-chat"], b"");
    assert_eq!(sequences(&unwrapped, b""), plain);
    assert_eq!(sequences(&[&unwrapped[..], &["--auto-chat"]].concat(), b""), flag);
    let plain = document(&["generate", "--prompt", "Ahoy!", "--no-auto-chat", "--max-tokens", "8"]);
    let chat = document(&["generate", "--prompt", "Ahoy!", "--max-tokens", "8"]);
    assert!(plain["prompt_tokens"][0].as_u64() < chat["prompt_tokens"][0].as_u64());
}

#[test]
fn a_batch_equals_its_rows() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "prompts.json", "[[5, 6, 7, 8], [7], [99, 3]]");
    let base = ["generate", "--model", &llama(), "--max-tokens", "6"];
    let batch = document(&[&base[..], &["--prompts-file", &file]].concat());
    assert_eq!(batch["prompt_tokens"], json!([4, 1, 2]));
    assert_eq!(batch["generated_tokens"], 18);
    for (index, ids) in ["5,6,7,8", "7", "99,3"].iter().enumerate() {
        let single = document(&[&base[..], &["--prompt-ids", ids]].concat());
        assert_eq!(batch["sequences"][index]["prompt_index"], index);
        assert_eq!(tokens(&batch)[index], tokens(&single)[0]);
    }
    let text = succeeded(mlxgk(&[&base[..], &["--prompts-file", &file]].concat()));
    let headings: Vec<&str> = text.lines().step_by(2).collect();
    assert_eq!(
        headings,
        ["[prompt 0, sequence 0]", "[prompt 1, sequence 0]", "[prompt 2, sequence 0]"]
    );
}

#[test]
fn several_sequences_are_ordered_by_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "prompts.json", "[[5, 6, 7], [9]]");
    let base = [
        "generate",
        "--model",
        &llama(),
        "--max-tokens",
        "5",
        "--temp",
        "2",
        "--seed",
        "4",
        "--num-return-sequences",
        "2",
    ];
    let both = document(&[&base[..], &["--prompts-file", &file]].concat());
    let indices: Vec<&Value> =
        both["sequences"].as_array().unwrap().iter().map(|it| &it["prompt_index"]).collect();
    assert_eq!(indices, [0, 0, 1, 1]);
    // A row's stream depends on its place alone, so the first prompt's rows are as without the
    // second prompt.
    let first = document(&[&base[..], &["--prompt-ids", "5,6,7"]].concat());
    assert_eq!(tokens(&both)[..2], tokens(&first));
    assert_ne!(tokens(&first)[0], tokens(&first)[1]);
}

#[test]
fn beams_have_scores() {
    let llama = llama();
    let common = ["generate", "--prompt-ids", "5,17,30", "--model", &llama, "--max-tokens", "6"];
    let beams = ["--num-beams", "4", "--num-return-sequences", "3"];
    let found = document(&[&common[..], &beams].concat());
    let sequences = found["sequences"].as_array().unwrap();
    let scores: Vec<f64> = sequences.iter().map(|it| it["score"].as_f64().unwrap()).collect();
    assert_eq!(scores.len(), 3);
    assert!(scores.is_sorted_by(|a, b| a >= b) && scores[0] < 0.0, "{scores:?}");
    assert!(sequences.iter().all(|it| it["prompt_index"] == 0));
    assert_eq!(document(&common)["sequences"][0]["score"], Value::Null);
    // A search that ends in one text prints nothing but that.
    let text = succeeded(mlxgk(&[&common[..], &["--num-beams", "4"]].concat()));
    let ids: Vec<String> = tokens(&found)[0].iter().map(u64::to_string).collect();
    assert_eq!(text.trim_end(), ids.join(","));
}

#[test]
fn seeds_reproduce() {
    let base = [
        "generate",
        "--model",
        &llama(),
        "--prompt-ids",
        "5,6",
        "--max-tokens",
        "12",
        "--temp",
        "2",
    ];
    let drawn = |args: &[&str]| tokens(&document(&[&base[..], args].concat()));
    let mut seen = Vec::new();
    for rng in ["fast", "torch"] {
        for seed in ["1", "2"] {
            let once = drawn(&["--rng", rng, "--seed", seed]);
            assert_eq!(once, drawn(&["--rng", rng, "--seed", seed]), "{rng} {seed}");
            seen.push(once);
        }
    }
    seen.push(drawn(&[]));
    for (index, row) in seen.iter().enumerate() {
        assert!(!seen[..index].contains(row), "draw {index} repeats an earlier one");
    }
}

#[test]
fn a_temperature_of_zero_is_greedy() {
    let folder = copy("llama");
    write(folder.path(), "generation_config.json", r#"{"do_sample": true, "temperature": 3.0}"#);
    let base = ["generate", "--prompt-ids", "5,6", "--max-tokens", "12"];
    let greedy = document(&[&base[..], &["--model", &llama()]].concat());
    let settings = [&base[..], &["--model", text_of(folder.path())]].concat();
    let run = mlxgk(&[&settings[..], &["--temp", "0", "--format", "json"]].concat());
    assert_eq!(run.stderr, "");
    let zero: Value = serde_json::from_str(&succeeded(run)).unwrap();
    assert_eq!(tokens(&zero), tokens(&greedy));
    // Without the flag the model's own settings hold.
    assert_ne!(tokens(&document(&settings)), tokens(&greedy));
}

#[test]
fn settings_are_merged_as_in_transformers() {
    let folder = copy("llama");
    let model = text_of(folder.path());
    let own = folder.path().join("generation_config.json");
    let base = ["generate", "--model", model, "--prompt-ids", "5,6"];
    assert_eq!(count(&document(&base)), 256, "no length is set anywhere");

    set(&own, "max_new_tokens", json!(5));
    let file = write(folder.path(), "gen.json", r#"{"max_new_tokens": 4}"#);
    let with_file = [&base[..], &["--generation-config", &file]].concat();
    let with_flag = [&with_file[..], &["--max-tokens", "3"]].concat();
    assert_eq!(count(&document(&base)), 5, "the model's own");
    assert_eq!(count(&document(&with_file)), 4, "the file wins over the model's own");
    assert_eq!(count(&document(&with_flag)), 3, "the flag wins over the file");

    write(folder.path(), "generation_config.json", r#"{"max_length": 9}"#);
    assert_eq!(count(&document(&base)), 7, "a length that counts the prompt is a length, too");
}

#[test]
fn an_unknown_field_is_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "gen.json", r#"{"max_new_tokens": 2, "temprature": 1.0}"#);
    let run = mlxgk(&[
        "generate",
        "--model",
        &llama(),
        "--prompt-ids",
        "5",
        "--generation-config",
        &file,
    ]);
    assert!(run.stderr.starts_with("warning: unknown field `temprature`"), "{}", run.stderr);
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    succeeded(run);
}

#[test]
fn scores_are_those_of_transformers() {
    let recorded: Value =
        serde_json::from_slice(&fs::read(fixture("llama.json")).unwrap()).unwrap();
    // One that is long enough to tell; all of them are for the parity suite.
    let length = |it: &&Value| it["prompt"].as_array().unwrap().len();
    let forward = recorded["forward"].as_array().unwrap();
    let forward = forward.iter().find(|it| length(it) >= 8).unwrap();
    let prompt: Vec<u32> = serde_json::from_value(forward["prompt"].clone()).unwrap();
    let wanted: Vec<f64> = serde_json::from_value(forward["logprobs"].clone()).unwrap();
    let ids = prompt.iter().map(u32::to_string).collect::<Vec<_>>().join(",");

    let it = document(&["score", "--model", &llama(), "--prompt-ids", &ids]);
    assert_eq!(keys(&it), ["tokens", "logprobs", "sum", "perplexity"]);
    assert_eq!(it["tokens"], json!(prompt));
    let found: Vec<f64> = serde_json::from_value(it["logprobs"].clone()).unwrap();
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(&wanted) {
        assert!((found - wanted).abs() < 1e-4, "{found} is not {wanted}");
    }
    let sum: f64 = found.iter().sum();
    assert!((it["sum"].as_f64().unwrap() - sum).abs() < 1e-9);
    let perplexity = (-sum / found.len() as f64).exp();
    assert!((it["perplexity"].as_f64().unwrap() / perplexity - 1.0).abs() < 1e-9);

    let it = document(&["score", "--model", &llama(), "--prompt-ids", &ids, "--logprobs", "2"]);
    for (top, logprob) in
        it["top"].as_array().unwrap().iter().zip(it["logprobs"].as_array().unwrap())
    {
        assert_eq!(top.as_array().unwrap().len(), 2);
        assert!(top[0][1].as_f64() >= logprob.as_f64() && top[0][1].as_f64() >= top[1][1].as_f64());
    }

    let text = succeeded(mlxgk(&["score", "--model", &llama(), "--prompt-ids", &ids]));
    assert_eq!(text.lines().count(), prompt.len() + 2, "{text}");
    assert!(text.contains(&format!("perplexity {perplexity:.4}")), "{text}");
}

#[test]
fn a_single_token_has_no_perplexity() {
    let it = document(&["score", "--model", &llama(), "--prompt-ids", "5"]);
    assert_eq!(it, json!({"tokens": [5], "logprobs": [], "sum": 0.0, "perplexity": null}));
}

#[test]
fn info_says_what_a_model_is() {
    let it = document(&["info", "--model", text_of(&fixture("mistral"))]);
    assert_eq!(it["model_type"], "mistral");
    assert_eq!(it["dtype"], "float32");
    assert_eq!(it["tokenizer_size"], Value::Null);
    assert_eq!(it["chat_template"], false);
    let layers = it["components"]["layers"].as_u64().unwrap() as usize;
    assert_eq!(it["windows"].as_array().unwrap().len(), layers);
    assert_eq!(it["windows"][0], 9);
    // bf16 weights may stay as they are.
    let parameters = it["parameters"].as_u64().unwrap();
    assert!((2 * parameters..=4 * parameters).contains(&it["bytes"].as_u64().unwrap()), "{it}");

    let text = succeeded(mlxgk(&["info"]));
    for row in ["the bundled model", "qwen3", "per token", "chat template  yes"] {
        assert!(text.contains(row), "{row:?} is not in:\n{text}");
    }
}

/// The subcommands under a path, without those that only hold others.
fn commands(path: &[String]) -> Vec<Vec<String>> {
    let args: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
    let help = succeeded(mlxgk(&args));
    let Some((_, list)) = help.split_once("\nCommands:\n") else { return vec![path.to_vec()] };
    let (list, _) = list.split_once("\n\n").unwrap();
    let names = list.lines().filter_map(|it| it.split_whitespace().next());
    let names = names.filter(|it| *it != "help");
    names.flat_map(|it| commands(&[path, &[it.to_owned()]].concat())).collect()
}

#[test]
fn help_shows_an_example_of_every_subcommand() {
    for path in commands(&[]) {
        let line = path.join(" ");
        let with_help = [&path[..], &["--help".to_owned()]].concat();
        let help_first = [&["help".to_owned()], &path[..]].concat();
        for args in [with_help, help_first] {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let help = succeeded(mlxgk(&args));
            assert!(help.contains(&format!(":\n  mlxgk {line}")), "{help}");
            for (flag, heading) in [("--format <FORMAT>", "Output:"), ("--model <MODEL>", "Model:")]
            {
                let Some((before, _)) = help.split_once(&format!(" {flag}\n")) else { continue };
                let last = before.lines().rfind(|it| it.ends_with(':') && !it.starts_with(' '));
                assert_eq!(last, Some(heading), "{flag} of {line}");
            }
        }
    }
    assert!(succeeded(mlxgk(&["--version"])).starts_with("mlxgk "));
}

#[test]
fn a_reader_may_leave() {
    // Long enough to outgrow the pipe: the reader is gone before most of it is written.
    for args in [
        &["generate", "--prompt", "Tell me a story.", "--format", "json"][..],
        &["generate", "--prompt", "Tell me a story."],
        &["help", "generate"],
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mlxgk"))
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        assert_eq!(output.status.code(), Some(0));
    }
}

#[test]
fn grammars_shape_the_text() {
    let folder = tempfile::tempdir().unwrap();
    let schema = folder.path().join("schema.json");
    fs::write(&schema, r#"{"enum": ["aye", "nay"]}"#).unwrap();
    let grammar = folder.path().join("grammar.lark");
    fs::write(&grammar, "start: \"aye\" | \"nay\"\n").unwrap();
    let answer = |flag: &str, value: &str| {
        let run = document(&["generate", "--prompt", "Shall we sail?", flag, value]);
        assert_eq!(run["sequences"][0]["finish_reason"], "eos");
        run["sequences"][0]["text"].as_str().unwrap().to_owned()
    };
    assert!(["\"aye\"", "\"nay\""].contains(&&*answer("--json-schema", text_of(&schema))));
    assert!(["aye", "nay"].contains(&&*answer("--regex", "aye|nay")));
    assert!(["aye", "nay"].contains(&&*answer("--grammar", text_of(&grammar))));
}

#[test]
fn any_field_can_be_set() {
    let ids = ["generate", "--model", &llama(), "--prompt-ids", "5,17", "--max-tokens", "3"];
    let run = document(&[&ids[..], &["--set", "logit_bias={\"42\": 1000}"]].concat());
    assert_eq!(tokens(&run), [[42, 42, 42]]);
    // What is not JSON is a string; `null` unsets a field, whatever the files say.
    let drawn = ["--temp", "1", "--set", "sampler_order=llama_cpp", "--set", "top_k=null"];
    assert_eq!(count(&document(&[&ids[..], &drawn].concat())), 3);
}
