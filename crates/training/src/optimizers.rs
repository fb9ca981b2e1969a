//! The optimizers of a run: one for all parameters, and others for groups of them.

use mlx_rs::Array;
use regex::Regex;

use crate::{Error, Optimizer, OptimizerKind, Result, optimizer::Prepared};

/// Parameters that have an optimizer and a learning rate of their own (torch's parameter group). Schedule,
/// clipping and averages are those of the run.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterGroup {
    /// A regular expression that the parameters' names match, wherever in the name.
    pub names: String,
    /// Their optimizer.
    pub optimizer: OptimizerKind,
    /// Their learning rate where the schedule's factor is 1.
    pub learning_rate: f64,
}

/// One optimizer per group, and which parameters it has.
#[derive(Debug)]
pub(crate) struct Optimizers {
    groups: Vec<Group>,
    /// How many parameters there are.
    count: usize,
}

#[derive(Debug)]
struct Group {
    kind: OptimizerKind,
    optimizer: Optimizer,
    learning_rate: f64,
    /// Indices of parameters.
    members: Vec<usize>,
}

impl Optimizers {
    /// Gives each parameter to the first group that it matches, or else to the optimizer `kind`.
    ///
    /// # Errors
    /// When a setting is out of its range, an expression is wrong or matches no parameter that an earlier
    /// group has left, or an optimizer cannot train a parameter of its group.
    pub(crate) fn new(
        kind: OptimizerKind,
        learning_rate: f64,
        groups: &[ParameterGroup],
        names: &[String],
        parameters: &[Array],
    ) -> Result<Self> {
        let mut made = Vec::new();
        let mut left: Vec<usize> = (0..names.len()).collect();
        for group in groups {
            let pattern = Regex::new(&group.names)
                .map_err(|e| Error::config(format!("the names of a parameter group: {e}")))?;
            let (members, others): (Vec<usize>, Vec<usize>) =
                left.into_iter().partition(|&it| pattern.is_match(&names[it]));
            if members.is_empty() {
                let what = format!("no parameter is left for the group `{}`", group.names);
                return Err(Error::config(what));
            }
            made.push(Group::new(group.optimizer, group.learning_rate, members)?);
            left = others;
        }
        made.push(Group::new(kind, learning_rate, left)?);
        for group in &made {
            for &index in &group.members {
                group.kind.check_parameter(&names[index], &parameters[index])?;
            }
        }
        Ok(Self { groups: made, count: names.len() })
    }

    /// One step at `factor` times the learning rates: the parameters after it. Their names are for errors.
    ///
    /// # Errors
    /// When the gradients are not those of the parameters, a parameter's norm is not finite after the step,
    /// or MLX fails. Nothing is then changed, in any group.
    pub(crate) fn step(
        &mut self,
        parameters: &[Array],
        gradients: &[Array],
        factor: f64,
        names: &[String],
    ) -> Result<Vec<Array>> {
        let prepare = |group: &Group| {
            let of = |all: &[Array]| -> Vec<Array> {
                group.members.iter().map(|&it| all[it].clone()).collect()
            };
            let (own, gradients) = (of(parameters), of(gradients));
            let rate = factor * group.learning_rate;
            let name = |index: usize| format!("`{}`", names[group.members[index]]);
            group.optimizer.prepare(&own, &gradients, rate, &name)
        };
        let prepared: Vec<Prepared> = self.groups.iter().map(prepare).collect::<Result<_>>()?;
        let mut after = parameters.to_vec();
        for (group, prepared) in self.groups.iter_mut().zip(prepared) {
            for (&index, array) in group.members.iter().zip(group.optimizer.commit(prepared)) {
                after[index] = array;
            }
        }
        Ok(after)
    }

    /// The shapes of what is kept of a parameter.
    pub(crate) fn kept_shapes(&self, index: usize, shape: &[i32]) -> Vec<Vec<i32>> {
        let group = self.groups.iter().find(|it| it.members.contains(&index));
        group.map_or_else(Vec::new, |it| it.kind.kept(shape))
    }

    /// Steps made, and what is kept of each parameter; nothing before the first step.
    pub(crate) fn state(&self) -> (u64, Vec<&[Array]>) {
        let mut kept: Vec<&[Array]> = vec![&[]; self.count];
        let mut steps = 0;
        for group in &self.groups {
            let (made, own) = group.optimizer.state();
            steps = steps.max(made);
            for (&index, arrays) in group.members.iter().zip(own) {
                kept[index] = arrays;
            }
        }
        (steps, kept)
    }

    /// Takes up where others stopped.
    pub(crate) fn set_state(&mut self, steps: u64, kept: &[Vec<Array>]) {
        for group in &mut self.groups {
            let own = match steps {
                0 => Vec::new(),
                _ => group.members.iter().map(|&it| kept[it].clone()).collect(),
            };
            group.optimizer.set_state(steps, own);
        }
    }
}

impl Group {
    fn new(kind: OptimizerKind, learning_rate: f64, members: Vec<usize>) -> Result<Self> {
        // The parameters are fp32.
        if !(learning_rate >= 0.0 && learning_rate <= f64::from(f32::MAX)) {
            let what = "expected a number from 0 to the largest of fp32";
            return Err(Error::config(format!("the learning rate is {learning_rate}; {what}")));
        }
        Ok(Self { kind, optimizer: Optimizer::new(kind)?, learning_rate, members })
    }
}
