//! Texts of whole blocks, and what reading them leaves in a cache.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::sync::Arc;

use mlx_rs::Array;
use mlxgk_kv_cache::{BLOCK, Column, Effect, KvCache, LayerSpec};

pub(crate) const LAYERS: [LayerSpec; 6] = [
    LayerSpec::Full,
    LayerSpec::Sliding { window: 20 },
    LayerSpec::Shared { owner: 1 },
    LayerSpec::State,
    LayerSpec::Chunked { size: 30 },
    LayerSpec::Nothing,
];

/// A text: which of three tokens and effects each of its blocks is made of.
pub(crate) type Text = Vec<(u32, u8)>;

pub(crate) fn columns(text: &[(u32, u8)]) -> (Vec<Column>, Vec<Effect>) {
    let columns = text.iter().flat_map(|it| vec![Column::Token(it.0); BLOCK]).collect();
    let effect = |it: &(u32, u8)| match it.1 {
        0 => None,
        name => Some(Arc::from(format!("steering {name}"))),
    };
    (columns, text.iter().flat_map(|it| vec![effect(it); BLOCK]).collect())
}

/// Feeds a block; what it leaves depends on all before it.
pub(crate) fn feed(cache: &mut KvCache, block: (u32, u8)) {
    let before = cache.state_of(3).first().map_or(1.0, |it| it.try_as_slice::<f32>().unwrap()[0]);
    let sum = (before * 31.0 + block.0 as f32 * 7.0 + f32::from(block.1)) % 1000.0;
    let fed = vec![block.0; BLOCK];
    let numbers: Vec<f32> = (0..BLOCK * 32).map(|it| sum + (it % 97) as f32).collect();
    let new = Array::from_slice(&numbers, &[1, 1, BLOCK as i32, 32]);
    cache.allow_other_steering();
    let mut pass = cache.begin_tokens(&[&fed], &[]).unwrap();
    for layer in [0, 1, 4] {
        pass.append(layer, &new, &new).unwrap();
    }
    pass.set_state(3, vec![Array::from_slice(&[sum], &[1])]).unwrap();
    pass.commit().unwrap();
    cache.evaluate().unwrap();
}
