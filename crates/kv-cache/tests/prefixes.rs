//! The prefix store against a naive map: what is found, what leaves, and that nothing is left behind.
//!
//! One test, because it measures the memory of the process.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::collections::BTreeMap;

use mlx_rs::memory;
use mlxgk_kv_cache::{CacheOptions, KvCache, PrefixScope, PrefixStore};

mod texts;

use texts::{Kind, Text, hash};

/// A naive map with the same rules: whole texts, and when each was last used.
struct Naive {
    limit: usize,
    /// Bytes of a text's first block, and of a later one, without the name of a steering.
    sizes: [usize; 2],
    clock: u64,
    used: BTreeMap<Text, u64>,
}

impl Naive {
    fn bytes(&self, text: &[(u32, u8)]) -> usize {
        let name = if text[text.len() - 1].1 == 0 { 0 } else { "steering 1".len() };
        self.sizes[usize::from(text.len() > 1)] + name
    }

    fn held(&self) -> usize {
        self.used.keys().map(|it| self.bytes(it)).sum()
    }

    fn touch(&mut self, text: &[(u32, u8)], blocks: usize) {
        for len in (1..=blocks).rev() {
            self.clock += 1;
            self.used.insert(text[..len].to_vec(), self.clock);
        }
    }

    fn find(&mut self, text: &[(u32, u8)]) -> usize {
        let held = (1..=text.len()).take_while(|&len| self.used.contains_key(&text[..len])).count();
        self.touch(text, held);
        held
    }

    fn publish(&mut self, text: &[(u32, u8)]) -> bool {
        let before = text.len() - 1;
        if (1..=before).any(|len| !self.used.contains_key(&text[..len])) {
            return false;
        }
        self.touch(text, before);
        if self.used.contains_key(text) {
            self.touch_last(text);
            return true;
        }
        while self.held() + self.bytes(text) > self.limit {
            let is_leaf = |it: &Text| {
                !self.used.keys().any(|other| other.len() > it.len() && other.starts_with(it))
            };
            let leaves = self.used.iter().filter(|(it, _)| is_leaf(it) && !text.starts_with(it));
            let Some(oldest) = leaves.min_by_key(|it| it.1).map(|it| it.0.clone()) else {
                return false;
            };
            self.used.remove(&oldest);
        }
        self.touch_last(text);
        true
    }

    fn touch_last(&mut self, text: &[(u32, u8)]) {
        self.clock += 1;
        self.used.insert(text.to_vec(), self.clock);
    }
}

#[test]
fn blocks_are_found_evicted_and_forgotten_as_in_a_naive_map() {
    for kind in Kind::all() {
        memory::clear_cache().unwrap();
        let before = memory::active_memory().unwrap();
        let (scope, block) = (&kind.scope, kind.block());
        let one = PrefixStore::new(usize::MAX);
        let mut cache = kind.empty();
        let mut sizes = [0; 2];
        for (at, size) in sizes.iter_mut().enumerate() {
            kind.feed(&mut cache, &[(1, 0); 2][..=at]);
            let before = one.counters().bytes;
            assert!(one.publish(scope, &cache, &vec![None; cache.len()]).unwrap());
            *size = one.counters().bytes - before;
        }
        let limit = 7 * (sizes[1] + 10);
        let store = PrefixStore::new(limit);
        let mut naive = Naive { limit, sizes, clock: 0, used: BTreeMap::new() };
        let mut state = 5_u64;
        let mut draw = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        let mut found = 0;
        for _ in 0..250 {
            let len = 1 + draw(4) as usize;
            let text: Text = (0..len).map(|_| (draw(2) as u32, draw(2) as u8)).collect();
            let (columns, effects) = kind.columns(&text);
            let cache = store.find(scope, &columns, &effects).unwrap();
            let held = cache.as_ref().map_or(0, KvCache::len) / block;
            assert_eq!(held, naive.find(&text), "{text:?}");
            found += held;
            // What is missing is read after it, and given to the store.
            let mut cache = cache.unwrap_or_else(|| kind.empty());
            for at in held..len {
                kind.feed(&mut cache, &text[..=at]);
                let there = store.publish(scope, &cache, &effects[..(at + 1) * block]).unwrap();
                assert_eq!(there, naive.publish(&text[..=at]), "{text:?} at {at}");
                let counters = store.counters();
                assert!(counters.bytes <= store.limit());
                assert_eq!((counters.blocks, counters.bytes), (naive.used.len(), naive.held()));
            }
            assert_eq!(hash(cache), hash(kind.alone(&text)), "{text:?}");
        }
        assert!(found > 100 && store.counters().evicted > 50, "{:?}", store.counters());
        // Another salt, another model, other options: nothing is shared.
        let (columns, effects) = kind.columns(&[(0, 0)]);
        for other in [
            PrefixScope::new("model", kind.layers, &kind.options, "salt"),
            PrefixScope::new("other", kind.layers, &kind.options, ""),
            PrefixScope::new("model", kind.layers, &CacheOptions::new().bounded(1, 9), ""),
        ] {
            assert!(store.find(&other, &columns, &effects).unwrap().is_none());
        }
        // A block that is larger than the whole store finds no room in it.
        let small = PrefixStore::new(sizes[0] / 2);
        let short = kind.alone(&[(1, 0)]);
        assert!(!small.publish(scope, &short, &vec![None; block]).unwrap());
        assert_eq!((small.counters().refused, small.counters().bytes), (1, 0));

        let error = store.publish(scope, &kind.empty(), &[]).unwrap_err().to_string();
        assert_eq!(error, "blocks are of a row without padding, with what was done to each token");
        store.clear();
        assert_eq!((store.counters().blocks, store.counters().bytes), (0, 0));
        drop((one, cache, short));
        memory::clear_cache().unwrap();
        assert_eq!(memory::active_memory().unwrap(), before, "{kind:?}");
    }
}
