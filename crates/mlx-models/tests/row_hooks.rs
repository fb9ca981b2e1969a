//! Rows with hooks of their own: each is as it would be alone, whatever its neighbours have.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::sync::{Arc, Mutex};

use mlx_rs::Array;
use mlxgk_kv_cache::{Column, KvCache, RowId, Step};
use mlxgk_mlx_models::{Addition, ErrorKind, HookPoint, NoHook, ResidualHook, Result, RowHooks};

const POINT: HookPoint = HookPoint::ResidPost(1);
const WIDTH: usize = 4;

/// Adds `factor · vector` at one point to tokens from column `from` on, and says so or not.
struct Push {
    vector: Arc<[f32]>,
    factor: f32,
    from: usize,
    tells: bool,
    /// Rows of every call of `apply` at the point.
    calls: Vec<usize>,
}

impl Push {
    fn new(value: f32, tells: bool) -> Self {
        let vector = (0..WIDTH).map(|it| value + it as f32).collect();
        Self { vector, factor: 0.5, from: 0, tells, calls: Vec::new() }
    }

    fn factors(&self, step: &Step) -> Vec<f32> {
        let columns = step.start()..step.start() + step.count();
        columns.map(|it| if it < self.from { 0.0 } else { self.factor }).collect()
    }
}

impl ResidualHook for Push {
    fn apply(&mut self, point: HookPoint, hidden: Array, step: &Step) -> Result<Array> {
        if point != POINT {
            return Ok(hidden);
        }
        self.calls.push(step.rows().len());
        assert_eq!(hidden.shape()[0] as usize, step.rows().len());
        let factors = Array::from_slice(&self.factors(step), &[1, step.count() as i32, 1]);
        let vector = Array::from_slice(&self.vector, &[WIDTH as i32]);
        Ok(hidden.add(factors.multiply(vector)?)?)
    }

    fn name(&self, _: RowId) -> Option<Arc<str>> {
        Some(format!("push {}", self.vector[0]).into())
    }

    fn budget(&self, _: RowId) -> Option<f64> {
        (self.vector[0] > 5.0).then_some(0.25)
    }

    fn additions(&self, point: HookPoint, step: &Step, _: usize) -> Result<Option<Vec<Addition>>> {
        if point != POINT {
            return Ok(Some(Vec::new()));
        }
        let addition = Addition { vector: Arc::clone(&self.vector), factors: self.factors(step) };
        Ok(self.tells.then(|| vec![addition]))
    }
}

/// The residual stream of so many rows and tokens: numbers that differ everywhere.
fn stream(rows: usize, tokens: usize) -> Array {
    let values: Vec<f32> = (0..rows * tokens * WIDTH).map(|it| (it as f32).sin()).collect();
    Array::from_slice(&values, &[rows as i32, tokens as i32, WIDTH as i32])
}

/// By row.
fn values(array: &Array) -> Vec<Vec<f32>> {
    let all: Vec<f32> = array.contiguous().unwrap().to_vec_exact().unwrap();
    all.chunks(all.len() / array.dim(0) as usize).map(<[f32]>::to_vec).collect()
}

fn cache(ids: &[u64]) -> KvCache {
    let mut cache = KvCache::new(&[], ids.len());
    let ids: Vec<RowId> = ids.iter().map(|&it| RowId::new(it)).collect();
    cache.set_row_ids(&ids).unwrap();
    cache
}

/// Counts so many columns as held.
fn feed(cache: &mut KvCache, count: usize) {
    if count > 0 {
        let row = vec![Column::Token(0); count];
        cache.begin(&vec![row.as_slice(); cache.batch()], &[]).unwrap().commit().unwrap();
    }
}

/// What a hook makes of one row of a stream.
fn alone(
    mut hook: impl ResidualHook,
    rows: usize,
    row: usize,
    start: usize,
    count: usize,
) -> Vec<f32> {
    let mut cache = cache(&[0]);
    feed(&mut cache, start);
    let hidden = stream(rows, count).take_axis(Array::from_slice(&[row as i32], &[1]), 0).unwrap();
    values(&hook.apply(POINT, hidden, &cache.step(count)).unwrap()).remove(0)
}

#[test]
fn rows_go_to_their_hooks_and_come_back_to_their_places() {
    let shared = Arc::new(Mutex::new(Push::new(9.0, false)));
    let other = Arc::new(Mutex::new(Push::new(4.0, false)));
    let mut hooks = RowHooks::default();
    hooks.insert(RowId::new(10), Arc::new(Mutex::new(Push::new(1.0, true))));
    hooks.insert(RowId::new(11), shared.clone());
    hooks.insert(RowId::new(13), Arc::new(Mutex::new(Push { from: 3, ..Push::new(2.0, true) })));
    hooks.insert(RowId::new(14), shared.clone());
    hooks.insert(RowId::new(15), other.clone());
    // Row 12 has none, and two rows of one prompt share the id 10.
    let ids = [14, 10, 12, 13, 11, 10, 15];
    let mut cache = cache(&ids);
    for count in [5, 1, 1] {
        let start = cache.len();
        let step = cache.step(count);
        let after = values(&hooks.apply(POINT, stream(7, count), &step).unwrap());
        for (row, (id, after)) in ids.iter().zip(after).enumerate() {
            let expected = match id {
                10 => alone(Push::new(1.0, true), 7, row, start, count),
                11 | 14 => alone(Push::new(9.0, false), 7, row, start, count),
                13 => alone(Push { from: 3, ..Push::new(2.0, true) }, 7, row, start, count),
                15 => alone(Push::new(4.0, false), 7, row, start, count),
                _ => alone(NoHook, 7, row, start, count),
            };
            assert_eq!(after, expected, "row {row} ({id}), {count} tokens from {start} on");
        }
        feed(&mut cache, count);
    }
    assert_eq!(shared.lock().unwrap().calls, [2, 2, 2]);
    assert_eq!(other.lock().unwrap().calls, [1, 1, 1]);
    let name = |row| hooks.name(RowId::new(row));
    assert_eq!(name(11).as_deref(), Some("push 9"));
    assert_eq!(name(12), None);
    assert_eq!(hooks.budget(RowId::new(14)), Some(0.25));
    assert_eq!(hooks.budget(RowId::new(10)), None);

    // A row that left and one that came in its place.
    hooks.remove(RowId::new(10)).unwrap();
    hooks.insert(RowId::new(16), Arc::new(Mutex::new(Push::new(7.0, true))));
    cache.set_row_ids(&[10, 16, 12, 13, 12, 12, 12].map(RowId::new)).unwrap();
    let start = cache.len();
    let after = values(&hooks.apply(POINT, stream(7, 1), &cache.step(1)).unwrap());
    assert_eq!(after[0], alone(NoHook, 7, 0, start, 1));
    assert_eq!(after[1], alone(Push::new(7.0, true), 7, 1, start, 1));
    assert_eq!(after[3], alone(Push::new(2.0, true), 7, 3, start, 1));
}

#[test]
fn rows_that_share_one_hook_are_its_batch() {
    let shared = Arc::new(Mutex::new(Push::new(9.0, true)));
    let mut hooks = RowHooks::default();
    for row in 0..3 {
        hooks.insert(RowId::new(row), shared.clone());
    }
    hooks.apply(POINT, stream(3, 2), &cache(&[0, 1, 2]).step(2)).unwrap();
    assert_eq!(shared.lock().unwrap().calls, [3]);
}

#[test]
fn two_hooks_in_succession_add_in_succession() {
    let both = || (Push::new(1.0, true), Push { from: 1, ..Push::new(3.0, true) });
    let mut hooks = RowHooks::default();
    hooks.insert(RowId::new(0), Arc::new(Mutex::new(both())));
    hooks.insert(RowId::new(1), Arc::new(Mutex::new(Push::new(2.0, true))));
    let after = values(&hooks.apply(POINT, stream(2, 3), &cache(&[0, 1]).step(3)).unwrap());
    assert_eq!(after[0], alone(both(), 2, 0, 0, 3));
    assert_eq!(after[1], alone(Push::new(2.0, true), 2, 1, 0, 3));
}

#[test]
fn additions_that_do_not_fit_are_refused() {
    let mut hooks = RowHooks::default();
    let wide = Push { vector: vec![1.0; WIDTH + 1].into(), ..Push::new(1.0, true) };
    hooks.insert(RowId::new(0), Arc::new(Mutex::new(wide)));
    let error = hooks.apply(POINT, stream(2, 1), &cache(&[0, 1]).step(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Hook);
    assert!(error.to_string().contains("5 values"), "{error}");
}

#[test]
fn hooks_cross_threads() {
    fn is_send<T: Send>() {}
    is_send::<RowHooks<'_>>();
}
