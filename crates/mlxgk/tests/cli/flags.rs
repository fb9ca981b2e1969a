//! Flags and what they come to, one test per flag or group.

use std::fs;

use serde_json::{Value, json};

use crate::shared::{bundled, copy, fixture, mlxgk, mlxgk_with, write};

const HI: [&str; 7] = ["generate", "--prompt", "Hi", "--temp", "0", "--max-tokens", "12"];

/// The document that a run prints.
#[track_caller]
fn document(args: &[&str]) -> Value {
    document_with(args, b"")
}

#[track_caller]
fn document_with(args: &[&str], stdin: &[u8]) -> Value {
    let run = mlxgk_with(&[args, &["--format", "json"]].concat(), stdin);
    assert_eq!(run.status, Some(0), "{args:?}: {}", run.stderr);
    serde_json::from_str(&run.stdout).unwrap()
}

fn text(document: &Value) -> &str {
    document["sequences"][0]["text"].as_str().unwrap()
}

#[test]
fn short_flags_and_a_prompt_without_a_flag() {
    let long = document(&[
        "generate",
        "--prompt",
        "Hi",
        "--max-tokens",
        "8",
        "--temp",
        "1",
        "--seed",
        "3",
    ]);
    let short = document(&["generate", "-p", "Hi", "-n", "8", "-t", "1", "-s", "3"]);
    let bare = document(&["generate", "Hi", "-n", "8", "-t", "1", "-s", "3"]);
    assert_eq!(short["sequences"], long["sequences"]);
    assert_eq!(bare["sequences"], long["sequences"]);
    let stdin = document_with(&["generate", "-", "-n", "8", "-t", "1", "-s", "3"], b"Hi\r\n");
    assert_eq!(stdin["sequences"], long["sequences"]);
    assert_eq!((&long["seed"], &long["mode"]), (&json!(3), &json!("sample")));
    let model = fixture("llama");
    let model = model.to_str().unwrap();
    let ids = ["generate", "--prompt-ids", "5,6", "-n", "3"];
    assert_eq!(
        document(&[&ids[..], &["-m", model]].concat())["sequences"],
        document(&[&ids[..], &["--model", model]].concat())["sequences"]
    );
    let score = |args: &[&str]| document(&[&["score"], args].concat());
    assert_eq!(score(&["A fox."]), score(&["--text", "A fox."]));
    assert_eq!(score(&["A fox."]), score(&["-p", "A fox."]));
}

#[test]
fn a_random_seed_is_in_the_document_and_repeats_the_draw() {
    let args = ["generate", "Tell me about rain.", "-n", "12", "-t", "1.5"];
    let drawn = document(&args);
    let seed = drawn["seed"].as_u64().unwrap().to_string();
    let again = document(&[&args[..], &["--seed", &seed]].concat());
    assert_eq!(again["sequences"], drawn["sequences"]);
}

#[test]
fn fields_have_flags_under_their_own_names() {
    for (flags, set) in [
        (&["--max-new-tokens", "5"][..], "max_new_tokens=5"),
        (&["--penalty-alpha", "0.6", "--top-k", "4"], "penalty_alpha=0.6"),
        (&["--forced-eos-token-id", "2"], "forced_eos_token_id=2"),
        (&["--forced-eos-token-id", "[2, 3]"], "forced_eos_token_id=[2, 3]"),
        (&["--use-cache", "false"], "use_cache=false"),
        (&["--sampler-order", "mlx_lm"], "sampler_order=mlx_lm"),
        (&["--prompt-lookup-num-tokens", "3"], "prompt_lookup_num_tokens=3"),
    ] {
        let base = ["generate", "Hi", "--set", "min_new_tokens=4"];
        let base = if flags[0] == "--max-new-tokens" {
            base.to_vec()
        } else {
            [&base[..], &["--max-tokens", "9"]].concat()
        };
        let with_flags = document(&[&base[..], flags].concat());
        let with_set = document(&[&base[..], &["--set", set], &flags[2..]].concat());
        assert_eq!(with_flags["sequences"], with_set["sequences"], "{flags:?}");
        assert_eq!(with_flags["mode"], with_set["mode"], "{flags:?}");
    }
    let sampled = document(&["generate", "Hi", "-n", "4", "--do-sample", "--temperature", "0.5"]);
    assert_eq!(sampled["mode"], "sample");
    for greedy in [&["--do-sample=false"][..], &["--do-sample", "false"], &["--temp", "0"]] {
        assert_eq!(
            document(&[&["generate", "Hi", "-n", "4"], greedy].concat())["mode"],
            "greedy_search"
        );
    }
}

#[test]
fn warnings_name_the_flag_and_are_in_the_document() {
    let run = mlxgk(&["generate", "Hi", "-n", "2", "--top-p", "0.5", "--do-sample=false"]);
    assert!(run.stderr.contains("--top-p (`top_p`) is 0.5"), "{}", run.stderr);
    let told = document(&["generate", "Hi", "-n", "2", "--top-p", "0.5", "--do-sample=false"]);
    assert!(told["warnings"][0].as_str().unwrap().contains("--top-p"), "{told}");
}

#[test]
fn a_stop_string_may_hold_a_comma_and_is_trimmed_wherever_it_comes_from() {
    let folder = tempfile::tempdir().unwrap();
    let schema = write(folder.path(), "list.json", r#"{"const": "one, two; three"}"#);
    let base = ["generate", "Count.", "--json-schema", &schema];
    assert_eq!(text(&document(&base)), "\"one, two; three\"");
    let config = write(folder.path(), "gen.json", r#"{"stop_strings": [", "]}"#);
    for (flags, wanted) in [
        (&["--stop", ", "][..], "\"one, "),
        (&["--stop", "; ", "--stop", ", t"], "\"one, t"),
        (&["--stop-strings", "; "], "\"one, two; "),
        (&["--stop", ", ", "--trim-stop"], "\"one"),
        (&["--set", "stop_strings=[\", \"]", "--trim-stop"], "\"one"),
        (&["--generation-config", &config, "--trim-stop"], "\"one"),
    ] {
        let found = document(&[&base[..], flags].concat());
        // A token may hold more than the string.
        assert!(text(&found).starts_with(wanted), "{flags:?}: {}", text(&found));
        assert_eq!(found["sequences"][0]["finish_reason"], "stop_string", "{flags:?}");
        if flags.contains(&"--trim-stop") {
            assert_eq!(text(&found), wanted, "{flags:?}");
        }
    }
}

#[test]
fn messages_come_from_a_flag_a_file_or_stdin() {
    let folder = tempfile::tempdir().unwrap();
    let messages = json!([{"role": "user", "content": "Ahoy!"}]);
    let array = write(folder.path(), "messages.json", messages.to_string());
    let lines = write(folder.path(), "messages.jsonl", messages[0].to_string() + "\n");
    let base = ["generate", "-t", "0", "-n", "6"];
    let flag = document(&[&base[..], &["--messages-json", &messages.to_string()]].concat());
    for file in [&array, &lines] {
        let read = document(&[&base[..], &["--messages", file]].concat());
        assert_eq!(read["sequences"], flag["sequences"], "{file}");
    }
    let piped =
        document_with(&[&base[..], &["--messages", "-"]].concat(), messages.to_string().as_bytes());
    assert_eq!(piped["sequences"], flag["sequences"]);
}

#[test]
fn prompts_are_a_json_array_or_lines() {
    let folder = tempfile::tempdir().unwrap();
    let array = write(folder.path(), "a.json", r#"["Hi", "Ho"]"#);
    let base = ["generate", "-t", "0", "-n", "4", "--prompts-file"];
    let wanted = document(&[&base[..], &[&array]].concat());
    assert_eq!(wanted["sequences"].as_array().unwrap().len(), 2);
    for (name, lines) in [
        ("objects", "{\"prompt\": \"Hi\"}\n\n{\"prompt\": \"Ho\"}\n"),
        ("texts", "\"Hi\"\n\"Ho\"\n"),
        ("plain", "Hi\r\nHo\n"),
        ("messages", "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}\n\"Ho\"\n"),
    ] {
        let file = write(folder.path(), name, lines);
        let found = document(&[&base[..], &[&file]].concat());
        assert_eq!(found["sequences"], wanted["sequences"], "{name}");
    }
    let ids = write(folder.path(), "ids.jsonl", "[5, 6]\n[7]\n");
    let model = fixture("llama");
    let model = model.to_str().unwrap();
    let found = document(&[&base[..], &[&ids, "--model", model]].concat());
    assert_eq!(found["prompt_tokens"], json!([2, 1]));
    let single = write(folder.path(), "id.jsonl", "[5, 6]\n");
    let found = document(&[&base[..], &[&single, "--model", model]].concat());
    assert_eq!(found["prompt_tokens"], json!([2]));
}

/// A model folder whose template prints what it is given.
fn telling() -> tempfile::TempDir {
    let folder = bundled();
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                    thinking={{ enable_thinking }} mood={{ mood }} tools={{ tools | tojson }}";
    write(folder.path(), "chat_template.jinja", template);
    folder
}

#[test]
fn template_variables_and_tools_reach_the_template_and_the_prompt_is_shown() {
    let folder = telling();
    let model = folder.path().to_str().unwrap();
    let tools = write(folder.path(), "tools.json", r#"[{"name": "add"}]"#);
    let base = ["generate", "--model", model, "Hi", "-n", "2", "--show-prompt"];
    for (flags, words) in [
        (&[][..], "thinking= mood= tools=null"),
        (&["--thinking"], "thinking=True"),
        (&["--no-thinking"], "thinking=False"),
        (
            &["--template-var", "mood=\"glad\"", "--template-var", "enable_thinking=1"],
            "thinking=1 mood=glad",
        ),
        (&["--template-var", "mood=sad"], "mood=sad"),
        (&["--tools", &tools], "tools=[{\"name\": \"add\"}]"),
    ] {
        let args = [&base[..], flags].concat();
        let shown = document(&args);
        let prompt = shown["prompts"][0].as_str().unwrap();
        assert!(prompt.starts_with("user: Hi\n") && prompt.contains(words), "{flags:?}: {prompt}");
        let run = mlxgk(&args);
        assert_eq!(run.status, Some(0), "{}", run.stderr);
        assert!(run.stderr.contains(words) && run.stderr.contains("[prompt 0, "), "{}", run.stderr);
    }
    let talk = mlxgk_with(
        &["chat", "--model", model, "-n", "2", "--show-prompt", "--no-thinking"],
        b"Hi\n",
    );
    assert!(talk.stderr.contains("thinking=False"), "{}", talk.stderr);
    let list = r#"[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]"#;
    write(folder.path(), "chat_template.jinja", "{{ 'x' + messages[0].content }}");
    let run = mlxgk(&["generate", "--model", model, "--messages-json", list]);
    assert_eq!(run.status, Some(2), "{}", run.stderr);
    assert!(run.stderr.contains("give each \"content\" as one text"), "{}", run.stderr);
}

#[test]
fn another_tokenizer_is_used_where_it_fits() {
    let whole = bundled();
    let bare = bundled();
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        fs::remove_file(bare.path().join(name)).unwrap();
    }
    let (whole, bare) = (whole.path().to_str().unwrap(), bare.path().to_str().unwrap());
    let wanted = document(&[&HI[..], &["--model", whole]].concat());
    let found = document(&[&HI[..], &["--model", bare, "--tokenizer", whole]].concat());
    assert_eq!(found["sequences"], wanted["sequences"]);

    let small = copy("llama");
    let small = small.path().to_str().unwrap();
    let run = mlxgk(&[&HI[..], &["--model", small, "--tokenizer", whole]].concat());
    assert_eq!(run.status, Some(2), "{}", run.stderr);
    assert!(run.stderr.contains("tokens, but") && run.stderr.contains("151"), "{}", run.stderr);
    let run = mlxgk(&[&HI[..], &["--model", whole, "--tokenizer", small]].concat());
    assert!(run.stderr.contains("tokenizer.json does not exist"), "{}", run.stderr);
}

#[test]
fn a_text_cut_inside_a_structure_is_said() {
    let args = ["generate", "Count.", "--regex", "[a-z]{40}", "-n", "3"];
    let run = mlxgk(&args);
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    assert!(run.stderr.contains("cut off by --max-tokens"), "{}", run.stderr);
    let it = document(&args);
    assert_eq!(it["sequences"][0]["finish_reason"], "length");
    assert!(it["warnings"][0].as_str().unwrap().contains("--regex"), "{it}");
    assert_eq!(document(&["generate", "Count.", "--regex", "a"])["warnings"], json!([]));
}

#[test]
fn json_lines_are_tokens_as_they_are_made_and_then_the_document() {
    let lines = |args: &[&str]| -> Vec<Value> {
        let run = mlxgk(&[args, &["--format", "jsonl"]].concat());
        assert_eq!((run.status, run.stderr.as_str()), (Some(0), ""), "{args:?}");
        run.stdout.lines().map(|it| serde_json::from_str(it).unwrap()).collect()
    };
    let mut one = lines(&HI);
    let whole = one.pop().unwrap();
    assert_eq!(whole["sequences"], document(&HI)["sequences"]);
    let sequence = &whole["sequences"][0];
    let tokens: Vec<&Value> = one.iter().map(|it| &it["token"]).collect();
    assert_eq!(json!(tokens), sequence["tokens"]);
    let text: String = one.iter().filter_map(|it| it["text"].as_str()).collect();
    assert_eq!(text, sequence["text"].as_str().unwrap());
    let (last, before) = one.split_last().unwrap();
    assert!(before.iter().all(|it| it["finish_reason"].is_null()), "{before:?}");
    assert_eq!(last["finish_reason"], sequence["finish_reason"]);

    let mut two = lines(&["generate", "Hi", "-n", "3", "-t", "1", "--num-return-sequences", "2"]);
    let whole = two.pop().unwrap();
    for (index, sequence) in whole["sequences"].as_array().unwrap().iter().enumerate() {
        let own = two.iter().filter(|it| it["sequence"] == index).map(|it| it["token"].clone());
        assert_eq!(Value::from(own.collect::<Vec<_>>()), sequence["tokens"]);
    }
    // Beams are known at the end only.
    assert_eq!(lines(&["generate", "Hi", "-n", "3", "--num-beams", "2"]).len(), 1);
}

#[test]
fn quiet_leaves_warnings_to_the_document() {
    let args = ["generate", "Hi", "-n", "2", "--top-p", "0.5"];
    assert!(mlxgk(&args).stderr.contains("warning: "));
    for flag in ["-q", "--quiet"] {
        let run = mlxgk(&[&args[..], &[flag, "--format", "json"]].concat());
        assert_eq!((run.status, run.stderr.as_str()), (Some(0), ""));
        let it: Value = serde_json::from_str(&run.stdout).unwrap();
        assert!(it["warnings"][0].as_str().unwrap().contains("--top-p"), "{it}");
    }
    let run = mlxgk(&["-q", "generate", "Hi", "--max-tokens", "0"]);
    assert_eq!(run.status, Some(2));
    assert!(run.stderr.starts_with("error: --max-tokens"), "{}", run.stderr);
}

#[test]
fn ranges_of_layers_have_one_spelling_and_the_older_ones_are_read() {
    let base = ["generate", "Hi", "-n", "2", "-t", "0", "--hidden-states"];
    let layers = |text: &str| {
        document(&[&base[..], &[text]].concat())["sequences"][0]["hidden_states"]["layers"].clone()
    };
    for text in ["1..4", "1..=3", "1-3", "1,2,3"] {
        assert_eq!(layers(text), json!([1, 2, 3]), "{text}");
    }
    assert_eq!(layers("0,2.."), json!([0, 2, 3, 4, 5]));
    let run = mlxgk(&[&base[..], &["4..2", "--format", "json"]].concat());
    assert_eq!(run.status, Some(2));
    assert!(run.stderr.contains("expected e.g. 3, 2,5, 4..10, 4..=9 or all"), "{}", run.stderr);
}
