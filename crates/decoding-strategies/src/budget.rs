//! A bound on how far a hook moves each choice: KL(hooked ‖ unhooked) of the next token.
//!
//! Both are read from one cache, so what the hook did earlier is common to both and the bound is on
//! this step alone. How strongly the hook acts at each step goes into the cache, which still has it
//! when a text is read again.

use mlx_rs::{Array, ops::logsumexp_axis, transforms::eval};
use mlxgk_kv_cache::{KvCache, Mark};
use mlxgk_mlx_models::ResidualHook;

use crate::{Error, ErrorKind, Result};

/// Strengths are multiples of 1/64: fine enough, and the result does not depend on the search path.
const STEPS: usize = 64;

/// Feeds `columns` tokens per row by `read`, which returns the scores of the next one, fp32
/// `[rows, vocabulary]`: at full strength where the hook has no [budget](ResidualHook::budget) for a
/// row, else as strong as its budget allows.
///
/// Every attempt runs on the cache itself and is rolled back, which copies nothing. Two passes are enough where no row
/// exceeds its budget at full strength.
pub(crate) fn within_budget(
    cache: &mut KvCache,
    hook: &mut dyn ResidualHook,
    columns: usize,
    read: &mut dyn FnMut(&mut KvCache, &mut dyn ResidualHook) -> Result<Array>,
) -> Result<Array> {
    let budgets: Vec<Option<f64>> =
        cache.row_ids().into_iter().map(|row| hook.budget(row)).collect();
    if budgets.iter().all(Option::is_none) {
        return read(cache, hook);
    }
    let mark = cache.mark();
    let mut attempt = |cache: &mut KvCache, steps: &[usize]| {
        let strengths: Vec<f32> = steps.iter().map(|&it| it as f32 / STEPS as f32).collect();
        cache.set_strengths(columns, &strengths)?;
        read(cache, hook)
    };
    // A row without a budget is steered in full, in every attempt.
    let none: Vec<usize> = budgets.iter().map(|it| if it.is_some() { 0 } else { STEPS }).collect();
    let base = log_softmax(&attempt(cache, &none)?)?;
    // Evaluated before it is taken back: what still has to read the cache would force a copy of it.
    eval([&base])?;
    take_back(cache, &mark, columns)?;
    let mut steps = vec![STEPS; budgets.len()];
    let mut scores = attempt(cache, &steps)?;
    let divergence = divergences(&scores, &base)?;
    let mut searches: Vec<Search> =
        divergence.iter().zip(&budgets).map(|(&it, &budget)| Search::new(it, budget)).collect();
    for round in 0.. {
        let found: Vec<usize> = searches.iter().map(|it| it.below.0).collect();
        let is_over = searches.iter().all(Search::is_over);
        if is_over && steps == found {
            break;
        }
        take_back(cache, &mark, columns)?;
        if is_over {
            return attempt(cache, &found);
        }
        steps = searches.iter().map(|it| it.next(round)).collect();
        scores = attempt(cache, &steps)?;
        let divergence = divergences(&scores, &base)?;
        for ((search, &step), divergence) in searches.iter_mut().zip(&steps).zip(divergence) {
            search.learn(step, divergence);
        }
    }
    Ok(scores)
}

/// Takes an attempt back. Where the whole text was read again for it (longrope, no cache), it stands in
/// another cache than the mark's, all of whose columns are there.
fn take_back(cache: &mut KvCache, mark: &Mark, columns: usize) -> Result<()> {
    if cache.roll_back_to(mark).is_err() {
        cache.trim(columns)?;
    }
    Ok(())
}

/// Looks for the largest strength within the budget, between one that is and one that is not.
#[derive(Debug)]
struct Search {
    /// √budget. Distances are roots, because KL grows about as the square of the strength.
    goal: f64,
    /// Strength and distance.
    below: (usize, f64),
    above: (usize, f64),
}

impl Search {
    /// Without a budget the search is over, at full strength.
    fn new(full: f64, budget: Option<f64>) -> Self {
        let goal = budget.map_or(f64::INFINITY, f64::sqrt);
        let within = budget.is_none_or(|it| full <= it);
        Self {
            goal,
            below: (if within { STEPS } else { 0 }, 0.0),
            above: (if within { STEPS + 1 } else { STEPS }, distance(full)),
        }
    }

    fn is_over(&self) -> bool {
        self.below.0 + 1 == self.above.0
    }

    /// The strength to try: where a straight line meets the goal, and in every other round the
    /// middle, so that a curve that is far from straight does not take long.
    fn next(&self, round: usize) -> usize {
        let ((low, near), (high, far)) = (self.below, self.above);
        if self.is_over() {
            return low;
        }
        let share = (self.goal - near) / (far - near);
        // NaN is not in the range.
        let by_line = round.is_multiple_of(2) && (0.0..1.0).contains(&share);
        let step =
            if by_line { low + ((high - low) as f64 * share) as usize } else { (low + high) / 2 };
        step.clamp(low + 1, high - 1)
    }

    fn learn(&mut self, step: usize, divergence: f64) {
        if self.is_over() {
            return;
        }
        let distance = distance(divergence);
        if distance <= self.goal {
            self.below = (step, distance);
        } else {
            self.above = (step, distance);
        }
    }
}

/// The root of a divergence; NaN counts as over any budget.
fn distance(divergence: f64) -> f64 {
    if divergence.is_nan() { f64::INFINITY } else { divergence.max(0.0).sqrt() }
}

fn log_softmax(scores: &Array) -> Result<Array> {
    Ok(scores.subtract(logsumexp_axis(scores, -1, true)?)?)
}

/// KL(scores ‖ base) per row, in nats.
fn divergences(scores: &Array, base: &Array) -> Result<Vec<f64>> {
    let hooked = log_softmax(scores)?;
    let sum = hooked.exp()?.multiply(hooked.subtract(base)?)?.sum_axis(-1, false)?;
    eval([&sum])?;
    let values = sum
        .try_as_slice::<f32>()
        .map_err(|e| Error::new(ErrorKind::Model, format!("a divergence cannot be read: {e}")))?;
    Ok(values.iter().map(|&it| f64::from(it)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The strength found, and the rounds it took.
    fn search(budget: f64, divergence: impl Fn(f64) -> f64) -> (usize, usize) {
        let mut search = Search::new(divergence(1.0), Some(budget));
        let mut rounds = 0;
        while !search.is_over() {
            let step = search.next(rounds);
            search.learn(step, divergence(step as f64 / 64.0));
            rounds += 1;
        }
        (search.below.0, rounds)
    }

    #[test]
    fn the_largest_strength_is_found_whatever_the_curve() {
        for budget in [1e-9, 0.001, 0.1, 0.5, 0.999, 2.0] {
            for (power, most) in [(2.0, 3), (1.0, 9), (4.0, 9), (0.2, 12)] {
                let curve = |it: f64| it.powf(power);
                let expected = (0..=64).rev().find(|&it| curve(f64::from(it) / 64.0) <= budget);
                let (found, rounds) = search(budget, curve);
                assert_eq!(found, expected.unwrap() as usize, "{budget} {power}");
                assert!(rounds <= most, "{budget} {power}: {rounds}");
            }
        }
    }

    #[test]
    fn strengths_that_give_nan_are_not_used() {
        assert_eq!(search(0.1, |it| if it > 0.3 { f64::NAN } else { 0.0 }).0, 19);
    }
}
