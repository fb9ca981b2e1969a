//! Steering as a residual hook: on the device, without waiting for it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mlx_rs::{Array, Dtype, ops::select};
use mlxgk_kv_cache::{RowId, Step};
use mlxgk_mlx_models::{Addition, HookPoint, ResidualHook};

use crate::{
    Conflict, Error, ErrorKind, Injection, Positions, Result, Schedule, Steering, SteeringVectors,
    amount::{Amount, row_factors},
    effect::{Change, Effect},
    fingerprint::fingerprint,
    positions::Selection,
};

type Places = BTreeMap<HookPoint, Vec<Effect>>;

/// Applies a [`Steering`] in every forward pass it is given to.
///
/// What it does to a token depends on the token's place alone, so it means the same in chunks, in
/// left-padded batches, on reordered beams and after a rollback. Tokens it does not select come out
/// bit for bit as they went in.
///
/// It keeps nothing between passes. A clone shares the vectors on the device, so every stream can have
/// one, in any thread; rows that are steered differently share a batch through
/// [`RowHooks`](mlxgk_mlx_models::RowHooks).
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
/// use mlxgk_steering::{HookPoint, Injection, Steering, SteeringVectors};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let vector = vec![0.5; model.hidden_size()];
/// let vectors = SteeringVectors::new([(HookPoint::ResidPost(1), vector)])?;
/// let mut hook = Steering::from(Injection::new(vectors, 2.0)).hook(&model)?;
/// let steered = model.forward(&[&[5, 9]], &mut model.new_cache(1), &mut hook)?;
/// let plain = model.forward(&[&[5, 9]], &mut model.new_cache(1), &mut NoHook)?;
/// assert!(!steered.all_close(&plain, None, None, None)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct SteeringHook {
    /// Locked while a graph is built: arrays may be used by one thread at a time.
    places: Arc<Mutex<Places>>,
    /// By injection.
    rules: Vec<(Positions, Schedule)>,
    conflict: Conflict,
    /// `None` where nothing is steered.
    name: Option<Arc<str>>,
    budget: Option<f64>,
}

impl SteeringHook {
    pub(crate) fn new(steering: &Steering, dtype: Dtype) -> Result<Self> {
        let mut places = Places::new();
        for (rule, injection) in steering.injections.iter().enumerate() {
            if injection.operation.is_off(injection.alpha) {
                continue;
            }
            for (point, vectors) in by_place(injection) {
                let effect = Effect::new(rule, injection, point, &vectors, dtype)?;
                places.entry(point).or_default().push(effect);
            }
        }
        let rule = |it: &Injection| (it.positions.clone(), it.schedule.clone());
        let rules = steering.injections.iter().map(rule).collect();
        let name = (!places.is_empty()).then(|| fingerprint(steering).into());
        let budget = steering.budget.filter(|_| name.is_some());
        let places = Arc::new(Mutex::new(places));
        Ok(Self { places, rules, conflict: steering.conflict, name, budget })
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        // Nothing is changed under the lock that a panic could leave half done.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A budget is enforced where tokens are chosen.
    fn check_strengths(&self, step: &Step) -> Result<()> {
        if self.budget.is_some() && step.strengths().is_none() {
            let what = "a KL budget is enforced by the generation loops; a forward pass outside \
                        them has to set the cache's strengths first";
            return Err(Error::new(ErrorKind::Run, what));
        }
        Ok(())
    }

    /// What is added to one row, where that is all: by plain additions to tokens that the host knows.
    fn added(&self, effects: &[Effect], step: &Step, row: usize) -> Result<Option<Vec<Addition>>> {
        if effects.len() > 1 && self.conflict != Conflict::Sum {
            return Ok(None);
        }
        let mut additions = Vec::with_capacity(effects.len());
        for effect in effects {
            let (positions, schedule) = &self.rules[effect.rule];
            let (Some((vector, alpha)), Some(selected)) =
                (effect.addition(), positions.select_row(step, row)?)
            else {
                return Ok(None);
            };
            let factors = row_factors(schedule, step, row)?.into_iter().zip(selected);
            let factor =
                |(it, selected): (f64, bool)| if selected { (alpha * it) as f32 } else { 0.0 };
            let factors = factors.map(factor).collect();
            additions.push(Addition { vector: Arc::clone(vector), factors });
        }
        Ok(Some(additions))
    }
}

/// The vectors of an injection at each place: one, except for a subspace.
fn by_place(injection: &Injection) -> BTreeMap<HookPoint, Vec<&[f32]>> {
    let mut places: BTreeMap<HookPoint, Vec<&[f32]>> = BTreeMap::new();
    for (point, vector) in injection.vectors.iter().flat_map(SteeringVectors::iter) {
        places.entry(point).or_default().push(vector);
    }
    places
}

impl ResidualHook for SteeringHook {
    fn apply(
        &mut self,
        point: HookPoint,
        hidden: Array,
        step: &Step,
    ) -> mlxgk_mlx_models::Result<Array> {
        let places = self.places();
        let Some(effects) = places.get(&point) else { return Ok(hidden) };
        self.check_strengths(step)?;
        let steered = steer(effects, &self.rules, self.conflict, hidden, step);
        Ok(steered.map_err(|it| it.of(format_args!("steering at {point}")))?)
    }

    fn name(&self, _: RowId) -> Option<Arc<str>> {
        self.name.clone()
    }

    fn budget(&self, _: RowId) -> Option<f64> {
        self.budget
    }

    fn additions(
        &self,
        point: HookPoint,
        step: &Step,
        row: usize,
    ) -> mlxgk_mlx_models::Result<Option<Vec<Addition>>> {
        let places = self.places();
        let Some(effects) = places.get(&point) else { return Ok(Some(Vec::new())) };
        self.check_strengths(step)?;
        let added = self.added(effects, step, row);
        Ok(added.map_err(|it| it.of(format_args!("steering at {point}")))?)
    }
}

fn steer(
    effects: &[Effect],
    rules: &[(Positions, Schedule)],
    conflict: Conflict,
    hidden: Array,
    step: &Step,
) -> Result<Array> {
    let mut taken = Taken { conflict, before: Vec::new() };
    let mut steered: Option<Array> = None;
    for effect in effects {
        let (positions, schedule) = &rules[effect.rule];
        let mut selection = positions.select(step)?;
        if effects.len() > 1 {
            selection = taken.resolve(selection, step)?;
        }
        let Some(amount) = Amount::new(&selection, schedule, step)? else { continue };
        let so_far = steered.as_ref().unwrap_or(&hidden);
        let next = match effect.change(&hidden, &amount)? {
            Change::Add(delta) => so_far.add(delta)?,
            Change::Become(new) => {
                let new = match amount.selected()? {
                    None => new,
                    Some(selected) => select(&selected, &new, &hidden)?,
                };
                match &steered {
                    None => new,
                    Some(so_far) => so_far.add(new.subtract(&hidden)?)?,
                }
            }
        };
        steered = Some(next);
    }
    Ok(steered.unwrap_or(hidden))
}

/// What earlier injections in the list have selected.
struct Taken {
    conflict: Conflict,
    before: Vec<Selection>,
}

impl Taken {
    /// The selection without the tokens that earlier injections have taken.
    fn resolve(&mut self, selection: Selection, step: &Step) -> Result<Selection> {
        if self.conflict == Conflict::Sum {
            return Ok(selection);
        }
        let mut left = selection.clone();
        for before in &self.before {
            if self.conflict == Conflict::Error && before.may_meet(&selection) {
                let what = "two injections select the same token; give them disjoint positions, or let \
                            them add up";
                return Err(Error::new(ErrorKind::Conflict, what));
            }
            left = left.minus(before, step)?;
        }
        self.before.push(selection);
        Ok(left)
    }
}
