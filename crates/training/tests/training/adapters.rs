//! Adapters and soft prompts: PEFT's and mlx-lm's files, what models say and learn under them, merging.

use std::{fs, path::Path};

use mlx_rs::{Array, ops::concatenate};
use mlxgk_kv_cache::Column;
use mlxgk_mlx_models::{AdapterDropout, ComputeDtype, Decoder, NoHook};
use mlxgk_training::{
    AdapterFormat, Batch, GradientOptions, LogprobReduction, LoraConfig, SOFT_PROMPT, SoftPrompt,
    Trainee, attach_lora, clear_adapters, load_adapter, load_named_adapter, merge_adapters,
    merge_folder, save_adapter, sequence_logprob,
};
use serde_json::{Value, json};

use crate::common::{assert_close, batch, fixtures, floats, golden, host, model};

fn folder(case: &Value) -> std::path::PathBuf {
    fixtures().join("training").join(case["adapter"].as_str().unwrap())
}

fn sums(decoder: &Decoder, batch: &Batch) -> Vec<f32> {
    sequence_logprob(decoder, batch, LogprobReduction::Sum).unwrap()
}

/// Our name of a parameter that PEFT names.
fn name(of_peft: &str) -> String {
    if of_peft.contains("prompt") {
        return SOFT_PROMPT.to_owned();
    }
    let name = of_peft.strip_prefix("base_model.model.").unwrap();
    match name.strip_suffix(".lora_magnitude_vector.weight") {
        Some(path) => format!("{path}.lora_magnitude_vector"),
        None => name.to_owned(),
    }
}

#[test]
fn adapters_of_peft_say_and_learn_what_they_do_there() {
    for case in golden("adapters.json")["cases"].as_array().unwrap() {
        let what = case["adapter"].as_str().unwrap();
        let batch = batch(case);
        let mut decoder = model(case["model"].as_str().unwrap());
        let trainee = if what == "peft-prompt" {
            let soft = SoftPrompt::load(folder(case)).unwrap();
            Trainee::new(&mut decoder).soft_prompt(soft.embeddings()).unwrap()
        } else {
            load_adapter(&mut decoder, folder(case)).unwrap();
            assert_close(&sums(&decoder, &batch), &floats(&case["logprobs"]), 1e-5, what);
            Trainee::new(&mut decoder).adapters().unwrap()
        };
        let mut trainee = trainee;
        let found = trainee.gradients(&batch, GradientOptions::default(), &mut NoHook).unwrap();
        let count = found.tokens as f32;
        assert_close(&[found.loss as f32 / count], &floats(&case["loss"]), 1e-5, what);
        let expected = case["gradients"].as_object().unwrap();
        for (of_peft, kept) in expected {
            if of_peft.contains(".experts.") {
                let found = of_experts_in_peft(&trainee, &found.values, of_peft);
                let what = format!("{what}, {of_peft}");
                assert_kept(
                    &host(&found).iter().map(|it| it / count).collect::<Vec<_>>(),
                    kept,
                    &what,
                );
                continue;
            }
            // PEFT's matrices of a token table are transposed; ours are under the other letter.
            let (of_peft, is_table) = match of_peft.rsplit_once(".lora_embedding_") {
                Some((path, "A")) => (format!("{path}.lora_B.weight"), true),
                Some((path, _)) => (format!("{path}.lora_A.weight"), true),
                None => (of_peft.clone(), false),
            };
            let name = name(&of_peft);
            let index = trainee.names().iter().position(|it| *it == name);
            let index = index.unwrap_or_else(|| panic!("{what}: no {name}"));
            let mut value = found.values[index].clone();
            if is_table {
                value = value.t().contiguous().unwrap();
            }
            let values: Vec<f32> = host(&value).iter().map(|it| it / count).collect();
            assert_kept(&values, kept, &format!("{what}, {name}"));
        }
    }
}

/// Compares a gradient with what was kept of torch's.
fn assert_kept(values: &[f32], kept: &Value, what: &str) {
    let norm = values.iter().map(|it| it * it).sum::<f32>().sqrt();
    let torchs = floats(&kept["norm"])[0];
    assert!((norm - torchs).abs() <= 2e-5 * torchs, "{what}: {norm} for {torchs}");
    for (at, expected) in kept["at"].as_array().unwrap().iter().zip(floats(&kept["values"])) {
        let found = values[at.as_u64().unwrap() as usize];
        let size = expected.abs().max(torchs / (values.len() as f32).sqrt());
        assert!((found - expected).abs() <= 3e-5 * size, "{what}: {found} for {expected}");
    }
}

/// The gradient by one of the matrices that PEFT has for a parameter of all experts. Gate and up share one
/// A there, and have the halves of one B.
fn of_experts_in_peft(trainee: &Trainee<'_>, gradients: &[Array], of_peft: &str) -> Array {
    let (path, matrix) = of_peft.split_once(".experts.").unwrap();
    let layer = path.strip_prefix("base_model.model.").unwrap();
    let (is_inner, is_a) = (matrix.starts_with("base_layer."), matrix.contains("lora_A"));
    let kind = if is_a { "lora_A.weight" } else { "lora_B.weight" };
    let find = |ends: [&str; 2]| {
        let found = trainee.names().iter().position(|it| {
            let is_one = |end: &&str| it.ends_with(&format!(".switch_mlp.{end}.{kind}"));
            it.starts_with(&layer[..layer.rfind('.').unwrap()]) && ends.iter().any(is_one)
        });
        gradients[found.unwrap_or_else(|| panic!("no {ends:?} in {layer}"))].clone()
    };
    let whole = match (is_inner, is_a) {
        (false, _) => find(["down_proj", "w2"]),
        (true, true) => find(["gate_proj", "w1"]).add(find(["up_proj", "w3"])).unwrap(),
        (true, false) => {
            concatenate(&[find(["gate_proj", "w1"]), find(["up_proj", "w3"])], 1).unwrap()
        }
    };
    match is_a {
        true => whole,
        // By experts, outputs, rank: by outputs, rank, experts.
        false => whole.transpose_axes(&[1, 2, 0]).unwrap(),
    }
}

#[test]
fn adapters_of_mlx_lm_say_what_they_say_there() {
    for case in golden("mlx-adapters.json")["cases"].as_array().unwrap() {
        let mut decoder = model(case["model"].as_str().unwrap());
        load_adapter(&mut decoder, folder(case)).unwrap();
        let what = case["adapter"].as_str().unwrap();
        assert_close(&sums(&decoder, &batch(case)), &floats(&case["logprobs"]), 1e-5, what);
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|it| it.to_bits()).collect()
}

fn everywhere(dora: bool) -> LoraConfig {
    LoraConfig { rank: 3, dora, rank_stabilized: dora, ..LoraConfig::default() }
}

/// Makes new adapters matter.
fn shake(decoder: &mut Decoder) {
    decoder
        .visit_parameters_mut(|it| {
            if !it.path.ends_with("lora_B.weight") {
                return Ok(None);
            }
            let key = mlx_rs::random::key(it.path.len() as u64).unwrap();
            let noise = mlx_rs::random::normal::<f32>(it.array.shape(), None, None, &key).unwrap();
            Ok(Some(noise.multiply(Array::from_f32(0.05)).unwrap()))
        })
        .unwrap();
}

/// New adapters change no bit; saved and loaded they say the same; merged, too; and taken off or undone,
/// nothing is left of them.
#[test]
fn adapters_come_and_go_without_a_trace() {
    let batch = batch(&golden("llama.json"));
    let there = tempfile::tempdir().unwrap();
    for (name, dora) in [
        ("llama", false),
        ("llama", true),
        ("qwen3-moe", true),
        ("phi3", false),
        ("llama-q4", false),
        ("qwen3-q8", true),
    ] {
        let what = format!("{name} {dora}");
        let mut decoder = model(name);
        let before = sums(&decoder, &batch);
        let adapted = attach_lora(&mut decoder, &everywhere(dora)).unwrap();
        assert!(
            adapted.iter().all(|it| it.contains(".layers.") && !it.ends_with(".gate")),
            "{what}"
        );
        assert_eq!(bits(&sums(&decoder, &batch)), bits(&before), "{what}");
        shake(&mut decoder);
        let with = sums(&decoder, &batch);
        assert!(with.iter().zip(&before).all(|(a, b)| (a - b).abs() > 1e-3), "{what}");

        let held = |decoder: &Decoder| {
            let mut held = Vec::new();
            decoder.visit_parameters(|it| {
                if it.array.dtype().is_float() {
                    held.push(host(it.array));
                }
            });
            held
        };
        let (parameters, packed) = (held(&decoder), name.contains("-q"));
        let merged = merge_adapters(&mut decoder).unwrap();
        let found = sums(&decoder, &batch);
        // Packing again rounds.
        assert_close(&found, &with, if packed { 0.1 } else { 1e-5 }, &what);
        merged.undo(&mut decoder).unwrap();
        assert!(held(&decoder) == parameters, "{what}");
        assert_eq!(bits(&sums(&decoder, &batch)), bits(&with), "{what}");

        for (format, of) in [(AdapterFormat::Peft, "peft"), (AdapterFormat::MlxLm, "mlx-lm")] {
            let folder = there.path().join(format!("{of}-{name}-{dora}"));
            save_adapter(&decoder, &folder, format, name).unwrap();
            let mut other = model(name);
            assert_eq!(load_adapter(&mut other, &folder).unwrap(), adapted.len());
            // The scale comes back through its product with the rank.
            assert_close(&sums(&other, &batch), &with, 1e-6, &what);
        }
        assert_eq!(clear_adapters(&mut decoder), adapted.len());
        assert_eq!(bits(&sums(&decoder, &batch)), bits(&before), "{what}");
    }
}

fn of_experts() -> LoraConfig {
    let targets = ["switch_mlp.up_proj", "switch_mlp.down_proj"].map(str::to_owned).to_vec();
    LoraConfig { targets, ..everywhere(false) }
}

/// As [`adapters_come_and_go_without_a_trace`], for a mixture's experts: stored one by one, together, packed.
#[test]
fn adapters_of_experts_come_and_go_without_a_trace() {
    let batch = batch(&golden("llama.json"));
    let there = tempfile::tempdir().unwrap();
    for name in ["qwen3-moe", "qwen3-moe-stacked", "qwen3-moe-q4"] {
        let mut decoder = model(name);
        let before = sums(&decoder, &batch);
        let adapted = attach_lora(&mut decoder, &of_experts()).unwrap();
        assert!(!adapted.is_empty() && adapted.iter().all(|it| it.contains(".switch_mlp.")));
        assert_eq!(bits(&sums(&decoder, &batch)), bits(&before), "{name}");
        shake(&mut decoder);
        let with = sums(&decoder, &batch);
        assert!(with.iter().zip(&before).all(|(a, b)| (a - b).abs() > 1e-3), "{name}");
        let packed = name.contains("-q");
        let merged = merge_adapters(&mut decoder).unwrap();
        assert_close(&sums(&decoder, &batch), &with, if packed { 0.1 } else { 1e-5 }, name);
        merged.undo(&mut decoder).unwrap();
        assert_eq!(bits(&sums(&decoder, &batch)), bits(&with), "{name}");

        let adapter = there.path().join(format!("{name}-adapter"));
        save_adapter(&decoder, &adapter, AdapterFormat::MlxLm, name).unwrap();
        let mut other = model(name);
        assert_eq!(load_adapter(&mut other, &adapter).unwrap(), adapted.len());
        assert_close(&sums(&other, &batch), &with, 1e-6, name);
        let peft = save_adapter(&decoder, &adapter, AdapterFormat::Peft, name);
        let error = peft.unwrap_err().to_string();
        assert!(error.contains("PEFT cannot hold an adapter for the experts"), "{error}");

        let (base, out) = (fixtures().join("models").join(name), there.path().join(name));
        match merge_folder(&base, &[&adapter], &out) {
            Ok(count) => {
                assert!(!packed);
                assert_eq!(count, adapted.len(), "{name}");
                let merged = Decoder::load(&out, ComputeDtype::Float32).unwrap();
                assert_close(&sums(&merged, &batch), &with, 0.02, name);
            }
            Err(error) => assert!(packed && error.to_string().contains("is packed"), "{error}"),
        }
        assert_eq!(clear_adapters(&mut decoder), adapted.len());
        assert_eq!(bits(&sums(&decoder, &batch)), bits(&before), "{name}");
    }
    let targets = vec!["q_proj".into(), "switch_mlp.up_proj".into()];
    let dora = LoraConfig { dora: true, targets, ..of_experts() };
    let mut decoder = model("qwen3-moe");
    let error = attach_lora(&mut decoder, &dora).unwrap_err().to_string();
    assert!(error.contains("DoRA of a mixture's experts (`model.layers."), "{error}");
    assert!(decoder.products().iter().all(|it| it.adapter().is_none()));
    attach_lora(&mut decoder, &of_experts()).unwrap();
    let dropout = AdapterDropout { rate: 0.1, seed: 0 };
    let error = decoder.set_adapter_dropout(Some(dropout)).unwrap_err().to_string();
    assert!(error.contains("not supported before the adapters of experts (`model."), "{error}");
}

/// By the chain rule an adapter's gradients follow from those of the merged weights: s · W' Aᵀ by B, and
/// s · Bᵀ W' by A.
#[test]
fn adapters_of_experts_learn_what_the_merged_weights_would() {
    let batch = batch(&golden("llama.json"));
    for name in ["qwen3-moe", "qwen3-moe-stacked"] {
        let mut decoder = model(name);
        let adapted = attach_lora(&mut decoder, &of_experts()).unwrap();
        shake(&mut decoder);
        let options = GradientOptions::default();
        let mut trainee = Trainee::new(&mut decoder).adapters().unwrap();
        let found = trainee.gradients(&batch, options, &mut NoHook).unwrap();
        let by_name = |names: &[String], values: &[Array], name: &str| {
            values[names.iter().position(|it| it == name).unwrap()].clone()
        };
        let names = trainee.names().to_vec();
        let masters = trainee.masters().to_vec();
        let merged = merge_adapters(&mut decoder).unwrap();
        let mut trainee = Trainee::new(&mut decoder).weights(&["switch_mlp"], &[]).unwrap();
        let of_weights = trainee.gradients(&batch, options, &mut NoHook).unwrap();
        let off = (found.loss - of_weights.loss).abs();
        // Products are summed in another order where they are merged.
        assert!(off < 2e-5, "{name}: {off}");
        let of_names = trainee.names().to_vec();
        let scale = Array::from_f32(everywhere(false).alpha / 3.0);
        for path in &adapted {
            let whole = by_name(&of_names, &of_weights.values, &format!("{path}.weight"));
            let whole = whole.multiply(&scale).unwrap();
            let of = |ending: &str| format!("{path}.{ending}.weight");
            let [a, b] = ["lora_A", "lora_B"].map(|it| by_name(&names, &masters, &of(it)));
            let turned = |it: &Array| it.swap_axes(-1, -2).unwrap();
            for (ending, expected) in [
                ("lora_A", turned(&b).matmul(&whole).unwrap()),
                ("lora_B", whole.matmul(turned(&a)).unwrap()),
            ] {
                let gradient = by_name(&names, &found.values, &of(ending));
                let what = format!("{name}, {path} {ending}");
                assert!(host(&expected).iter().any(|it| *it != 0.0), "{what}");
                assert_close(&host(&gradient), &host(&expected), 1e-4, &what);
            }
        }
        merged.undo(&mut decoder).unwrap();
        let trainee = Trainee::new(&mut decoder).adapters().unwrap();
        let config = mlxgk_training::TrainingConfig::new(10, 1e-2);
        let mut trainer = mlxgk_training::Trainer::new(trainee, config).unwrap();
        let mut step = || trainer.train_step(std::slice::from_ref(&batch), 0.0, &mut NoHook);
        let losses: Vec<f64> = (0..10).map(|_| step().unwrap().loss).collect();
        assert!(losses[9] < losses[0] - 0.1, "{name}: {losses:?}");
    }
}

#[test]
fn a_folder_is_merged_into_a_folder() {
    let there = tempfile::tempdir().unwrap();
    // fp32; bf16 with a tied head; three shards.
    for name in ["llama", "qwen3", "mistral"] {
        let (base, adapter) = (fixtures().join("models").join(name), there.path().join("adapter"));
        let out = there.path().join(name);
        let mut decoder = model(name);
        attach_lora(&mut decoder, &everywhere(false)).unwrap();
        shake(&mut decoder);
        save_adapter(&decoder, &adapter, AdapterFormat::Peft, name).unwrap();
        let batch = batch(&golden("llama.json"));
        let with = sums(&decoder, &batch);
        let count = merge_folder(&base, &[&adapter], &out).unwrap();
        assert_eq!(count, 7 * decoder.layers().len());
        let merged = Decoder::load(&out, ComputeDtype::Float32).unwrap();
        let is_exact = name == "llama";
        assert_close(&sums(&merged, &batch), &with, if is_exact { 1e-5 } else { 0.02 }, name);
        let error = merge_folder(&base, &[&adapter], &out).unwrap_err().to_string();
        assert!(error.contains("is there already"), "{error}");
        let left: Vec<_> =
            fs::read_dir(there.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert!(left.iter().all(|it| !it.to_string_lossy().starts_with(".merging")), "{left:?}");
    }
    let packed = fixtures().join("models/llama-q4");
    let adapter = fixtures().join("training/mlx-lora-q4");
    let error =
        merge_folder(&packed, &[&adapter], &there.path().join("q4")).unwrap_err().to_string();
    assert!(error.contains("is packed"), "{error}");
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let there = tempfile::tempdir().unwrap();
    let path = |name: &str| fixtures().join("training").join(name);
    let refused = |decoder: &mut Decoder, folder: &Path| {
        let error = load_adapter(decoder, folder).unwrap_err().to_string();
        assert!(decoder.linears().iter().all(|it| it.adapter().is_none()), "{error}");
        error
    };
    let mut decoder = model("qwen3");
    let error = refused(&mut decoder, &path("peft-lora"));
    assert!(error.contains("is for another model: there is no `lm_head`"), "{error}");
    let error = refused(&mut decoder, &path("peft-fused"));
    assert!(error.contains("there is no `model.layers.0.mlp.gate_up_proj`"), "{error}");
    let error = refused(&mut model("llama-llama3"), &path("peft-rslora"));
    assert!(error.contains("is for another model: `model.layers.0"), "{error}");
    assert!(refused(&mut decoder, &path("peft-prompt")).contains("\"PROMPT_TUNING\""));
    assert!(refused(&mut decoder, there.path()).contains("adapter_config.json: cannot be read"));

    let change = |field: &str, value: Value| {
        let from = path("peft-moe");
        let mut config: Value =
            serde_json::from_slice(&fs::read(from.join("adapter_config.json")).unwrap()).unwrap();
        config[field] = value;
        fs::write(there.path().join("adapter_config.json"), config.to_string()).unwrap();
        fs::copy(
            from.join("adapter_model.safetensors"),
            there.path().join("adapter_model.safetensors"),
        )
        .unwrap();
        refused(&mut model("qwen3-moe"), there.path())
    };
    for (field, value) in [
        ("modules_to_save", json!(["lm_head"])),
        ("bias", json!("all")),
        ("lora_alpha", json!("much")),
        ("peft_type", json!("IA3")),
        ("target_parameters", json!(["mlp.experts.gate_up_proj"])),
        ("target_parameters", json!(["mlp.gate.weight"])),
        ("target_parameters", json!("mlp.experts.gate_up_proj")),
    ] {
        let error = change(field, value);
        assert!(error.contains(field), "{error}");
    }
    let error = refused(&mut model("mellum"), &path("peft-experts"));
    assert!(error.contains("gate_up_proj` is adapted by [12, 32] and [32, 12]"), "{error}");
    let error = refused(&mut model("gpt-oss"), &path("peft-experts"));
    assert!(error.contains("no experts there that can be adapted"), "{error}");
    let mut tied = model("qwen2");
    if tied.components().tied_head {
        attach_lora(
            &mut tied,
            &LoraConfig { targets: vec!["embed_tokens".into()], ..everywhere(false) },
        )
        .unwrap();
        let folder = there.path().join("tied");
        let error = save_adapter(&tied, &folder, AdapterFormat::Peft, "").unwrap_err().to_string();
        assert!(error.contains("tied to the head"), "{error}");
    }
    let mut decoder = model("llama");
    let unknown = LoraConfig { targets: vec!["wide_proj".into()], ..everywhere(false) };
    assert!(attach_lora(&mut decoder, &unknown).unwrap_err().to_string().contains("`wide_proj`"));
    for rank in [1000, usize::MAX] {
        let error = attach_lora(&mut decoder, &LoraConfig { rank, ..everywhere(false) });
        let error = error.unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("the rank {rank} is above both sides of `model.")),
            "{error}"
        );
        assert!(decoder.linears().iter().all(|it| it.adapter().is_none()));
    }
    let experts = LoraConfig { targets: vec!["experts.down_proj".into()], ..everywhere(false) };
    let error = attach_lora(&mut model("gpt-oss"), &experts).unwrap_err().to_string();
    assert!(error.contains("`experts.down_proj` are a mixture's experts in one tensor"), "{error}");
    let error = load_named_adapter(&mut model("qwen3-moe"), "one", path("mlx-experts"));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("are experts, where rows cannot have adapters"), "{error}");
    let first = LoraConfig { layers: vec![0], ..everywhere(false) };
    attach_lora(&mut decoder, &first).unwrap();
    let error =
        save_adapter(&decoder, there.path(), AdapterFormat::MlxLm, "").unwrap_err().to_string();
    assert!(error.contains("of the last blocks"), "{error}");
}

/// A soft prompt in training is what stands there when embeddings are fed to a cache.
#[test]
fn a_soft_prompt_is_fed_as_it_was_trained() {
    let there = tempfile::tempdir().unwrap();
    for name in ["qwen3", "gemma2"] {
        let mut decoder = model(name);
        let soft = SoftPrompt::from_tokens(&decoder, &[7, 9], 3).unwrap();
        soft.save(there.path(), name).unwrap();
        let loaded = SoftPrompt::load(there.path()).unwrap();
        assert_eq!(host(loaded.embeddings()), host(soft.embeddings()));
        let rows = loaded.rows().unwrap();
        assert_eq!((rows.len(), loaded.len()), (3, 3));

        let ids = [5_u32, 17, 42, 9];
        let embedded = decoder.embed(&Array::from_slice(&ids, &[1, 4])).unwrap();
        let all =
            concatenate(&[&loaded.embeddings().expand_dims(0).unwrap(), &embedded], 1).unwrap();
        let columns: Vec<Column> =
            rows.iter().map(|it| Column::embedded(it)).chain(ids.map(Column::Token)).collect();
        let mut cache = decoder.new_cache(1);
        let hidden =
            decoder.hidden_from_embeddings(&all, &[&columns], &mut cache, &mut NoHook).unwrap();
        let logits = host(&decoder.logits(&hidden).unwrap());
        let vocab = decoder.vocab_size();
        let logprob = |place: usize, id: u32| {
            let row = &logits[place * vocab..][..vocab];
            let most = row.iter().fold(f32::MIN, |a, &b| a.max(b));
            let sum: f32 = row.iter().map(|it| (it - most).exp()).sum();
            f64::from(row[id as usize] - most - sum.ln())
        };
        let expected: f64 = (1..4).map(|at| -logprob(2 + at, ids[at])).sum();
        let text = Batch::new(&[mlxgk_training::Example::text(ids.to_vec())]).unwrap();
        // As tokens, the same prompt says the same.
        let as_tokens = [7, 9, 7, 5, 17, 42, 9];
        let mut example = mlxgk_training::Example::text(as_tokens.to_vec());
        example.labels[..4].fill(mlxgk_training::IGNORE_INDEX);
        let sum = sums(&decoder, &Batch::new(&[example]).unwrap())[0];
        let mut trainee = Trainee::new(&mut decoder).soft_prompt(loaded.embeddings()).unwrap();
        let found = trainee.gradients(&text, GradientOptions::default(), &mut NoHook).unwrap();
        assert!((found.loss - expected).abs() < 1e-4, "{name}: {} for {expected}", found.loss);
        assert!((found.loss + f64::from(sum)).abs() < 1e-4, "{name}: {} for {sum}", found.loss);
    }
    let decoder = model("llama");
    let [a, b] = [1, 1].map(|seed| SoftPrompt::random(&decoder, 4, seed).unwrap());
    assert_eq!(host(a.embeddings()), host(b.embeddings()));
    assert!(SoftPrompt::from_vocabulary(&decoder, 0, 1).is_err());
    assert!(SoftPrompt::from_tokens(&decoder, &[], 2).is_err());
    let error = SoftPrompt::load(fixtures().join("training/peft-lora")).unwrap_err().to_string();
    assert!(error.contains("a soft prompt is \"PROMPT_TUNING\""), "{error}");
}

/// Two adapters on one product add up, in whichever order; what is DoRA does not.
#[test]
fn adapters_add_up() {
    let there = tempfile::tempdir().unwrap();
    let folder = |name: &str| there.path().join(name);
    let mut plain = model("qwen3");
    let products: Vec<String> = {
        let config = LoraConfig { rank: 2, alpha: 6.0, ..everywhere(false) };
        attach_lora(&mut plain, &config).unwrap()
    };
    // B of zeros would make any sum right.
    let random = |shape: &[i32], salt: usize| {
        let count = shape.iter().product::<i32>() as usize;
        let values: Vec<f32> = (0..count)
            .map(|at| (((at + salt) * 2_654_435_761) % 1000) as f32 / 5000.0 - 0.1)
            .collect();
        Array::from_slice(&values, shape)
    };
    for (salt, name) in [(1, "one"), (7, "two")] {
        for path in &products {
            let linear = plain.linear_mut(path).unwrap();
            let [out, columns] = linear.shape().map(|it| it as i32);
            let rank = 1 + salt as i32 % 3;
            let (a, b) = (random(&[rank, columns], salt), random(&[out, rank], salt + 3));
            let adapter = mlxgk_mlx_models::Adapter::new(a, b, 0.5).unwrap();
            linear.set_adapter(adapter).unwrap();
        }
        save_adapter(&plain, folder(name), AdapterFormat::Peft, "qwen3").unwrap();
    }
    clear_adapters(&mut plain);
    let matrices = |decoder: &Decoder| -> Vec<Vec<f32>> {
        let linear = |path: &String| {
            let all = decoder.linears();
            let linear = all.into_iter().find(|it| it.path() == path).unwrap();
            host(&linear.merged().unwrap())
        };
        products.iter().map(linear).collect()
    };
    let with = |names: &[&str]| {
        let mut decoder = model("qwen3");
        for name in names {
            mlxgk_training::add_adapter(&mut decoder, folder(name)).unwrap();
        }
        matrices(&decoder)
    };
    let (base, one, two) = (matrices(&plain), with(&["one"]), with(&["two"]));
    for both in [with(&["one", "two"]), with(&["two", "one"])] {
        for (index, found) in both.iter().enumerate() {
            for (at, found) in found.iter().enumerate() {
                let expected = one[index][at] + two[index][at] - base[index][at];
                assert!((found - expected).abs() < 1e-5, "{found} for {expected}");
                assert!((found - one[index][at]).abs() + (found - two[index][at]).abs() > 0.0);
            }
        }
    }
    let mut decoder = model("qwen3");
    attach_lora(&mut decoder, &everywhere(true)).unwrap();
    let error = mlxgk_training::add_adapter(&mut decoder, folder("one")).unwrap_err().to_string();
    assert!(error.contains("DoRA adapter cannot be added"), "{error}");
}

/// What was trained of a model's own weights is in the folder that is written, and nothing else changed.
#[test]
fn trained_weights_are_written_as_a_model() {
    let there = tempfile::tempdir().unwrap();
    for (name, is_bf16) in [("qwen3", true), ("gemma2", true), ("llama", false)] {
        let base = fixtures().join("models").join(name);
        let out = there.path().join(name);
        let mut decoder = model(name);
        let trainee = Trainee::new(&mut decoder).weights(&["norm"], &["layers.0"]).unwrap();
        trainee.check_model(&base).unwrap();
        let config = mlxgk_training::TrainingConfig::new(2, 1e-2);
        let mut trainer = mlxgk_training::Trainer::new(trainee, config).unwrap();
        let batch = Batch::new(&[mlxgk_training::Example::text(vec![5, 17, 42, 9])]).unwrap();
        for _ in 0..2 {
            trainer.train_step(std::slice::from_ref(&batch), 0.0, &mut NoHook).unwrap();
        }
        let trainee = trainer.finish();
        let trained: Vec<String> = trainee.names().to_vec();
        // Written over what was there.
        for _ in 0..2 {
            trainee.save_model(&base, &out).unwrap();
        }
        let parameters = |decoder: &Decoder| {
            let mut found = std::collections::BTreeMap::new();
            decoder.visit_parameters(|it| {
                found.insert(it.path.to_owned(), host(it.array));
            });
            found
        };
        let held = parameters(trainee.decoder());
        let before = parameters(&model(name));
        let after = parameters(&Decoder::load(&out, ComputeDtype::Float32).unwrap());
        assert!(after.keys().eq(before.keys()), "{name}");
        for (path, values) in &after {
            assert_eq!(trained.contains(path), *values != before[path], "{name}: {path}");
            // Stored in the dtype of the folder that it began as.
            let stored = |it: &f32| if is_bf16 { half::bf16::from_f32(*it).to_f32() } else { *it };
            assert!(held[path].iter().map(stored).eq(values.iter().copied()), "{name}: {path}");
        }
        assert_eq!(fs::read_dir(there.path()).unwrap().count(), 1, "nothing else is left");
        fs::remove_dir_all(&out).unwrap();
    }
    // Of a mixture, experts are stored one by one.
    let mut decoder = model("qwen3-moe");
    let trainee = Trainee::new(&mut decoder).weights(&["experts|switch_mlp"], &[]).unwrap();
    let error = trainee.check_model(&fixtures().join("models/qwen3-moe")).unwrap_err().to_string();
    assert!(error.contains("has no tensor") || error.contains("another layout"), "{error}");
}
