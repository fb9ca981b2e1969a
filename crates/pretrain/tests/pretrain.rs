//! The bundled model's training, in small: from documents to a folder that loads, and continued where it
//! was stopped.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::fs;
use std::path::Path;

use mlx_genkit::{ComputeDtype, GenerationConfig, Model, Request};
use mlxgk_pretrain::{Documents, Plan, run};
use serde_json::json;

const VOCABULARY: usize = 280;

/// So many documents, of a few words each.
fn write_documents(path: &Path, count: usize) {
    let line = |index| format!("{}\n", json!({ "text": document(index) }));
    fs::write(path, (0..count).map(line).collect::<String>()).unwrap();
}

/// A document of which the test's model learns words.
fn document(index: usize) -> String {
    let words = ["the", "lamp", "harbour", "sings", "under", "seven", "bridges", "tonight"];
    let text: Vec<&str> = (0..12).map(|it| words[(index * 7 + it * it) % words.len()]).collect();
    format!("<|im_start|>{}<|im_end|>", text.join(" "))
}

/// Twelve steps of 128 tokens, every fourth with a longer row.
fn plan(folder: &Path, out: &str) -> Plan {
    let base = folder.join("base");
    fs::create_dir_all(&base).unwrap();
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": VOCABULARY,
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "hidden_act": "silu", "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "initializer_range": 0.02, "torch_dtype": "bfloat16",
    });
    fs::write(base.join("config.json"), config.to_string()).unwrap();
    let documents = folder.join("documents.jsonl");
    write_documents(&documents, 400);
    Plan {
        base,
        out: folder.join(out),
        tokenizer: documents.clone(),
        short: Documents { file: documents.clone(), row_tokens: 32 },
        long: Documents { file: documents.clone(), row_tokens: 64 },
        long_every: 4,
        held_out: documents,
        tokens: 12 * 128,
        batch_tokens: 128,
        learning_rate: 1e-2,
        muon_learning_rate: 1e-2,
        warmup: 2,
        save_every: 4,
        seed: 7,
        resume: false,
    }
}

#[test]
fn a_model_is_trained_to_a_folder_that_loads() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(folder.path(), "out");
    let mut said = Vec::new();
    run(&plan, |line| said.push(line.to_owned())).unwrap();
    let [.., last, documents] = &said[..] else { panic!("{said:?}") };
    assert!(last.starts_with("step 12 of 12, "), "{said:?}");
    assert!(documents.starts_with("trained on "), "{said:?}");

    let table = fs::read_to_string(plan.out.join("loss.csv")).unwrap();
    let rows: Vec<Vec<&str>> = table.lines().map(|it| it.split(',').collect()).collect();
    assert_eq!(rows.len(), 3, "{table}");
    let loss = |row: usize, column: usize| -> f64 { rows[row][column].parse().unwrap() };
    assert_eq!([rows[1][0], rows[2][0], rows[2][1]], ["1", "12", "1536"]);
    // A model that knows nothing finds all tokens alike.
    assert!((loss(1, 4) - (VOCABULARY as f64).ln()).abs() < 0.1, "{table}");
    assert!(loss(2, 4) < loss(1, 4) - 1.0 && loss(2, 5) < loss(1, 4) - 1.0, "{table}");
    assert!(fs::read_to_string(plan.out.join("loss.svg")).unwrap().contains("held out"));

    let model = Model::load(plan.out.join("model"), ComputeDtype::Float32).unwrap();
    let config = GenerationConfig { max_new_tokens: Some(8), ..GenerationConfig::default() };
    let output = model.generate(Request::new("the lamp").config(config)).unwrap();
    assert!(!output.sequences[0].tokens.is_empty());
    // What was learned is in the file: it knows its documents about as well as in the table.
    let score = model.score(Request::new(document(0))).unwrap();
    let found = score.perplexity().unwrap().ln();
    assert!(found < (VOCABULARY as f64).ln() - 1.0, "{found}, {table}");

    let refused = run(&plan, |_| ()).unwrap_err().to_string();
    assert!(refused.contains("holds a run already"), "{refused}");
}

#[test]
fn a_run_that_was_stopped_is_continued_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let whole = plan(folder.path(), "whole");
    run(&whole, |_| ()).unwrap();

    // It stops for want of documents, after a checkpoint.
    let mut stopped = plan(folder.path(), "stopped");
    stopped.short.file = folder.path().join("few.jsonl");
    write_documents(&stopped.short.file, 26);
    let error = run(&stopped, |_| ()).unwrap_err().to_string();
    assert!(error.contains("few.jsonl: ends after 26 documents"), "{error}");
    assert!(
        stopped.out.join("checkpoint.safetensors").exists() && !stopped.out.join("model").exists()
    );

    write_documents(&stopped.short.file, 400);
    stopped.resume = true;
    run(&stopped, |_| ()).unwrap();
    let weights = |it: &Plan| fs::read(it.out.join("model/model.safetensors")).unwrap();
    assert!(weights(&stopped) == weights(&whole));
    let losses = |it: &Plan| -> Vec<String> {
        let table = fs::read_to_string(it.out.join("loss.csv")).unwrap();
        // All but the seconds.
        table
            .lines()
            .map(|it| it.split(',').enumerate().filter(|it| it.0 != 2).map(|it| it.1).collect())
            .collect()
    };
    assert_eq!(losses(&stopped), losses(&whole));
}
