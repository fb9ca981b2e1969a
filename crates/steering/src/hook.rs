//! Steering as a residual hook: on the device, without waiting for it.

use std::{collections::BTreeMap, sync::Arc};

use mlx_rs::{Array, Dtype, ops::select};
use mlxgk_kv_cache::{RowId, Step};
use mlxgk_mlx_models::{HookPoint, ResidualHook};

use crate::{
    Conflict, Error, ErrorKind, Injection, Positions, Result, Schedule, Steering, SteeringVectors,
    amount::Amount,
    effect::{Change, Effect},
    fingerprint::fingerprint,
    positions::Selection,
};

/// Applies a [`Steering`] in every forward pass it is given to.
///
/// What it does to a token follows from the token's place alone, so it means the same in chunks, in
/// left-padded batches, on reordered beams and after a rollback. Tokens it does not select come out
/// bit for bit as they went in.
#[derive(Debug)]
pub struct SteeringHook {
    places: BTreeMap<HookPoint, Vec<Effect>>,
    /// By injection.
    rules: Vec<(Positions, Schedule)>,
    conflict: Conflict,
    /// `None` where nothing is steered.
    name: Option<Arc<str>>,
    budget: Option<f64>,
}

impl SteeringHook {
    pub(crate) fn new(steering: &Steering, dtype: Dtype) -> Result<Self> {
        let mut places: BTreeMap<HookPoint, Vec<Effect>> = BTreeMap::new();
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
        Ok(Self { places, rules, conflict: steering.conflict, name, budget })
    }
}

/// The vectors of an injection at each place: one, save for a subspace.
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
        let Some(effects) = self.places.get(&point) else { return Ok(hidden) };
        if self.budget.is_some() && step.strengths().is_none() {
            let what = "a KL budget is enforced by the generation loops; a forward pass outside \
                        them has to set the cache's strengths first";
            return Err(Error::new(ErrorKind::Run, what).into());
        }
        let steered = steer(effects, &self.rules, self.conflict, hidden, step);
        Ok(steered.map_err(|it| it.of(format_args!("steering at {point}")))?)
    }

    fn name(&self, _: RowId) -> Option<Arc<str>> {
        self.name.clone()
    }

    fn budget(&self, _: RowId) -> Option<f64> {
        self.budget
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
