//! What keeping to a budget costs: passes, and no copy of the cache.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use mlx_rs::Array;
use mlxgk_decoding_strategies::{DecoderSession, LanguageModel, LeftPadded};
use mlxgk_kv_cache::{RowId, Step};
use mlxgk_mlx_models::{ComputeDtype, Decoder, HookPoint, ResidualHook, Result};

fn model(name: &str) -> Decoder {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name);
    Decoder::load(&folder, ComputeDtype::Float32).unwrap()
}

/// Adds a constant, as strongly as it may, and counts the passes.
struct Push {
    value: f32,
    budgets: Vec<Option<f64>>,
    passes: Arc<AtomicUsize>,
}

impl ResidualHook for Push {
    fn apply(&mut self, point: HookPoint, hidden: Array, step: &Step) -> Result<Array> {
        match point {
            HookPoint::ResidPre(0) => {
                self.passes.fetch_add(1, Ordering::Relaxed);
                Ok(hidden)
            }
            HookPoint::ResidPost(0) => {
                let shape = [step.rows().len() as i32, step.count() as i32, 1];
                let strengths = Array::from_slice(step.strengths().unwrap(), &shape);
                // Not the same for all units: a norm would take that out again.
                let width = hidden.dim(-1);
                let vector: Vec<f32> =
                    (0..width).map(|it| self.value * (it as f32).sin()).collect();
                let vector = Array::from_slice(&vector, &[width]);
                Ok(hidden.add(strengths.multiply(vector)?)?)
            }
            _ => Ok(hidden),
        }
    }

    fn name(&self, _: RowId) -> Option<Arc<str>> {
        Some("push".into())
    }

    fn budget(&self, row: RowId) -> Option<f64> {
        self.budgets[row.get() as usize]
    }
}

/// Where the values of the cache's arrays lie.
fn places(session: &DecoderSession<'_>) -> Vec<*const f32> {
    session.cache().arrays().map(|it| it.try_as_slice::<f32>().unwrap().as_ptr()).collect()
}

#[test]
fn a_budget_that_is_kept_costs_two_passes_and_no_copy_of_the_cache() {
    for name in ["llama", "gemma2", "mistral"] {
        let model = model(name);
        let passes = Arc::new(AtomicUsize::new(0));
        let budgets = vec![Some(1e6), Some(1e6)];
        let hook = Push { value: 0.5, budgets, passes: Arc::clone(&passes) };
        let prompts = [vec![5, 9, 40, 7, 7, 61, 7, 9], vec![30, 2, 7]];
        let prompts = LeftPadded::new(&prompts, 0).unwrap();
        let mut session = DecoderSession::prefill(&model, &prompts, 2048, hook).unwrap();
        session.scores().unwrap();
        assert_eq!(passes.swap(0, Ordering::Relaxed), 2, "{name}");
        session.feed(&[1, 2]).unwrap();
        session.scores().unwrap();
        passes.store(0, Ordering::Relaxed);
        let before = places(&session);
        let tokens = 40;
        for token in 0..tokens {
            session.feed(&[token % 9, token % 7]).unwrap();
            session.scores().unwrap();
        }
        let count = passes.load(Ordering::Relaxed);
        assert!(count as f64 <= 2.2 * f64::from(tokens), "{name}: {count} passes");
        assert_eq!(places(&session), before, "{name}: the cache was copied");
    }
}

/// Each row has a bound of its own, and one without is steered in full.
#[test]
fn rows_keep_to_their_own_budgets() {
    let model = model("llama");
    let run = |budgets: &[Option<f64>]| -> Vec<Vec<f32>> {
        let (value, budgets) = (1.5, budgets.to_vec());
        let rows = vec![vec![5, 9, 40, 7]; budgets.len()];
        let hook = Push { value, budgets, passes: Arc::default() };
        let prompts = LeftPadded::new(&rows, 0).unwrap();
        let mut session = DecoderSession::prefill(&model, &prompts, 2048, hook).unwrap();
        for token in [3, 8, 1] {
            session.feed(&vec![token; rows.len()]).unwrap();
        }
        let scores = session.scores().unwrap();
        scores.chunks(model.vocab_size()).map(<[f32]>::to_vec).collect()
    };
    let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
    let budgets = [Some(1e-9), Some(0.01), None, Some(1e6)];
    let together = run(&budgets);
    // A row whose budget nothing exceeds is steered like one without.
    assert!(near(&together[2], &together[3]));
    assert!(!near(&together[0], &together[1]) && !near(&together[1], &together[2]));
    for (row, budget) in budgets.into_iter().enumerate() {
        // Beside a row that has one, so that strengths are set.
        assert!(near(&run(&[budget, Some(1.0)])[0], &together[row]), "{budget:?}");
    }
}
