//! Every kind of layer, kept in every way, against the definition of what it may see: rows are fed in
//! any cuts, taken back, forked, selected and joined, and each query is asked which tokens it sees.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use mlx_rs::{
    Array, Dtype,
    ops::{broadcast_to, indexing::TryIndexOp, zeros_dtype},
};
use mlxgk_kv_cache::{
    CacheOptions, Column, Columns, ErrorKind, KvCache, LayerSpec, Mask, Quantization, RowId, Seen,
};

const LAYERS: [LayerSpec; 7] = [
    LayerSpec::Full,
    LayerSpec::Sliding { window: 5 },
    LayerSpec::Bounded { sinks: 3, size: 9 },
    LayerSpec::Shared { owner: 1 },
    LayerSpec::State,
    LayerSpec::Chunked { size: 7 },
    LayerSpec::Nothing,
];
/// Numbers per head: one group.
const WIDTH: usize = 32;

/// A cache, and what its rows are: a name, and how many tokens were fed.
#[derive(Clone)]
struct Batch {
    cache: KvCache,
    rows: Vec<(usize, usize)>,
}

fn token(name: usize, position: usize) -> u32 {
    (name * 10_000 + position) as u32
}

impl Batch {
    fn new(names: &[usize], lens: &[usize], layers: &[LayerSpec], options: &CacheOptions) -> Self {
        let longest = lens.iter().max().unwrap();
        let padding: Vec<usize> = lens.iter().map(|it| longest - it).collect();
        let mut cache = KvCache::with_options(layers, &padding, options).unwrap();
        let ids: Vec<RowId> = names.iter().map(|&it| RowId::new(it as u64)).collect();
        cache.set_row_ids(&ids).unwrap();
        Self { cache, rows: names.iter().map(|&it| (it, 0)).collect() }
    }

    /// Feeds `count` columns and asks every query of every layer what it sees.
    fn feed(&mut self, count: usize) {
        let padding = self.cache.padding();
        let start = self.cache.len();
        // The token of each row in each new column; padding is not a token.
        let place = |row: usize, column: usize| column.checked_sub(padding[row]);
        let of_row = |row: usize| {
            let name = self.rows[row].0;
            let id = move |at: Option<usize>| at.map_or(0, |at| token(name, at));
            (start..start + count).map(|column| id(place(row, column))).collect::<Vec<u32>>()
        };
        let fed: Vec<Vec<u32>> = (0..self.rows.len()).map(of_row).collect();
        let slices: Vec<&[u32]> = fed.iter().map(Vec::as_slice).collect();
        let numbers: Vec<f32> = fed.iter().flatten().map(|&it| it as f32).collect();
        let shape = [self.rows.len() as i32, 1, count as i32, 1];
        let keys = Array::from_slice(&numbers, &shape);
        let wide =
            |width: usize| broadcast_to(&keys, &[shape[0], 1, shape[2], width as i32]).unwrap();
        let specs: Vec<LayerSpec> = self.cache.layers().collect();
        let mut pass = self.cache.begin_tokens(&slices, &[]).unwrap();
        for (layer, spec) in specs.iter().enumerate() {
            let seen = match spec {
                LayerSpec::Shared { .. } => pass.shared(layer).unwrap().clone(),
                LayerSpec::Nothing => continue,
                LayerSpec::State => {
                    // The count and the sum of the tokens so far.
                    let before = pass.state(layer).unwrap().map(|it| it[0].clone());
                    let before: Vec<f32> = match before {
                        Some(it) => it.contiguous().unwrap().to_vec_exact().unwrap(),
                        None => vec![0.0; 2 * self.rows.len()],
                    };
                    let real = pass.step().real().map(|it| it.to_vec_exact::<bool>().unwrap());
                    let mut after = before;
                    for (at, &token) in fed.iter().flatten().enumerate() {
                        if real.as_ref().is_none_or(|it| it[at]) {
                            after[2 * (at / count)] += 1.0;
                            after[2 * (at / count) + 1] += token as f32;
                        }
                    }
                    let shape = [self.rows.len() as i32, 2];
                    pass.set_state(layer, vec![Array::from_slice(&after, &shape)]).unwrap();
                    continue;
                }
                // Keys and values may be of unlike width.
                _ => pass.append(layer, &wide(WIDTH), &wide(2 * WIDTH)).unwrap(),
            };
            check(&seen, &self.rows, *spec, start, count, &padding);
        }
        pass.commit().unwrap();
        for (row, (_, len)) in self.rows.iter_mut().enumerate() {
            *len = (start + count).saturating_sub(padding[row]);
        }
        self.check_rows();
    }

    fn check_rows(&self) {
        let ids: Vec<RowId> = self.rows.iter().map(|it| RowId::new(it.0 as u64)).collect();
        assert_eq!(self.cache.row_ids(), ids);
        let padding = self.cache.padding();
        for (row, &(name, len)) in self.rows.iter().enumerate() {
            let tokens = self.cache.tokens(row);
            assert_eq!(tokens.len(), self.cache.len());
            let own: Vec<u32> = (0..len).map(|it| token(name, it)).collect();
            assert_eq!(tokens[padding[row].min(tokens.len())..], own, "row {name}");
        }
        for (layer, spec) in self.cache.layers().enumerate() {
            if spec != LayerSpec::State || self.cache.state_of(layer).is_empty() {
                continue;
            }
            let state: Vec<f32> =
                self.cache.state_of(layer)[0].contiguous().unwrap().to_vec_exact().unwrap();
            for (row, &(name, len)) in self.rows.iter().enumerate() {
                let sum: f32 = (0..len).map(|it| token(name, it) as f32).sum();
                assert_eq!(state[2 * row..][..2], [len as f32, sum], "row {name}");
            }
        }
    }

    /// The rows as long as they are after going back `count` columns.
    fn shorten(&mut self, count: usize) {
        self.rows.iter_mut().for_each(|(_, len)| *len = len.saturating_sub(count));
    }

    fn select(&mut self, rows: &[usize]) {
        let least = rows.iter().map(|&it| self.cache.padding()[it]).min().unwrap();
        let len = self.cache.len();
        assert_eq!(self.cache.select(rows).unwrap(), least.min(len));
        self.rows = rows.iter().map(|&it| self.rows[it]).collect();
        self.check_rows();
    }

    fn join(&mut self, other: &Self) {
        self.cache.join(&other.cache).unwrap();
        self.rows.extend(&other.rows);
        self.check_rows();
    }
}

/// Whether each query of `count` new columns sees its row's tokens as its layer may, and no others.
fn check(
    seen: &Seen,
    rows: &[(usize, usize)],
    spec: LayerSpec,
    start: usize,
    count: usize,
    padding: &[usize],
) {
    let keys = seen.keys.dense().unwrap();
    let values = seen.values.dense().unwrap();
    let columns = keys.dim(2) as usize;
    assert_eq!((seen.keys.count(), seen.values.count()), (columns, columns));
    assert_eq!(values.dim(3) as usize, 2 * WIDTH);
    let read = |it: &Array| -> Vec<f32> { it.contiguous().unwrap().to_vec_exact().unwrap() };
    let (keys, values) = (read(&keys), read(&values));
    let mask: Vec<bool> = match &seen.mask {
        Mask::None => vec![true; rows.len() * count * columns],
        Mask::Causal => {
            let one = (0..count)
                .flat_map(|query| (0..columns).map(move |key| key + count <= columns + query));
            one.collect::<Vec<_>>().repeat(rows.len())
        }
        Mask::Array(it) => {
            let shape = [rows.len() as i32, 1, count as i32, columns as i32];
            broadcast_to(it, &shape).unwrap().contiguous().unwrap().to_vec_exact().unwrap()
        }
    };
    for (row, &(name, _)) in rows.iter().enumerate() {
        for query in 0..count {
            let Some(position) = (start + query).checked_sub(padding[row]) else { continue };
            let newest = |count: usize| (position + 1).saturating_sub(count);
            let positions: Vec<usize> = match spec {
                LayerSpec::Sliding { window } => (newest(window)..=position).collect(),
                LayerSpec::Shared { .. } => (newest(5)..=position).collect(),
                LayerSpec::Chunked { size } => (position - position % size..=position).collect(),
                LayerSpec::Bounded { sinks, size } => {
                    (0..=position).filter(|it| *it < sinks || *it >= newest(size - sinks)).collect()
                }
                _ => (0..=position).collect(),
            };
            let expected: Vec<u32> = positions.iter().map(|&it| token(name, it)).collect();
            let at = (row * count + query) * columns;
            let found: Vec<u32> = (0..columns)
                .filter(|key| mask[at + key])
                .map(|key| {
                    let number = keys[(row * columns + key) * WIDTH];
                    assert_eq!(values[(row * columns + key) * 2 * WIDTH], number);
                    number.round() as u32
                })
                .collect();
            assert_eq!(found, expected, "{spec:?}, row {name}, position {position}");
        }
    }
}

/// Numbers without a pattern.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit
    }
}

/// As many columns as a step of decoding, a draft, a short chunk or a long one has.
fn count(draw: &mut Draw) -> usize {
    match draw.below(8) {
        0..=3 => 1,
        4 | 5 => 2 + draw.below(5),
        6 => 1 + draw.below(60),
        _ => 200 + draw.below(200),
    }
}

fn ways() -> Vec<CacheOptions> {
    let quantized = |group, bits| Quantization::new(group, bits).unwrap();
    vec![
        CacheOptions::new(),
        CacheOptions::new().quantized(quantized(32, 8)),
        CacheOptions::new().quantized(quantized(32, 4).starting_at(40)),
    ]
}

#[test]
fn a_query_sees_what_its_layer_may_whatever_happened_to_its_batch() {
    for options in ways() {
        for seed in 0..3 {
            let mut draw = Draw(seed);
            let mut names = 1..;
            let mut fresh = |draw: &mut Draw| {
                let rows = 1 + draw.below(3);
                let names: Vec<usize> = names.by_ref().take(rows).collect();
                let lens: Vec<usize> = (0..rows).map(|_| 1 + draw.below(30)).collect();
                let longest = *lens.iter().max().unwrap();
                let mut batch = Batch::new(&names, &lens, &LAYERS, &options);
                let first = 1 + draw.below(longest);
                batch.feed(first);
                if longest > first {
                    batch.feed(longest - first);
                }
                batch
            };
            let mut batch = fresh(&mut draw);
            for _ in 0..20 {
                match draw.below(7) {
                    0 | 1 => batch.feed(count(&mut draw)),
                    2 => {
                        // A draft that is rejected.
                        let before = batch.rows.clone();
                        let mark = batch.cache.mark();
                        for _ in 0..1 + draw.below(3) {
                            batch.feed(count(&mut draw));
                        }
                        batch.cache.roll_back_to(&mark).unwrap();
                        batch.rows = before;
                        batch.check_rows();
                    }
                    3 => {
                        // Back to a checkpoint, and the rest again.
                        batch.cache.checkpoint();
                        let fed = 2 + draw.below(20);
                        let at = batch.cache.len();
                        batch.feed(fed);
                        let wanted = batch.cache.len() - 1 - draw.below(fed - 1);
                        assert_eq!(batch.cache.back_to(wanted), at);
                        batch.shorten(fed);
                        batch.check_rows();
                        batch.feed(wanted - at);
                    }
                    4 => {
                        let mut other = batch.clone();
                        other.feed(count(&mut draw));
                        batch.check_rows();
                    }
                    5 => {
                        let rows = batch.rows.len();
                        let kept: Vec<usize> =
                            (0..1 + draw.below(4)).map(|_| draw.below(rows)).collect();
                        batch.select(&kept);
                    }
                    _ => {
                        let other = fresh(&mut draw);
                        batch.join(&other);
                    }
                }
            }
            batch.feed(3);
        }
    }
}

#[test]
fn columns_are_trimmed_without_a_mark() {
    for options in ways() {
        // All but the state.
        let layers = [&LAYERS[..4], &LAYERS[5..]].concat();
        let mut batch = Batch::new(&[1, 2], &[9, 4], &layers, &options);
        let mut draw = Draw(5);
        batch.feed(9);
        for _ in 0..150 {
            let fed = 1 + draw.below(60);
            for _ in 0..fed {
                batch.feed(1);
            }
            let back = draw.below(fed);
            batch.cache.trim(back).unwrap();
            batch.shorten(back);
            batch.check_rows();
            if batch.cache.len() > 300 {
                break;
            }
        }
    }
}

#[test]
fn a_cache_taken_apart_continues_bit_for_bit() {
    for options in ways() {
        for len in [3, 30, 300] {
            let mut batch = Batch::new(&[1, 2], &[len, len.div_ceil(2)], &LAYERS, &options);
            batch.feed(len);
            for _ in 0..40 {
                batch.feed(1);
            }
            batch.cache.set_prompt_end(len);
            let state = batch.cache.state().unwrap();
            let text = serde_json::to_string(&state.description).unwrap();
            let mut read = state.clone();
            read.description = serde_json::from_str(&text).unwrap();
            let mut again =
                Batch { cache: KvCache::from_state(&read).unwrap(), rows: batch.rows.clone() };
            again.check_rows();
            assert_eq!(again.cache.prompt_end(1), Some(len));
            for cut in [1, 1, 300, 1] {
                batch.feed(cut);
                again.feed(cut);
                let (one, other) = (batch.cache.state().unwrap(), again.cache.state().unwrap());
                assert!(one.arrays.keys().eq(other.arrays.keys()));
                for (name, array) in &one.arrays {
                    // Both hold what is seen; how much before that depends on the room they had.
                    let seen = |it: &Array| {
                        if name.contains("state") {
                            return it.clone();
                        }
                        it.try_index((.., .., it.dim(2) - 4.., ..)).unwrap()
                    };
                    let same = seen(array).eq(seen(&other.arrays[name])).unwrap();
                    assert!(same.all(false).unwrap().try_item_exact::<bool>().unwrap(), "{name}");
                }
            }
            for name in state.arrays.keys() {
                let mut broken = state.clone();
                broken.arrays.remove(name);
                let error = KvCache::from_state(&broken).unwrap_err().to_string();
                assert!(error.contains(name.as_str()), "{error}");
            }
            let mut more = state.clone();
            more.arrays.insert("layers.9.keys".into(), Array::from_int(1));
            let error = KvCache::from_state(&more).unwrap_err().to_string();
            assert!(error.contains("layers.9.keys"), "{error}");
        }
    }
}

#[test]
fn a_pass_that_is_dropped_changed_nothing() {
    for options in ways() {
        let mut batch = Batch::new(&[1, 2], &[39, 30], &LAYERS, &options);
        batch.feed(39);
        let before = batch.cache.state().unwrap();
        for count in [1, 5, 400] {
            let mut pass = batch.cache.begin_tokens(&[&vec![7; count][..]; 2], &[]).unwrap();
            let new = Array::from_slice(
                &vec![7.0_f32; 2 * count * WIDTH],
                &[2, 1, count as i32, WIDTH as i32],
            );
            let wide = mlx_rs::ops::concatenate(&[&new, &new], -1).unwrap();
            pass.append(0, &new, &wide).unwrap();
            pass.append(1, &new, &wide).unwrap();
            pass.append(2, &new, &wide).unwrap();
            pass.set_state(4, vec![Array::from_slice(&[7.0_f32; 4], &[2, 2])]).unwrap();
            pass.append(5, &new, &wide).unwrap();
            drop(pass);
            // One that commits without having written every layer is refused.
            let mut pass = batch.cache.begin_tokens(&[&vec![7; count][..]; 2], &[]).unwrap();
            pass.append(0, &new, &wide).unwrap();
            let error = pass.commit().unwrap_err();
            assert!(error.to_string().contains("layer 1"), "{error}");
        }
        let after = batch.cache.state().unwrap();
        for (name, array) in &before.arrays {
            let same = array.eq(&after.arrays[name]).unwrap().all(false).unwrap();
            assert!(same.try_item_exact::<bool>().unwrap(), "{name}");
        }
        batch.feed(2);
        batch.feed(60);
    }
}

#[test]
fn a_mark_is_of_its_own_cache_and_of_a_text_that_still_stands() {
    let mut batch = Batch::new(&[1], &[5], &LAYERS, &CacheOptions::new());
    batch.feed(5);
    let early = batch.cache.mark();
    batch.feed(3);
    let late = batch.cache.mark();
    assert_eq!((early.column(), late.column()), (5, 8));
    let mut fork = batch.cache.fork();
    assert_eq!(fork.roll_back_to(&late).unwrap_err().kind(), ErrorKind::Argument);
    batch.feed(1);
    batch.cache.roll_back_to(&late).unwrap();
    batch.cache.roll_back_to(&early).unwrap();
    batch.rows[0].1 = 5;
    batch.feed(6);
    let error = batch.cache.roll_back_to(&late).unwrap_err();
    assert!(error.to_string().contains("rolled back since"), "{error}");
    assert_eq!(batch.cache.len(), 11);
    batch.cache.roll_back_to(&early).unwrap();
    let mut two = batch.cache.fork();
    two.select(&[0, 0]).unwrap();
    let mark = batch.cache.mark();
    batch.cache.select(&[0]).unwrap();
    assert!(batch.cache.roll_back_to(&mark).is_err());
}

#[test]
fn a_state_without_a_checkpoint_is_read_again_from_the_start() {
    let mut batch = Batch::new(&[1], &[5], &LAYERS, &CacheOptions::new());
    batch.feed(5);
    batch.feed(4);
    let error = batch.cache.trim(2).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Dropped);
    assert_eq!(batch.cache.len(), 9);
    assert_eq!(batch.cache.back_to(9), 9);
    assert_eq!(batch.cache.back_to(7), 0);
    batch.rows[0].1 = 0;
    batch.feed(7);
    // Of many checkpoints the newest are kept.
    for _ in 0..6 {
        batch.cache.checkpoint();
        batch.feed(2);
    }
    batch.cache.trim(2).unwrap();
    assert_eq!(batch.cache.back_to(12), 11);
    batch.rows[0].1 = 11;
    batch.feed(1);
    assert_eq!(batch.cache.back_to(8), 0);
}

#[test]
fn a_bound_of_the_cache_bounds_full_layers() {
    let options = CacheOptions::new().bounded(4, 16);
    let mut batch = Batch::new(&[1], &[40], &[LayerSpec::Full], &options);
    let keys = Array::from_slice(&vec![0.0_f32; 40 * WIDTH], &[1, 1, 40, WIDTH as i32]);
    let mut pass = batch.cache.begin_tokens(&[&[3; 40]], &[]).unwrap();
    pass.append(0, &keys, &keys).unwrap();
    pass.commit().unwrap();
    assert!(batch.cache.layers().eq([LayerSpec::Full]));
    // Of 2,000 columns a window, the sinks and what is left of a step of allocation are held.
    for _ in 0..2000 {
        let new = Array::from_slice(&[0.0_f32; WIDTH], &[1, 1, 1, WIDTH as i32]);
        let mut pass = batch.cache.begin_tokens(&[&[3]], &[]).unwrap();
        pass.append(0, &new, &new).unwrap();
        pass.commit().unwrap();
    }
    let column = 2 * WIDTH * 4;
    assert_eq!(batch.cache.live_bytes(), (4 + 11) * column);
    assert!(batch.cache.allocated_bytes() <= (4 + 512) * column);
}

#[test]
fn bytes_are_those_of_the_arrays() {
    let options = CacheOptions::new().quantized(Quantization::new(32, 4).unwrap());
    let mut batch = Batch::new(&[1], &[10], &LAYERS[..5], &options);
    batch.feed(10);
    // Half a byte a number, and a scale and a bias of four bytes for 32 of them; keys and values are
    // of unlike width.
    let column = 3 * WIDTH / 2 + 3 * 8;
    let state = 2 * 4;
    assert_eq!(batch.cache.live_bytes(), (10 + 4 + (3 + 5)) * column + state);
    assert_eq!(batch.cache.allocated_bytes(), (256 + 256 + 259) * column + state);
}

#[test]
fn columns_in_4_bits_take_at_most_three_tenths_of_half_precision() {
    let new = zeros_dtype(&[1, 2, 300, 128], Dtype::Float16).unwrap();
    let bytes = |options| {
        let mut cache = KvCache::with_options(&[LayerSpec::Full], &[0], &options).unwrap();
        let mut pass = cache.begin_tokens(&[&[1; 300]], &[]).unwrap();
        pass.append(0, &new, &new).unwrap();
        pass.commit().unwrap();
        [cache.live_bytes(), cache.allocated_bytes()]
    };
    let dense = bytes(CacheOptions::new());
    let packed = bytes(CacheOptions::new().quantized(Quantization::new(64, 4).unwrap()));
    for (packed, dense) in packed.into_iter().zip(dense) {
        let share = packed as f64 / dense as f64;
        assert!(share <= 0.3, "{share}");
    }
}

#[test]
fn a_cache_of_a_single_pass_keeps_and_copies_nothing() {
    let options = CacheOptions::new().single_pass();
    let mut batch = Batch::new(&[1, 2], &[6, 3], &LAYERS, &options);
    batch.feed(6);
    assert_eq!((batch.cache.len(), batch.cache.allocated_bytes()), (6, 0));
    let error = batch.cache.begin_tokens(&[&[1], &[1]], &[]).unwrap_err();
    assert!(error.to_string().contains("single pass"), "{error}");
}

#[test]
fn an_embedding_is_not_taken_for_a_token() {
    let mut cache = KvCache::new(&[LayerSpec::Full], 1);
    let fed = [Column::Token(3), Column::embedded(&[0.5; 8]), Column::Token(5)];
    let mut pass = cache.begin(&[&fed], &[]).unwrap();
    let ids: Vec<u32> = pass.step().tokens().unwrap().to_vec_exact().unwrap();
    assert_eq!(ids, [3, u32::MAX, 5]);
    let new = Array::from_slice(&[0.0_f32; 6], &[1, 1, 3, 2]);
    pass.append(0, &new, &new).unwrap();
    pass.commit().unwrap();
    assert_eq!((cache.tokens(0), cache.columns(0)), (vec![3], &fed[..]));
}

#[test]
fn what_a_cache_cannot_do_is_said() {
    let kind = |it: Result<KvCache, mlxgk_kv_cache::Error>| it.unwrap_err().to_string();
    let with = |layers: &[LayerSpec]| KvCache::with_options(layers, &[0], &CacheOptions::new());
    assert!(kind(with(&[LayerSpec::Sliding { window: 0 }])).contains("window of 0"));
    assert!(kind(with(&[LayerSpec::Chunked { size: 0 }])).contains("pieces of 0"));
    assert!(kind(with(&[LayerSpec::Bounded { sinks: 4, size: 4 }])).contains("4 sinks"));
    assert!(kind(with(&[LayerSpec::Shared { owner: 0 }])).contains("shares layer 0"));
    for without in [LayerSpec::State, LayerSpec::Nothing] {
        assert!(kind(with(&[without, LayerSpec::Shared { owner: 0 }])).contains("earlier"));
    }
    // Without options a wrong layer is refused by the first pass.
    let mut wrong = KvCache::new(&[LayerSpec::Sliding { window: 0 }], 1);
    assert!(wrong.begin_tokens(&[&[1]], &[]).is_err());
    assert!(Quantization::new(48, 4).unwrap_err().to_string().contains("group size"));
    assert!(Quantization::new(64, 7).unwrap_err().to_string().contains("bits"));

    let options = CacheOptions::new().quantized(Quantization::new(64, 4).unwrap());
    let mut cache = KvCache::with_options(&[LayerSpec::Full], &[0], &options).unwrap();
    let mut pass = cache.begin_tokens(&[&[1]], &[]).unwrap();
    let narrow = Array::from_slice(&[0.0_f32; 32], &[1, 1, 1, 32]);
    let error = pass.append(0, &narrow, &narrow).unwrap_err().to_string();
    assert!(error.contains("32 numbers per head") && error.contains("64"), "{error}");

    let mut cache = KvCache::new(&LAYERS, 1);
    assert!(cache.begin_tokens(&[], &[]).is_err());
    assert!(cache.begin_tokens(&[&[]], &[]).is_err());
    assert!(cache.begin_tokens(&[&[1], &[2]], &[]).is_err());
    let mut pass = cache.begin_tokens(&[&[1]], &[]).unwrap();
    for without in [4, 6] {
        let error = pass.append(without, &narrow, &narrow).unwrap_err().to_string();
        assert!(error.contains("no columns"), "{error}");
    }
    assert!(pass.append(3, &narrow, &narrow).is_err());
    assert!(pass.append(9, &narrow, &narrow).unwrap_err().to_string().contains("layer 9"));
    assert!(pass.shared(3).unwrap_err().to_string().contains("has not appended"));
    assert!(pass.shared(0).is_err() && pass.state(0).is_err() && pass.state(6).is_err());
    pass.append(0, &narrow, &narrow).unwrap();
    assert!(pass.append(0, &narrow, &narrow).unwrap_err().to_string().contains("already"));
    let three = Array::from_slice(&[0.0_f32; 3], &[3]);
    assert!(pass.set_state(4, vec![three]).unwrap_err().to_string().contains("1 rows"));

    // Other heads than those held, which a slice update would broadcast.
    let mut cache = KvCache::new(&[LayerSpec::Full], 1);
    let two = Array::from_slice(&[0.0_f32; 64], &[1, 2, 1, 32]);
    let mut pass = cache.begin_tokens(&[&[1]], &[]).unwrap();
    pass.append(0, &two, &two).unwrap();
    pass.commit().unwrap();
    let mut pass = cache.begin_tokens(&[&[1]], &[]).unwrap();
    assert!(pass.append(0, &narrow, &narrow).is_err());
}

#[test]
fn an_empty_batch_takes_in_the_first_rows() {
    let mut batch = Batch::new(&[4], &[6], &LAYERS, &CacheOptions::new());
    batch.feed(6);
    let mut empty = Batch { cache: KvCache::new(&LAYERS, 0), rows: Vec::new() };
    empty.join(&batch);
    empty.feed(2);
    batch.cache.join(&KvCache::new(&LAYERS, 0)).unwrap();
    assert_eq!(batch.cache.batch(), 1);
    let unfed = KvCache::new(&LAYERS, 1);
    for error in
        [batch.cache.join(&unfed).unwrap_err(), unfed.fork().join(&batch.cache).unwrap_err()]
    {
        assert!(error.to_string().contains("before both caches were fed"), "{error}");
    }
    let quantized = CacheOptions::new().quantized(Quantization::new(32, 8).unwrap());
    let mut other = Batch::new(&[5], &[2], &LAYERS, &quantized);
    other.feed(2);
    assert!(other.cache.join(&batch.cache).unwrap_err().to_string().contains("different ways"));
}

#[test]
fn quantized_columns_are_near_the_dense_ones() {
    let numbers: Vec<f32> = (0..3 * 64).map(|it| ((it * 37) % 101) as f32 / 50.0 - 1.0).collect();
    let new = Array::from_slice(&numbers, &[1, 1, 3, 64]);
    for bits in [2, 3, 4, 5, 6, 8] {
        // The numbers lie in a range of 2; MLX moves the range so that 0 is one of its steps.
        let most = 2.1 / (f32::from(2_u8).powi(bits) - 1.0);
        for group in [32, 64] {
            let how = Quantization::new(group, bits).unwrap();
            let options = CacheOptions::new().quantized(how);
            let mut cache = KvCache::with_options(&[LayerSpec::Full], &[0], &options).unwrap();
            let mut pass = cache.begin_tokens(&[&[1, 2, 3]], &[]).unwrap();
            let seen = pass.append(0, &new, &new).unwrap();
            let Columns::Quantized(packed) = &seen.keys else { panic!("not quantized") };
            assert_eq!((packed.group_size, packed.bits), (group, bits));
            assert_eq!(packed.packed.shape(), [1, 1, 3, 64 * bits / 32]);
            let found: Vec<f32> =
                seen.keys.dense().unwrap().contiguous().unwrap().to_vec_exact().unwrap();
            let worst = found.iter().zip(&numbers).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst > 0.0 && worst < most, "{bits} bits in groups of {group}: {worst}");
        }
    }
}
