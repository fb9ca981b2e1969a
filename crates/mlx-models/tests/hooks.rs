//! Residual hooks: what they see, and that they are obeyed everywhere alike.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::path::Path;

use mlx_rs::Array;
use mlxgk_kv_cache::Step;
use mlxgk_mlx_models::{
    Capture, ComputeDtype, Decoder, Error, ErrorKind, HookPoint, NoHook, ResidualHook, Result,
};

fn model(name: &str) -> Decoder {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name);
    Decoder::load(&folder, ComputeDtype::Float32).unwrap()
}

fn values(array: &Array) -> Vec<f32> {
    array.contiguous().unwrap().to_vec_exact().unwrap()
}

/// Adds a constant after one block.
struct Push(usize, f32);

impl ResidualHook for Push {
    fn apply(&mut self, point: HookPoint, hidden: Array, _: &Step) -> Result<Array> {
        match point {
            HookPoint::ResidPost(layer) if layer == self.0 => {
                Ok(hidden.add(Array::from_f32(self.1))?)
            }
            _ => Ok(hidden),
        }
    }
}

#[test]
fn every_point_is_visited_in_order() {
    struct Visits(Vec<HookPoint>);
    impl ResidualHook for Visits {
        fn apply(&mut self, point: HookPoint, hidden: Array, _: &Step) -> Result<Array> {
            self.0.push(point);
            Ok(hidden)
        }
    }
    let model = model("llama");
    let mut visits = Visits(Vec::new());
    model.forward(&[&[1, 2]], &mut model.new_cache(1), &mut visits).unwrap();
    let layers = model.components().layers;
    let mut expected: Vec<HookPoint> = (0..layers)
        .flat_map(|it| [HookPoint::ResidPre(it), HookPoint::ResidMid(it), HookPoint::ResidPost(it)])
        .collect();
    expected.push(HookPoint::FinalNorm);
    assert_eq!(visits.0, expected);
}

#[test]
fn a_push_moves_the_logits_and_the_same_ones_in_parts_and_in_batches() {
    for name in ["llama", "gemma3", "qwen3-q8"] {
        let model = model(name);
        let ids = [5, 9, 2, 7, 7, 1];
        let plain = values(&model.logits_of(&[&ids]).unwrap());
        let mut push = Push(0, 0.7);
        let whole = model.forward(&[&ids], &mut model.new_cache(1), &mut push).unwrap();
        let whole = values(&whole);
        assert!(whole.iter().zip(&plain).any(|(a, b)| (a - b).abs() > 1e-2), "{name}");

        let vocab = model.vocab_size();
        let mut cache = model.new_cache(1);
        model.forward(&[&ids[..4]], &mut cache, &mut push).unwrap();
        let rest = values(&model.forward(&[&ids[4..]], &mut cache, &mut push).unwrap());
        let mut padded = model.new_padded_cache(&[0, 2]);
        let other = [0, 0, 5, 9, 2, 7];
        let batch = model.forward(&[&ids, &other], &mut padded, &mut push).unwrap();
        let batch = values(&batch);
        let worst = |a: &[f32], b: &[f32]| {
            a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0_f32, f32::max)
        };
        assert!(worst(&rest, &whole[4 * vocab..]) < 1e-4, "{name}");
        assert!(worst(&batch[..6 * vocab], &whole) < 1e-4, "{name}");
        // The short row's tokens stand two columns later.
        assert!(worst(&batch[8 * vocab..], &whole[..4 * vocab]) < 1e-4, "{name}");
    }
}

#[test]
fn captured_states_are_the_ones_passed_on() {
    let model = model("qwen2");
    let rows: [&[u32]; 1] = [&[4, 8, 15]];
    let (logits, hidden) = model.forward_with_hidden(&rows, &[1, 0]).unwrap();
    assert_eq!(hidden[0].shape(), [1, 3, model.hidden_size() as i32]);
    assert_eq!(values(&logits), values(&model.logits_of(&rows).unwrap()));

    let mut capture = Capture::new([HookPoint::ResidPre(1), HookPoint::FinalNorm]);
    model.forward(&rows, &mut model.new_cache(1), &mut capture).unwrap();
    assert_eq!(values(&capture.captured()[&HookPoint::ResidPre(1)]), values(&hidden[1]));
    let normed = &capture.captured()[&HookPoint::FinalNorm];
    assert_eq!(values(&model.logits(normed).unwrap()), values(&logits));
    assert_eq!(model.forward_with_hidden(&rows, &[99]).unwrap_err().kind(), ErrorKind::Hook);
}

#[test]
fn a_failing_hook_leaves_the_cache_as_it_was() {
    struct Fail;
    impl ResidualHook for Fail {
        fn apply(&mut self, point: HookPoint, hidden: Array, _: &Step) -> Result<Array> {
            match point {
                HookPoint::ResidMid(1) => Err(Error::new(ErrorKind::Hook, "no")),
                _ => Ok(hidden),
            }
        }
    }
    let model = model("mistral");
    let mut cache = model.new_cache(1);
    model.forward(&[&[1, 2, 3]], &mut cache, &mut NoHook).unwrap();
    let mut clean = cache.fork();
    assert!(model.forward(&[&[4, 5]], &mut cache, &mut Fail).is_err());
    assert_eq!((cache.len(), cache.tokens(0)), (3, vec![1, 2, 3]));
    let after = model.forward(&[&[6]], &mut cache, &mut NoHook).unwrap();
    let expected = model.forward(&[&[6]], &mut clean, &mut NoHook).unwrap();
    assert_eq!(values(&after), values(&expected));
}
