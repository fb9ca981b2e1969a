//! Model folders converted, beside what mlx-lm makes of them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use mlxgk_model_hub::{
    Conversion, Converted, ErrorKind, Layout, Mode, NoProgress, Progress, Result, Scheme, convert,
};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn run(model: &Path, out: &Path, conversion: &Conversion) -> Result<Converted> {
    convert(model, out, conversion, &mut NoProgress)
}

fn four_bits() -> Conversion {
    Conversion::new().quantize(Scheme::new(Mode::Affine, Some(4), Some(32)).unwrap())
}

/// The settings that a step of a fixture names.
fn conversion(step: &Value) -> Conversion {
    let text = |key: &str| step[key].as_str();
    let size = |key: &str| step[key].as_u64().map(|it| it as usize);
    let mut conversion = Conversion::new();
    if let Some(dtype) = text("dtype") {
        conversion = conversion.dtype(dtype.parse().unwrap());
    }
    if step["dequantize"] == true {
        return conversion.dequantize();
    }
    if let Some(recipe) = text("recipe") {
        return conversion.recipe(recipe.parse().unwrap(), size("group-size")).unwrap();
    }
    if text("mode").is_none() && size("bits").is_none() {
        return conversion;
    }
    let mode = text("mode").map_or(Mode::Affine, |it| it.parse().unwrap());
    conversion.quantize(Scheme::new(mode, size("bits"), size("group-size")).unwrap())
}

/// Dtype, shape and digest of each tensor in a folder's weight files.
pub(crate) fn tensors(folder: &Path) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|it| it != "safetensors") {
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let digest: String =
                Sha256::digest(view.data())[..8].iter().map(|it| format!("{it:02x}")).collect();
            let about = json!([view.dtype().to_string(), view.shape(), digest]);
            assert!(found.insert(name.clone(), about).is_none(), "{name} is there twice");
        }
    }
    found
}

#[test]
fn folders_are_converted_to_the_byte_as_mlx_lm_does() {
    let fixture_file = read_json(&fixture("convert/cases.json"));
    for case in fixture_file["cases"].as_array().unwrap() {
        let work = tempfile::tempdir().unwrap();
        let mut at = fixture("models").join(case["source"].as_str().unwrap());
        let about = format!("{} {}", case["source"], case["steps"]);
        let mut parameters = 0;
        for (index, step) in case["steps"].as_array().unwrap().iter().enumerate() {
            let out = work.path().join(index.to_string());
            let made = run(&at, &out, &conversion(step)).unwrap();
            parameters = made.parameters;
            at = out;
        }
        let expected: BTreeMap<String, Value> =
            serde_json::from_value(case["tensors"].clone()).unwrap();
        assert_eq!(tensors(&at), expected, "{about}");
        // mlx-lm counts the parameters of innermost modules only.
        const OUTER: [&str; 6] =
            [".A_log", ".dt_bias", ".mamba.D", ".sinks", ".layer_scalar", ".expert_bias"];
        let is_outer = |name: &str| OUTER.iter().any(|it| name.ends_with(it));
        let outer = expected.iter().filter(|it| is_outer(it.0)).map(|it| it.1[1][0].as_u64());
        let outer: u64 = outer.flatten().sum();
        assert_eq!(case["parameters"], parameters - outer, "{about}");
        let mut config = read_json(&at.join("config.json"));
        let mut theirs = case["config"].clone();
        for config in [&mut config, &mut theirs] {
            let config = config.as_object_mut().unwrap();
            // mlx-lm leaves a dtype that was changed as it was.
            let is_dtype = |key: &str| matches!(key, "dtype" | "torch_dtype");
            config.retain(|key, _| !is_dtype(key));
            if let Some(inner) = config.get_mut("text_config").and_then(Value::as_object_mut) {
                inner.retain(|key, _| !is_dtype(key));
                // mlx-lm's Qwen3.5 renames this field in the config that it was given.
                let rope = inner.get_mut("rope_parameters").and_then(Value::as_object_mut);
                if let Some(rope) = rope
                    && let Some(kind) = rope.remove("type")
                {
                    rope.insert("rope_type".to_owned(), kind);
                }
            }
            if !case["config"].as_object().unwrap().contains_key("tie_word_embeddings") {
                config.remove("tie_word_embeddings");
            }
        }
        assert_eq!(config, theirs, "{about}");
    }
}

#[test]
fn experts_are_stacked_and_taken_apart_again() {
    let work = tempfile::tempdir().unwrap();
    let source = fixture("models/qwen3-moe");
    let (mlx, back) = (work.path().join("mlx"), work.path().join("back"));
    run(&source, &mlx, &Conversion::new()).unwrap();
    assert_eq!(tensors(&mlx), tensors(&fixture("models/qwen3-moe-stacked")));
    run(&mlx, &back, &Conversion::new().layout(Layout::HuggingFace)).unwrap();
    assert_eq!(tensors(&back), tensors(&source));
    let quantized = fixture("models/qwen3-moe-q4");
    let plain = work.path().join("plain");
    let to = Conversion::new().dequantize().layout(Layout::HuggingFace);
    let made = run(&quantized, &plain, &to).unwrap();
    assert_eq!(made.quantized, 0);
    let names = tensors(&plain);
    assert!(names.contains_key("model.layers.1.mlp.experts.3.down_proj.weight"), "{names:?}");
    assert!(names.keys().all(|it| !it.contains("switch_mlp") && !it.ends_with(".scales")));
}

#[test]
fn each_family_comes_back_as_it_was() {
    for name in [
        "deepseek-v2",
        "deepseek-v3",
        "ernie4_5-moe",
        "gemma4-moe",
        "glm4-moe",
        "glm4-moe-lite",
        "granite-hybrid",
        "granite-hybrid-dense",
        "laguna",
        "laguna-elements",
        "lfm2",
        "lfm2-moe",
        "mellum",
        "minimax-m2",
        "mistral4",
        "mixtral",
        "nemotron-h",
        "gpt-oss-mxfp4",
    ] {
        let work = tempfile::tempdir().unwrap();
        let source = fixture("models").join(name);
        let (mlx, back) = (work.path().join("mlx"), work.path().join("back"));
        run(&source, &mlx, &Conversion::new()).unwrap();
        let there = tensors(&mlx);
        if name != "lfm2" {
            assert!(!there.keys().eq(tensors(&source).keys()), "{name}: nothing is renamed");
        }
        let to_hf = Conversion::new().layout(Layout::HuggingFace);
        if name == "gpt-oss-mxfp4" {
            let error = run(&mlx, &back, &to_hf).unwrap_err();
            assert!(error.to_string().contains("transformers does not read"), "{error}");
            continue;
        }
        run(&mlx, &back, &to_hf).unwrap();
        assert_eq!(tensors(&back), tensors(&source), "{name}");
    }
}

#[test]
fn folders_that_mlx_lm_saved_are_what_becomes_of_their_sources() {
    for name in [
        "deepseek-v3",
        "falcon-h1",
        "granite-hybrid",
        "kimi-linear",
        "laguna",
        "lfm2-moe",
        "nemotron-h",
        "qwen3_5",
    ] {
        let work = tempfile::tempdir().unwrap();
        let (mlx, again) = (work.path().join("mlx"), work.path().join("again"));
        let saved = fixture("models").join(format!("{name}-mlx"));
        run(&fixture("models").join(name), &mlx, &Conversion::new()).unwrap();
        assert_eq!(tensors(&mlx), tensors(&saved), "{name}");
        run(&saved, &again, &Conversion::new()).unwrap();
        assert_eq!(tensors(&again), tensors(&saved), "{name}");
    }
}

/// The numbers of a folder's tensors, converted to float32.
fn numbers(folder: &Path) -> BTreeMap<String, Vec<f32>> {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("floats");
    run(folder, &out, &Conversion::new().dtype("float32".parse().unwrap())).unwrap();
    let bytes = fs::read(out.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats =
        |data: &[u8]| data.as_chunks().0.iter().map(|it| f32::from_le_bytes(*it)).collect();
    file.tensors().into_iter().map(|(name, view)| (name, floats(view.data()))).collect()
}

#[test]
fn factors_of_falcon_come_out_of_the_matrices_again() {
    let work = tempfile::tempdir().unwrap();
    let source = fixture("models/falcon-h1");
    let (mlx, back) = (work.path().join("mlx"), work.path().join("back"));
    run(&source, &mlx, &Conversion::new()).unwrap();
    run(&mlx, &back, &Conversion::new().layout(Layout::HuggingFace)).unwrap();
    let (before, after) = (numbers(&source), numbers(&back));
    assert!(before.keys().eq(after.keys()));
    for (name, before) in before {
        let after = &after[&name];
        assert_eq!(before.len(), after.len(), "{name}");
        let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6 * a.abs().max(1e-9);
        assert!(before.iter().zip(after).all(near), "{name}");
    }
    let quantized = work.path().join("q");
    let scheme = Scheme::new(Mode::Affine, Some(4), Some(32)).unwrap();
    run(&source, &quantized, &Conversion::new().quantize(scheme)).unwrap();
    // Not taken out of packed matrices.
    let to_hf = Conversion::new().layout(Layout::HuggingFace).dequantize();
    let error = run(&quantized, &work.path().join("hf"), &to_hf).unwrap_err().to_string();
    assert!(error.contains("which is packed, so that factors cannot be"), "{error}");
    for (fields, words) in [
        (json!({"mlp_bias": true}), "config.json: `mlp_bias` is true"),
        (json!({"lm_head_multiplier": 1e39}), "`lm_head_multiplier` is 1e+39, must be a finite"),
        (json!({"ssm_out_multiplier": 0}), "`ssm_out_multiplier` is 0, must be a finite"),
        (json!({"mlp_multipliers": [1.0, 0.0]}), "is not a list of 2 finite numbers other than 0"),
        (json!({"mamba_d_ssm": 1_000_000_000_000_000_u64}), "does not have the shape ["),
        (
            json!({"mamba_n_groups": 1_u64 << 40, "mamba_d_state": 1_u64 << 40}),
            "`mamba_n_groups` is 1099511627776, which makes more states than can be counted",
        ),
    ] {
        let source = copy("falcon-h1");
        set(source.path(), &fields);
        let out = work.path().join("out");
        let error = run(source.path(), &out, &Conversion::new()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_layer_is_dense_under_either_of_kimis_names() {
    let work = tempfile::tempdir().unwrap();
    let source = fixture("models/kimi-linear");
    let (mlx, back, again) =
        (work.path().join("mlx"), work.path().join("back"), work.path().join("again"));
    run(&source, &mlx, &Conversion::new()).unwrap();
    run(&mlx, &back, &Conversion::new().layout(Layout::HuggingFace)).unwrap();
    let dense = |name: &str| name.replace("block_sparse_moe.gate_proj", "mlp.gate_proj");
    let dense = |name: &str| dense(name).replace("block_sparse_moe.up_proj", "mlp.up_proj");
    let dense = |name: &str| dense(name).replace("block_sparse_moe.down_proj", "mlp.down_proj");
    let expected: BTreeMap<String, Value> =
        tensors(&source).into_iter().map(|(name, it)| (dense(&name), it)).collect();
    assert_eq!(tensors(&back), expected);
    run(&back, &again, &Conversion::new()).unwrap();
    assert_eq!(tensors(&again), tensors(&mlx));
}

#[test]
fn what_other_programs_quantized_becomes_what_mlx_has() {
    for (name, packed) in [
        ("llama-awq", Some((4, 64))),
        ("llama-compressed", Some((4, 64))),
        ("llama-fp8", None),
        ("llama-gptq", Some((4, 64))),
        ("llama-modelopt-fp8", None),
        ("llama-modelopt-nvfp4", None),
    ] {
        let work = tempfile::tempdir().unwrap();
        let source = copy(name);
        let (out, again) = (work.path().join("out"), work.path().join("again"));
        run(source.path(), &out, &Conversion::new()).unwrap();
        let config = read_json(&out.join("config.json"));
        let said = packed.map(|(bits, group)| (json!(bits), json!(group)));
        let entry = config.get("quantization");
        assert_eq!(entry.map(|it| (it["bits"].clone(), it["group_size"].clone())), said, "{name}");
        assert_eq!(config.get("quantization_config"), entry, "{name}");
        assert!(!out.join("hf_quant_config.json").exists(), "{name}");
        // What was packed stays so, and what became floats can be packed.
        let more = if packed.is_some() { Conversion::new().dequantize() } else { four_bits() };
        run(&out, &again, &more).unwrap();
        if packed.is_some() {
            let error = run(source.path(), &work.path().join("q"), &four_bits()).unwrap_err();
            assert!(error.to_string().contains("is quantized already"), "{error}");
        }
    }
}

/// Every module says what it is, since its groups differ.
#[test]
fn groups_that_differ_are_listed() {
    let work = tempfile::tempdir().unwrap();
    let (out, again) = (work.path().join("out"), work.path().join("again"));
    run(&fixture("models/llama-gptq-8bit"), &out, &Conversion::new()).unwrap();
    let config = read_json(&out.join("config.json"));
    let entries = config["quantization"].as_object().unwrap();
    // Rows of 128 numbers have groups of 128, down_proj's and the default; rows of 64 have groups of 64.
    let mut listed = BTreeMap::from([("bits".into(), json!(8)), ("group_size".into(), json!(128))]);
    for layer in 0..2 {
        for module in ["mlp.gate_proj", "mlp.up_proj"].into_iter().chain([
            "self_attn.k_proj",
            "self_attn.o_proj",
            "self_attn.q_proj",
            "self_attn.v_proj",
        ]) {
            let entry = json!({"bits": 8, "group_size": 64, "mode": "affine"});
            listed.insert(format!("model.layers.{layer}.{module}"), entry);
        }
    }
    assert_eq!(entries.clone().into_iter().collect::<BTreeMap<String, Value>>(), listed);
    run(&out, &again, &Conversion::new().dequantize()).unwrap();
}

#[test]
fn what_is_wrong_with_other_programs_folders_is_named() {
    let work = tempfile::tempdir().unwrap();
    let refused = |name: &str, change: &dyn Fn(&Path), words: &[&str]| {
        let source = copy(name);
        change(source.path());
        let error = run(source.path(), &work.path().join("out"), &Conversion::new()).unwrap_err();
        let error = error.to_string();
        assert!(words.iter().all(|it| error.contains(it)), "{name}: {error}");
    };
    let says = |field: &'static str, value: Value| {
        move |folder: &Path| {
            let path = folder.join("config.json");
            let mut config = read_json(&path);
            config["quantization_config"][field] = value.clone();
            fs::write(path, config.to_string()).unwrap();
        }
    };
    let lacks = |end: &'static str| {
        move |folder: &Path| rename(folder, |it| it.replace(end, ".other"), &[])
    };
    let at = "quantization_config.";
    let rotates = json!({"config_groups": {"R4": {"type": "hadamard"}}});
    refused(
        "llama-compressed",
        &says("transform_config", rotates),
        &[at, "transform_config` rotates"],
    );
    refused(
        "llama-awq",
        &says("bits", json!(3)),
        &[at, "`quantization_config.bits` is 3; of awq 4"],
    );
    refused("llama-awq", &says("version", json!("gemv")), &["version` is \"gemv\"", "gemm"]);
    refused("llama-awq", &lacks(".qzeros"), &["qweight\", but no", ".qzeros\" beside it"]);
    refused("llama-gptq", &says("bits", json!(3)), &["is 3; of gptq 4 and 8 bits"]);
    refused("llama-gptq", &says("bits", json!(8)), &[".qweight", "zeros of 8 bits"]);
    refused(
        "llama-gptq",
        &says("checkpoint_format", json!("marlin")),
        &["is \"marlin\"", "gptq_v2"],
    );
    refused("llama-gptq", &lacks(".scales"), &[".qweight\", but no", ".scales\" beside it"]);
    refused(
        "llama-fp8",
        &says("weight_block_size", json!([64, 64])),
        &["a factor per block of 64 by 64"],
    );
    refused("llama-fp8", &says("weight_block_size", json!(64)), &["is not a list of two sizes"]);
    refused(
        "llama-fp8",
        &says("weight_block_size", json!(null)),
        &["a factor for all, or one per row"],
    );
    refused(
        "llama-fp8",
        &lacks(".weight_scale_inv"),
        &[".weight\" as F8_E4M3, which is not converted"],
    );
    refused("llama-compressed", &says("format", json!("int-quantized")), &["is \"int-quantized\""]);
    refused("llama-compressed", &lacks(".weight_scale"), &[".weight_packed\", but no"]);
    refused(
        "llama-modelopt-fp8",
        &says("quant_algo", json!("W4A8_AWQ")),
        &["\"W4A8_AWQ\"", "FP8 and NVFP4"],
    );
    refused("llama-gptq", &says("quant_method", json!(7)), &["quant_method` is not text"]);
    // An order of its own.
    let shuffled = |folder: &Path| {
        let path = folder.join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let (start, end) = {
            let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let about: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
            let about = &about["model.layers.0.mlp.down_proj.g_idx"]["data_offsets"];
            let offset = |index: usize| header + about[index].as_u64().unwrap() as usize;
            (offset(0), offset(1))
        };
        bytes[start..end].reverse();
        fs::write(&path, bytes).unwrap();
    };
    refused("llama-gptq", &shuffled, &["down_proj.g_idx", "desc_act"]);
}

#[test]
fn norms_come_back_up_to_what_the_one_has_rounded() {
    let work = tempfile::tempdir().unwrap();
    let source = fixture("models/qwen3_5-moe");
    let (mlx, back, again) =
        (work.path().join("mlx"), work.path().join("back"), work.path().join("again"));
    run(&source, &mlx, &Conversion::new()).unwrap();
    // mlx-lm knows the text model by the multimodal one's name.
    assert_eq!(read_json(&mlx.join("config.json"))["model_type"], "qwen3_5_moe");
    run(&mlx, &back, &Conversion::new().layout(Layout::HuggingFace)).unwrap();
    assert_eq!(read_json(&back.join("config.json"))["model_type"], "qwen3_5_moe_text");
    let (before, after) = (tensors(&source), tensors(&back));
    assert!(before.keys().eq(after.keys()));
    let differing: Vec<&String> =
        before.iter().filter(|it| after[it.0] != *it.1).map(|it| it.0).collect();
    assert!(differing.iter().all(|it| it.ends_with("norm.weight")), "{differing:?}");
    run(&back, &again, &Conversion::new()).unwrap();
    assert_eq!(tensors(&again), tensors(&mlx));
}

#[test]
fn dense_experts_of_gpt_oss_get_their_inputs_last() {
    let work = tempfile::tempdir().unwrap();
    let (source, out) = (fixture("models/gpt-oss"), work.path().join("out"));
    run(&source, &out, &Conversion::new()).unwrap();
    let read = |folder: &Path, name: &str| {
        let bytes = fs::read(folder.join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = file.tensor(name).unwrap();
        (tensor.shape().to_vec(), tensor.data().as_chunks::<2>().0.to_vec())
    };
    let at = "model.layers.1.mlp.experts";
    let (shape, both) = read(&source, &format!("{at}.gate_up_proj"));
    assert_eq!(shape, [4, 16, 48]);
    for (which, name) in ["gate_proj", "up_proj"].into_iter().enumerate() {
        let (shape, half) = read(&out, &format!("{at}.{name}.weight"));
        assert_eq!(shape, [4, 24, 16]);
        for (place, number) in half.iter().enumerate() {
            let (expert, row, column) = (place / 16 / 24, place / 16 % 24, place % 16);
            assert_eq!(*number, both[(expert * 16 + column) * 48 + 2 * row + which]);
        }
    }
    let (_, from) = read(&source, &format!("{at}.down_proj"));
    let (shape, to) = read(&out, &format!("{at}.down_proj.weight"));
    assert_eq!(shape, [4, 16, 24]);
    assert_eq!(to[5 * 24 + 7], from[7 * 16 + 5]);
}

#[test]
fn infinities_in_a_config_are_kept_as_transformers_writes_them() {
    let work = tempfile::tempdir().unwrap();
    let source = copy("granite-hybrid");
    let path = source.path().join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    let text = text.replacen('{', "{\"time_step_limit\": [0.0, Infinity], \"x\": NaN,", 1);
    fs::write(&path, text).unwrap();
    let out = work.path().join("out");
    run(source.path(), &out, &Conversion::new()).unwrap();
    let config = read_json(&out.join("config.json"));
    assert_eq!(config["time_step_limit"], json!([0.0, {"__float__": "Infinity"}]));
    assert_eq!(config["x"], json!({"__float__": "NaN"}));
}

/// Notes what is said of the progress.
#[derive(Default)]
struct Noted {
    files: Vec<(String, u64)>,
    bytes: Vec<u64>,
    finished: usize,
}

impl Progress for Noted {
    fn start(&mut self, _commit: &str, files: &[(String, u64)]) {
        self.files = files.to_vec();
        self.bytes = vec![0; files.len()];
    }

    fn advance(&mut self, file: usize, bytes: u64) {
        assert!(bytes >= self.bytes[file]);
        self.bytes[file] = bytes;
    }

    fn finish(&mut self, _file: usize) {
        self.finished += 1;
    }
}

#[test]
fn large_models_get_several_files_and_an_index() {
    let work = tempfile::tempdir().unwrap();
    let source = fixture("models/qwen3-moe");
    let (one, many) = (work.path().join("one"), work.path().join("many"));
    let made = run(&source, &one, &four_bits()).unwrap();
    let mut noted = Noted::default();
    convert(&source, &many, &four_bits().shard_bytes(20_000), &mut noted).unwrap();
    assert_eq!(tensors(&one), tensors(&many));
    assert!(noted.files.len() > 2, "{:?}", noted.files);
    assert_eq!(noted.finished, noted.files.len());
    assert_eq!(noted.bytes, noted.files.iter().map(|it| it.1).collect::<Vec<_>>());
    assert_eq!(noted.bytes.iter().sum::<u64>(), made.bytes);
    let index = read_json(&many.join("model.safetensors.index.json"));
    for name in tensors(&many).keys() {
        let file = many.join(index["weight_map"][name].as_str().unwrap());
        let bytes = fs::read(file).unwrap();
        assert!(SafeTensors::deserialize(&bytes).unwrap().tensor(name).is_ok(), "{name}");
    }
    assert_eq!(index["metadata"]["total_size"], made.bytes);
    // What was sharded is read back.
    let again = work.path().join("again");
    run(&many, &again, &Conversion::new().dequantize()).unwrap();
}

/// A copy of a model that a test may change, with a tokenizer beside it.
pub(crate) fn copy(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture("models").join(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

fn set(folder: &Path, changes: &Value) {
    let path = folder.join("config.json");
    let mut config = read_json(&path);
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs::write(path, config.to_string()).unwrap();
}

/// Writes the weights again, with other names and tensors more.
pub(crate) fn rename(
    folder: &Path,
    rename: impl Fn(&str) -> String,
    more: &[(&str, Vec<usize>, Vec<u8>)],
) {
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<(String, safetensors::tensor::TensorView<'_>)> =
        file.tensors().into_iter().map(|(name, view)| (rename(&name), view)).collect();
    for (name, shape, data) in more {
        let dtype = safetensors::Dtype::BF16;
        let view = safetensors::tensor::TensorView::new(dtype, shape.clone(), data).unwrap();
        tensors.push(((*name).to_owned(), view));
    }
    let written = safetensors::serialize(tensors, None).unwrap();
    fs::write(path, written).unwrap();
}

#[test]
fn of_a_multimodal_model_the_text_model_is_kept() {
    let plain = fixture("models/gemma3");
    let work = tempfile::tempdir().unwrap();
    run(&plain, &work.path().join("plain"), &four_bits()).unwrap();
    let expected: BTreeMap<String, Value> = tensors(&work.path().join("plain"))
        .into_iter()
        .map(|(name, it)| (format!("language_model.{name}"), it))
        .collect();
    for body in ["language_model.model.", "model.language_model."] {
        let source = copy("gemma3");
        let text = read_json(&plain.join("config.json"));
        let config = json!({
            "model_type": "gemma3", "text_config": text, "vision_config": {"depth": 1},
            "torch_dtype": "bfloat16", "eos_token_id": 1,
        });
        fs::write(source.path().join("config.json"), config.to_string()).unwrap();
        let vision = [("vision_tower.patch.weight", vec![1, 2], vec![0; 4])];
        rename(source.path(), |it| it.replacen("model.", body, 1), &vision);
        let out = work.path().join(body);
        let made = run(source.path(), &out, &four_bits()).unwrap();
        assert_eq!(made.left_out, [("vision_tower".to_owned(), 1)]);
        assert_eq!(tensors(&out), expected);
        let config = read_json(&out.join("config.json"));
        assert!(config.get("vision_config").is_none());
        assert_eq!(config["quantization"]["bits"], 4);
    }
}

#[test]
fn a_head_that_repeats_the_table_is_dropped_and_another_is_not() {
    let work = tempfile::tempdir().unwrap();
    let tied = copy("qwen3");
    let bytes = fs::read(tied.path().join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let table = file.tensor("model.embed_tokens.weight").unwrap();
    let (shape, mut data) = (table.shape().to_vec(), table.data().to_vec());
    let model = fs::read(tied.path().join("model.safetensors")).unwrap();
    rename(tied.path(), str::to_owned, &[("lm_head.weight", shape.clone(), data.clone())]);
    run(tied.path(), &work.path().join("a"), &Conversion::new()).unwrap();
    assert_eq!(tensors(&work.path().join("a")), tensors(&fixture("models/qwen3")));

    data[7] ^= 1;
    fs::write(tied.path().join("model.safetensors"), model).unwrap();
    rename(tied.path(), str::to_owned, &[("lm_head.weight", shape, data)]);
    let error = run(tied.path(), &work.path().join("b"), &Conversion::new()).unwrap_err();
    assert!(error.to_string().contains("\"lm_head.weight\", which differs"), "{error}");
    set(tied.path(), &json!({"tie_word_embeddings": false}));
    run(tied.path(), &work.path().join("b"), &Conversion::new()).unwrap();
    assert!(tensors(&work.path().join("b")).contains_key("lm_head.weight"));
}

#[test]
fn rules_come_before_everything_else_and_the_last_one_counts() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out");
    let conversion = four_bits()
        .rule("*.self_attn.*=6,32".parse().unwrap())
        .rule("*.layers.1.self_attn.*=dense".parse().unwrap())
        .rule("*embed_tokens=mxfp8".parse().unwrap());
    run(&fixture("models/llama"), &out, &conversion).unwrap();
    let config = read_json(&out.join("config.json"));
    let quantization = &config["quantization"];
    assert_eq!(*quantization, config["quantization_config"]);
    let expected = json!({"group_size": 32, "bits": 6, "mode": "affine"});
    assert_eq!(quantization["model.layers.0.self_attn.q_proj"], expected);
    let expected = json!({"group_size": 32, "bits": 8, "mode": "mxfp8"});
    assert_eq!(quantization["model.embed_tokens"], expected);
    let there = tensors(&out);
    let has = |name: &str| there.contains_key(name);
    assert!(!has("model.embed_tokens.biases") && has("model.embed_tokens.scales"));
    assert!(has("model.layers.2.self_attn.v_proj.biases"));
    assert!(!has("model.layers.1.self_attn.v_proj.scales"));
    assert!(has("model.layers.1.mlp.up_proj.scales"));
    // 48 columns are not a multiple of the group.
    assert!(!has("model.layers.1.mlp.down_proj.scales"));
    // All of it is found again by the config.
    let back = work.path().join("back");
    let made = run(&out, &back, &Conversion::new().dequantize()).unwrap();
    assert_eq!(made.quantized, 0);
    assert!(tensors(&back).keys().eq(tensors(&fixture("models/llama")).keys()));
}

#[test]
fn other_files_are_carried_over() {
    let work = tempfile::tempdir().unwrap();
    let source = copy("qwen3");
    for name in ["tokenizer.json", "chat_template.jinja", "merges.txt", "LICENSE"] {
        fs::write(source.path().join(name), name).unwrap();
    }
    for name in ["pytorch_model.bin", "old.gguf", "README.md"] {
        fs::write(source.path().join(name), name).unwrap();
    }
    fs::write(source.path().join("generation_config.json"), r#"{"eos_token_id": [3, 4]}"#).unwrap();
    let out = work.path().join("out");
    run(source.path(), &out, &Conversion::new()).unwrap();
    let mut names: Vec<String> = fs::read_dir(&out)
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "LICENSE",
            "chat_template.jinja",
            "config.json",
            "conversion.json",
            "generation_config.json",
            "merges.txt",
            "model.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
        ]
    );
    assert_eq!(fs::read_to_string(out.join("merges.txt")).unwrap(), "merges.txt");
    assert_eq!(read_json(&out.join("config.json"))["eos_token_id"], json!([3, 4]));
    assert!(fs::read_dir(work.path()).unwrap().count() == 1, "nothing else is left");
}

#[test]
fn what_is_there_is_kept_or_refused() {
    let work = tempfile::tempdir().unwrap();
    let (source, out) = (copy("qwen3"), work.path().join("out"));
    assert!(!run(source.path(), &out, &four_bits()).unwrap().was_there);
    let again = run(source.path(), &out, &four_bits()).unwrap();
    assert!(again.was_there && again.bytes > 0);
    for conversion in [Conversion::new(), four_bits().rule("lm_head=8".parse().unwrap())] {
        let error = run(source.path(), &out, &conversion);
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Settings);
    }
    let eight = Conversion::new().quantize(Scheme::new(Mode::Mxfp8, None, None).unwrap());
    let error = run(source.path(), &out, &eight).unwrap_err();
    assert!(error.to_string().contains("exists, and is not what"), "{error}");
    set(source.path(), &json!({"rope_theta": 5000.0}));
    assert!(run(source.path(), &out, &four_bits()).is_err(), "the source has changed");
    let error = run(source.path(), source.path(), &four_bits()).unwrap_err();
    assert!(error.to_string().contains("exists"), "{error}");
    let error = run(source.path(), Path::new("/"), &four_bits()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Settings);
}

#[test]
fn what_cannot_be_converted_is_named() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out");
    let refused = |change: &dyn Fn(&Path), conversion: &Conversion, words: &[&str]| {
        let source = copy("qwen3");
        change(source.path());
        let error = run(source.path(), &out, conversion).unwrap_err().to_string();
        assert!(words.iter().all(|it| error.contains(it)), "{error}");
        assert!(fs::read_dir(work.path()).unwrap().next().is_none(), "{error}: something is left");
    };
    let plain = Conversion::new();
    let write = |name: &'static str, text: &'static str| {
        move |folder: &Path| fs::write(folder.join(name), text).unwrap()
    };
    refused(&write("config.json", "{"), &plain, &["config.json is not valid JSON"]);
    refused(&write("config.json", "[]"), &plain, &["config.json is not a JSON object"]);
    refused(&write("config.json", "{}"), &plain, &["config.json: `model_type` is missing"]);
    refused(
        &write("config.json", r#"{"model_type": "mamba"}"#),
        &plain,
        &["`model_type` is \"mamba\"", "known are cohere2"],
    );
    refused(&write("model.safetensors", "short"), &plain, &["model.safetensors is truncated"]);
    refused(
        &write("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"),
        &plain,
        &["is a Git LFS pointer", "git lfs pull"],
    );
    refused(
        &|folder| {
            let path = folder.join("model.safetensors");
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() - 10]).unwrap();
        },
        &plain,
        &["model.safetensors is damaged: its header describes"],
    );
    refused(
        &|folder| fs::remove_file(folder.join("model.safetensors")).unwrap(),
        &plain,
        &["has no weights (no .safetensors file)"],
    );
    refused(
        &|folder| {
            let weights = folder.join("model.safetensors");
            fs::rename(weights, folder.join("pytorch_model.bin")).unwrap();
        },
        &plain,
        &["has its weights only as PyTorch files (.bin)", "look for a copy with safetensors"],
    );
    refused(
        &|folder| fs::remove_file(folder.join("config.json")).unwrap(),
        &plain,
        &["holds no config.json; a model is a folder with"],
    );
    refused(
        &|folder| {
            let index = json!({"weight_map": {"lm_head.weight": "model-2-of-2.safetensors"}});
            fs::remove_file(folder.join("model.safetensors")).unwrap();
            fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
        },
        &plain,
        &["index.json lists the file \"model-2-of-2.safetensors\", which is missing"],
    );
    for (field, value, words) in [
        ("num_hidden_layers", json!(9), "lacks layer 3, of the 9 that config.json names"),
        ("num_hidden_layers", json!(1), "`num_hidden_layers` is 1, but the folder holds 3 layers"),
        ("num_hidden_layers", json!("x"), "`num_hidden_layers` is \"x\", not a whole number"),
        (
            "vocab_size",
            json!(5),
            "embed_tokens.weight\", of shape [181, 32], but config.json has 5",
        ),
        ("hidden_size", json!(-1), "`hidden_size` is -1, not a whole number"),
        ("hidden_size", json!(64), "but config.json has 64 as `hidden_size`"),
        ("quantization", json!({"bits": 7}), "config.json: `quantization` cannot be used"),
        (
            "quantization",
            json!({"mode": 7}),
            "config.json: `quantization` cannot be used: unknown quantization mode",
        ),
    ] {
        refused(&|folder| set(folder, &json!({field: value})), &plain, &[words]);
    }
    refused(
        &|folder| rename(folder, |it| it.replace("embed_tokens", "wte"), &[]),
        &plain,
        &["holds no model.embed_tokens.weight"],
    );
    refused(
        &|folder| rename(folder, str::to_owned, &[("other.weight", vec![1], vec![0; 2])]),
        &plain,
        &["model.safetensors holds \"other.weight\", which no text model has"],
    );
    refused(
        &|folder| set(folder, &json!({"quantization_config": {"quant_method": "hqq"}})),
        &plain,
        &[
            "config.json: `quantization_config.quant_method` is \"hqq\"",
            "awq",
            "before it was quantized",
        ],
    );
    refused(&|_| {}, &Conversion::new().dequantize(), &["is not quantized"]);
    let to_hf = four_bits().layout(Layout::HuggingFace);
    refused(&|_| {}, &to_hf, &["transformers does not read"]);
    let rule = |text: &str| four_bits().rule(text.parse().unwrap());
    refused(&|_| {}, &rule("nothing=4"), &["the rule nothing=4,64 matches no module"]);
    refused(
        &|_| {},
        &rule("*.down_proj=4,64"),
        &["the rule *.down_proj=4,64", "down_proj.weight", "do not divide its 48 columns"],
    );
    let infinite = [("model.layers.0.mlp.x.weight", vec![1, 32], [0x80, 0x7F].repeat(32))];
    refused(
        &|folder| rename(folder, str::to_owned, &infinite),
        &four_bits(),
        &["mlp.x.weight", "not finite as bfloat16", "GLOB=dense"],
    );
    let large = [("model.layers.0.mlp.x.weight", vec![1, 32], [0x00, 0x7F].repeat(32))];
    refused(
        &|folder| rename(folder, str::to_owned, &large),
        &Conversion::new().dtype("float16".parse().unwrap()),
        &["mlp.x.weight", "beyond the range of float16", "bfloat16"],
    );
    let torn = copy("llama-q4");
    rename(torn.path(), |it| it.replace("1.self_attn.q_proj.scales", "1.x.weight"), &[]);
    let error = run(torn.path(), &out, &plain).unwrap_err().to_string();
    assert!(
        error.contains("layers.1.self_attn.q_proj.weight\", which is packed, but no"),
        "{error}"
    );
    let error = run(&fixture("models/llama-q4"), &out, &four_bits()).unwrap_err();
    assert!(error.to_string().contains("quantized already; dequantize it first"), "{error}");
}

#[test]
fn fused_experts_are_taken_apart() {
    let work = tempfile::tempdir().unwrap();
    let source = copy("qwen3-moe");
    let (alone, fused) = (work.path().join("alone"), work.path().join("fused"));
    run(source.path(), &alone, &Conversion::new()).unwrap();
    // As transformers 5 holds them: gate and up of each expert, one below the other.
    let path = source.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let of = |layer: usize, expert: usize, name: &str| {
        let name = format!("model.layers.{layer}.mlp.experts.{expert}.{name}.weight");
        file.tensor(&name).unwrap().data().to_vec()
    };
    let mut more = Vec::new();
    for layer in [0, 2] {
        let both = (0..6).flat_map(|it| [of(layer, it, "gate_proj"), of(layer, it, "up_proj")]);
        let down = (0..6).map(|it| of(layer, it, "down_proj"));
        let at = format!("model.layers.{layer}.mlp.experts");
        let both = both.collect::<Vec<_>>().concat();
        more.push((format!("{at}.gate_up_proj"), vec![6, 32, 32], both));
        more.push((format!("{at}.down_proj"), vec![6, 32, 16], down.collect::<Vec<_>>().concat()));
    }
    let more: Vec<_> =
        more.iter().map(|(name, shape, data)| (&**name, shape.clone(), data.clone())).collect();
    let is_expert = |name: &str| name.contains(".experts.");
    let kept: Vec<_> = file.tensors().into_iter().filter(|it| !is_expert(&it.0)).collect();
    fs::write(&path, safetensors::serialize(kept, None).unwrap()).unwrap();
    rename(source.path(), str::to_owned, &more);
    run(source.path(), &fused, &Conversion::new()).unwrap();
    assert_eq!(tensors(&alone), tensors(&fused));
}

#[test]
fn experts_that_are_incomplete_are_named() {
    let work = tempfile::tempdir().unwrap();
    let source = copy("qwen3-moe");
    let gone = "experts.4.up_proj.weight";
    let out = work.path().join("out");
    rename(source.path(), |it| it.replace(gone, "experts.9.up_proj.weight"), &[]);
    let error = run(source.path(), &out, &Conversion::new()).unwrap_err();
    assert!(error.to_string().contains("lacks expert 4 of model.layers.0.mlp"), "{error}");
}

/// A result that the disk has no room for is refused before anything is written.
#[cfg(unix)]
#[test]
fn a_result_that_the_disk_has_no_room_for() {
    let (source, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for name in ["config.json", "model.safetensors"] {
        let from = fixture("models/llama").join(name);
        fs::copy(from, source.path().join(name)).unwrap();
    }
    // Beside the weights, and as good as empty.
    let vocab = fs::File::create(source.path().join("vocab.txt")).unwrap();
    vocab.set_len(1 << 43).unwrap();
    let error = run(source.path(), &work.path().join("out"), &Conversion::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::File);
    let words = ["out would take 8796.", "GB, but its disk has", "GB free"];
    assert!(words.iter().all(|it| error.to_string().contains(it)), "{error}");
    assert_eq!(fs::read_dir(work.path()).unwrap().count(), 0);
}
