//! Texts of whole blocks, and what reading them leaves in a cache.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::sync::Arc;

use mlx_rs::Array;
use mlxgk_kv_cache::{CacheOptions, Column, Effect, KvCache, LayerSpec, PrefixScope, Quantization};

/// Every kind of layer.
const LAYERS: &[LayerSpec] = &[
    LayerSpec::Full,
    LayerSpec::Sliding { window: 20 },
    LayerSpec::Shared { owner: 1 },
    LayerSpec::State,
    LayerSpec::Chunked { size: 30 },
    LayerSpec::Nothing,
];

/// Layers of columns alone, whose windows reach beyond a block.
const COLUMNS: &[LayerSpec] = &[
    LayerSpec::Full,
    LayerSpec::Sliding { window: 150 },
    LayerSpec::Shared { owner: 1 },
    LayerSpec::Chunked { size: 90 },
    LayerSpec::Sliding { window: 20 },
    LayerSpec::Nothing,
];

/// A text: which of two tokens and effects each of its blocks is made of.
pub(crate) type Text = Vec<(u32, u8)>;

/// Caches of one kind.
#[derive(Debug)]
pub(crate) struct Kind {
    pub(crate) layers: &'static [LayerSpec],
    pub(crate) options: CacheOptions,
    pub(crate) scope: PrefixScope,
}

impl Kind {
    fn new(layers: &'static [LayerSpec], options: CacheOptions) -> Self {
        Self { layers, scope: PrefixScope::new("model", layers, &options, ""), options }
    }

    pub(crate) fn dense() -> Self {
        Self::new(LAYERS, CacheOptions::new())
    }

    pub(crate) fn all() -> [Self; 5] {
        let packed = CacheOptions::new().quantized(Quantization::new(32, 4).unwrap());
        [
            Self::dense(),
            Self::new(LAYERS, CacheOptions::new().bounded(3, 30)),
            Self::new(LAYERS, packed.clone()),
            Self::new(COLUMNS, CacheOptions::new()),
            Self::new(COLUMNS, packed),
        ]
    }

    pub(crate) fn block(&self) -> usize {
        self.scope.block()
    }

    pub(crate) fn empty(&self) -> KvCache {
        KvCache::with_options(self.layers, &[0], &self.options).unwrap()
    }

    pub(crate) fn columns(&self, text: &[(u32, u8)]) -> (Vec<Column>, Vec<Effect>) {
        let columns = text.iter().flat_map(|it| vec![Column::Token(it.0); self.block()]).collect();
        let effect = |it: &(u32, u8)| match it.1 {
            0 => None,
            name => Some(Arc::from(format!("steering {name}"))),
        };
        (columns, text.iter().flat_map(|it| vec![effect(it); self.block()]).collect())
    }

    /// Feeds the last block of a text; what it leaves depends on all before it.
    pub(crate) fn feed(&self, cache: &mut KvCache, text: &[(u32, u8)]) {
        let next =
            |sum: f32, it: &(u32, u8)| (sum * 31.0 + it.0 as f32 * 7.0 + f32::from(it.1)) % 1000.0;
        let sum = text.iter().fold(1.0, next);
        let numbers: Vec<f32> = (0..self.block() * 32).map(|it| sum + (it % 97) as f32).collect();
        let new = Array::from_slice(&numbers, &[1, 1, self.block() as i32, 32]);
        cache.allow_other_steering();
        let fed = vec![text[text.len() - 1].0; self.block()];
        let mut pass = cache.begin_tokens(&[&fed], &[]).unwrap();
        for (index, layer) in self.layers.iter().enumerate() {
            match layer {
                LayerSpec::Shared { .. } | LayerSpec::Nothing => {}
                LayerSpec::State => {
                    pass.set_state(index, vec![Array::from_slice(&[sum], &[1])]).unwrap();
                }
                _ => _ = pass.append(index, &new, &new).unwrap(),
            }
        }
        pass.commit().unwrap();
        cache.evaluate().unwrap();
    }

    /// A cache that read a text without a store.
    pub(crate) fn alone(&self, text: &[(u32, u8)]) -> KvCache {
        let mut cache = self.empty();
        (1..=text.len()).for_each(|it| self.feed(&mut cache, &text[..it]));
        cache
    }
}

/// What a cache holds, whatever it was filled under.
pub(crate) fn hash(mut cache: KvCache) -> String {
    cache.allow_other_steering();
    cache.state_hash().unwrap()
}
