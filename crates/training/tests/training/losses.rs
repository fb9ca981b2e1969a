//! Every loss, and its gradient by all it is made of, against torch.

use mlx_rs::{Array, error::Exception, transforms::value_and_grad_with_argnums};
use mlxgk_training::{
    Batch, Example, IGNORE_INDEX, KlEstimator, build_action_mask,
    losses::{
        Dpo, DpoLoss, Grpo, Reduction, group_advantages, kl_divergence, kto_loss, orpo_loss,
        simpo_loss, xent_loss,
    },
    stable_softmax,
};
use serde_json::Value;

use crate::common::{array, assert_close, floats, golden, host, ids, integers};

const TOLERANCE: f32 = 1e-5;

fn estimator(name: &str) -> KlEstimator {
    match name {
        "full" => KlEstimator::Full,
        "reverse" => KlEstimator::Reverse,
        "js" => KlEstimator::JensenShannon,
        "k1" => KlEstimator::K1,
        "k2" => KlEstimator::K2,
        _ => KlEstimator::K3,
    }
}

fn dpo(case: &Value) -> Dpo {
    let loss = match case["shape"].as_str().unwrap() {
        "sigmoid" => DpoLoss::Sigmoid,
        "hinge" => DpoLoss::Hinge,
        _ => DpoLoss::Ipo,
    };
    Dpo { beta: float(&case["beta"]), label_smoothing: float(&case["smoothing"]), loss }
}

fn float(value: &Value) -> f32 {
    value.as_f64().unwrap() as f32
}

/// Rows of a matrix.
fn pair(matrix: &Array) -> [Array; 2] {
    let parts = matrix.split_equal(2, 0).unwrap();
    [0, 1].map(|it| parts[it].squeeze_axes(&[0]).unwrap())
}

/// The loss of a case as a function of its inputs, by name.
fn loss(case: &Value, inputs: &dyn Fn(&str) -> Array) -> Array {
    let beta = || float(&case["beta"]);
    match case["kind"].as_str().unwrap() {
        "cross_entropy" => {
            let labels: Vec<Vec<i32>> =
                case["labels"].as_array().unwrap().iter().map(integers).collect();
            xent_loss(&inputs("logits"), &labels, float(&case["smoothing"])).unwrap()
        }
        "kl" => {
            let targets = ids(&case["targets"]);
            let targets = Array::from_slice(&targets, &[targets.len() as i32]);
            let estimator = estimator(case["estimator"].as_str().unwrap());
            let each = kl_divergence(&inputs("p"), &inputs("q"), &targets, estimator).unwrap();
            each.sum(None).unwrap()
        }
        "dpo" => {
            let (policy, reference) = (pair(&inputs("policy")), pair(&inputs("reference")));
            dpo(case).loss([&policy[0], &policy[1]], [&reference[0], &reference[1]]).unwrap()
        }
        "orpo" => {
            let chosen = inputs("chosen");
            let nll = chosen.mean(None).unwrap().negative().unwrap();
            orpo_loss(&nll, &chosen, &inputs("rejected"), beta()).unwrap()
        }
        "simpo" => {
            let gamma = float(&case["gamma"]);
            simpo_loss(&inputs("chosen"), &inputs("rejected"), beta(), gamma).unwrap()
        }
        "kto" => {
            let liked: Vec<bool> =
                case["liked"].as_array().unwrap().iter().map(|it| it.as_bool().unwrap()).collect();
            let liked = Array::from_slice(&liked, &[liked.len() as i32]);
            let kl = float(&case["kl"]);
            kto_loss(&inputs("policy"), &inputs("reference"), &liked, kl, beta()).unwrap()
        }
        "grpo" => {
            let counts = ids(&case["counts"]);
            let answer = |&count: &u32| Example::completion(&[1], &vec![2; count as usize]);
            let batch = Batch::new(&counts.iter().map(answer).collect::<Vec<_>>()).unwrap();
            let reduction = match case["reduction"].as_str().unwrap() {
                "answers" => Reduction::Answers,
                "tokens" => Reduction::Tokens,
                _ => Reduction::Constant(7),
            };
            let clip = floats(&case["clip"]);
            let grpo = Grpo { clip_low: clip[0], clip_high: clip[1], beta: beta(), reduction };
            let reference = inputs("reference");
            let advantages = floats(&case["advantages"]);
            let (policy, old) = (inputs("policy"), inputs("old"));
            grpo.loss(&batch, &policy, &old, Some(&reference), &advantages).unwrap()
        }
        other => panic!("{other}"),
    }
}

#[test]
fn losses_and_their_gradients_are_those_of_torch() {
    let golden = golden("losses.json");
    for case in golden["cases"].as_array().unwrap() {
        let what = format!("{} {}", case["kind"], case["shape"].as_str().unwrap_or_default());
        let by: Vec<&String> = case["gradients"].as_object().unwrap().keys().collect();
        let values: Vec<Array> =
            by.iter().map(|name| array(&case["inputs"][name.as_str()])).collect();
        let function = |values: &[Array]| -> Result<Vec<Array>, Exception> {
            Ok(vec![loss(case, &|name| match by.iter().position(|it| *it == name) {
                Some(index) => values[index].clone(),
                None => array(&case["inputs"][name]),
            })])
        };
        let numbers: Vec<i32> = (0..values.len() as i32).collect();
        let (found, gradients) =
            value_and_grad_with_argnums(function, numbers.as_slice())(&values).unwrap();
        assert_close(&host(&found[0]), &floats(&case["loss"]), TOLERANCE, &what);
        for (name, gradient) in by.iter().zip(&gradients) {
            let expected = floats(&case["gradients"][name.as_str()]);
            assert_close(&host(gradient), &expected, TOLERANCE, &format!("{what}, {name}"));
        }
    }
    let expect = &golden["advantages"];
    let found = group_advantages(&floats(&expect["rewards"]), 3).unwrap();
    assert_close(&found, &floats(&expect["expect"]), TOLERANCE, "advantages");
}

#[test]
fn identities_hold() {
    let p = array(&golden("losses.json")["cases"][2]["inputs"]["p"]);
    let targets = Array::from_slice(&[3_u32, 0, 8], &[3]);
    for name in ["full", "reverse", "js", "k1", "k2", "k3"] {
        let none = host(&kl_divergence(&p, &p, &targets, estimator(name)).unwrap());
        assert!(none.iter().all(|it| it.abs() < 1e-6), "{name}: {none:?}");
    }
    // A policy that is its reference: log 2, and no reward.
    let same = Array::from_slice(&[-3.0_f32, -9.5], &[2]);
    let loss = Dpo::default().loss([&same, &same], [&same, &same]).unwrap();
    assert!((host(&loss)[0] - std::f32::consts::LN_2).abs() < 1e-6);
    assert_eq!(host(&Dpo::default().reward(&same, &same).unwrap()), [0.0, 0.0]);

    let none = xent_loss(&p.reshape(&[1, 3, 9]).unwrap(), &[vec![IGNORE_INDEX; 3]], 0.1).unwrap();
    assert_eq!(host(&none), [0.0]);

    // Scores that overflow where they are exponentiated as they are, in half precision too.
    let scores = Array::from_slice(&[60_000.0_f32, 59_990.0, -60_000.0], &[3]);
    for dtype in [mlx_rs::Dtype::Float32, mlx_rs::Dtype::Float16] {
        let softmax = host(&stable_softmax(&scores.as_dtype(dtype).unwrap()).unwrap());
        assert!(
            (softmax.iter().sum::<f32>() - 1.0).abs() < 1e-6 && softmax[0] > 0.49,
            "{softmax:?}"
        );
    }
    assert_eq!(build_action_mask(&[2, 0], 3), [[false, false, true], [true, true, true]]);
}

#[test]
fn wrong_batches_are_refused() {
    let refused = |examples: &[Example]| Batch::new(examples).unwrap_err().to_string();
    assert!(refused(&[]).contains("at least one token"));
    assert!(refused(&[Example::text(vec![])]).contains("at least one token"));
    let short = Example { tokens: vec![1, 2], labels: vec![1] };
    assert!(refused(&[short]).contains("sequence 0 has 2 tokens and 1 labels"));
    let negative = Example { tokens: vec![1, 2], labels: vec![1, -7] };
    assert!(refused(&[Example::text(vec![1]), negative]).contains("label -7 of sequence 1"));
    let logits = Array::from_slice(&[0.0_f32; 6], &[1, 2, 3]);
    let error = xent_loss(&logits, &[vec![0, 3]], 0.0).unwrap_err().to_string();
    assert!(error.contains("token id 3 is outside the vocabulary of 3"), "{error}");
    assert!(xent_loss(&logits, &[vec![0, 1]], 1.5).unwrap_err().to_string().contains("1.5"));
    assert!(xent_loss(&logits, &[vec![0]], 0.0).is_err());
}
