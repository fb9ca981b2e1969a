//! The loss of a batch and its gradients, in one pass or stretch by stretch.
//!
//! A pass goes up through the blocks, is judged by the head a few tokens at a time, and comes back down.
//! With checkpointing it goes up without keeping anything but the states between stretches of blocks,
//! and each stretch is computed again on the way down: memory for one stretch instead of all, for one
//! more pass through all but the last.

use std::ops::Range;

use mlx_rs::{
    Array, Dtype,
    error::Result as MlxResult,
    transforms::{eval, fallible_vjp, value_and_grad_with_argnums},
};
use mlxgk_kv_cache::Column;
use mlxgk_mlx_models::{AdapterDropout, ResidualHook};

use crate::{
    Batch, Objective, Result, Trainee,
    head::{Head, Judged, detached, into_exception},
    losses::check_smoothing,
};

/// How gradients are taken.
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
/// use mlxgk_training::{Batch, Example, GradientOptions, Trainee};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let mut model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let mut trainee = Trainee::new(&mut model).weights(&["norm"], &[])?;
/// let batch = Batch::new(&[Example::text(vec![5, 9, 14, 7])])?;
/// let plain = trainee.gradients(&batch, GradientOptions::default(), &mut NoHook)?;
/// // One block's activations at a time: less memory, the same gradients.
/// let options = GradientOptions { checkpoint_layers: Some(1), ..Default::default() };
/// let frugal = trainee.gradients(&batch, options, &mut NoHook)?;
/// assert!((plain.loss - frugal.loss).abs() < 1e-4);
/// for (a, b) in plain.values.iter().zip(&frugal.values) {
///     assert!(a.all_close(b, 1e-3, 1e-4, None)?);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct GradientOptions<'o> {
    /// What is minimized.
    pub objective: Objective<'o>,
    /// What the loss is multiplied by: the gradients come out as much larger, which keeps those in half
    /// precision from vanishing.
    pub scale: f32,
    /// Blocks per stretch whose activations are held at a time; `None` holds all.
    pub checkpoint_layers: Option<usize>,
    /// Predicted tokens whose logits are held at a time; `None` for as many as take 128 MiB.
    pub logits_chunk: Option<usize>,
    /// The dropout before adapters; `None` for none.
    pub dropout: Option<AdapterDropout>,
}

impl Default for GradientOptions<'_> {
    fn default() -> Self {
        let objective = Objective::CrossEntropy { smoothing: 0.0 };
        Self { objective, scale: 1.0, checkpoint_layers: None, logits_chunk: None, dropout: None }
    }
}

/// A batch's loss, and what it takes to lower it.
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
/// use mlxgk_training::{Batch, Example, GradientOptions, Trainee};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let mut model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let mut trainee = Trainee::new(&mut model).vectors(&[1])?;
/// let batch = Batch::new(&[Example::text(vec![5, 9, 14, 7])])?;
/// let gradients = trainee.gradients(&batch, GradientOptions::default(), &mut NoHook)?;
/// assert_eq!(gradients.tokens, 3);
/// println!("{:.3} nats per token", gradients.loss / gradients.tokens as f64);
/// // One gradient per name, of the parameter's shape.
/// assert_eq!(trainee.names(), ["resid_post.1"]);
/// assert_eq!(gradients.values[0].shape(), trainee.masters()[0].shape());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Gradients {
    /// The loss: of cross-entropy the sum over the predicted tokens. Not scaled.
    pub loss: f64,
    /// How many tokens were predicted.
    pub tokens: usize,
    /// By each of [`Trainee::masters`], of the scaled loss, in the dtype that the model computes in.
    pub values: Vec<Array>,
}

/// One pass down, from a state that its upper end is given to what was added for each parameter.
struct Descent<'t, 'm> {
    trainee: &'t mut Trainee<'m>,
    columns: Vec<Vec<Column>>,
    /// What the parameters are in the dtype computed in.
    computed: Vec<Array>,
    sums: Vec<Option<Array>>,
}

impl<'m> Trainee<'m> {
    /// The loss of a batch and its gradients by everything that is trained.
    ///
    /// `hook` runs along, for steering during training; it sees the states before the vectors under
    /// training are added.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, a row beyond the context, an option out of range, or the
    /// model fails.
    pub fn gradients(
        &mut self,
        batch: &Batch,
        options: GradientOptions<'_>,
        hook: &mut dyn ResidualHook,
    ) -> Result<Gradients> {
        let tokens = batch.supervised();
        self.check(batch)?;
        if let Objective::CrossEntropy { smoothing } = options.objective {
            check_smoothing(smoothing)?;
        }
        let computed = self.computed()?;
        if tokens == 0 {
            let zeros =
                computed.iter().map(|it| it.multiply(Array::from_f32(0.0).as_dtype(it.dtype())?));
            return Ok(Gradients { loss: 0.0, tokens, values: zeros.collect::<MlxResult<_>>()? });
        }
        let columns = self.columns(batch);
        let sums = vec![None; computed.len()];
        let mut descent = Descent { trainee: self, columns, computed, sums };
        descent.trainee.decoder.set_adapter_dropout(options.dropout)?;
        let outcome = descent.run(batch, options, hook);
        let Descent { computed, sums, .. } = descent;
        // The model must not keep arrays of the graphs that the gradients were taken through.
        self.restore()?;
        self.decoder.set_adapter_dropout(None)?;
        let loss = outcome?;
        let or_zeros = |(sum, it): (Option<Array>, &Array)| match sum {
            Some(sum) => Ok(sum),
            None => it.multiply(Array::from_f32(0.0).as_dtype(it.dtype())?),
        };
        let values: Vec<Array> =
            sums.into_iter().zip(&computed).map(or_zeros).collect::<MlxResult<_>>()?;
        eval(&values)?;
        Ok(Gradients { loss, tokens, values })
    }

    pub(crate) fn check(&self, batch: &Batch) -> Result<()> {
        let context = self.decoder.max_positions().saturating_sub(self.before());
        batch.check(self.decoder.vocab_size(), context)
    }
}

impl Descent<'_, '_> {
    fn run(
        &mut self,
        batch: &Batch,
        options: GradientOptions<'_>,
        hook: &mut dyn ResidualHook,
    ) -> Result<f64> {
        let layers = self.trainee.decoder.layers().len();
        let stretches = stretches(layers, options.checkpoint_layers);
        let mut below = Vec::new();
        let mut hidden = self.trainee.embed(batch)?;
        for stretch in &stretches[..stretches.len() - 1] {
            let next = self.up(stretch, &hidden, hook)?;
            eval([&next])?;
            below.push(std::mem::replace(&mut hidden, next));
        }
        let head = Head {
            targets: batch.targets(),
            objective: options.objective,
            scale: options.scale,
            chunk: Head::chunk_size(options.logits_chunk, self.trainee.decoder.vocab_size()),
        };
        let top = stretches[stretches.len() - 1].clone();
        let (loss, mut cotangent) = self.top(batch, &top, &hidden, &head, hook)?;
        for (stretch, below) in stretches.iter().zip(&below).rev() {
            cotangent = self.down(batch, stretch, below, &cotangent, hook)?;
        }
        Ok(loss)
    }

    /// The states after some blocks.
    fn up(
        &self,
        layers: &Range<usize>,
        hidden: &Array,
        hook: &mut dyn ResidualHook,
    ) -> Result<Array> {
        let columns: Vec<&[Column]> = self.columns.iter().map(Vec::as_slice).collect();
        let mut hook = self.trainee.hook(hook);
        Ok(self.trainee.decoder.run_layers(layers.clone(), hidden, &columns, &mut hook)?)
    }

    /// As [`up`](Self::up), as a function of the states below, or for the lowest stretch of the
    /// embeddings, and of the parameters `which`.
    fn traced(
        &mut self,
        batch: &Batch,
        layers: &Range<usize>,
        which: &[usize],
        inputs: &[Array],
        hook: &mut dyn ResidualHook,
    ) -> Result<Array> {
        let (values, below) = inputs.split_at(which.len());
        self.trainee.install(which, values)?;
        match below.first() {
            Some(below) => self.up(layers, below, hook),
            None => self.up(layers, &self.trainee.embed(batch)?, hook),
        }
    }

    /// The parameters that a stretch may use, and all it is a function of.
    fn inputs(&self, layers: &Range<usize>, below: &Array) -> (Vec<usize>, Vec<Array>) {
        let all = 0..self.computed.len();
        let which: Vec<usize> =
            all.filter(|&it| !self.trainee.is_of_other_layers(it, layers)).collect();
        let mut inputs: Vec<Array> = which.iter().map(|&it| self.computed[it].clone()).collect();
        if layers.start > 0 {
            inputs.push(below.clone());
        }
        (which, inputs)
    }

    /// The topmost stretch, the head and the loss, and back: the loss, and its gradient by the states
    /// below.
    fn top(
        &mut self,
        batch: &Batch,
        layers: &Range<usize>,
        below: &Array,
        head: &Head<'_>,
        hook: &mut dyn ResidualHook,
    ) -> Result<(f64, Array)> {
        let (which, inputs) = self.inputs(layers, below);
        let places = batch.states(self.trainee.before());
        let places = Array::from_slice(&places, &[places.len() as i32]);
        let mut judged: Option<(Judged, Array)> = None;
        // The head is judged on a copy of the states, at once; `states · gradient` then has that
        // gradient by the states.
        let surrogate = |inputs: &[Array]| {
            let hidden =
                self.traced(batch, layers, &which, inputs, hook).map_err(into_exception)?;
            let width = hidden.dim(-1);
            let states = hidden.reshape(&[-1, width])?.take_axis(&places, 0)?;
            let copy = detached(&states).map_err(into_exception)?;
            let outcome = head.judge(self.trainee.decoder, &copy).map_err(into_exception)?;
            let wide = |it: &Array| it.as_dtype(Dtype::Float32);
            let product = wide(&states)?.multiply(wide(&outcome.by_states)?)?.sum(None)?;
            judged = Some((outcome, copy));
            Ok(vec![product])
        };
        let numbers: Vec<i32> = (0..inputs.len() as i32).collect();
        let mut gradients = if inputs.is_empty() {
            Vec::new()
        } else {
            value_and_grad_with_argnums(surrogate, numbers.as_slice())(&inputs)?.1
        };
        eval(&gradients)?;
        let by_below = if layers.start > 0 { gradients.pop() } else { None };
        self.collect(&which, gradients)?;
        let Some((judged, states)) = judged else {
            return Err(crate::Error::config("nothing is trained"));
        };
        self.head_parameters(head, &judged, &states)?;
        Ok((judged.loss, by_below.unwrap_or_else(|| judged.by_states.clone())))
    }

    /// Gradients by what is trained of the head itself.
    fn head_parameters(&mut self, head: &Head<'_>, judged: &Judged, states: &Array) -> Result<()> {
        let all = 0..self.computed.len();
        let which: Vec<usize> = all.filter(|&it| self.trainee.is_of_head(it)).collect();
        if which.is_empty() {
            return Ok(());
        }
        let inputs: Vec<Array> = which.iter().map(|&it| self.computed[it].clone()).collect();
        let names: Vec<String> = which.iter().map(|&it| self.trainee.names()[it].clone()).collect();
        let mut install = |decoder: &mut mlxgk_mlx_models::Decoder, values: &[Array]| {
            let by_name = names.iter().map(String::as_str).zip(values).collect();
            crate::trainee::put(decoder, &by_name)
        };
        let gradients =
            head.by_parameters(judged, states, &inputs, self.trainee.decoder, &mut install)?;
        self.collect(&which, gradients)
    }

    /// A lower stretch, computed again, from the gradient by what it returned to that by what it was
    /// given.
    fn down(
        &mut self,
        batch: &Batch,
        layers: &Range<usize>,
        below: &Array,
        cotangent: &Array,
        hook: &mut dyn ResidualHook,
    ) -> Result<Array> {
        let (which, inputs) = self.inputs(layers, below);
        if inputs.is_empty() {
            return Ok(cotangent.clone());
        }
        let states = |inputs: &[Array]| {
            let hidden = self.traced(batch, layers, &which, inputs, hook);
            Ok(vec![hidden.map_err(into_exception)?])
        };
        let (_, mut gradients) = fallible_vjp(states, &inputs, std::slice::from_ref(cotangent))?;
        eval(&gradients)?;
        let by_below = if layers.start > 0 { gradients.pop() } else { None };
        self.collect(&which, gradients)?;
        Ok(by_below.unwrap_or_else(|| cotangent.clone()))
    }

    fn collect(&mut self, which: &[usize], gradients: Vec<Array>) -> Result<()> {
        for (&index, gradient) in which.iter().zip(gradients) {
            let sum = match self.sums[index].take() {
                Some(sum) => sum.add(gradient)?,
                None => gradient,
            };
            self.sums[index] = Some(sum);
        }
        Ok(())
    }
}

/// `layers` cut into stretches of `size`, the first one short where they do not divide.
fn stretches(layers: usize, size: Option<usize>) -> Vec<Range<usize>> {
    let size = size.unwrap_or(layers).clamp(1, layers.max(1));
    let first = layers - layers.saturating_sub(1) / size * size;
    let mut begin = 0;
    let stretch = |end| {
        let stretch = begin..end;
        begin = end;
        stretch
    };
    (first..=layers).step_by(size).map(stretch).collect()
}
