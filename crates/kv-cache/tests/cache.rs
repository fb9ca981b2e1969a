//! What a cache returns, against a plain list of every column ever fed.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::sync::Arc;

use mlx_rs::{Array, ops::indexing::TryIndexOp};
use mlxgk_kv_cache::{ErrorKind, KvCache, LayerSpec, Mask, Positions, RowId, Step};

const HEADS: i32 = 2;
const DIM: i32 = 3;
const WINDOW: LayerSpec = LayerSpec::Sliding { window: 5 };

/// `[batch, HEADS, count, DIM]`, every value telling row, column and place.
fn columns(batch: usize, start: usize, count: usize) -> Array {
    let value = |row: usize, head: usize, column: usize, dim: usize| {
        (row * 1_000_000 + column * 100 + head * 10 + dim) as f32
    };
    let mut data = Vec::new();
    for row in 0..batch {
        for head in 0..HEADS as usize {
            for column in start..start + count {
                data.extend((0..DIM as usize).map(|dim| value(row, head, column, dim)));
            }
        }
    }
    Array::from_slice(&data, &[batch as i32, HEADS, count as i32, DIM])
}

fn feed(cache: &mut KvCache, count: usize) -> Vec<(Array, Array)> {
    let new = columns(cache.batch(), cache.len(), count);
    feed_these(cache, &new).into_iter().map(|(shown, _)| shown).collect()
}

/// What every layer is shown, and the mask that goes with it.
fn feed_these(cache: &mut KvCache, new: &Array) -> Vec<((Array, Array), Mask)> {
    let fed = vec![vec![7; new.dim(2) as usize]; cache.batch()];
    let fed: Vec<&[u32]> = fed.iter().map(Vec::as_slice).collect();
    let layers = cache.layers().len();
    let mut pass = cache.begin_tokens(&fed, &[]).unwrap();
    let shown = |layer| {
        let seen = pass.append(layer, new, new).unwrap();
        ((seen.keys.dense().unwrap(), seen.values.dense().unwrap()), seen.mask)
    };
    let shown = (0..layers).map(shown).collect();
    pass.commit().unwrap();
    shown
}

fn values(array: &Array) -> Vec<f32> {
    array.contiguous().unwrap().to_vec_exact().unwrap()
}

#[track_caller]
fn check_shown(shown: &(Array, Array), batch: usize, from: usize, to: usize) {
    assert_eq!(values(&shown.0), values(&columns(batch, from, to - from)));
    assert_eq!(values(&shown.1), values(&shown.0));
}

#[test]
fn layers_show_everything_or_their_window_whatever_the_pass_lengths() {
    let mut cache = KvCache::new(&[LayerSpec::Full, WINDOW], 2);
    // Crosses several allocation steps, with passes longer and shorter than the window.
    for count in [3, 1, 1, 1, 1, 7, 250, 1, 300, 1, 2, 600, 1] {
        let start = cache.len();
        let shown = feed(&mut cache, count);
        check_shown(&shown[0], 2, 0, start + count);
        check_shown(&shown[1], 2, (start + 1).saturating_sub(5), start + count);
    }
}

#[test]
fn a_fork_and_its_origin_do_not_disturb_each_other() {
    let mut cache = KvCache::new(&[LayerSpec::Full, WINDOW], 1);
    feed(&mut cache, 10);
    let mut fork = cache.fork();
    let other = columns(1, 5000, 1);
    feed_these(&mut fork, &other);
    let shown = feed(&mut cache, 1);
    check_shown(&shown[0], 1, 0, 11);
    let (keys, _) = &feed(&mut fork, 1)[0];
    let eleventh = keys.try_index((.., .., 10..11, ..)).unwrap();
    assert_eq!(values(&eleventh), values(&other));
}

#[test]
fn a_trimmed_cache_equals_one_that_never_went_forward() {
    let mut cache = KvCache::new(&[LayerSpec::Full, WINDOW], 1);
    // Ends just after the sliding layer moved, where the least is left to go back to.
    feed(&mut cache, 250);
    for _ in 0..64 {
        feed(&mut cache, 1);
    }
    cache.trim(64).unwrap();
    assert_eq!(cache.len(), 250);
    let shown = feed(&mut cache, 2);
    check_shown(&shown[0], 1, 0, 252);
    check_shown(&shown[1], 1, 246, 252);
}

#[test]
fn a_trim_beyond_what_a_window_holds_is_refused_and_changes_nothing() {
    let rotated = LayerSpec::Bounded { sinks: 2, size: 7 };
    for spec in [WINDOW, rotated, LayerSpec::Chunked { size: 5 }] {
        let mut cache = KvCache::new(&[spec], 1);
        for _ in 0..1000 {
            feed(&mut cache, 1);
        }
        let before = cache.state_hash().unwrap();
        let error = cache.trim(900).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Dropped, "{spec:?}");
        assert_eq!(cache.len(), 1000);
        assert_eq!(cache.state_hash().unwrap(), before);
        assert_eq!(cache.trim(1001).unwrap_err().kind(), ErrorKind::Argument);
    }
}

#[test]
fn rows_are_dropped_repeated_and_reordered_with_their_tokens() {
    let mut cache = KvCache::left_padded(&[LayerSpec::Full], &[0, 1, 2]);
    let mut pass = cache.begin_tokens(&[&[1, 2], &[0, 3], &[0, 0]], &[]).unwrap();
    let two = columns(3, 0, 2);
    pass.append(0, &two, &two).unwrap();
    pass.commit().unwrap();
    assert_eq!(cache.select(&[2, 0, 0]).unwrap(), 0);
    assert_eq!(cache.padding(), [2, 0, 0]);
    assert_eq!((cache.tokens(0), cache.tokens(1)), (vec![0, 0], vec![1, 2]));
    let (keys, _) = &feed(&mut cache, 1)[0];
    let first = keys.try_index((0..1, .., 0..2, ..)).unwrap();
    let expected = two.try_index((2..3, .., .., ..)).unwrap();
    assert_eq!(values(&first), values(&expected));

    assert_eq!(cache.select(&[3]).unwrap_err().kind(), ErrorKind::Argument);
    assert_eq!(cache.select(&[]).unwrap_err().kind(), ErrorKind::Argument);
}

#[test]
fn padding_that_no_row_needs_any_longer_is_dropped() {
    let mut cache = KvCache::left_padded(&[LayerSpec::Full, WINDOW], &[0, 7, 9]);
    cache.set_prompt_end(10);
    feed(&mut cache, 12);
    assert_eq!(cache.select(&[2, 1]).unwrap(), 7);
    assert_eq!((cache.len(), cache.padding(), cache.prompt_end(0)), (5, vec![2, 0], Some(3)));
    assert_eq!(cache.tokens(0).len(), 5);
    let (keys, _) = &feed_these(&mut cache, &columns(2, 12, 1))[0].0;
    let expected = columns(3, 7, 6).take_axis(Array::from_slice(&[2, 1], &[2]), 0).unwrap();
    let (found, expected) = (values(keys), values(&expected));
    // The last column is new, and of rows in their new order.
    for (row, (found, expected)) in found.chunks(36).zip(expected.chunks(36)).enumerate() {
        for head in 0..2 {
            assert_eq!(found[head * 18..][..15], expected[head * 18..][..15], "row {row}");
        }
    }
}

/// Which keys a mask lets each query see, spelt out from the definition.
fn expected_mask(spec: LayerSpec, start: usize, count: usize, pads: &[usize]) -> Vec<bool> {
    let first = match spec {
        LayerSpec::Sliding { window } => (start + 1).saturating_sub(window),
        _ => 0,
    };
    let mut seen = Vec::new();
    for &pad in pads {
        for query in start..start + count {
            for key in first..start + count {
                let in_window = match spec {
                    LayerSpec::Sliding { window } => key + window > query,
                    _ => true,
                };
                seen.push((key <= query && in_window && key >= pad) || key == query);
            }
        }
    }
    seen
}

#[test]
fn masks_follow_from_window_padding_and_position() {
    for pads in [vec![0], vec![0, 0], vec![3, 0], vec![2, 7]] {
        for spec in [LayerSpec::Full, WINDOW] {
            let mut cache = KvCache::left_padded(&[spec], &pads);
            for count in [1, 4, 1, 9, 1] {
                let start = cache.len();
                let expected = expected_mask(spec, start, count, &pads);
                let new = columns(pads.len(), start, count);
                match &feed_these(&mut cache, &new)[0].1 {
                    Mask::None => assert!(expected.iter().all(|&it| it)),
                    Mask::Causal => {
                        let plain = expected_mask(LayerSpec::Full, start, count, &[0]);
                        assert_eq!(expected, plain.repeat(pads.len()));
                    }
                    Mask::Array(mask) => {
                        let keys = expected.len() / pads.len() / count;
                        let shape = [pads.len() as i32, 1, count as i32, keys as i32];
                        let mask = mlx_rs::ops::broadcast_to(mask, &shape).unwrap();
                        let mask: Vec<bool> = mask.contiguous().unwrap().to_vec_exact().unwrap();
                        assert_eq!(mask, expected, "{spec:?}, {pads:?}, {start} + {count}");
                    }
                }
            }
        }
    }
}

#[test]
fn positions_start_at_each_rows_first_token() {
    let mut cache = KvCache::left_padded(&[LayerSpec::Full], &[0, 3]);
    feed(&mut cache, 4);
    match cache.step(1).positions() {
        Positions::PerRow(offsets) => {
            assert_eq!(offsets.to_vec_exact::<i32>().unwrap(), [4, 1]);
        }
        Positions::Same(offset) => panic!("one offset {offset} for two paddings"),
    }
}

#[test]
fn bytes_are_those_of_the_columns() {
    let mut cache = KvCache::new(&[LayerSpec::Full, WINDOW], 1);
    assert_eq!((cache.live_bytes(), cache.allocated_bytes()), (0, 0));
    feed(&mut cache, 10);
    let column = 2 * (HEADS * DIM) as usize * 4;
    // The next token of the sliding layer sees the last four.
    assert_eq!(cache.live_bytes(), (10 + 4) * column);
    assert_eq!(cache.allocated_bytes(), 2 * 256 * column);
}

/// What thousands of short texts have to spare is not most of their memory.
#[test]
fn many_rows_have_little_room_to_spare() {
    let mut cache = KvCache::new(&[LayerSpec::Full, WINDOW], 1);
    feed(&mut cache, 3);
    let column = 2 * (HEADS * DIM) as usize * 4;
    assert_eq!(cache.allocated_bytes(), 2 * 256 * column);
    cache.select(&[0; 300]).unwrap();
    assert_eq!(cache.allocated_bytes(), 2 * 300 * 16 * column);
    for len in 4..40 {
        let shown = feed(&mut cache, 1);
        assert_eq!(shown[0].0.shape()[2], len);
    }
    assert!(cache.allocated_bytes() <= 2 * 300 * 48 * column);
}

#[test]
fn wrong_shapes_layers_and_counts_are_refused() {
    let mut cache = KvCache::new(&[LayerSpec::Full], 2);
    let (one_row, two_rows) = (columns(1, 0, 1), columns(2, 0, 1));
    let mut pass = cache.begin_tokens(&[&[1], &[2]], &[]).unwrap();
    assert_eq!(pass.append(0, &one_row, &one_row).unwrap_err().kind(), ErrorKind::Argument);
    assert_eq!(pass.append(1, &two_rows, &two_rows).unwrap_err().kind(), ErrorKind::Argument);
    let longer = columns(2, 0, 2);
    assert_eq!(pass.append(0, &longer, &longer).unwrap_err().kind(), ErrorKind::Argument);
    drop(pass);
    feed(&mut cache, 3);
    cache.clear();
    assert!(cache.is_empty());
}

#[test]
fn prompts_end_where_they_did_whichever_rows_come_and_go() {
    let mut cache = KvCache::left_padded(&[LayerSpec::Full], &[1, 0]);
    cache.set_prompt_end(3);
    feed(&mut cache, 4);
    let mut other = KvCache::new(&[LayerSpec::Full], 1);
    other.set_prompt_end(6);
    feed(&mut other, 6);
    cache.join(&other).unwrap();
    let ends = |it: &KvCache| (0..it.batch()).map(|row| it.prompt_end(row)).collect::<Vec<_>>();
    assert_eq!((cache.padding(), ends(&cache)), (vec![3, 2, 0], vec![Some(5), Some(5), Some(6)]));
    assert_eq!((0..3).map(|row| cache.step(1).prompt_end(row)).collect::<Vec<_>>(), ends(&cache));
    cache.select(&[1, 0]).unwrap();
    cache.join(&other).unwrap();
    // Padding that all rows have in common goes.
    cache.select(&[0]).unwrap();
    let mut short = KvCache::new(&[LayerSpec::Full], 1);
    feed(&mut short, 1);
    cache.join(&short).unwrap();
    assert_eq!((cache.len(), cache.padding(), ends(&cache)), (4, vec![0, 3], vec![Some(3), None]));
}

#[test]
fn strengths_belong_to_columns() {
    let mut cache = KvCache::new(&[LayerSpec::Full], 2);
    feed(&mut cache, 1);
    assert_eq!(cache.step(2).strengths(), None);
    cache.set_strengths(2, &[0.5, 0.25]).unwrap();
    assert_eq!(cache.step(2).strengths(), Some(&[0.5, 0.5, 0.25, 0.25][..]));
    // A longer step is not covered.
    assert_eq!(cache.step(3).strengths(), None);
    feed(&mut cache, 2);
    cache.select(&[1, 0]).unwrap();
    cache.trim(1).unwrap();
    cache.set_strengths(1, &[0.75, 0.0]).unwrap();
    feed(&mut cache, 1);
    cache.rewind();
    let all = [1.0, 0.25, 0.75, 1.0, 0.5, 0.0];
    assert_eq!(cache.step(3).strengths(), Some(&all[..]));
    assert!(cache.set_strengths(1, &[1.0]).unwrap_err().to_string().contains("1 strengths"));
    cache.clear();
    assert_eq!(cache.step(1).strengths(), None);
}

#[test]
fn a_cache_knows_what_each_row_was_filled_under() {
    let named = |name: &str| Some(Arc::<str>::from(name));
    let under = |cache: &mut KvCache, names: &[Option<Arc<str>>]| {
        let fed = vec![&[7][..]; cache.batch()];
        let new = columns(cache.batch(), cache.len(), 1);
        let mut pass = cache.begin_tokens(&fed, names)?;
        pass.append(0, &new, &new)?;
        pass.commit()
    };
    let mut cache = KvCache::new(&[LayerSpec::Full], 1);
    under(&mut cache, &[named("joy")]).unwrap();
    under(&mut cache, &[named("joy")]).unwrap();
    assert_eq!(cache.fork().steering(0), Some("joy"));
    let error = under(&mut cache, &[named("woe")]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Steering);
    let error = error.to_string();
    assert!(error.contains("`joy`") && error.contains("`woe`"), "{error}");
    assert_eq!(under(&mut cache, &[]).unwrap_err().kind(), ErrorKind::Steering);
    assert_eq!(under(&mut cache, &[None, None]).unwrap_err().kind(), ErrorKind::Argument);
    // Rows under other steerings share a batch, and each keeps its own.
    let mut both = KvCache::new(&[LayerSpec::Full], 1);
    under(&mut both, &[]).unwrap();
    both.join(&cache).unwrap();
    assert_eq!((both.steering(0), both.steering(1)), (None, Some("joy")));
    assert!(under(&mut both, &[named("joy"), named("joy")]).is_err());
    under(&mut both, &[None, named("joy")]).unwrap();
    both.select(&[1]).unwrap();
    under(&mut both, &[named("joy")]).unwrap();
    let mut mixed = cache.fork();
    mixed.allow_other_steering();
    under(&mut mixed, &[]).unwrap();
    assert_eq!(mixed.steering(0), None);
    // Going back to a mark goes back to the steering.
    let mark = cache.mark();
    cache.allow_other_steering();
    under(&mut cache, &[named("woe")]).unwrap();
    cache.roll_back_to(&mark).unwrap();
    assert_eq!(cache.steering(0), Some("joy"));
    cache.trim(2).unwrap();
    under(&mut cache, &[]).unwrap();
}

/// Beams: rows of one name, alike but for their newest tokens, of which some go on and others end.
#[test]
fn rows_that_share_a_text_stay_what_they_are_in_any_order() {
    // What stands in a column follows from the token there.
    let value = |token: u32, column: usize| (token * 1000) as f32 + column as f32;
    let place = (HEADS * DIM) as usize;
    let step = |cache: &mut KvCache, tokens: &[u32]| {
        let start = cache.len();
        let new: Vec<f32> = tokens.iter().flat_map(|&it| vec![value(it, start); place]).collect();
        let new = Array::from_slice(&new, &[tokens.len() as i32, HEADS, 1, DIM]);
        let rows: Vec<&[u32]> = tokens.chunks(1).collect();
        let mut pass = cache.begin_tokens(&rows, &[]).unwrap();
        let shown = [0, 1].map(|layer| {
            let seen = pass.append(layer, &new, &new).unwrap();
            (values(&seen.keys.dense().unwrap()), values(&seen.values.dense().unwrap()))
        });
        pass.commit().unwrap();
        for ((keys, shown), from) in shown.into_iter().zip([0, (start + 1).saturating_sub(5)]) {
            let row = |row: usize| {
                let tokens = cache.tokens(row);
                let columns = move |_| {
                    let at = |column: usize| vec![value(tokens[column], column); DIM as usize];
                    (from..=start).flat_map(at).collect::<Vec<f32>>()
                };
                (0..HEADS).flat_map(columns)
            };
            let expected: Vec<f32> = (0..cache.batch()).flat_map(row).collect();
            assert_eq!(keys, expected);
            assert_eq!(shown, expected);
        }
    };
    let mut cache = KvCache::new(&[LayerSpec::Full, WINDOW], 1);
    (0..200).for_each(|token| step(&mut cache, &[token % 50]));
    cache.select(&[0, 0, 0]).unwrap();
    let orders = [[0, 0, 1], [2, 1, 0], [0, 1, 2], [1, 1, 2], [2, 2, 2], [1, 0, 0]];
    for token in 0..200 {
        step(&mut cache, &[token % 7, token % 5 + 10, token % 3 + 20]);
        let fork = cache.fork();
        cache.select(&orders[token as usize % orders.len()]).unwrap();
        // What the order was taken from stays as it is.
        step(&mut fork.clone(), &[1, 2, 3]);
    }
}

#[test]
fn rows_keep_their_names_wherever_they_go() {
    let id = RowId::new;
    let mut cache = KvCache::new(&[LayerSpec::Full], 2);
    feed(&mut cache, 1);
    let mut other = KvCache::new(&[LayerSpec::Full], 1);
    feed(&mut other, 3);
    other.set_row_ids(&[id(5)]).unwrap();
    assert!(other.set_row_ids(&[id(1), id(2)]).unwrap_err().to_string().contains("2 names"));
    cache.join(&other).unwrap();
    assert_eq!(cache.row_ids(), [id(0), id(1), id(5)]);
    cache.select(&[2, 1, 1]).unwrap();
    assert_eq!(cache.fork().row_ids(), [id(5), id(1), id(1)]);
    assert_eq!(cache.step(1).rows(), cache.row_ids());
}

#[test]
fn a_step_of_some_rows_is_their_own_step() {
    let mut cache = KvCache::left_padded(&[LayerSpec::Full, WINDOW], &[0, 3, 1]);
    cache.set_prompt_end(6);
    feed(&mut cache, 4);
    cache.set_strengths(2, &[0.25, 0.5, 1.0]).unwrap();
    let tokens = Array::from_slice(&[1_u32, 2, 3, 4, 5, 6], &[3, 2]);
    let step = cache.step(2).with_tokens(&tokens).reading_again(1);
    let some = step.select(&[1, 0, 1]).unwrap();
    let mut alone = cache.fork();
    alone.select(&[1, 0, 1]).unwrap();
    let alone = alone.step(2);
    assert_eq!((some.start(), some.count(), some.again()), (4, 2, 1));
    assert_eq!((some.rows(), some.padding()), (alone.rows(), alone.padding()));
    assert_eq!(some.strengths(), alone.strengths());
    assert_eq!(some.strengths(), Some(&[0.5, 0.5, 0.25, 0.25, 0.5, 0.5][..]));
    assert_eq!(some.prompt_end(2), Some(6));
    let ids: Vec<u32> = some.tokens().unwrap().contiguous().unwrap().to_vec_exact().unwrap();
    assert_eq!(ids, [3, 4, 1, 2, 3, 4]);
    let read = |it: &Step| it.real().map(|it| it.to_vec_exact::<bool>().unwrap());
    assert_eq!(read(&some), read(&alone));
    assert_eq!(step.select(&[3]).unwrap_err().kind(), ErrorKind::Argument);
}

/// A batch that lost its last row is refused where rows are needed, and no step of it panics.
#[test]
fn a_batch_without_rows_is_empty_and_nothing_more() {
    let mut cache = KvCache::new(&[LayerSpec::Full], 0);
    assert_eq!((cache.batch(), cache.padding()), (0, vec![]));
    assert!(cache.step(1).rows().is_empty());
    assert_eq!(cache.begin_tokens(&[], &[]).unwrap_err().kind(), ErrorKind::Argument);
    assert_eq!(cache.select(&[]).unwrap_err().kind(), ErrorKind::Argument);
}

#[test]
fn a_fork_copies_nothing_until_it_is_written_to() {
    let layers = [LayerSpec::Full; 16];
    let mut cache = KvCache::new(&layers, 1);
    let new = columns(1, 0, 2000);
    feed_these(&mut cache, &new);
    cache.evaluate().unwrap();
    let mut fork = cache.fork();
    // The arrays are the same ones, not equal copies.
    let at = |cache: &KvCache| -> Vec<*const f32> {
        cache.arrays().map(|it| it.try_as_slice::<f32>().unwrap().as_ptr()).collect()
    };
    assert_eq!(at(&cache), at(&fork));
    let (before, hash) = (at(&cache), cache.state_hash().unwrap());
    for step in 0..3 {
        let mut again = cache.fork();
        feed_these(&mut again, &columns(1, 2000 + step, 1));
        again.evaluate().unwrap();
        assert!(at(&again).iter().zip(&before).all(|(a, b)| a != b));
        assert_eq!(at(&cache), before);
        again.trim(1).unwrap();
        assert_eq!(again.state_hash().unwrap(), hash);
    }
    assert_eq!(cache.state_hash().unwrap(), hash);
    assert_ne!(fork.state_hash().unwrap(), {
        fork.trim(1).unwrap();
        fork.state_hash().unwrap()
    });
    assert_eq!(cache.windows().collect::<Vec<_>>(), [None; 16]);
}
