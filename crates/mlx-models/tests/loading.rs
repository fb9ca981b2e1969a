//! The strict loader: what is wrong with a folder is said by file, field or tensor.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use mlxgk_mlx_models::{ComputeDtype, Decoder, ErrorKind, NoHook, supported};
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name)
}

/// A copy of a fixture's folder that a test may break.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

fn edit_config(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let path = folder.join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

/// Rewrites a safetensors header; the data stays.
fn edit_header(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    edit(&mut header);
    let header = header.to_string();
    let mut edited = (header.len() as u64).to_le_bytes().to_vec();
    edited.extend_from_slice(header.as_bytes());
    edited.extend_from_slice(&bytes[8 + length..]);
    fs::write(path, edited).unwrap();
}

/// Appends fp32 tensors of one number each.
fn add_tensors(folder: &Path, names: &[&str]) {
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut end = bytes.len() - 8 - length;
    edit_header(folder, |header| {
        for name in names {
            header[name] = json!({"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]});
            end += 4;
        }
    });
    let mut bytes = fs::read(&path).unwrap();
    bytes.resize(bytes.len() + 4 * names.len(), 0);
    fs::write(path, bytes).unwrap();
}

#[track_caller]
fn check(folder: &Path, kind: ErrorKind, words: &[&str]) {
    let error = Decoder::load(folder, ComputeDtype::Auto).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word:?} is not in: {error}");
    }
    assert!(!error.to_string().contains('\n'), "more than one line: {error}");
    assert!(error.to_string().len() <= 400, "{} bytes: {error}", error.to_string().len());
}

/// The table of the README has every `model_type`, with what it was checked against, and the fixtures
/// hold what it says.
#[test]
fn the_readme_says_what_each_architecture_was_checked_against() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(folder.join("README.md")).unwrap();
    let mut in_readme: Vec<_> = readme
        .lines()
        .filter_map(|line| {
            let columns: Vec<&str> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
            let model_type = columns.get(1)?.strip_prefix('`')?.strip_suffix('`')?;
            Some((model_type, columns[2])).filter(|(name, _)| *name != "model_type")
        })
        .collect();
    in_readme.sort_unstable();
    let listed: Vec<_> = supported().map(|it| (it.model_type, it.checked_against)).collect();
    assert!(listed.is_sorted(), "{listed:?}");
    assert_eq!(in_readme, listed);

    let mut recorded: Vec<(String, String)> = fs::read_dir(fixture(""))
        .unwrap()
        .map(|it| it.unwrap().path())
        .filter(|it| it.extension().is_some_and(|it| it == "json"))
        .map(|path| {
            let fixture: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
            let field = |key: &str| fixture[key].as_str().unwrap().to_owned();
            (field("family"), field("reference"))
        })
        .collect();
    recorded.sort_unstable();
    recorded.dedup();
    let mut claimed = Vec::new();
    for (model_type, checked) in listed {
        if let Some(other) = checked.strip_prefix("as `").and_then(|it| it.strip_suffix('`')) {
            assert!(supported().any(|it| it.model_type == other), "{model_type}: {checked}");
        } else if !checked.starts_with("as its") {
            let references = checked.split("; ").map(|it| it.split(' ').next().unwrap());
            claimed.extend(references.map(|it| (model_type.to_owned(), it.to_owned())));
        }
    }
    claimed.sort_unstable();
    assert_eq!(claimed, recorded);
}

#[test]
fn missing_files_are_named() {
    let folder = copy("llama");
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    check(folder.path(), ErrorKind::File, &["no weights", "model.safetensors"]);
    fs::remove_file(folder.path().join("config.json")).unwrap();
    check(folder.path(), ErrorKind::File, &["config.json"]);
    check(&folder.path().join("nowhere"), ErrorKind::File, &["no folder", "nowhere"]);
}

#[test]
fn damaged_weights_are_named() {
    let folder = copy("llama");
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for (bytes, word) in [
        (&whole[..whole.len() - 7], "damaged"),
        (&whole[..100], "truncated"),
        (&whole[..4], "truncated"),
        (&[][..], "truncated"),
        (&b"version https://git-lfs.github.com/spec/v1\n"[..], "git lfs pull"),
        (&[b"\x10\0\0\0\0\0\0\0".as_slice(), &[b'x'; 16]].concat()[..], "corrupt header"),
    ] {
        fs::write(&path, bytes).unwrap();
        check(folder.path(), ErrorKind::Weights, &["model.safetensors", word]);
    }
}

#[test]
fn tensors_are_asked_for_by_name_and_shape() {
    let renamed = copy("llama");
    edit_header(renamed.path(), |header| {
        let header = header.as_object_mut().unwrap();
        let tensor = header.remove("model.norm.weight").unwrap();
        header.insert("model.nerm.weight".to_owned(), tensor);
    });
    check(renamed.path(), ErrorKind::Weights, &["`model.norm.weight` is missing"]);

    let extra = copy("llama");
    edit_config(extra.path(), |config| config["num_hidden_layers"] = json!(1));
    check(extra.path(), ErrorKind::Weights, &["no tensor `model.layers.1."]);

    let reshaped = copy("llama");
    edit_config(reshaped.path(), |config| {
        let width = config["intermediate_size"].as_u64().unwrap();
        config["intermediate_size"] = json!(width + 1);
    });
    check(reshaped.path(), ErrorKind::Weights, &["mlp.gate_proj.weight` has shape"]);
}

#[test]
fn config_fields_are_named() {
    for (field, value, words) in [
        ("model_type", json!("bert"), vec!["\"bert\"", "qwen3_moe"]),
        ("model_type", json!(7), vec!["`model_type` must be a string, found 7"]),
        ("hidden_size", json!("wide"), vec!["`hidden_size` must be a whole number"]),
        ("num_hidden_layers", json!(0), vec!["`num_hidden_layers` must be above 0"]),
        (
            "num_hidden_layers",
            json!(1_000_000_000_000_u64),
            vec!["`num_hidden_layers` is 1000000000000"],
        ),
        ("head_dim", json!(0), vec!["`head_dim` must be above 0"]),
        ("vocab_size", json!(1_u64 << 40), vec!["`vocab_size` is 1099511627776"]),
        ("max_position_embeddings", json!(0), vec!["`max_position_embeddings` must be above 0"]),
        ("rope_scaling", json!({"rope_theta": 0}), vec!["`rope_theta` must be above 0"]),
        ("num_attention_heads", Value::Null, vec!["`num_attention_heads` is missing"]),
        ("num_key_value_heads", json!(3), vec!["`num_key_value_heads` is 3"]),
        ("rope_scaling", json!({"rope_type": "spiral"}), vec!["`rope_type` is \"spiral\""]),
        ("rope_scaling", json!({"rope_type": "linear"}), vec!["`factor` is missing"]),
        ("hidden_act", json!("relu6"), vec!["`hidden_act` is \"relu6\""]),
        (
            "quantization_config",
            json!({"quant_method": "bitnet"}),
            vec!["`quant_method` is \"bitnet\""],
        ),
        (
            "quantization_config",
            json!({"quant_method": "awq", "bits": 3}),
            vec!["`bits` is 3; of awq 4 bits"],
        ),
        (
            "quantization_config",
            json!({"quant_method": "gptq", "bits": 3}),
            vec!["`bits` is 3; of gptq 4 and 8 bits"],
        ),
        (
            "quantization_config",
            json!({"quant_method": "gptq", "checkpoint_format": "marlin"}),
            vec!["`checkpoint_format` is \"marlin\"; of gptq's formats"],
        ),
        (
            "quantization_config",
            json!({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}),
            vec!["`quant_algo` is \"W4A8_AWQ\"; of modelopt FP8 and NVFP4"],
        ),
        (
            "quantization_config",
            json!({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}),
            vec!["`format` is \"nvfp4-pack-quantized\""],
        ),
        (
            "quantization_config",
            json!({
                "quant_method": "compressed-tensors", "format": "pack-quantized",
                "transform_config": {"config_groups": {"R4": {"type": "hadamard"}}},
            }),
            vec!["`transform_config` rotates what products are given"],
        ),
        ("quantization", json!({"mode": "spiral"}), vec!["`mode` is \"spiral\"", "nvfp4"]),
    ] {
        let folder = copy("llama");
        edit_config(folder.path(), |config| config[field] = value.clone());
        check(folder.path(), ErrorKind::Config, &words);
    }
}

#[test]
fn half_a_foreign_weight_is_refused_by_name() {
    for (name, from, to, words) in [
        ("llama-awq", "q_proj.qzeros", "q_proj.zeros", "q_proj.qzeros` is missing"),
        (
            "llama-compressed",
            "q_proj.weight_scale",
            "q_proj.scale",
            "q_proj.weight_scale` is missing",
        ),
        ("llama-fp8", "q_proj.weight", "q_proj.codes", "q_proj.weight` is missing"),
        ("llama-gptq", "q_proj.scales", "q_proj.scale", "q_proj.scales` is missing"),
        (
            "llama-modelopt-nvfp4",
            "q_proj.weight_scale",
            "q_proj.scale",
            "q_proj.weight_scale` is missing",
        ),
    ] {
        let folder = copy(name);
        edit_header(folder.path(), |header| {
            let header = header.as_object_mut().unwrap();
            let at = "model.layers.0.self_attn";
            let tensor = header.remove(&format!("{at}.{from}")).unwrap();
            header.insert(format!("{at}.{to}"), tensor);
        });
        check(folder.path(), ErrorKind::Weights, &[&folder.path().display().to_string(), words]);
    }
    let folder = copy("llama-gptq");
    let path = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let begin = &header["model.layers.0.mlp.down_proj.g_idx"]["data_offsets"][0];
    bytes[8 + length + begin.as_u64().unwrap() as usize] = 1;
    fs::write(path, bytes).unwrap();
    check(folder.path(), ErrorKind::Weights, &["model.layers.0.mlp.down_proj.g_idx", "desc_act"]);
    let folder = copy("llama-fp8");
    edit_config(folder.path(), |config| {
        config["quantization_config"]["weight_block_size"] = json!([64, 64]);
    });
    check(folder.path(), ErrorKind::Weights, &["down_proj.weight_scale_inv`", "do not fit"]);
}

/// What Python's `json` writes and reads, and what no reader of ours needs.
#[test]
fn numbers_that_are_not_finite_may_stand_in_a_config() {
    let folder = copy("llama");
    let path = folder.path().join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    let open = text.trim_start().strip_prefix('{').unwrap();
    let limits = r#"{"time_step_limit": [0.0, Infinity], "loss": NaN, "least": -Infinity,"#;
    fs::write(&path, format!("{limits} {open}")).unwrap();
    Decoder::load(folder.path(), ComputeDtype::Auto).unwrap();
    fs::write(&path, format!(r#"{{"rms_norm_eps": Infinity, "rope_theta": NaN, {open}"#)).unwrap();
    check(folder.path(), ErrorKind::Config, &["`rope_theta` must be a number, found NaN"]);
}

/// As in HF, which looks for the whole file first.
#[test]
fn a_whole_file_beside_an_index_of_another_checkpoint_is_read() {
    let folder = copy("llama");
    let index = folder.path().join("model.safetensors.index.json");
    fs::write(
        index,
        r#"{"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}"#,
    )
    .unwrap();
    Decoder::load(folder.path(), ComputeDtype::Auto).unwrap();
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    check(folder.path(), ErrorKind::File, &["model-00001-of-00002.safetensors"]);
}

/// `AutoModel` saves the body alone, without `model.` before its names.
#[test]
fn a_base_checkpoint_has_no_prefix() {
    let logits = |folder: &Path| -> Vec<f32> {
        let model = Decoder::load(folder, ComputeDtype::Float32).unwrap();
        model.logits_of(&[&[3, 1, 4]]).unwrap().to_vec_exact().unwrap()
    };
    let rename = |folder: &Path, keep_head: bool| {
        edit_header(folder, |header| {
            let tensors = std::mem::take(header.as_object_mut().unwrap()).into_iter();
            let renamed = tensors
                .filter(|(name, _)| keep_head || !name.starts_with("lm_head."))
                .map(|(name, it)| {
                    (name.strip_prefix("model.").map(str::to_owned).unwrap_or(name), it)
                });
            *header = renamed.collect();
        });
    };
    for name in ["llama", "gemma2", "qwen3-moe"] {
        let folder = copy(name);
        rename(folder.path(), true);
        assert_eq!(logits(folder.path()), logits(&fixture(name)), "{name}");
    }
    // Errors use the names that the file has.
    let extra = copy("llama");
    rename(extra.path(), true);
    edit_config(extra.path(), |config| config["num_hidden_layers"] = json!(1));
    check(extra.path(), ErrorKind::Weights, &["no tensor `layers.1."]);
    edit_config(extra.path(), |config| config["num_hidden_layers"] = json!(9));
    check(extra.path(), ErrorKind::Weights, &["the tensor `layers.", "is missing"]);
}

/// Weights that are loaded lazily are the same, and are read from the file when they are needed.
#[test]
fn lazy_weights_stay_in_their_file() {
    let logits = |model: &Decoder| -> Vec<f32> {
        model.logits_of(&[&[3, 1, 4]]).unwrap().to_vec_exact().unwrap()
    };
    for name in ["llama", "gemma2", "qwen3-moe"] {
        let whole = logits(&Decoder::load(fixture(name), ComputeDtype::Float32).unwrap());
        let lazy = Decoder::load_lazily(fixture(name), ComputeDtype::Float32).unwrap();
        assert_eq!(logits(&lazy), whole, "{name}");
    }
    let folder = copy("llama");
    let path = folder.path().join("model.safetensors");
    let lazy = Decoder::load_lazily(folder.path(), ComputeDtype::Float32).unwrap();
    // All weights become 0 in the same file, and with them the logits.
    let mut bytes = fs::read(&path).unwrap();
    let length = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[length..].fill(0);
    fs::write(&path, bytes).unwrap();
    assert!(logits(&lazy).iter().all(|&it| it == 0.0));
    // What does not fit the config is found all the same.
    edit_config(folder.path(), |config| config["hidden_size"] = json!(64));
    Decoder::load_lazily(folder.path(), ComputeDtype::Float32).unwrap_err();
}

/// Refused at once: opening a pipe would wait for somebody to write into it.
#[cfg(unix)]
#[test]
fn what_is_no_file_is_refused() {
    use std::{os::unix::fs::symlink, process::Command};

    for file in ["config.json", "model.safetensors"] {
        let path = |folder: &tempfile::TempDir| folder.path().join(file);
        let pipe = copy("llama");
        fs::remove_file(path(&pipe)).unwrap();
        assert!(Command::new("mkfifo").arg(path(&pipe)).status().unwrap().success());
        check(pipe.path(), ErrorKind::File, &[file, "is a device or a pipe, not a file"]);
        let device = copy("llama");
        fs::remove_file(path(&device)).unwrap();
        symlink("/dev/zero", path(&device)).unwrap();
        check(device.path(), ErrorKind::File, &[file, "is a device or a pipe, not a file"]);
        let inner = copy("llama");
        fs::remove_file(path(&inner)).unwrap();
        fs::create_dir(path(&inner)).unwrap();
        check(inner.path(), ErrorKind::File, &[file, "is a folder, not a file"]);
    }
    let pipe = copy("llama-yarn");
    let shard = pipe.path().join("model-00002-of-00003.safetensors");
    fs::remove_file(&shard).unwrap();
    assert!(Command::new("mkfifo").arg(&shard).status().unwrap().success());
    check(pipe.path(), ErrorKind::File, &["00002", "is a device or a pipe, not a file"]);
    fs::remove_file(pipe.path().join("model.safetensors.index.json")).unwrap();
    check(pipe.path(), ErrorKind::File, &["00002", "is a device or a pipe, not a file"]);
}

#[test]
fn names_of_megabytes_are_shortened() {
    let long = format!("begin\n{}end", "x".repeat(3_000_000));
    let tensor = copy("llama");
    add_tensors(tensor.path(), &[&long]);
    check(tensor.path(), ErrorKind::Weights, &["no tensor `begin\\nxxx", "xxx…xxx", "xxxend`"]);

    for (field, value) in [
        ("model_type", json!(long)),
        ("hidden_act", json!(long)),
        ("rms_norm_eps", json!(long)),
        ("rope_scaling", json!({"rope_type": long})),
        ("layer_types", json!(long)),
        ("quantization_config", json!({"quant_method": long})),
    ] {
        let folder = copy("qwen3");
        edit_config(folder.path(), |config| {
            config["use_sliding_window"] = json!(true);
            config[field] = value;
        });
        check(folder.path(), ErrorKind::Config, &[field]);
    }
    let folder = copy("llama");
    edit_config(folder.path(), |config| config[&long] = json!(1));
    Decoder::load(folder.path(), ComputeDtype::Auto).unwrap();

    let folder = copy("llama-yarn");
    let index = folder.path().join("model.safetensors.index.json");
    for (file, what) in [
        ("../x", "must name a file in the same folder"),
        ("model-00001-of-00003.safetensors", "which does not hold it"),
    ] {
        fs::write(&index, json!({"weight_map": {&long: file}}).to_string()).unwrap();
        check(folder.path(), ErrorKind::Weights, &["`begin\\nxxx", what]);
    }
}

/// Sizes are compared with the weights before anything of that size is made.
#[test]
fn sizes_that_no_weights_hold_are_refused() {
    for (field, value) in [
        ("hidden_size", 2_000_000_000),
        ("vocab_size", 2_000_000_000),
        ("intermediate_size", 2_000_000_000),
        ("num_attention_heads", 2_000_000_000),
        ("head_dim", 2_000_000_000),
        ("head_dim", 20_000_000),
        ("num_attention_heads", 20_000_000),
        ("hidden_size", u64::MAX),
        ("head_dim", 1 << 40),
    ] {
        let folder = copy("qwen3");
        edit_config(folder.path(), |config| config[field] = json!(value));
        check(folder.path(), ErrorKind::Config, &[&format!("`{field}` ")]);
    }
    for field in ["moe_intermediate_size", "num_experts"] {
        let folder = copy("qwen3-moe");
        edit_config(folder.path(), |config| config[field] = json!(100_000_000_000_000_u64));
        let error = Decoder::load(folder.path(), ComputeDtype::Auto).unwrap_err();
        assert!([ErrorKind::Config, ErrorKind::Weights].contains(&error.kind()), "{error}");
    }
}

#[test]
fn tokens_are_checked_before_mlx_sees_them() {
    let model = Decoder::load(fixture("llama"), ComputeDtype::Auto).unwrap();
    let vocab = model.vocab_size() as u32;
    for rows in [&[&[0, vocab][..]][..], &[&[]], &[&[0, 1], &[0]], &[]] {
        assert_eq!(model.logits_of(rows).unwrap_err().kind(), ErrorKind::Tokens);
    }
    let mut other = Decoder::load(fixture("mistral"), ComputeDtype::Auto).unwrap().new_cache(1);
    let mixed = model.forward(&[&[1]], &mut other, &mut mlxgk_mlx_models::NoHook);
    assert_eq!(mixed.unwrap_err().kind(), ErrorKind::Cache);
}

#[test]
fn a_model_in_memory_equals_the_same_model_on_disk() {
    for name in ["llama", "llama-llama3", "llama-q4"] {
        let folder = fixture(name);
        let read = |file: &str| fs::read(folder.join(file)).unwrap();
        let on_disk = Decoder::load(&folder, ComputeDtype::Auto).unwrap();
        let in_memory = Decoder::from_bytes(
            &read("config.json"),
            &read("model.safetensors"),
            ComputeDtype::Auto,
        )
        .unwrap();
        assert_eq!(on_disk.footprint(), in_memory.footprint());
        let logits = |model: &Decoder| -> Vec<f32> {
            model.logits_of(&[&[3, 1, 4, 1, 5]]).unwrap().to_vec_exact().unwrap()
        };
        assert_eq!(logits(&on_disk), logits(&in_memory));
    }
}

/// The multi-token-prediction head is left out, as in transformers; what else is another graph is
/// refused by name.
#[test]
fn a_hybrid_is_taken_for_no_other() {
    let folder = copy("qwen3-next");
    add_tensors(folder.path(), &["mtp.layers.0.input_layernorm.weight", "mtp.norm.weight"]);
    let model = Decoder::load(folder.path(), ComputeDtype::Auto).unwrap();
    let skipped: Vec<_> = model.skipped().iter().map(|it| (&*it.part, it.tensors)).collect();
    assert_eq!(skipped, [("mtp", 2)]);

    let kinds = ["linear_attention", "full_attention", "chunked_attention", "linear_attention"];
    for (field, value, what) in [
        ("layer_types", json!(kinds), "calls layer 2 \"chunked_attention\"; known are linear_att"),
        ("layer_types", json!(kinds[..2]), "has 2 entries for 4 layers"),
        ("layer_types", json!([1, 2, 3, 4]), "must be a list of names"),
        ("full_attention_interval", json!(0), "must be above 0"),
        ("linear_num_value_heads", json!(4), "is 4, not a multiple of the 3 key heads"),
        ("linear_num_key_heads", json!(0), "must be above 0"),
        ("linear_conv_kernel_dim", json!(1), "must be above 1"),
        ("attn_output_gate", json!(false), "is false; only gated attention is known"),
        ("num_experts_per_tok", json!(6), "is 6, with 4 experts"),
        ("hidden_act", json!("mish"), "is \"mish\"; known are"),
    ] {
        let folder = copy("qwen3-next");
        edit_config(folder.path(), |config| config[field] = value);
        check(folder.path(), ErrorKind::Config, &[&format!("`{field}` {what}")]);
    }
    // A convolution and norms of two layouts are not a model of either.
    let folder = copy("qwen3_5");
    edit_config(folder.path(), |config| config["text_config"]["linear_conv_kernel_dim"] = json!(3));
    check(folder.path(), ErrorKind::Weights, &["conv1d.weight", "[80, 1, 4]", "[80, 1, 3]"]);
}

#[test]
fn values_that_a_family_does_not_know_are_refused_by_name() {
    let cases = [
        ("gpt-oss", "layer_types", json!(["full_attention", "linear_attention", "full_attention"])),
        ("gpt-oss", "num_experts_per_tok", json!(9)),
        ("olmo2", "clip_qkv", json!(8.0)),
        ("smollm3", "no_rope_layers", json!([1, 2, 0, 1])),
        ("deepseek-v2", "topk_method", json!("noaux_tc")),
        ("deepseek-v3", "scoring_func", json!("softmax")),
        ("deepseek-v3", "n_group", json!(3)),
        ("deepseek-v3", "moe_layer_freq", json!(2)),
        ("glm4-moe-lite", "mlp_layer_types", json!(["sparse", "gated", "sparse"])),
        ("gemma4", "use_bidirectional_attention", json!("all")),
        ("gemma4", "num_kv_shared_layers", json!(4)),
        ("starcoder2", "hidden_act", json!("mish")),
        ("ernie4_5-moe", "use_bias", json!(true)),
        ("mixtral", "hidden_act", json!("xielu")),
        ("lfm2-moe", "layer_types", json!(["conv", "conv_long", "conv", "conv"])),
        ("lfm2-moe", "layer_types", json!(null)),
        ("lfm2-moe", "num_experts_per_tok", json!(6)),
        ("lfm2", "block_multiple_of", json!(0)),
        ("granite-hybrid", "layer_types", json!(["mamba", "rwkv", "mamba"])),
        ("granite-hybrid", "position_embedding_type", json!("alibi")),
        ("granite-hybrid", "mamba_n_groups", json!(3)),
        ("granite-hybrid", "mamba_d_head", json!(7)),
        ("granite-hybrid", "time_step_limit", json!([0.1, "wide"])),
        ("granite-hybrid", "time_step_limit", json!([0.1])),
        (
            "mellum",
            "layer_types",
            json!(["sliding_attention", "linear_attention", "full_attention"]),
        ),
        ("mellum", "mlp_layer_types", json!(["sparse", "moe", "sparse"])),
        ("mellum", "rope_parameters", json!({"sliding_attention": {"rope_type": "default"}})),
        ("laguna", "gating", json!("per-token")),
        ("laguna", "moe_apply_router_weight_on_input", json!(true)),
        ("laguna", "moe_router_score_func", json!("sqrtsoftplus")),
        ("laguna", "num_attention_heads_per_layer", json!([4, 6, 3, 4])),
        ("laguna", "num_attention_heads_per_layer", json!([4])),
        ("nemotron-h", "layers_block_type", json!(["mamba", "moe", "rwkv", "mlp", "mamba", "moe"])),
        ("nemotron-h", "mlp_hidden_act", json!("xielu")),
        ("nemotron-h", "sliding_window", json!(8)),
        ("nemotron-h-letters", "hybrid_override_pattern", json!("M-*-X")),
        ("nemotron-h-letters", "hybrid_override_pattern", json!("M-*")),
        ("falcon-h1", "ssm_multipliers", json!([1.0, 1.0])),
        ("falcon-h1", "mamba_d_head", json!(5)),
        ("lfm3", "layer_types", json!(["conv", "chunked_attention", "full_attention", "conv"])),
        ("llama4", "layer_types", json!(["chunked_attention", "conv", "full_attention", "conv"])),
        ("llama4", "attention_chunk_size", json!(0)),
        ("llama4", "attention_chunk_size", json!(null)),
        ("llama4", "no_rope_layers", json!([1, 0])),
        ("llama4", "floor_scale", json!(0)),
        ("gemma3n", "altup_active_idx", json!(1)),
        ("gemma3n", "altup_num_inputs", json!(1)),
        ("gemma3n", "activation_sparsity_pattern", json!([0.5, 1.0, 0.0, 0.0])),
        ("gemma3n", "intermediate_size", json!([24, 24])),
        ("gemma4", "hidden_size_per_layer_input", json!(u64::MAX / 2)),
        ("gemma4", "vocab_size_per_layer_input", json!(u64::MAX / 2)),
        ("gemma3n", "hidden_size_per_layer_input", json!(u64::MAX / 2)),
        ("gemma3n", "vocab_size_per_layer_input", json!(u64::MAX / 2)),
        ("kimi-linear", "mla_use_nope", json!(false)),
        ("kimi-linear", "moe_router_activation_func", json!("softmax")),
        ("cohere2", "position_embedding_type", json!("rope")),
        ("gemma3n", "query_pre_attn_scalar", json!(144)),
        ("deepseek-v2", "partial_rotary_factor", json!(0.5)),
        ("deepseek-v3", "partial_rotary_factor", json!(0.5)),
        ("glm4-moe-lite", "partial_rotary_factor", json!(0.5)),
    ];
    for (name, field, value) in cases {
        let folder = copy(name);
        edit_config(folder.path(), |config| config[field] = value);
        check(folder.path(), ErrorKind::Config, &[&format!("`{field}`")]);
    }
}

/// Where a rotation follows from the length of the whole text, a longer one is read again (Phi-3), or refused.
#[test]
fn rotations_that_change_with_the_length_are_refused() {
    let folder = copy("llama");
    let rope = |fields: Value| {
        edit_config(folder.path(), |config| {
            config["rope_parameters"] = fields;
            config["max_position_embeddings"] = json!(8);
        });
    };
    rope(json!({
        "rope_type": "longrope", "rope_theta": 500.0, "factor": 2.0,
        "original_max_position_embeddings": 4, "short_factor": [1, 1, 1, 1], "long_factor": [2, 2, 2, 2],
    }));
    check(folder.path(), ErrorKind::Config, &["`rope_type`", "longrope"]);

    let (text, longer) = ([5, 17, 42, 9, 30, 3, 8, 11], [5, 17, 42, 9, 30, 3, 8, 11, 4]);
    let load = || Decoder::load(folder.path(), ComputeDtype::Float32).unwrap();
    let logits = |model: &Decoder| -> Vec<f32> {
        model.logits_of(&[&text]).unwrap().to_vec_exact().unwrap()
    };
    rope(json!({"rope_type": "default", "rope_theta": 500.0}));
    let plain = logits(&load());
    rope(json!({"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}));
    let model = load();
    assert_eq!(logits(&model), plain);
    let error = model.logits_of(&[&longer]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tokens);
    assert!(
        error.to_string().contains("9 tokens") && error.to_string().contains("dynamic"),
        "{error}"
    );
    // Padding is no part of a text.
    let padded: &[u32] = &[0, 5, 17, 42, 9, 30, 3, 8, 11];
    let mut cache = model.new_padded_cache(&[1]);
    model.forward(&[padded], &mut cache, &mut NoHook).unwrap();
    let error = model.forward(&[&[4]], &mut cache, &mut NoHook).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tokens);
    assert!(error.to_string().contains("dynamic"), "{error}");
}

/// A field that changes what a model computes is obeyed, or refused by name: by every architecture.
#[test]
fn fields_that_matter_are_obeyed_or_refused_by_every_family() {
    let fields = [
        ("attn_logit_softcapping", json!(0.4)),
        ("final_logit_softcapping", json!(0.7)),
        ("moe_router_logit_softcapping", json!(0.2)),
        ("clip_qkv", json!(0.1)),
        ("query_pre_attn_scalar", json!(900)),
        ("attention_chunk_size", json!(2)),
        ("attention_multiplier", json!(0.013)),
        ("embedding_multiplier", json!(7.5)),
        ("residual_multiplier", json!(0.1)),
        ("logits_scaling", json!(9.0)),
        ("logit_scale", json!(0.017)),
        ("output_multiplier", json!(0.013)),
        ("rotary_pct", json!(0.5)),
        ("new_score_softcap", json!(3.0)),
        ("new_residual_multiplier", json!(0.5)),
        ("new_bidirectional_layers", json!([0])),
        ("use_parallel_block", json!(false)),
        ("layer_types", json!(["new_attention", "new_attention"])),
        ("per_layer_config", json!({"0": {"rms_norm_eps": 0.5}})),
        ("position_embedding_type", json!("alibi")),
        ("alibi", json!(true)),
        ("is_causal", json!(false)),
        ("use_bidirectional_attention", json!(true)),
    ];
    let logits = |folder: &Path| -> Result<Vec<f32>, mlxgk_mlx_models::Error> {
        let model = Decoder::load(folder, ComputeDtype::Float32)?;
        Ok(model.logits_of(&[&[5, 17, 42, 9, 30]])?.to_vec_exact().unwrap())
    };
    let mut seen = std::collections::BTreeSet::new();
    let (mut refused, mut obeyed) = (0, 0);
    for entry in fs::read_dir(fixture("")).unwrap() {
        let path = entry.unwrap().path();
        let Ok(text) = fs::read_to_string(path.join("config.json")) else { continue };
        let config: Value = serde_json::from_str(&text).unwrap();
        if !seen.insert(config["model_type"].as_str().unwrap().to_owned()) {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        let plain = logits(&path).unwrap();
        for (field, value) in &fields {
            let folder = copy(name);
            edit_config(folder.path(), |config| match config.get_mut("text_config") {
                Some(text) => text[*field] = value.clone(),
                None => config[*field] = value.clone(),
            });
            match logits(folder.path()) {
                Err(e) if e.to_string().contains(&format!("`{field}`")) => refused += 1,
                Err(e) => panic!("{name}, {field}: {e}"),
                Ok(other) => {
                    assert_ne!(plain, other, "{name} ignores {field}");
                    obeyed += 1;
                }
            }
        }
    }
    assert!(seen.len() > 40 && refused > 800 && obeyed > 10, "{refused} {obeyed}");
}

/// A field counts as read where its family reads it, and nowhere else.
#[test]
fn fields_that_matter_are_refused_where_no_family_reads_them() {
    for (name, part, field, value) in [
        // Read in `text_config`.
        ("muse-glimmer", "", "final_logit_softcapping", json!(3.0)),
        ("muse-glimmer", "", "output_multiplier", json!(0.5)),
        ("muse-glimmer", "", "layer_types", json!(["sliding_attention"])),
        // Read at the top.
        ("granite", "attn_config", "attention_multiplier", json!(0.5)),
        ("gemma2", "attention", "attn_logit_softcapping", json!(3.0)),
        ("llama", "attn_config", "clip_qkv", json!(8.0)),
        ("llama", "attn_config", "alibi", json!(true)),
        ("llama", "settings", "per_layer_config", json!({"0": {"rms_norm_eps": 0.5}})),
    ] {
        let folder = copy(name);
        edit_config(folder.path(), |config| match part {
            "" => config[field] = value.clone(),
            part => config[part] = json!({ "deeper": { field: value } }),
        });
        let error = Decoder::load(folder.path(), ComputeDtype::Float32).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains(&format!("`{field}` is")), "{error}");
    }
    // A wrapper that says it once more, and parts of other kinds.
    let folder = copy("muse-glimmer");
    edit_config(folder.path(), |config| {
        config["final_logit_softcapping"] =
            config["text_config"]["final_logit_softcapping"].clone();
        config["vision_config"]["is_causal"] = json!(false);
        config["audio_encoder"] = json!({"alibi": true});
        config["draft"] = json!({"model_type": "llama", "clip_qkv": 8.0});
    });
    Decoder::load(folder.path(), ComputeDtype::Float32).unwrap();
}

/// Where a family gives one window to all layers, a config that gives it to some is refused.
#[test]
fn layers_that_differ_are_refused_where_all_have_one_window() {
    let (slides, full) = ("sliding_attention", "full_attention");
    for name in ["mistral", "ministral3", "mixtral", "phi3", "qwen3-moe", "starcoder2"] {
        let load = |kinds: &[&str]| {
            let folder = copy(name);
            edit_config(folder.path(), |config| {
                config["use_sliding_window"] = json!(true);
                config["sliding_window"] = json!(4);
                config["layer_types"] = json!(kinds);
            });
            Decoder::load(folder.path(), ComputeDtype::Float32)
        };
        let error = load(&[slides, full, slides]).unwrap_err().to_string();
        assert!(error.contains("`layer_types` is"), "{name}: {error}");
        assert!(load(&[slides, slides, slides]).is_ok(), "{name}");
    }
}

/// Fields of published configs whose names say that they matter, and whose values say that they do not.
#[test]
fn published_fields_that_change_nothing_are_passed_over() {
    let of_cohere = json!({
        "cache_implementation": "hybrid", "head_dim": 4, "layer_switch": 4, "order_of_interleaved_layers": "local_attn_first",
        "position_embedding_type": "rope_gptj", "rotary_pct": 1.0, "use_embedding_sharing": true,
        "use_gated_activation": true, "use_parallel_block": true, "use_parallel_embedding": true, "use_qk_norm": false,
    });
    let of_gemma3n = json!({
        "altup_coef_clip": 120.0, "altup_lr_multiplier": 1.0, "attn_logit_softcapping": null,
        "query_pre_attn_scalar": 256,
    });
    // As Llama 4 was published: a number, which is not 0.
    let of_llama4 = json!({"attn_temperature_tuning": 4});
    for (name, fields) in [("cohere2", of_cohere), ("gemma3n", of_gemma3n), ("llama4", of_llama4)] {
        let logits = |folder: &Path| -> Vec<f32> {
            let model = Decoder::load(folder, ComputeDtype::Float32).unwrap();
            model.logits_of(&[&[5, 17, 42, 9, 30]]).unwrap().to_vec_exact().unwrap()
        };
        let folder = copy(name);
        edit_config(folder.path(), |config| {
            let fields = fields.as_object().unwrap().clone();
            config.as_object_mut().unwrap().extend(fields);
        });
        assert_eq!(logits(folder.path()), logits(&fixture(name)), "{name}");
    }
}

/// A field under its second name in HF is that field, also beside the usual one.
#[test]
fn second_names_of_fields_are_read() {
    let logits = |folder: &Path| -> Vec<f32> {
        let model = Decoder::load(folder, ComputeDtype::Float32).unwrap();
        model.logits_of(&[&[5, 17, 42, 9, 30]]).unwrap().to_vec_exact().unwrap()
    };
    for (name, usual, second) in [
        ("ernie4_5-moe", "moe_k", "num_experts_per_tok"),
        ("ernie4_5-moe", "moe_num_experts", "num_experts"),
        ("deepseek-v2", "n_routed_experts", "num_experts"),
        ("deepseek-v3", "n_routed_experts", "num_local_experts"),
        ("gpt-oss", "num_local_experts", "num_experts"),
        ("kimi-linear", "num_experts_per_token", "num_experts_per_tok"),
        ("lfm3", "norm_eps", "rms_norm_eps"),
        ("nemotron-h", "n_routed_experts", "num_local_experts"),
        ("qwen3-moe", "num_experts", "num_local_experts"),
    ] {
        let folder = copy(name);
        edit_config(folder.path(), |config| {
            let value = config.as_object_mut().unwrap().remove(usual).unwrap();
            config[second] = value;
        });
        assert_eq!(logits(folder.path()), logits(&fixture(name)), "{name}: {second}");
    }
    let folder = copy("ernie4_5-moe");
    edit_config(folder.path(), |config| config["num_experts_per_tok"] = json!(1));
    let one = copy("ernie4_5-moe");
    edit_config(one.path(), |config| config["moe_k"] = json!(1));
    assert_eq!(logits(folder.path()), logits(one.path()));
}

/// A wrapper's language model is the architecture that its `text_config` names.
#[test]
fn mistral3_runs_what_its_text_config_names() {
    let logits = |folder: &Path| {
        let model = Decoder::load(folder, ComputeDtype::Float32).unwrap();
        model.logits_of(&[&[5, 17, 42]]).unwrap().to_vec_exact::<f32>().unwrap()
    };
    for name in ["ministral3", "mistral-full", "mistral4"] {
        let folder = copy(name);
        edit_config(folder.path(), |config| {
            *config = json!({"model_type": "mistral3", "text_config": config.take()});
        });
        edit_header(folder.path(), |header| {
            let tensors = std::mem::take(header.as_object_mut().unwrap());
            let rename = |(name, it): (String, Value)| match name.as_str() {
                "__metadata__" => (name, it),
                _ => (format!("language_model.{name}"), it),
            };
            *header = tensors.into_iter().map(rename).collect();
        });
        assert_eq!(logits(folder.path()), logits(&fixture(name)), "{name}");
    }
    let folder = copy("qwen3");
    edit_config(folder.path(), |config| {
        let mut text = config.take();
        text["model_type"] = "pixtral".into();
        *config = json!({"model_type": "mistral3", "text_config": text});
    });
    check(folder.path(), ErrorKind::Config, &["`text_config`", "pixtral"]);
}

/// A multimodal folder, as the two libraries name its tensors, gives what the text model alone gives,
/// and says what was left out.
#[test]
fn of_a_multimodal_model_the_language_model_is_run() {
    let logits = |folder: &Path| {
        let model = Decoder::load(folder, ComputeDtype::Float32).unwrap();
        let mut cache = model.new_cache(1);
        let hidden = model.hidden(&[&[5, 17, 42]], &mut cache, &mut NoHook).unwrap();
        model.logits(&hidden).unwrap().try_as_slice::<f32>().unwrap().to_vec()
    };
    let expected = logits(&fixture("gemma3"));
    for (of_body, of_head) in [
        ("language_model.model.", "language_model.lm_head."),
        ("model.language_model.", "lm_head."),
        ("language_model.", "lm_head."),
    ] {
        let folder = copy("gemma3");
        edit_config(folder.path(), |config| {
            let mut text = config.take();
            text["model_type"] = "gemma3_text".into();
            *config = json!({"model_type": "gemma3", "text_config": text, "vision_config": {}});
        });
        edit_header(folder.path(), |header| {
            let tensors = std::mem::take(header.as_object_mut().unwrap());
            let rename = |name: String| match name.strip_prefix("model.") {
                Some(rest) => format!("{of_body}{rest}"),
                None => name.replace("lm_head.", of_head),
            };
            *header = tensors.into_iter().map(|(name, it)| (rename(name), it)).collect();
        });
        assert_eq!(logits(folder.path()), expected, "{of_body}");
        add_tensors(
            folder.path(),
            &[
                "vision_tower.blocks.0.weight",
                "vision_tower.norm.weight",
                "model.audio_tower.weight",
            ],
        );
        assert_eq!(logits(folder.path()), expected, "{of_body}");
        let model = Decoder::load(folder.path(), ComputeDtype::Auto).unwrap();
        let skipped: Vec<_> = model.skipped().iter().map(|it| (&*it.part, it.tensors)).collect();
        assert_eq!(skipped, [("model.audio_tower", 1), ("vision_tower", 2)]);
        // Within the language model nothing may be left over.
        let stray = format!("{of_body}layers.0.mlp.extra.weight");
        add_tensors(folder.path(), &[&stray]);
        check(folder.path(), ErrorKind::Weights, &[&format!("no tensor `{stray}`")]);
    }
}
