//! A model's losses and gradients: against torch, in chunks and stretches, in half precision.

use mlx_rs::Array;
use mlxgk_mlx_models::{Adapter, ComputeDtype, Decoder, NoHook};
use mlxgk_training::{
    Batch, Example, GradientOptions, Gradients, IGNORE_INDEX, KlEstimator, LogprobReduction,
    Objective, Trainee, loss_forward, losses::Dpo, sequence_logprob, token_kl, token_logprobs,
};
use serde_json::Value;

use crate::common::{assert_close, batch, floats, golden, host, model, model_in};

const MODELS: [&str; 8] =
    ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "qwen3-moe"];
const TOLERANCE: f32 = 1e-5;
/// Of single entries of a gradient.
const ENTRIES: f32 = 2e-5;

fn gradients(trainee: &mut Trainee<'_>, batch: &Batch, options: GradientOptions<'_>) -> Gradients {
    trainee.gradients(batch, options, &mut NoHook).unwrap()
}

/// Holds gradients, divided by `count`, against the numbers kept of torch's: norms, and entries.
fn assert_gradients(
    trainee: &Trainee<'_>,
    found: &Gradients,
    (count, entries): (f32, f32),
    expected: &Value,
    what: &str,
) {
    let expected = expected.as_object().unwrap();
    assert!(expected.len() >= 20, "{what}");
    for (name, kept) in expected {
        let index = trainee.names().iter().position(|it| it == name);
        let values = host(&found.values[index.unwrap_or_else(|| panic!("{what}: no {name}"))]);
        let values: Vec<f32> = values.iter().map(|it| it / count).collect();
        let norm = values.iter().map(|&it| f64::from(it).powi(2)).sum::<f64>().sqrt() as f32;
        let torchs = floats(&kept["norm"])[0];
        assert!((norm - torchs).abs() <= TOLERANCE * torchs, "{what}, {name}: {norm} for {torchs}");
        for (at, value) in kept["at"].as_array().unwrap().iter().zip(floats(&kept["values"])) {
            let found = values[at.as_u64().unwrap() as usize];
            // One entry is as exact as the matrix it is one of.
            let size = value.abs().max(torchs / (values.len() as f32).sqrt());
            assert!((found - value).abs() <= entries * size, "{what}, {name}: {found} for {value}");
        }
    }
}

#[test]
fn losses_and_gradients_are_those_of_torch() {
    MODELS.iter().for_each(|name| hold_against_torch(name, ENTRIES));
}

/// Layers with a state learn through it. The delta rule has two forms in transformers, token by token and
/// in chunks, whose gradients of this batch differ from each other by up to 7e-5.
#[test]
fn losses_and_gradients_of_a_hybrid_are_those_of_torch() {
    hold_against_torch("qwen3_5", 1e-4);
}

fn hold_against_torch(name: &str, entries: f32) {
    let golden = golden(&format!("{name}.json"));
    let batch = batch(&golden);
    let mut decoder = model(name);
    for (reduction, key) in [(LogprobReduction::Sum, "sum"), (LogprobReduction::Mean, "mean")] {
        let found = sequence_logprob(&decoder, &batch, reduction).unwrap();
        assert_close(&found, &floats(&golden["logprobs"][key]), TOLERANCE, name);
    }
    let mut trainee = Trainee::new(&mut decoder).weights(&[], &[]).unwrap();
    for case in golden["cross_entropy"].as_array().unwrap() {
        let smoothing = case["smoothing"].as_f64().unwrap() as f32;
        let expected = floats(&case["loss"]);
        let forward = loss_forward(trainee.decoder(), &batch, smoothing, &mut NoHook).unwrap();
        assert_close(&[forward as f32], &expected, TOLERANCE, name);
        if smoothing > 0.0 {
            let objective = Objective::CrossEntropy { smoothing };
            let options = GradientOptions { objective, ..GradientOptions::default() };
            let found = gradients(&mut trainee, &batch, options);
            let count = found.tokens as f32;
            assert_close(&[found.loss as f32 / count], &expected, TOLERANCE, name);
            assert_gradients(&trainee, &found, (count, entries), &case["gradients"], name);
        }
    }
    // Half of the parameters again, through a preference.
    let dpo = &golden["dpo"];
    let pair = pair(&golden);
    let reference = floats(&dpo["reference"]);
    let objective = preference(&pair, [reference[0], reference[1]]);
    let options = GradientOptions {
        objective: Objective::LogProbs(&objective),
        ..GradientOptions::default()
    };
    let found = gradients(&mut trainee, &pair, options);
    assert_close(&[found.loss as f32], &floats(&dpo["loss"]), TOLERANCE, name);
    let what = format!("{name}, DPO");
    assert_gradients(&trainee, &found, (1.0, entries), &dpo["gradients"], &what);
}

/// The first two rows of a golden's batch.
fn pair(golden: &Value) -> Batch {
    let mut golden = golden.clone();
    for key in ["tokens", "labels"] {
        golden[key].as_array_mut().unwrap().truncate(2);
    }
    batch(&golden)
}

/// DPO with the first row chosen.
fn preference(
    pair: &Batch,
    reference: [f32; 2],
) -> impl Fn(&Array) -> mlxgk_training::Result<Array> {
    let sums = pair.row_sums();
    move |logprobs| {
        let rows = sums.matmul(logprobs)?.split_equal(2, 0)?;
        let [chosen, rejected] = reference.map(|it| Array::from_slice(&[it], &[1]));
        Ok(Dpo::default().loss([&rows[0], &rows[1]], [&chosen, &rejected])?)
    }
}

fn noise(seed: u64, shape: &[i32]) -> Array {
    let key = mlx_rs::random::key(seed).unwrap();
    let noise = mlx_rs::random::normal::<f32>(shape, None, None, &key).unwrap();
    noise.multiply(Array::from_f32(0.1)).unwrap()
}

/// Sets adapters on some products, those of the head or token table among them.
fn adapt(decoder: &mut Decoder) {
    let paths: Vec<(String, [usize; 2])> =
        decoder.linears().iter().map(|it| (it.path().to_owned(), it.shape())).collect();
    for (path, [out, columns]) in paths {
        if ["q_proj", "down_proj", "embed_tokens", "lm_head"].iter().any(|it| path.ends_with(it)) {
            let (a, b) = (noise(1, &[3, columns as i32]), noise(2, &[out as i32, 3]));
            decoder
                .linear_mut(&path)
                .unwrap()
                .set_adapter(Adapter::new(a, b, 0.5).unwrap())
                .unwrap();
        }
    }
}

/// Logits a few tokens at a time, and activations a few layers at a time, change no gradient.
#[test]
fn chunks_and_checkpoints_change_nothing() {
    for name in ["llama", "qwen3", "gemma2", "qwen3-moe", "llama-q4"] {
        let mut decoder = model(name);
        let packed = name.ends_with("q4");
        let batch = batch(&golden("llama.json"));
        adapt(&mut decoder);
        let soft = noise(5, &[2, decoder.hidden_size() as i32]);
        let mut trainee = Trainee::new(&mut decoder);
        trainee = trainee.adapters().unwrap().soft_prompt(&soft).unwrap().vectors(&[1]).unwrap();
        if !packed {
            trainee = trainee.weights(&[], &["mlp"]).unwrap();
        }
        let before: Vec<Vec<f32>> = trainee.masters().iter().map(host).collect();
        let whole = gradients(&mut trainee, &batch, GradientOptions::default());
        assert!(whole.values.iter().all(|it| host(it).iter().any(|&it| it != 0.0)), "{name}");
        for (checkpoint_layers, logits_chunk) in
            [(None, Some(5)), (Some(1), None), (Some(2), Some(7))]
        {
            let options =
                GradientOptions { checkpoint_layers, logits_chunk, ..GradientOptions::default() };
            let found = gradients(&mut trainee, &batch, options);
            assert!((found.loss - whole.loss).abs() < 1e-6 * whole.loss, "{name}");
            for ((found, whole), path) in
                found.values.iter().zip(&whole.values).zip(trainee.names())
            {
                let what = format!("{name}, {path}, {checkpoint_layers:?}, {logits_chunk:?}");
                let (found, whole) = (host(found), host(whole));
                if logits_chunk.is_none() {
                    // Only the order in which uses of a tied table are added up may differ.
                    assert_close(&found, &whole, 1e-6, &what);
                } else {
                    assert_close(&found, &whole, 1e-5, &what);
                }
            }
        }
        let after: Vec<Vec<f32>> = trainee.masters().iter().map(host).collect();
        assert_eq!(before, after);
    }
}

/// A scale that is a power of two changes no bit of a bf16 gradient.
#[test]
fn a_power_of_two_scales_gradients_exactly() {
    let mut decoder = model_in("llama", ComputeDtype::Bfloat16);
    let batch = batch(&golden("llama.json"));
    let mut trainee =
        Trainee::new(&mut decoder).weights(&["q_proj", "norm", "lm_head"], &[]).unwrap();
    let plain = gradients(&mut trainee, &batch, GradientOptions::default());
    let scale = 65_536.0;
    let scaled =
        gradients(&mut trainee, &batch, GradientOptions { scale, ..GradientOptions::default() });
    assert_eq!(plain.loss, scaled.loss);
    for (plain, scaled) in plain.values.iter().zip(&scaled.values) {
        assert_eq!(plain.dtype(), mlx_rs::Dtype::Bfloat16);
        let back: Vec<f32> = host(scaled).iter().map(|it| it / scale).collect();
        assert_eq!(host(plain), back);
    }
}

#[test]
fn nothing_predicted_is_no_loss() {
    let mut decoder = model("qwen3");
    let ignored = Example { tokens: vec![5, 6, 7], labels: vec![5, IGNORE_INDEX, IGNORE_INDEX] };
    let batch = Batch::new(&[ignored]).unwrap();
    assert_eq!(loss_forward(&decoder, &batch, 0.1, &mut NoHook).unwrap(), 0.0);
    assert_eq!(sequence_logprob(&decoder, &batch, LogprobReduction::Mean).unwrap(), [0.0]);
    let mut trainee = Trainee::new(&mut decoder).weights(&["q_proj"], &[]).unwrap();
    let found = gradients(&mut trainee, &batch, GradientOptions::default());
    assert_eq!((found.loss, found.tokens), (0.0, 0));
    assert!(found.values.iter().all(|it| host(it).iter().all(|&it| it == 0.0)));
}

/// KL is none from a model to itself, and what its logits say from one model to another.
#[test]
fn divergence_of_models() {
    let (model, mut other) = (model("llama"), model("llama"));
    let batch = batch(&golden("llama.json"));
    for estimator in [KlEstimator::Full, KlEstimator::JensenShannon, KlEstimator::K3] {
        let none = token_kl(&model, &other, &batch, estimator).unwrap();
        assert!(none.iter().all(|it| it.abs() < 1e-6), "{none:?}");
    }
    adapt(&mut other);
    let (p, q) = (
        token_logprobs(&model, &batch, &mut NoHook).unwrap(),
        token_logprobs(&other, &batch, &mut NoHook).unwrap(),
    );
    let k1 = token_kl(&model, &other, &batch, KlEstimator::K1).unwrap();
    let counts = batch.counts();
    let mut expected = vec![0.0_f32; 3];
    for ((p, q), row) in p.iter().zip(&q).zip(batch.row_of()) {
        expected[row] += (p - q) / counts[row] as f32;
    }
    assert_close(&k1, &expected, 1e-5, "k1");
    assert!(
        token_kl(&model, &other, &batch, KlEstimator::Full).unwrap().iter().all(|&it| it > 0.0)
    );
    let error =
        token_kl(&model, &crate::common::model("qwen3"), &batch, KlEstimator::Full).unwrap_err();
    assert!(error.to_string().contains("vocabularies of 151 and of 181"), "{error}");
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let mut decoder = model("llama-q4");
    let refused = |it: mlxgk_training::Result<Trainee<'_>>| it.unwrap_err().to_string();
    let found = refused(Trainee::new(&mut decoder).weights(&["q_proj"], &[]));
    assert!(found.contains("model.layers.0.self_attn.q_proj.weight` is packed"), "{found}");
    assert!(refused(Trainee::new(&mut decoder).adapters()).contains("no adapter"));
    assert!(
        refused(Trainee::new(&mut decoder).weights(&["nothing"], &[])).contains("no parameter")
    );
    assert!(refused(Trainee::new(&mut decoder).weights(&["("], &[])).contains("pattern"));
    let narrow = noise(1, &[2, 3]);
    assert!(refused(Trainee::new(&mut decoder).soft_prompt(&narrow)).contains("[2, 3]"));
    assert!(refused(Trainee::new(&mut decoder).vectors(&[9])).contains("layer 9"));
    let mut trainee = Trainee::new(&mut decoder).vectors(&[0]).unwrap();
    let mut at = |tokens: Vec<u32>| {
        let batch = Batch::new(&[Example::text(tokens)]).unwrap();
        let failed = trainee.gradients(&batch, GradientOptions::default(), &mut NoHook);
        failed.unwrap_err().to_string()
    };
    assert!(at(vec![5, 9999]).contains("9999 is outside the vocabulary"));
    assert!(at(vec![5; 5000]).contains("5000 tokens is beyond the context"));
}
