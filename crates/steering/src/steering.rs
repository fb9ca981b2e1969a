//! A steering set-up: which vectors, what they do, where, and how strongly.

use std::collections::BTreeMap;

use mlxgk_mlx_models::{Decoder, HookPoint};

use crate::{
    Error, ErrorKind, LogitBias, Operation, Positions, Result, Schedule, SteeringHook,
    SteeringVectors, seed::derive_seed,
};

/// One change to the residual stream.
///
/// ```
/// use mlxgk_mlx_models::{Capture, ComputeDtype, Decoder};
/// use mlxgk_steering::{Clause, HookPoint, Injection, Operation, Steering, SteeringVectors};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let point = HookPoint::ResidPost(1);
/// let joy = SteeringVectors::new([(point, vec![0.5; model.hidden_size()])])?;
/// let injection = Injection::new(joy, 2.0)
///     .operation(Operation::Add)
///     .positions(Clause::Tokens(vec![9]).into());
/// let mut steered = (Steering::from(injection).hook(&model)?, Capture::new([point]));
/// let mut plain = Capture::new([point]);
/// model.forward(&[&[5, 9]], &mut model.new_cache(1), &mut steered)?;
/// model.forward(&[&[5, 9]], &mut model.new_cache(1), &mut plain)?;
/// // 2 · 0.5 in every number of the stream at token 9, and nothing at token 5.
/// let moved = steered.1.captured()[&point].subtract(&plain.captured()[&point])?;
/// let mean = moved.mean_axis(2, false)?.to_vec_exact::<f32>()?;
/// assert!(mean[0] == 0.0 && (mean[1] - 1.0).abs() < 1e-5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Injection {
    pub(crate) vectors: Vec<SteeringVectors>,
    pub(crate) matrices: BTreeMap<HookPoint, Vec<f32>>,
    pub(crate) alpha: f64,
    pub(crate) operation: Operation,
    pub(crate) positions: Positions,
    pub(crate) schedule: Schedule,
}

impl Injection {
    /// Adds `alpha · v` at every place of `vectors`, to every token.
    pub fn new(vectors: SteeringVectors, alpha: f64) -> Self {
        Self::of(vec![vectors], Operation::Add, alpha)
    }

    fn of(vectors: Vec<SteeringVectors>, operation: Operation, alpha: f64) -> Self {
        Self {
            vectors,
            matrices: BTreeMap::new(),
            alpha,
            operation,
            positions: Positions::default(),
            schedule: Schedule::Constant,
        }
    }

    /// Removes the component of the stream in the space that several vectors span
    /// ([`Operation::AblateSubspace`]). A place that only some of them have uses those.
    pub fn subspace(vectors: Vec<SteeringVectors>) -> Self {
        Self::of(vectors, Operation::AblateSubspace, 1.0)
    }

    /// Replaces `h` by `A·h + b` ([`Operation::Affine`]): `maps` are the matrices, row after row, one
    /// of width² values for every place of `offsets`.
    pub fn affine(maps: BTreeMap<HookPoint, Vec<f32>>, offsets: SteeringVectors) -> Self {
        Self { matrices: maps, ..Self::of(vec![offsets], Operation::Affine, 1.0) }
    }

    /// What is done with the vectors.
    #[must_use]
    pub fn operation(self, operation: Operation) -> Self {
        Self { operation, ..self }
    }

    /// Which tokens.
    #[must_use]
    pub fn positions(self, positions: Positions) -> Self {
        Self { positions, ..self }
    }

    /// How the strength changes as an answer grows.
    #[must_use]
    pub fn schedule(self, schedule: Schedule) -> Self {
        Self { schedule, ..self }
    }

    fn check(&self, model: &Decoder) -> Result<()> {
        if !self.alpha.is_finite() || !(self.alpha as f32).is_finite() {
            return Err(Error::parameter(format!("alpha must be finite, but is {}", self.alpha)));
        }
        self.positions.check()?;
        self.schedule.check()?;
        for vectors in &self.vectors {
            vectors.check(model)?;
            if !self.operation.needs_direction() {
                continue;
            }
            if let Some((point, _)) = vectors.iter().find(|it| vectors.norm(it.0) == 0.0) {
                let what =
                    format!("{point} is all zeros, but {} needs a direction", self.operation);
                return Err(Error::new(ErrorKind::Vector, what));
            }
        }
        if self.operation != Operation::Affine {
            return Ok(());
        }
        let width = model.hidden_size();
        for (point, _) in self.vectors.iter().flat_map(SteeringVectors::iter) {
            match self.matrices.get(&point) {
                Some(it) if it.len() == width * width && it.iter().all(|it| it.is_finite()) => {}
                _ => {
                    let what = format!("{point} needs a matrix of {width} × {width} finite values");
                    return Err(Error::new(ErrorKind::Vector, what));
                }
            }
        }
        Ok(())
    }
}

/// What happens where several injections select the same token at the same place.
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, ErrorKind};
/// use mlxgk_steering::{Conflict, HookPoint, Injection, Steering, SteeringVectors};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let vector = vec![0.5; model.hidden_size()];
/// let vectors = SteeringVectors::new([(HookPoint::ResidPost(1), vector)])?;
/// let both = vec![Injection::new(vectors.clone(), 1.0), Injection::new(vectors, 2.0)];
/// // Both are for every token.
/// let mut hook = Steering::new(both, Conflict::Error).hook(&model)?;
/// let error = model.forward(&[&[5]], &mut model.new_cache(1), &mut hook).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Hook);
/// println!("{error}"); // names the place, and says what to do
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Conflict {
    /// Each one's change is found from the stream as it came in, and the changes are added up, so
    /// their order does not matter.
    #[default]
    Sum,
    /// The first in the list wins; the others leave the token alone.
    Priority,
    /// It is an error.
    Error,
}

/// Injections that work together.
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder};
/// use mlxgk_steering::{HookPoint, Injection, Steering, SteeringVectors};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let vectors = |at| SteeringVectors::new([(at, vec![0.5; model.hidden_size()])]);
/// let (joy, calm) = (vectors(HookPoint::ResidPost(1))?, vectors(HookPoint::FinalNorm)?);
/// let steering = Steering::from(Injection::new(joy, 1.5)).with(Injection::new(calm, -1.0));
/// assert_eq!(steering.deepest().unwrap().0, HookPoint::FinalNorm);
/// let mut hook = steering.hook(&model)?;
/// let steered = model.forward(&[&[5, 17, 30]], &mut model.new_cache(1), &mut hook)?;
/// // At strength 0 nothing is steered.
/// let mut off = steering.scaled(0.0).hook(&model)?;
/// let plain = model.forward(&[&[5, 17, 30]], &mut model.new_cache(1), &mut off)?;
/// assert!(!steered.all_close(&plain, None, None, None)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Steering {
    pub(crate) injections: Vec<Injection>,
    pub(crate) conflict: Conflict,
    pub(crate) budget: Option<f64>,
}

impl From<Injection> for Steering {
    fn from(injection: Injection) -> Self {
        Self::new(vec![injection], Conflict::default())
    }
}

impl Steering {
    /// Several injections, and what happens where they meet.
    pub fn new(injections: Vec<Injection>, conflict: Conflict) -> Self {
        Self { injections, conflict, budget: None }
    }

    /// Adds one.
    #[must_use]
    pub fn with(mut self, injection: Injection) -> Self {
        self.injections.push(injection);
        self
    }

    /// Bounds how far each choice of a token is moved: KL(steered ‖ base) ≤ `nats`, where both see
    /// the same text and the same cache, and base is not steered at this step.
    ///
    /// Whatever the schedule says is multiplied, at each step and in each row, by the largest factor
    /// k/64 up to which the bound holds. A step is a new token, or the prompt: its tokens share the
    /// factor that keeps the first choice within the bound. A step costs two passes where the bound
    /// holds anyway, else about five.
    #[must_use]
    pub fn budget(self, nats: f64) -> Self {
        Self { budget: Some(nats), ..self }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.injections.is_empty()
    }

    /// The same with every alpha multiplied by `factor`. For `clamp` and the caps that moves the target.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        let mut scaled = self.clone();
        scaled.injections.iter_mut().for_each(|it| it.alpha *= factor);
        scaled
    }

    /// The same along random directions of equal norms: the control that an effect has to beat.
    /// Every set of vectors has directions of its own, so that what several files do together is
    /// compared with as many directions. The matrices of [affine maps](Injection::affine) stay.
    ///
    /// # Errors
    /// When a vector cannot be drawn.
    pub fn randomized(&self, seed: u64) -> Result<Self> {
        let mut random = self.clone();
        let sets = random.injections.iter_mut().flat_map(|it| &mut it.vectors);
        for (index, vectors) in (0..).zip(sets) {
            *vectors = vectors.random_like(derive_seed(seed, index))?;
        }
        Ok(random)
    }

    /// The deepest place that is steered, and the first vector there: where a change of the stream
    /// shows whole.
    pub fn deepest(&self) -> Option<(HookPoint, &[f32])> {
        let vectors = self.injections.iter().flat_map(|it| &it.vectors);
        let places = vectors.flat_map(SteeringVectors::iter);
        // `FinalNorm` is last in the order of places; blocks are in the order of their number.
        places.reduce(|best, next| if next.0 > best.0 { next } else { best })
    }

    /// The hook for one model. It keeps nothing between passes, so one hook may serve any number of
    /// requests, batches, beams and drafts.
    ///
    /// # Errors
    /// When a vector does not fit the model, alpha is not finite, or positions or a schedule are
    /// wrong.
    pub fn hook(&self, model: &Decoder) -> Result<SteeringHook> {
        self.injections.iter().try_for_each(|it| it.check(model))?;
        if let Some(budget) = self.budget.filter(|it| !(it.is_finite() && *it > 0.0)) {
            let what = format!("the KL budget must be a finite number above 0, but is {budget}");
            return Err(Error::parameter(what));
        }
        SteeringHook::new(self, model.dtype())
    }

    /// What adding these vectors after the final norm does to the scores, for scores that no hook
    /// reaches; of each file the vector that [`for_logits`](SteeringVectors::for_logits) takes.
    ///
    /// # Errors
    /// As [`hook`](Self::hook), and when something other than adding is asked for.
    pub fn logit_bias(&self, model: &Decoder) -> Result<LogitBias> {
        self.injections.iter().try_for_each(|it| it.check(model))?;
        LogitBias::new(self, model)
    }
}
