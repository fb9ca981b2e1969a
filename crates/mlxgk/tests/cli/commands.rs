//! Commands that tell about models, requests, fields and the command line itself.

use std::{fs, process::Command};

use mlx_genkit::GenerationConfig;
use serde_json::{Value, json};

use crate::shared::{copy, mlxgk, mlxgk_with, set, write};

#[track_caller]
fn document(args: &[&str]) -> Value {
    let run = mlxgk(&[args, &["--format", "json"]].concat());
    assert_eq!(run.status, Some(0), "{args:?}: {}", run.stderr);
    assert_eq!(run.stdout.lines().count(), 1, "{}", run.stdout);
    serde_json::from_str(&run.stdout).unwrap()
}

/// Runs what must fail as a wrong command line.
#[track_caller]
fn refused(args: &[&str], words: &str) {
    let run = mlxgk(args);
    assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{args:?}: {}", run.stderr);
    assert!(run.stderr.contains(words), "{args:?}: {}", run.stderr);
}

const TEXT: &str = "The harbour is quiet today. Tell me about the sea, the rain and a fox.\n";

#[test]
fn perplexity_is_that_of_score_and_of_its_windows() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "text.txt", TEXT);
    let scored = document(&["score", "--text", TEXT]);
    let whole = document(&["perplexity", &file]);
    let close = |a: &Value, b: f64| {
        let a = a.as_f64().unwrap();
        assert!((a - b).abs() <= 1e-5 * b.abs(), "{a} and {b}");
    };
    let tokens = scored["tokens"].as_array().unwrap();
    assert_eq!((&whole["tokens"], &whole["bytes"]), (&json!(tokens.len()), &json!(TEXT.len())));
    close(&whole["perplexity"], scored["perplexity"].as_f64().unwrap());
    close(&whole["sum"], scored["sum"].as_f64().unwrap());
    let bits = -whole["sum"].as_f64().unwrap() / 2.0_f64.ln() / TEXT.len() as f64;
    close(&whole["bits_per_byte"], bits);

    // By the definition: each token from the windows as `score` reads them, counted once.
    let (window, stride) = (8, 3);
    let ids: Vec<String> = tokens.iter().map(Value::to_string).collect();
    let (mut sum, mut next, mut begin) = (0.0, 1, 0);
    while next < ids.len() {
        let end = (begin + window + 1).min(ids.len());
        let scored = document(&["score", "--prompt-ids", &ids[begin..end].join(",")]);
        let logprobs = scored["logprobs"].as_array().unwrap();
        sum += logprobs[next - begin - 1..].iter().filter_map(Value::as_f64).sum::<f64>();
        (next, begin) = (end, begin + stride);
    }
    let args = ["perplexity", &file, "--window", "8", "--stride", "3"];
    let windowed = document(&args);
    close(&windowed["sum"], sum);
    assert_ne!(windowed["sum"], whole["sum"]);
    assert_eq!((&windowed["window"], &windowed["stride"]), (&json!(8), &json!(3)));
    // A pipe holds the same bytes, its last line break among them.
    let piped = mlxgk_with(&["perplexity", "-", "--format", "json"], TEXT.as_bytes());
    let piped: Value = serde_json::from_str(&piped.stdout).unwrap();
    assert_eq!(piped["sum"], whole["sum"]);
    let shown = mlxgk(&["perplexity", &file]).stdout;
    let perplexity = whole["perplexity"].as_f64().unwrap();
    assert!(shown.contains(&format!("perplexity     {perplexity:.4}\n")), "{shown}");
}

#[test]
fn perplexity_refuses_what_it_cannot_measure() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "text.txt", TEXT);
    let empty = write(folder.path(), "empty.txt", "");
    refused(&["perplexity", &file, "--window", "0"], "--window and --stride");
    refused(&["perplexity", &file, "--window", "4", "--stride", "5"], "--stride 5 is more than");
    refused(&["perplexity", &file, "--window", "9999999"], "--window 9999999 is more than");
    refused(&["perplexity", "model", &file, "-m", "model"], "the model is given twice");
    refused(&["perplexity", &empty], "empty.txt: the text has 0 tokens");
    refused(&["perplexity", "nowhere.txt"], "cannot read nowhere.txt");
    refused(&["perplexity"], "required");
    let model = mlxgk(&["perplexity", "/nowhere", &file]);
    assert_eq!(model.status, Some(1), "{}", model.stderr);
    assert!(model.stderr.contains("/nowhere"), "{}", model.stderr);
}

/// The setting of a field in an explanation.
fn setting<'a>(explained: &'a Value, field: &str) -> &'a Value {
    let all = explained["settings"].as_array().unwrap();
    all.iter().find(|it| it["field"] == field).unwrap_or(&Value::Null)
}

#[test]
fn explain_tells_where_settings_come_from_and_what_happens() {
    let folder = tempfile::tempdir().unwrap();
    let config = write(folder.path(), "gen.json", r#"{"repetition_penalty": 1.3, "top_k": 9}"#);
    let flags = ["Hi", "-t", "0.8", "--set", "top_p=0.9", "--top-k", "7", "--generation-config"];
    let flags = [&flags[..], &[&config]].concat();
    let explained = document(&[&["explain"], &flags[..]].concat());
    assert_eq!(explained["refused"], Value::Null, "{explained}");
    for (field, value, from) in [
        ("temperature", json!(0.8), "--temp"),
        ("do_sample", json!(true), "--temp"),
        ("top_p", json!(0.9), "--set"),
        ("top_k", json!(7), "--top-k"),
        ("repetition_penalty", json!(1.3), config.as_str()),
        ("max_new_tokens", json!(256), "mlxgk's default"),
        ("num_beams", json!(1), "default"),
    ] {
        let it = setting(&explained, field);
        assert_eq!((&it["value"], &it["from"]), (&value, &json!(from)), "{field}");
    }
    assert_eq!(setting(&explained, "eos_token_id")["from"], "the model");
    assert_eq!(explained["processors"], json!(["RepetitionPenaltyLogitsProcessor"]));
    let warpers = json!(["TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper"]);
    assert_eq!(explained["warpers"], warpers);
    assert_eq!((&explained["choice"], &explained["streams"]), (&json!("draw"), &json!(true)));

    // `generate` does what was explained.
    let short = ["-n", "2"];
    let generated = document(&[&["generate"], &flags[..], &short].concat());
    let explained = document(&[&["explain"], &flags[..], &short].concat());
    assert_eq!(generated["mode"], explained["mode"]);
    assert_eq!(generated["prompt_tokens"][0], explained["prompts"][0]["tokens"]);
    for (field, value) in generated["settings"].as_object().unwrap() {
        assert_eq!(&setting(&explained, field)["value"], value, "{field}");
    }
    let text = mlxgk(&[&["explain"], &flags[..]].concat()).stdout;
    for line in ["refused     no: it would run", "mode        sample", "top_k = 7  (--top-k)"] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }
}

#[test]
fn explain_tells_what_generate_would_refuse() {
    for flags in [
        &["--num-beams", "2", "--num-return-sequences", "3"][..],
        &["--top-p", "1.5", "--do-sample"],
        &["--max-tokens", "0"],
        &["--num-beams", "2", "--prompt-lookup", "3"],
        &["--trim-stop"],
        &["--set", "no_such_field=1"],
    ] {
        let explained = document(&[&["explain", "Hi"], flags].concat());
        let run = mlxgk(&[&["generate", "Hi"], flags].concat());
        assert_eq!(run.status, Some(2), "{flags:?}: {}", run.stdout);
        let refused = explained["refused"].as_str().unwrap();
        assert_eq!(run.stderr, format!("error: {refused}\n"), "{flags:?}");
    }
    let warned = document(&["explain", "Hi", "--top-p", "0.5"]);
    assert!(warned["warnings"][0].as_str().unwrap().contains("--top-p"), "{warned}");
    let beams = document(&["explain", "Hi", "--num-beams", "2"]);
    assert_eq!((&beams["choice"], &beams["mode"]), (&json!("beams"), &json!("beam_search")));
}

#[test]
fn explain_knows_folders_and_drafts() {
    let folder = copy("llama");
    let model = folder.path().to_str().unwrap();
    set(&folder.path().join("generation_config.json"), "top_k", json!(33));
    let ids = ["explain", "--prompt-ids", "5,6,7", "-m", model];
    let explained = document(&ids);
    assert_eq!(explained["prompts"], json!([{"text": null, "tokens": 3}]));
    assert_eq!(
        setting(&explained, "top_k"),
        &json!({"field": "top_k", "value": 33, "from": "the model"})
    );
    let drafted = document(&[&ids[..], &["--assistant", model]].concat());
    assert_eq!(drafted["mode"], "assisted_generation");
}

#[test]
fn fields_lists_every_field() {
    let all = document(&["fields"]);
    let names: Vec<&str> =
        all.as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, GenerationConfig::FIELDS);
    for it in all.as_array().unwrap() {
        assert!(!it["type"].as_str().unwrap().is_empty(), "{it}");
        assert!(it["description"].as_str().unwrap().ends_with('.'), "{it}");
        let is_metadata = it["name"] == "_from_model_config";
        assert_eq!(it["flags"].as_array().unwrap().is_empty(), is_metadata, "{it}");
    }
    let top_p = document(&["fields", "top_p"]);
    assert_eq!(
        top_p,
        all.as_array().unwrap().iter().find(|it| it["name"] == "top_p").unwrap().clone()
    );
    assert_eq!(
        [&top_p["type"], &top_p["default"], &top_p["range"], &top_p["flags"]],
        [&json!("number"), &json!(1.0), &json!("0 to 1"), &json!(["--top-p"])]
    );
    for name in ["temperature", "temp", "--temp", "--temperature"] {
        let it = document(&["fields", name]);
        assert_eq!(it["name"], "temperature");
        assert_eq!(it["flags"], json!(["--temp", "--temperature", "-t"]));
    }
    let table = mlxgk(&["fields"]).stdout;
    assert_eq!(table.lines().count(), GenerationConfig::FIELDS.len());
    assert!(mlxgk(&["fields", "top_p"]).stdout.contains("range    0 to 1\n"));
    refused(&["fields", "no_such_field"], "unknown field \"no_such_field\"");
}

#[test]
fn bench_measures_runs_and_gives_their_medians() {
    let it = document(&["bench", "--prompt-tokens", "8", "-n", "4", "--runs", "3"]);
    assert_eq!((&it["prompt_tokens"], &it["generated_tokens"]), (&json!(8), &json!(4)));
    let runs = it["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 3);
    for figure in ["time_to_first_token", "prefill_tokens_per_second", "tokens_per_second"] {
        let mut all: Vec<f64> = runs.iter().map(|it| it[figure].as_f64().unwrap()).collect();
        all.sort_by(f64::total_cmp);
        assert!(all[0] > 0.0, "{figure}");
        assert_eq!(it["median"][figure], json!(all[1]), "{figure}");
    }
    // The weights alone are that many.
    let weights = document(&["info"])["bytes"].as_u64().unwrap();
    assert!(it["peak_memory_bytes"].as_u64().unwrap() >= weights, "{it}");
    let text = mlxgk(&["bench", "--prompt-tokens", "8", "-n", "4", "--runs", "1"]).stdout;
    assert!(text.contains("time to first token") && text.contains("1 run(s) of 8 + 4"), "{text}");
    let flags = ["bench", "--prompt-tokens", "8", "-n", "4", "--runs", "1", "--choose-on-device"];
    assert_eq!(document(&flags)["choose_on_device"], true);
    refused(&["bench", "--runs", "0"], "must be at least 1");
    refused(&["bench", "-n", "1"], "--max-tokens at least 2");
    refused(&["bench", "-n", "99999999"], "the model's context has");
    refused(&["bench", "--prompt-tokens", "18446744073709551615"], "the model's context has");
    refused(&["bench", "model", "-m", "model"], "cannot be used with");
}

#[test]
fn completions_know_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let run = mlxgk(&["completions", shell]);
        assert_eq!((run.status, run.stderr.as_str()), (Some(0), ""), "{shell}");
        for word in ["perplexity", "extract", "max-tokens"] {
            assert!(run.stdout.contains(word), "{word} is not completed in {shell}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let script = write(folder.path(), "mlxgk.bash", mlxgk(&["completions", "bash"]).stdout);
    assert!(Command::new("bash").args(["-n", &script]).status().unwrap().success());
    refused(&["completions", "tcsh"], "possible values");
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("man1");
    let run = mlxgk(&["man", "--out", out.to_str().unwrap()]);
    assert_eq!((run.status, run.stdout.as_str()), (Some(0), ""), "{}", run.stderr);
    for name in ["mlxgk", "mlxgk-generate", "mlxgk-steer-extract", "mlxgk-cache-build", "mlxgk-man"]
    {
        let page = fs::read_to_string(out.join(format!("{name}.1"))).unwrap();
        assert!(page.contains(&format!(".TH {name} 1")), "{name}: {}", &page[..200]);
    }
    let page = fs::read_to_string(out.join("mlxgk-generate.1")).unwrap();
    assert!(page.contains("Examples") && page.contains("top\\-p"), "{page}");
}
