//! Steps: optimizers, schedules and averages against torch, precision, checkpoints.

use mlx_rs::{Array, error::Exception};
use mlxgk_kv_cache::Step;
use mlxgk_mlx_models::{ComputeDtype, HookPoint, NoHook, ResidualHook};
use mlxgk_training::{
    Adafactor, AdjustLr, Batch, Decay, Ema, ErrorKind, Example, LoraConfig, LossScaler, Muon,
    Optimizer, OptimizerKind, ParameterGroup, Schedule, TorchAdafactor, Trainee, Trainer,
    TrainingConfig, attach_lora, clip_global_norm, loss_forward,
};
use serde_json::{Value, json};

use crate::common::{array, assert_close, floats, golden, host, model, model_in};

fn optimizer(case: &Value) -> OptimizerKind {
    let it = &case["optimizer"];
    let number = |name: &str| it[name].as_f64().unwrap();
    let weight_decay = number("weight_decay");
    let eps = |or: f64| [0, 1].map(|at| it["eps"][at].as_f64().unwrap_or(or));
    match it["name"].as_str().unwrap() {
        "adamw" => {
            let betas = [0, 1].map(|at| it["betas"][at].as_f64().unwrap());
            OptimizerKind::AdamW { betas, eps: number("eps"), weight_decay }
        }
        "adafactor" => OptimizerKind::Adafactor(Adafactor {
            eps: eps(f64::NAN),
            clip_threshold: number("clip_threshold"),
            decay_rate: number("decay_rate"),
            beta1: it["beta1"].as_f64(),
            weight_decay,
            scale_parameter: it["scale_parameter"].as_bool().unwrap(),
        }),
        "torch_adafactor" => OptimizerKind::TorchAdafactor(TorchAdafactor {
            beta2_decay: number("beta2_decay"),
            eps: eps(TorchAdafactor::default().eps[0]),
            d: number("d"),
            weight_decay,
        }),
        "muon" => OptimizerKind::Muon(Muon {
            momentum: number("momentum"),
            nesterov: it["nesterov"].as_bool().unwrap(),
            weight_decay,
            adjust_lr: match it["adjust_lr_fn"].as_str().unwrap() {
                "original" => AdjustLr::Original,
                "match_rms_adamw" => AdjustLr::MatchRmsAdamw,
                _ => AdjustLr::SpectralUnclamped,
            },
            ..Muon::default()
        }),
        _ => OptimizerKind::Sgd {
            momentum: number("momentum"),
            nesterov: it["nesterov"].as_bool().unwrap(),
            weight_decay,
        },
    }
}

fn schedule(it: &Value) -> Schedule {
    let decay = match it["name"].as_str().unwrap() {
        "constant" => Decay::Constant,
        "linear" => Decay::Linear,
        "cosine" => Decay::Cosine,
        _ => Decay::Wsd { steps: it["decay"].as_u64().unwrap() },
    };
    Schedule { warmup: it["warmup"].as_u64().unwrap(), decay }
}

#[test]
fn twenty_steps_are_those_of_torch() {
    let golden = golden("optimizers.json");
    let arrays = |it: &Value| it.as_array().unwrap().iter().map(array).collect::<Vec<_>>();
    let gradients: Vec<Vec<Array>> =
        golden["gradients"].as_array().unwrap().iter().map(arrays).collect();
    for case in golden["cases"].as_array().unwrap() {
        let what = format!("{} {}", case["optimizer"], case["schedule"]);
        let mut parameters = arrays(&golden["start"]);
        let mut optimizer = Optimizer::new(optimizer(case)).unwrap();
        let mut ema = Ema::new(&parameters, case["decay"].as_f64().unwrap(), true).unwrap();
        let schedule = schedule(&case["schedule"]);
        let (rates, norms) = (floats(&case["rates"]), floats(&case["norms"]));
        for (step, drawn) in gradients.iter().enumerate() {
            let most = case["clip"].as_f64().map(|it| it as f32);
            let (clipped, norm) = clip_global_norm(drawn.clone(), most).unwrap();
            let total = gradients.len() as u64;
            let rate = case["rate"].as_f64().unwrap() * schedule.factor(step as u64, total);
            assert_close(
                &[norm, rate as f32 + 1.0],
                &[norms[step], rates[step] + 1.0],
                1e-6,
                &what,
            );
            // Muon is for matrices alone, and leaves the others.
            let is_muon = case["optimizer"]["name"] == "muon";
            let chosen: Vec<usize> = (0..parameters.len())
                .filter(|&it| !is_muon || parameters[it].ndim() == 2)
                .collect();
            let of = |all: &[Array]| chosen.iter().map(|&it| all[it].clone()).collect::<Vec<_>>();
            let after = optimizer.step(&of(&parameters), &of(&clipped), rate).unwrap();
            for (&at, after) in chosen.iter().zip(after) {
                parameters[at] = after;
            }
            ema.update(&parameters).unwrap();
            let Some(after) = case["after"].get((step + 1).to_string()) else { continue };
            for (name, found) in [("parameters", &parameters[..]), ("averages", ema.averages())] {
                for (found, expected) in found.iter().zip(after[name].as_array().unwrap()) {
                    assert_close(&host(found), &floats(expected), 1e-5, &format!("{what} {name}"));
                }
            }
        }
    }
}

fn batches() -> Vec<Batch> {
    let texts =
        [vec![5, 17, 42, 9, 3, 77], vec![8, 1, 30], vec![60, 61, 62, 63], vec![4, 90, 2, 7, 11]];
    let examples: Vec<Example> = texts
        .iter()
        .enumerate()
        .map(|(index, it)| Example::completion(&it[..1 + index % 2], &it[1 + index % 2..]))
        .collect();
    examples.chunks(2).map(|it| Batch::new(it).unwrap()).collect()
}

fn values(trainee: &Trainee<'_>) -> Vec<Vec<f32>> {
    trainee.masters().iter().map(host).collect()
}

/// A group's parameters change as under its optimizer and learning rate alone, the others as under the
/// run's; and a run with groups is continued to the bit.
#[test]
fn groups_have_optimizers_of_their_own() {
    let (matrices, rest) = (r"layers\..*_proj", "embed_tokens|norm");
    let muon = OptimizerKind::Muon(Muon::default());
    let group = ParameterGroup { names: matrices.to_owned(), optimizer: muon, learning_rate: 0.02 };
    let configured = |rate, optimizer, groups| {
        let mut config = TrainingConfig::new(6, rate);
        config.schedule = Schedule { warmup: 1, decay: Decay::Cosine };
        (config.optimizer, config.groups) = (optimizer, groups);
        config
    };
    let both = configured(0.01, OptimizerKind::default(), vec![group]);
    // Of a step without groups, those parameters count that the group, or the rest, has.
    let after_a_step = |config: TrainingConfig, steps, patterns: &[&str], counted: &str| {
        let mut decoder = model("qwen3");
        let trainee = Trainee::new(&mut decoder).weights(patterns, &[]).unwrap();
        let mut trainer = Trainer::new(trainee, config).unwrap();
        run(&mut trainer, steps);
        let named = trainer.trainee().names().iter().zip(values(trainer.trainee()));
        let pattern = regex::Regex::new(counted).unwrap();
        named.filter(|it| pattern.is_match(it.0)).map(|it| it.1).collect::<Vec<_>>()
    };
    let all: &[&str] = &[];
    // The first step's learning rate is 0, so the gradients of the second are those of the same model;
    // without clipping they do not depend on what else is trained.
    let unclipped = |mut config: TrainingConfig| {
        config.max_grad_norm = None;
        config
    };
    let alone = unclipped(configured(0.02, muon, Vec::new()));
    let both_unclipped = unclipped(both.clone());
    assert!(
        after_a_step(both_unclipped.clone(), 2, all, matrices)
            == after_a_step(alone, 2, &[matrices], matrices)
    );
    let alone = unclipped(configured(0.01, OptimizerKind::default(), Vec::new()));
    assert!(after_a_step(both_unclipped, 2, all, rest) == after_a_step(alone, 2, all, rest));
    // A group can have them all.
    let whole = ParameterGroup {
        names: ".*".to_owned(),
        optimizer: OptimizerKind::default(),
        learning_rate: 0.01,
    };
    let grouped = configured(0.5, OptimizerKind::default(), vec![whole]);
    let alone = configured(0.01, OptimizerKind::default(), Vec::new());
    assert!(after_a_step(grouped, 2, all, rest) == after_a_step(alone, 2, all, rest));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    let mut decoder = model("qwen3");
    let trainee = Trainee::new(&mut decoder).weights(all, &[]).unwrap();
    let mut whole = Trainer::new(trainee, both.clone()).unwrap();
    run(&mut whole, 3);
    whole.save(&path, &Value::Null).unwrap();
    run(&mut whole, 3);
    let mut decoder = model("qwen3");
    let trainee = Trainee::new(&mut decoder).weights(all, &[]).unwrap();
    let mut resumed = Trainer::new(trainee, both.clone()).unwrap();
    resumed.resume(&path).unwrap();
    run(&mut resumed, 3);
    assert!(values(resumed.trainee()) == values(whole.trainee()));

    let without = configured(0.01, OptimizerKind::default(), Vec::new());
    let mut other = Trainer::new(resumed.finish(), without).unwrap();
    assert!(other.resume(&path).unwrap_err().to_string().contains("other settings"));

    let refused = |change: &dyn Fn(&mut ParameterGroup)| {
        let mut config = both.clone();
        change(&mut config.groups[0]);
        let mut decoder = model("qwen3");
        let trainee = Trainee::new(&mut decoder).weights(all, &[]).unwrap();
        Trainer::new(trainee, config).unwrap_err().to_string()
    };
    assert!(refused(&|it| it.names = "(".to_owned()).contains("names of a parameter group"));
    assert!(refused(&|it| it.names = "none".to_owned()).contains("for the group `none`"));
    assert!(refused(&|it| it.names = "norm".to_owned()).contains("Muon trains matrices"));
    assert!(refused(&|it| it.learning_rate = -1.0).contains("learning rate is -1"));
}

/// Micro-batches with uneven numbers of predicted tokens are one batch, not a mean of means.
#[test]
fn accumulated_batches_are_one_batch() {
    let all = [
        Example::completion(&[5, 17, 42], &[9, 3, 77, 12]),
        Example::completion(&[8], &[1]),
        Example::completion(&[60, 61], &[62, 63]),
    ];
    let mut after = Vec::new();
    for sizes in [vec![3], vec![1, 2], vec![1, 1, 1]] {
        let mut decoder = model("qwen3");
        let trainee = Trainee::new(&mut decoder).weights(&[], &[]).unwrap();
        let mut config = TrainingConfig::new(1, 0.5);
        config.optimizer = OptimizerKind::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
        config.max_grad_norm = None;
        let mut trainer = Trainer::new(trainee, config).unwrap();
        let mut rest = &all[..];
        let parts: Vec<Batch> = sizes
            .iter()
            .map(|&size| {
                let (part, others) = rest.split_at(size);
                rest = others;
                Batch::new(part).unwrap()
            })
            .collect();
        let report = trainer.train_step(&parts, 0.0, &mut NoHook).unwrap();
        assert_eq!(report.tokens, 7);
        after.push((report.loss, values(trainer.trainee())));
    }
    for (loss, other) in &after[1..] {
        assert!((loss - after[0].0).abs() < 1e-6 * loss.abs());
        for (found, expected) in other.iter().zip(&after[0].1) {
            assert_close(found, expected, 1e-5, "accumulated");
        }
    }
}

/// Fails to be finite when it is told to.
struct Overflow(bool);

impl ResidualHook for Overflow {
    fn apply(
        &mut self,
        point: HookPoint,
        hidden: Array,
        _: &Step,
    ) -> mlxgk_mlx_models::Result<Array> {
        match point {
            HookPoint::ResidPost(1) if self.0 => {
                let broken = hidden.multiply(Array::from_f32(f32::INFINITY));
                broken.map_err(|e: Exception| mlxgk_mlx_models::Error::mlx("test", &e))
            }
            _ => Ok(hidden),
        }
    }
}

#[test]
fn an_overflow_skips_the_step_and_halves_the_scale() {
    let mut decoder = model("llama");
    let trainee = Trainee::new(&mut decoder).weights(&["q_proj"], &[]).unwrap();
    let mut config = TrainingConfig::new(9, 0.01);
    config.scaler = LossScaler::dynamic().starting_at(1024.0).unwrap().growing_after(2);
    config.ema_decay = Some(0.9);
    let mut trainer = Trainer::new(trainee, config).unwrap();
    let batches = batches();
    let step = |trainer: &mut Trainer<'_>, overflows| {
        let report = trainer.train_step(&batches, 0.0, &mut Overflow(overflows)).unwrap();
        (report.skipped, report.scale, trainer.scaler().scale())
    };
    assert_eq!(step(&mut trainer, false), (false, 1024.0, 1024.0));
    let before = (
        values(trainer.trainee()),
        trainer.ema().unwrap().averages().iter().map(host).collect::<Vec<_>>(),
    );
    assert_eq!(step(&mut trainer, true), (true, 1024.0, 512.0));
    let after = (
        values(trainer.trainee()),
        trainer.ema().unwrap().averages().iter().map(host).collect::<Vec<_>>(),
    );
    assert!(before == after);
    // The count of clean steps started again.
    assert_eq!(step(&mut trainer, false), (false, 512.0, 512.0));
    assert_eq!(step(&mut trainer, false), (false, 512.0, 1024.0));

    // Without dynamic scaling it is an error that names the parameter, and changes nothing.
    let mut decoder = model("llama");
    let trainee = Trainee::new(&mut decoder).weights(&["q_proj"], &[]).unwrap();
    let mut trainer = Trainer::new(trainee, TrainingConfig::new(9, 0.01)).unwrap();
    let before = values(trainer.trainee());
    let error = trainer.train_step(&batches, 0.0, &mut Overflow(true)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFinite);
    assert!(error.to_string().contains("step 1: the gradient of `model.layers"), "{error}");
    assert!(before == values(trainer.trainee()));
}

/// A step out of what fp32 can hold is an error that names the parameter, and changes nothing.
#[test]
fn a_step_to_infinity_is_refused() {
    let adamw =
        |weight_decay| OptimizerKind::AdamW { betas: [0.9, 0.999], eps: 1e-8, weight_decay };
    for (rate, optimizer) in [(1e30, adamw(0.0)), (3e38, adamw(1e30)), (1.0, adamw(f64::MAX))] {
        let mut decoder = model("llama");
        let trainee = Trainee::new(&mut decoder).weights(&["q_proj"], &[]).unwrap();
        let mut config = TrainingConfig::new(9, rate);
        config.optimizer = optimizer;
        let mut trainer = Trainer::new(trainee, config).unwrap();
        let before = values(trainer.trainee());
        let error = trainer.train_step(&batches(), 0.0, &mut NoHook).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFinite);
        let words =
            "the norm of `model.layers.0.self_attn.q_proj.weight` is not finite after step 1";
        assert!(error.to_string().contains(words), "{error}");
        assert!(before == values(trainer.trainee()));
        assert_eq!(trainer.step(), 0);
    }
}

/// Steps smaller than bf16 can tell apart add up in the masters.
#[test]
fn masters_keep_what_half_precision_loses() {
    let mut decoder = model_in("llama", ComputeDtype::Bfloat16);
    let trainee = Trainee::new(&mut decoder).weights(&["layers.0.input_layernorm"], &[]).unwrap();
    let mut config = TrainingConfig::new(40, 1e-4);
    config.max_grad_norm = None;
    let mut trainer = Trainer::new(trainee, config).unwrap();
    let held = |trainer: &Trainer<'_>| {
        let mut held = None;
        trainer.trainee().decoder().visit_parameters(|it| {
            if it.path == "model.layers.0.input_layernorm.weight" {
                assert_eq!(it.array.dtype(), mlx_rs::Dtype::Bfloat16);
                held = Some(host(it.array));
            }
        });
        held.unwrap()
    };
    let (start, model_start) = (values(trainer.trainee()), held(&trainer));
    trainer.train_step(&batches(), 0.0, &mut NoHook).unwrap();
    assert_eq!(held(&trainer), model_start);
    assert_ne!(values(trainer.trainee()), start);
    for _ in 1..40 {
        trainer.train_step(&batches(), 0.0, &mut NoHook).unwrap();
    }
    assert_ne!(held(&trainer), model_start);
}

fn run(trainer: &mut Trainer<'_>, steps: u64) -> Vec<f64> {
    let batches = batches();
    let mut step = |_| {
        let batch = &batches[trainer.step() as usize % 2];
        trainer.train_step(std::slice::from_ref(batch), 0.1, &mut NoHook).unwrap().loss
    };
    (0..steps).map(&mut step).collect()
}

#[test]
fn a_run_continues_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    for (kind, trained) in [
        (OptimizerKind::default(), ["self_attn", "norm"]),
        (
            OptimizerKind::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.01 },
            ["self_attn", "norm"],
        ),
        (
            OptimizerKind::Adafactor(Adafactor { beta1: Some(0.9), ..Adafactor::default() }),
            ["self_attn", "norm"],
        ),
        (OptimizerKind::TorchAdafactor(TorchAdafactor::default()), ["self_attn", "norm"]),
        (OptimizerKind::Muon(Muon::default()), ["q_proj", "up_proj"]),
    ] {
        let mut config = TrainingConfig::new(6, 0.01);
        config.optimizer = kind;
        config.schedule = Schedule { warmup: 1, decay: Decay::Cosine };
        config.scaler = LossScaler::dynamic().starting_at(8.0).unwrap().growing_after(4);
        config.ema_decay = Some(0.99);
        let mut decoder = model("gemma2");
        let trainee = Trainee::new(&mut decoder).weights(&trained, &[]).unwrap();
        let mut whole = Trainer::new(trainee, config.clone()).unwrap();
        run(&mut whole, 3);
        whole.save(&path, &json!({ "epoch": 2, "place": 17 })).unwrap();
        let losses = run(&mut whole, 3);

        let mut decoder = model("gemma2");
        let trainee = Trainee::new(&mut decoder).weights(&trained, &[]).unwrap();
        let mut resumed = Trainer::new(trainee, config.clone()).unwrap();
        assert_eq!(resumed.resume(&path).unwrap(), json!({ "epoch": 2, "place": 17 }));
        assert_eq!(run(&mut resumed, 3), losses);
        assert!(values(resumed.trainee()) == values(whole.trainee()));
        assert_eq!(resumed.scaler(), whole.scaler());
        let averages =
            |it: &Trainer<'_>| it.ema().unwrap().averages().iter().map(host).collect::<Vec<_>>();
        assert!(averages(&resumed) == averages(&whole));
        let own = values(whole.trainee());
        let seen = whole.with_averages(|it| Ok(values(it))).unwrap();
        assert!(seen == averages(&resumed) && values(whole.trainee()) == own);

        // Other settings, another file, half a file: refused, and nothing has changed.
        let mut other = Trainer::new(resumed.finish(), TrainingConfig::new(7, 0.01)).unwrap();
        let refused = other.resume(&path).unwrap_err().to_string();
        assert!(refused.contains("other settings"), "{refused}");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(other.resume(&path).unwrap_err().to_string().contains("is damaged"));
        assert!(
            other
                .resume(folder.path().join("none"))
                .unwrap_err()
                .to_string()
                .contains("cannot be read")
        );
        let nowhere = folder.path().join("no/such/folder");
        assert!(
            other
                .save(&nowhere, &Value::Null)
                .unwrap_err()
                .to_string()
                .contains("cannot be written")
        );
    }
}

/// Dropout before adapters is drawn for each step and micro-batch, the same again for a pass that is
/// computed again and for a run that is continued, and is off wherever nothing is learned.
#[test]
fn dropout_follows_seed_and_step() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    let adapted = |dora: bool| {
        let mut decoder = model("qwen3");
        let lora = LoraConfig { rank: 3, dora, ..LoraConfig::default() };
        attach_lora(&mut decoder, &lora).unwrap();
        decoder
    };
    for dora in [false, true] {
        let config = |rate: f32, seed: u64| {
            let mut config = TrainingConfig::new(6, 0.02);
            (config.lora_dropout, config.seed) = (rate, seed);
            config
        };
        let learned = |config: TrainingConfig| {
            let mut decoder = adapted(dora);
            let trainee = Trainee::new(&mut decoder).adapters().unwrap();
            let mut trainer = Trainer::new(trainee, config).unwrap();
            run(&mut trainer, 6);
            values(trainer.trainee())
        };
        let whole = learned(config(0.4, 7));
        assert!(whole == learned(config(0.4, 7)));
        assert!(whole != learned(config(0.4, 8)) && whole != learned(config(0.0, 7)));
        assert!(learned(config(0.0, 7)) == learned(TrainingConfig::new(6, 0.02)));
        let mut pieces = config(0.4, 7);
        pieces.checkpoint_layers = Some(1);
        for (found, expected) in learned(pieces).iter().zip(&whole) {
            assert_close(found, expected, 1e-5, "computed again");
        }

        let mut decoder = adapted(dora);
        let trainee = Trainee::new(&mut decoder).adapters().unwrap();
        let mut half = Trainer::new(trainee, config(0.4, 7)).unwrap();
        run(&mut half, 3);
        half.save(&path, &Value::Null).unwrap();
        // What the model says is without dropout, while it is trained and after.
        let said = half.trainee().logprobs(&batches()[0], &mut NoHook).unwrap();
        assert_eq!(said, half.trainee().logprobs(&batches()[0], &mut NoHook).unwrap());
        let decoder = half.finish();
        assert_eq!(said, decoder.logprobs(&batches()[0], &mut NoHook).unwrap());
        let mut decoder = adapted(dora);
        let trainee = Trainee::new(&mut decoder).adapters().unwrap();
        let mut resumed = Trainer::new(trainee, config(0.4, 7)).unwrap();
        resumed.resume(&path).unwrap();
        run(&mut resumed, 3);
        assert!(values(resumed.trainee()) == whole);
        let mut other = Trainer::new(resumed.finish(), config(0.3, 7)).unwrap();
        assert!(other.resume(&path).unwrap_err().to_string().contains("other settings"));
    }
}

/// A soft prompt alone learns one text by heart, and the model under it stays as it was.
#[test]
fn a_soft_prompt_learns_one_batch() {
    let mut decoder = model("llama");
    let held = |decoder: &mlxgk_mlx_models::Decoder| {
        let mut held = Vec::new();
        decoder.visit_parameters(|it| held.push(host(it.array)));
        held
    };
    let before = held(&decoder);
    let batch = Batch::new(&[Example::text(vec![9, 60, 61, 62, 7])]).unwrap();
    let base = loss_forward(&decoder, &batch, 0.0, &mut NoHook).unwrap();
    let key = mlx_rs::random::key(3).unwrap();
    let soft = mlx_rs::random::normal::<f32>(&[12, 32], None, None, &key).unwrap();
    let trainee = Trainee::new(&mut decoder).soft_prompt(&soft).unwrap();
    let mut config = TrainingConfig::new(150, 0.05);
    config.schedule.decay = Decay::Linear;
    let mut trainer = Trainer::new(trainee, config).unwrap();
    let mut loss = f64::INFINITY;
    for _ in 0..150 {
        loss = trainer.train_step(std::slice::from_ref(&batch), 0.0, &mut NoHook).unwrap().loss;
        if loss < 0.05 {
            break;
        }
    }
    assert!(loss < 0.05 && base > 2.0, "{base}, then {loss}");
    assert!(before == held(trainer.finish().decoder()));
}

#[test]
fn wrong_settings_are_refused() {
    let mut decoder = model("llama");
    let mut refused = |config: TrainingConfig| {
        let trainee = Trainee::new(&mut decoder).vectors(&[0]).unwrap();
        let error = Trainer::new(trainee, config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        error.to_string()
    };
    let plain = TrainingConfig::new(5, 0.1);
    let with = |change: &dyn Fn(&mut TrainingConfig)| {
        let mut config = plain.clone();
        change(&mut config);
        config
    };
    assert!(refused(TrainingConfig::new(5, f64::NAN)).contains("learning rate is NaN"));
    assert!(refused(TrainingConfig::new(5, 1e39)).contains("learning rate is 1000000000"));
    assert!(refused(with(&|it| it.max_grad_norm = Some(0.0))).contains("bound on norms is 0"));
    assert!(refused(with(&|it| it.schedule.warmup = 6)).contains("do not fit into 5 steps"));
    assert!(refused(with(&|it| it.ema_decay = Some(2.0))).contains("decay of an average is 2"));
    let sgd = OptimizerKind::Sgd { momentum: 0.0, nesterov: true, weight_decay: 0.0 };
    assert!(refused(with(&|it| it.optimizer = sgd)).contains("Nesterov"));
    let muon = OptimizerKind::Muon(Muon::default());
    let refusal = refused(with(&|it| it.optimizer = muon));
    assert!(refusal.contains("Muon trains matrices, but `resid_post.0` is [32]"), "{refusal}");
    assert!(refused(with(&|it| it.lora_dropout = 1.0)).contains("lora_dropout is 1"));
    assert!(
        LossScaler::fixed(0.0).is_err() && LossScaler::dynamic().starting_at(f32::NAN).is_err()
    );
    let mut other = model("llama");
    assert!(
        Trainer::new(Trainee::new(&mut other), plain).unwrap_err().to_string().contains("nothing")
    );
}
