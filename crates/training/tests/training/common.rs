//! Reading the goldens of the area `training`, and comparing with them.

use std::{fs, path::PathBuf};

use mlx_rs::Array;
use mlxgk_mlx_models::{ComputeDtype, Decoder};
use mlxgk_training::{Batch, Example};
use serde_json::Value;

pub(crate) fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

pub(crate) fn golden(name: &str) -> Value {
    let path = fixtures().join("training").join(name);
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

pub(crate) fn model(name: &str) -> Decoder {
    model_in(name, ComputeDtype::Float32)
}

pub(crate) fn model_in(name: &str, dtype: ComputeDtype) -> Decoder {
    Decoder::load(fixtures().join("models").join(name), dtype).unwrap()
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|it| it.as_u64().unwrap() as u32).collect()
}

pub(crate) fn integers(value: &Value) -> Vec<i32> {
    value.as_array().unwrap().iter().map(|it| it.as_i64().unwrap() as i32).collect()
}

/// All numbers of nested lists, one after the other.
pub(crate) fn floats(value: &Value) -> Vec<f32> {
    match value {
        Value::Array(values) => values.iter().flat_map(floats).collect(),
        other => vec![other.as_f64().unwrap() as f32],
    }
}

/// Nested lists as an array of their shape.
pub(crate) fn array(value: &Value) -> Array {
    let (mut shape, mut inner) = (Vec::new(), value);
    while let Value::Array(values) = inner {
        shape.push(values.len() as i32);
        inner = &values[0];
    }
    Array::from_slice(&floats(value), &shape)
}

pub(crate) fn host(array: &Array) -> Vec<f32> {
    let array = array.as_dtype(mlx_rs::Dtype::Float32).unwrap();
    array.contiguous().unwrap().to_vec_exact().unwrap()
}

/// The batch that a golden was recorded with.
pub(crate) fn batch(golden: &Value) -> Batch {
    let rows = golden["tokens"].as_array().unwrap().iter();
    let labels = golden["labels"].as_array().unwrap();
    let example = |(row, labels)| Example { tokens: ids(row), labels: integers(labels) };
    Batch::new(&rows.zip(labels).map(example).collect::<Vec<_>>()).unwrap()
}

/// Whether two lists agree, relative to the largest number in the second.
pub(crate) fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let size = expected.iter().fold(0.0_f32, |size, it| size.max(it.abs()));
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let off = (found - expected).abs();
        assert!(
            off <= tolerance * size,
            "{what}, {index}: {found} for {expected}, of at most {size}"
        );
    }
}
