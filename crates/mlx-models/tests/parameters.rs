//! Parameters by name: which there are, what replacing them does, and adapters.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use mlx_rs::{Array, Dtype, random, transforms::grad};
use mlxgk_mlx_models::{Adapter, ComputeDtype, Decoder, ErrorKind, ParameterKind};
use serde_json::Value;

/// Every model folder of the fixtures.
fn folders() -> Vec<PathBuf> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models");
    let entries = fs::read_dir(models).unwrap().map(|it| it.unwrap().path());
    let mut folders: Vec<_> = entries.filter(|it| it.is_dir()).collect();
    folders.sort();
    assert!(folders.len() >= 25, "{folders:?}");
    folders
}

fn model(name: &str) -> Decoder {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name);
    Decoder::load(folder, ComputeDtype::Float32).unwrap()
}

/// The shapes of a folder's tensors, from the headers, without what wraps a language model's names and
/// without what is beside it.
fn headers(folder: &Path) -> BTreeMap<String, Vec<u64>> {
    let mut shapes = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|it| it != "safetensors") {
            continue;
        }
        let bytes = fs::read(path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: BTreeMap<String, Value> =
            serde_json::from_slice(&bytes[8..][..length]).unwrap();
        for (name, tensor) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
            if ["model.visual.", "model.vision_", "mtp."].iter().any(|it| name.starts_with(it)) {
                continue;
            }
            let name = name
                .replace("model.language_model.", "model.")
                .replace("language_model.", "")
                .replace("backbone.embeddings.", "model.embed_tokens.")
                .replace("backbone.", "model.");
            let sizes = tensor["shape"].as_array().unwrap().iter();
            let mut sizes: Vec<u64> = sizes.map(|it| it.as_u64().unwrap()).collect();
            if name.ends_with("_blocks") {
                // Four bytes are one word, and a row's groups lie one after another.
                let bytes = sizes.pop().unwrap() * sizes.pop().unwrap();
                sizes.push(bytes / 4);
            }
            shapes.insert(name, sizes);
        }
    }
    shapes
}

fn logits(model: &Decoder) -> Vec<f32> {
    model.logits_of(&[&[5, 17, 42], &[3, 8, 1]]).unwrap().to_vec_exact().unwrap()
}

fn noise(seed: u64, shape: &[i32]) -> Array {
    let noise = random::normal::<f32>(shape, None, None, &random::key(seed).unwrap()).unwrap();
    noise.multiply(Array::from_f32(0.1)).unwrap()
}

#[test]
fn the_parameters_are_the_tensors_of_the_checkpoint() {
    // Other quantizers' tensors become others when they are loaded.
    let foreign = |it: &PathBuf| {
        it.join("hf_quant_config.json").exists()
            || fs::read_to_string(it.join("config.json")).unwrap().contains("\"quant_method\"")
    };
    for folder in folders().into_iter().filter(|it| !foreign(it)) {
        let model = Decoder::load(&folder, ComputeDtype::Float32).unwrap();
        let mut shapes = BTreeMap::new();
        model.visit_parameters(|it| {
            let shape: Vec<u64> = it.array.shape().iter().map(|&it| it as u64).collect();
            let shape = if it.stacked { &shape[1..] } else { &shape };
            for name in it.tensors() {
                assert!(
                    shapes.insert(name, shape.to_vec()).is_none(),
                    "{} is there twice",
                    it.path
                );
            }
        });
        assert_eq!(shapes, headers(&folder), "{}", folder.display());
    }
}

#[test]
fn packed_words_count_as_what_they_unpack_to() {
    for (name, packed, per_word) in
        [("llama", 0, 1), ("llama-q4", 1, 8), ("qwen3-q8", 1, 4), ("qwen3-moe-stacked", 0, 1)]
    {
        let model = model(name);
        let (mut count, mut bytes, mut words) = (0, 0, 0);
        model.visit_parameters(|it| {
            bytes += it.array.nbytes();
            match it.kind {
                ParameterKind::Packed => {
                    words += 1;
                    count += it.array.size() * per_word;
                }
                ParameterKind::Scales | ParameterKind::Offsets => {}
                _ => count += it.array.size(),
            }
        });
        assert_eq!(usize::from(words > 0), packed, "{name}");
        let footprint = model.footprint();
        assert_eq!((footprint.parameters, footprint.bytes), (count, bytes), "{name}");
    }
}

/// Putting everything back where it came from changes no bit, whatever was there in between.
#[test]
fn replaced_parameters_take_effect_and_can_be_put_back() {
    for folder in folders() {
        // How norms and weights are kept depends on the dtype; half precision is slow on a CPU.
        let in_both = ["gemma2", "llama-q4", "qwen3-moe-q4"].iter().any(|it| folder.ends_with(it));
        let narrow = in_both.then_some(ComputeDtype::Bfloat16);
        for dtype in [ComputeDtype::Float32].into_iter().chain(narrow) {
            let name = folder.display();
            let mut model = Decoder::load(&folder, dtype).unwrap();
            let (before, footprint) = (logits(&model), model.footprint());
            let mut held = BTreeMap::new();
            model.visit_parameters(|it| _ = held.insert(it.path.to_owned(), it.array.clone()));
            for path in held.keys() {
                let changed = |it: &Array| match it.dtype() {
                    // A small change hardly changes the choice of experts.
                    _ if path.ends_with("correction_bias") || path.ends_with("expert_bias") => {
                        noise(9, it.shape()).multiply(Array::from_f32(1e4)).unwrap()
                    }
                    // Some bits of the words.
                    Dtype::Uint32 => it.multiply(Array::from_slice(&[3_u32], &[])).unwrap(),
                    // The next scale that a byte can be.
                    Dtype::Uint8 => it.add(Array::from_slice(&[1_u8], &[])).unwrap(),
                    _ => it
                        .multiply(noise(9, it.shape()).add(Array::from_f32(1.0)).unwrap())
                        .unwrap(),
                };
                let change = |it: mlxgk_mlx_models::Parameter<'_>| {
                    Ok((it.path == path).then(|| changed(it.array)))
                };
                model.visit_parameters_mut(change).unwrap();
                assert!(logits(&model) != before, "{name}: `{path}` does nothing");
                let back = |it: mlxgk_mlx_models::Parameter<'_>| {
                    Ok((it.path == path).then(|| held[path].clone()))
                };
                model.visit_parameters_mut(back).unwrap();
            }
            assert!(logits(&model) == before, "{name}");
            assert_eq!(model.footprint(), footprint, "{name}");
        }
    }
}

#[test]
fn a_replacement_has_to_fit() {
    let mut model = model("llama-q4");
    for (path, array) in [
        ("model.norm.weight", noise(1, &[3])),
        ("model.norm.weight", Array::from_slice(&[1_u32; 64], &[64])),
        ("model.layers.0.self_attn.q_proj.weight", noise(1, &[64, 8])),
    ] {
        let put =
            |it: mlxgk_mlx_models::Parameter<'_>| Ok((it.path == path).then(|| array.clone()));
        let error = model.visit_parameters_mut(put).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Weights);
        assert!(error.to_string().contains(path), "{error}");
        assert!(error.to_string().contains("cannot be replaced"), "{error}");
    }
}

#[test]
fn an_adapter_without_effect_changes_no_bit() {
    for name in ["llama", "llama-q4", "qwen3", "gemma2", "phi3", "qwen3-moe"] {
        let mut model = model(name);
        let before = logits(&model);
        let paths: Vec<(String, [usize; 2])> =
            model.linears().iter().map(|it| (it.path().to_owned(), it.shape())).collect();
        for (path, [out, columns]) in &paths {
            let (a, b) = (noise(1, &[4, *columns as i32]), noise(2, &[*out as i32, 4]));
            let none = b.multiply(Array::from_f32(0.0)).unwrap();
            let linear = model.linear_mut(path).unwrap();
            linear.set_adapter(Adapter::new(a.clone(), none, 2.0).unwrap()).unwrap();
            let bits = |values: &[f32]| values.iter().map(|it| it.to_bits()).collect::<Vec<_>>();
            assert!(bits(&logits(&model)) == bits(&before), "{name}: `{path}`");
            let linear = model.linear_mut(path).unwrap();
            linear.set_adapter(Adapter::new(a, b, 2.0).unwrap()).unwrap();
            assert!(logits(&model) != before, "{name}: `{path}`");
            assert!(model.linear_mut(path).unwrap().clear_adapter().is_some());
            assert!(logits(&model) == before, "{name}: `{path}`");
        }
    }
}

/// `(W + s·BA) x`, with the sum put in the weight's place, and as an adapter.
#[test]
fn an_adapter_equals_the_sum() {
    for name in ["llama", "qwen3", "gemma2", "phi3", "qwen3-moe"] {
        let mut model = model(name);
        let paths: Vec<(String, [usize; 2])> =
            model.linears().iter().map(|it| (it.path().to_owned(), it.shape())).collect();
        for (path, [out, columns]) in paths {
            let (a, b) = (noise(1, &[4, columns as i32]), noise(2, &[out as i32, 4]));
            let linear = model.linear_mut(&path).unwrap();
            let change = b.matmul(&a).unwrap().multiply(Array::from_f32(0.5)).unwrap();
            let sum = linear.dequantized().unwrap().add(change).unwrap();
            linear.set_adapter(Adapter::new(a, b, 0.5).unwrap()).unwrap();
            let adapted = logits(&model);
            model.linear_mut(&path).unwrap().clear_adapter();

            let (weight, mut held) = (format!("{path}.weight"), None);
            model
                .visit_parameters_mut(|it| {
                    Ok((it.path == weight).then(|| {
                        held = Some(it.array.clone());
                        sum.clone()
                    }))
                })
                .unwrap();
            let summed = logits(&model);
            let worst = adapted.iter().zip(&summed).map(|(a, b)| (a - b).abs());
            let worst = worst.fold(0.0, f32::max);
            assert!(worst < 5e-5, "{name}: `{path}` is off by {worst}");
            let back = |it: mlxgk_mlx_models::Parameter<'_>| {
                Ok(if it.path == weight { held.take() } else { None })
            };
            model.visit_parameters_mut(back).unwrap();
        }
    }
}

#[test]
fn an_adapter_is_named_counted_and_has_to_fit() {
    let mut model = model("qwen3");
    let before = model.footprint();
    let path = "model.layers.1.self_attn.v_proj";
    let [out, columns] = model.linear_mut(path).unwrap().shape().map(|it| it as i32);
    let error = Adapter::new(noise(1, &[4, columns]), noise(2, &[out, 5]), 1.0).unwrap_err();
    assert!(error.to_string().contains("[rank, in] and [out, rank]"), "{error}");
    let narrow = Adapter::new(noise(1, &[4, columns - 1]), noise(2, &[out, 4]), 1.0).unwrap();
    let error = model.linear_mut(path).unwrap().set_adapter(narrow).unwrap_err();
    assert!(error.to_string().contains(path), "{error}");
    assert!(model.linear_mut("model.layers.9.self_attn.v_proj").is_none());

    let adapter = Adapter::new(noise(1, &[4, columns]), noise(2, &[out, 4]), 1.0).unwrap();
    model.linear_mut(path).unwrap().set_adapter(adapter).unwrap();
    let mut names = Vec::new();
    model.visit_parameters(|it| {
        if it.kind == ParameterKind::Adapter {
            names.push(it.path.to_owned());
        }
    });
    assert_eq!(names, [format!("{path}.lora_A.weight"), format!("{path}.lora_B.weight")]);
    let more = model.footprint().parameters - before.parameters;
    assert_eq!(more, 4 * (out + columns) as usize);
}

/// The way that training goes: parameters are replaced by what a gradient is taken by.
#[test]
fn gradients_reach_parameters_and_adapters() {
    for (name, path) in [
        ("llama", "model.layers.0.mlp.gate_proj.weight"),
        ("llama", "model.layers.1.input_layernorm.weight"),
        ("llama", "model.embed_tokens.weight"),
        ("qwen3-moe", "model.layers.0.self_attn.q_proj.weight"),
        ("qwen3-moe", "model.layers.1.mlp.down_proj.lora_A.weight"),
        ("qwen3-moe-stacked", "model.layers.0.mlp.switch_mlp.up_proj.weight"),
        ("llama-q4", "model.layers.0.self_attn.q_proj.scales"),
        ("llama-q4", "model.layers.0.self_attn.v_proj.lora_B.weight"),
    ] {
        let mut model = model(name);
        if let Some((path, _)) = path.split_once(".lora_") {
            let linear = model.linear_mut(path).unwrap();
            let [out, columns] = linear.shape().map(|it| it as i32);
            let adapter = Adapter::new(noise(1, &[4, columns]), noise(2, &[out, 4]), 2.0);
            linear.set_adapter(adapter.unwrap()).unwrap();
        }
        let mut held = None;
        model.visit_parameters(|it| {
            if it.path == path {
                held = Some(it.array.as_dtype(Dtype::Float32).unwrap());
            }
        });
        let held = held.unwrap();
        let mut loss = |x: &Array| {
            let put =
                |it: mlxgk_mlx_models::Parameter<'_>| Ok((it.path == path).then(|| x.clone()));
            model.visit_parameters_mut(put).unwrap();
            let logits = model.logits_of(&[&[5, 17, 42, 9]]).unwrap();
            logits.square()?.mean(None)
        };
        let gradient = grad(&mut loss)(&held).unwrap();
        // As large as the parameter.
        let size = held.abs().unwrap().mean(None).unwrap();
        let direction = noise(7, held.shape()).multiply(size).unwrap();
        let slope = gradient.multiply(&direction).unwrap().sum(None).unwrap();
        let slope = slope.try_item_exact::<f32>().unwrap();
        let mut at = |step: f32| {
            let x = held.add(direction.multiply(Array::from_f32(step)).unwrap()).unwrap();
            loss(&x).unwrap().try_item_exact::<f32>().unwrap()
        };
        let measured = (at(0.2) - at(-0.2)) / 0.4;
        let difference = (slope - measured).abs();
        assert!(difference < 2e-2 * measured.abs() + 1e-4, "{name} `{path}`: {slope}, {measured}");
        assert!(slope.abs() > 1e-5, "{name} `{path}`: {slope}");
    }
}

#[test]
fn a_model_can_move_to_another_thread() {
    fn is_send<T: Send>(it: T) -> T {
        it
    }
    let model = is_send(model("gemma3"));
    let here = logits(&model);
    let there = std::thread::spawn(move || logits(&model)).join().unwrap();
    assert_eq!(here, there);
}
