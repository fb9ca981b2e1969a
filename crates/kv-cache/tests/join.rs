//! Joined caches: every row keeps the columns it could see.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use mlx_rs::{Array, ops::indexing::TryIndexOp};
use mlxgk_kv_cache::{ErrorKind, KvCache, LayerSpec};

const LAYERS: [LayerSpec; 2] = [LayerSpec::Full, LayerSpec::Sliding { window: 6 }];

/// Keys whose value is the row's name and the token's place in its row.
fn columns(names: &[f32], from: usize, count: usize, padding: &[usize]) -> Array {
    let value =
        |row: usize, column: usize| names[row] + (from + column) as f32 - padding[row] as f32;
    let values: Vec<f32> = (0..names.len())
        .flat_map(|row| (0..count).map(move |column| (row, column)))
        .map(|(row, column)| value(row, column))
        .collect();
    Array::from_slice(&values, &[names.len() as i32, 1, count as i32, 1])
}

fn feed(cache: &mut KvCache, names: &[f32], count: usize) -> Vec<Array> {
    let new = columns(names, cache.len(), count, &cache.padding());
    let fed = vec![vec![7; count]; cache.batch()];
    let fed: Vec<&[u32]> = fed.iter().map(Vec::as_slice).collect();
    let mut pass = cache.begin_tokens(&fed, &[]).unwrap();
    let seen = (0..LAYERS.len())
        .map(|layer| pass.append(layer, &new, &new).unwrap().keys.dense().unwrap())
        .collect();
    pass.commit().unwrap();
    seen
}

fn last(keys: &Array, row: i32, count: i32) -> Vec<f32> {
    let keys = keys.try_index((row..row + 1, .., keys.dim(2) - count.., ..)).unwrap();
    keys.reshape(&[-1]).unwrap().try_as_slice::<f32>().unwrap().to_vec()
}

#[test]
fn rows_of_different_lengths_go_on_side_by_side() {
    for (long, short) in [(20, 3), (3, 20), (400, 5), (7, 7)] {
        let mut one = KvCache::left_padded(&LAYERS, &[2, 0]);
        feed(&mut one, &[1000.0, 2000.0], long);
        let mut other = KvCache::new(&LAYERS, 1);
        feed(&mut other, &[3000.0], short);
        one.join(&other).unwrap();
        assert_eq!((one.batch(), one.len()), (3, long.max(short)));
        let lens = [long - 2, long, short];
        let paddings: Vec<usize> = lens.iter().map(|it| long.max(short) - it).collect();
        assert_eq!(one.padding(), paddings);
        for _ in 0..3 {
            let end = one.len();
            let seen = feed(&mut one, &[1000.0, 2000.0, 3000.0], 1);
            for (row, name) in [1000.0, 2000.0, 3000.0].into_iter().enumerate() {
                let own = end + 1 - paddings[row];
                for (keys, visible) in seen.iter().zip([own, own.min(6)]) {
                    let wanted: Vec<f32> =
                        (own - visible..own).map(|place| name + place as f32).collect();
                    assert_eq!(last(keys, row as i32, visible as i32), wanted, "{long}, {short}");
                }
            }
        }
    }
}

#[test]
fn padding_that_all_rows_share_is_dropped() {
    let mut one = KvCache::left_padded(&LAYERS, &[9, 0]);
    feed(&mut one, &[1000.0, 2000.0], 12);
    assert_eq!(one.select(&[0]).unwrap(), 9);
    assert_eq!((one.len(), one.padding()), (3, vec![0]));
    let mut other = KvCache::new(&LAYERS, 1);
    feed(&mut other, &[3000.0], 2);
    one.join(&other).unwrap();
    assert_eq!((one.len(), one.padding()), (3, vec![0, 1]));
    let seen = feed(&mut one, &[1000.0, 3000.0], 1);
    assert_eq!(last(&seen[0], 0, 4), [1000.0, 1001.0, 1002.0, 1003.0]);
    assert_eq!(last(&seen[1], 1, 3), [3000.0, 3001.0, 3002.0]);
}

#[test]
fn caches_of_different_models_do_not_join() {
    let mut one = KvCache::new(&LAYERS, 1);
    let error = one.join(&KvCache::new(&LAYERS[..1], 1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Argument);
}
