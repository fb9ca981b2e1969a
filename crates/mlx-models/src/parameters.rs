//! A model's parameters by name.
//!
//! The parts of a model that hold weights ([`Module`]) keep the names they were loaded under, and a
//! block lists its parts ([`Visit`]). Counting, training, adapters, freezing, conversion and sharding
//! walk that list.

use mlx_rs::{Array, error::Result as MlxResult};

use crate::{Decoder, Error, ErrorKind, Result, experts::Experts, linear::Linear, norm::RmsNorm};

/// What a parameter is for.
///
/// See the example of [`Parameter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ParameterKind {
    /// The matrix of a product or a token table, `[out, in]`, or of all experts, `[experts, out, in]`.
    Weight,
    /// Added to a product.
    Bias,
    /// The words of a packed matrix, u32.
    Packed,
    /// The factors of a packed matrix, one per group.
    Scales,
    /// What is added to the groups of a packed matrix (`biases` in MLX's files).
    Offsets,
    /// A norm's weight, as checkpoints of the family store it: in Gemma less 1.
    Norm,
    /// One of an adapter's two matrices.
    Adapter,
    /// An array of another shape and use.
    Other,
}

/// One named array of a model.
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, ParameterKind};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let mut norms = Vec::new();
/// model.visit_parameters(|it| {
///     if it.kind == ParameterKind::Norm {
///         norms.push((it.path.to_owned(), it.count));
///     }
/// });
/// assert_eq!(norms[0], ("model.layers.0.input_layernorm.weight".to_owned(), 32));
/// assert_eq!(norms.len(), 7); // two per block, and the last one
/// # Ok::<(), mlxgk_mlx_models::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Parameter<'a> {
    /// The tensor's name: `model.layers.0.self_attn.q_proj.weight`. Where the checkpoint wraps the
    /// language model, the name is the one it has without the wrapper.
    pub path: &'a str,
    /// What it is for.
    pub kind: ParameterKind,
    /// Its values, as stored but for the dtype.
    pub array: &'a Array,
    /// Whether the checkpoint holds one tensor per entry of the first axis: `path` is then
    /// mlx-lm's name of all experts together, `{layer}.switch_mlp.{name}`, and the tensors are HF's
    /// `{layer}.experts.{index}.{name}`.
    pub stacked: bool,
    /// How many numbers it adds to the model: the words of a packed matrix count as what they unpack
    /// to, its scales and offsets as none.
    pub count: usize,
}

/// A function that may put another array in a parameter's place.
pub(crate) type Replace<'f> = dyn FnMut(Parameter<'_>) -> Result<Option<Array>> + 'f;

impl<'a> Parameter<'a> {
    pub(crate) fn new(path: &'a str, kind: ParameterKind, array: &'a Array) -> Self {
        Self { path, kind, array, stacked: false, count: array.size() }
    }

    /// The names that the values have in the checkpoint, in the order of the first axis where there
    /// are several.
    pub fn tensors(&self) -> Vec<String> {
        match self.path.rsplit_once(".switch_mlp.") {
            Some((layer, name)) if self.stacked => {
                let tensor = |index| format!("{layer}.experts.{index}.{name}");
                (0..self.array.dim(0)).map(tensor).collect()
            }
            _ => vec![self.path.to_owned()],
        }
    }

    /// Asks for a replacement and checks that it fits.
    pub(crate) fn replaced(self, f: &mut Replace<'_>) -> Result<Option<Array>> {
        let Some(array) = f(self)? else { return Ok(None) };
        let (path, held) = (self.path, self.array);
        let float = held.dtype().is_float() && array.dtype().is_float();
        if array.shape() != held.shape() || !(float || array.dtype() == held.dtype()) {
            let what = format!(
                "`{path}` is {:?} {:?} and cannot be replaced by {:?} {:?}",
                held.dtype(),
                held.shape(),
                array.dtype(),
                array.shape()
            );
            return Err(Error::new(ErrorKind::Weights, what));
        }
        Ok(Some(array))
    }
}

/// A part of a model that holds weights.
#[derive(Debug)]
pub(crate) enum Module<'a> {
    Linear(&'a Linear),
    Experts(&'a Experts),
    Norm(&'a RmsNorm),
    Tensor(&'a Tensor),
}

/// A part whose weights may be changed.
#[derive(Debug)]
pub(crate) enum ModuleMut<'a> {
    Linear(&'a mut Linear),
    Experts(&'a mut Experts),
    Norm(&'a mut RmsNorm),
    Tensor(&'a mut Tensor),
}

impl Module<'_> {
    fn parameters(&self, f: &mut dyn FnMut(Parameter<'_>)) {
        match self {
            Self::Linear(it) => it.parameters(f),
            Self::Experts(it) => it.parameters(f),
            Self::Norm(it) => it.parameters(f),
            Self::Tensor(it) => f(it.parameter()),
        }
    }
}

impl ModuleMut<'_> {
    fn replace(&mut self, f: &mut Replace<'_>) -> Result<()> {
        match self {
            Self::Linear(it) => it.replace(f),
            Self::Experts(it) => it.replace(f),
            Self::Norm(it) => it.replace(f),
            Self::Tensor(it) => it.replace(f),
        }
    }
}

/// Lists the [`Module`]s inside, in a fixed order.
pub(crate) trait Visit {
    /// Calls `f` with each.
    fn visit<'a>(&'a self, f: &mut dyn FnMut(Module<'a>));

    /// Calls `f` with each, to be changed.
    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(ModuleMut<'a>));
}

impl<T: Visit> Visit for Option<T> {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(Module<'a>)) {
        self.iter().for_each(|it| it.visit(f));
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(ModuleMut<'a>)) {
        self.iter_mut().for_each(|it| it.visit_mut(f));
    }
}

impl<T: Visit> Visit for Vec<T> {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(Module<'a>)) {
        self.iter().for_each(|it| it.visit(f));
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(ModuleMut<'a>)) {
        self.iter_mut().for_each(|it| it.visit_mut(f));
    }
}

impl<T: Visit + ?Sized> Visit for Box<T> {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(Module<'a>)) {
        (**self).visit(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(ModuleMut<'a>)) {
        (**self).visit_mut(f);
    }
}

/// Implements [`Visit`] for types that are one module (`Linear(Linear)`: the variant, then the type),
/// and for structs (`struct Mlp { gate, up }`) and enums (`enum Half { Dense { mlp }, .. }`) of parts
/// that implement it.
macro_rules! visit {
    (module $($variant:ident($type:ty)),* $(,)?) => {$(
        impl $crate::parameters::Visit for $type {
            fn visit<'a>(&'a self, f: &mut dyn FnMut($crate::parameters::Module<'a>)) {
                f($crate::parameters::Module::$variant(self));
            }

            fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut($crate::parameters::ModuleMut<'a>)) {
                f($crate::parameters::ModuleMut::$variant(self));
            }
        }
    )*};
    (struct $type:ty { $($part:ident),* $(,)? }) => {
        impl $crate::parameters::Visit for $type {
            fn visit<'a>(&'a self, f: &mut dyn FnMut($crate::parameters::Module<'a>)) {
                $( $crate::parameters::Visit::visit(&self.$part, f); )*
            }

            fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut($crate::parameters::ModuleMut<'a>)) {
                $( $crate::parameters::Visit::visit_mut(&mut self.$part, f); )*
            }
        }
    };
    (enum $type:ty { $($variant:ident { $($part:ident),* $(,)? }),* $(,)? }) => {
        impl $crate::parameters::Visit for $type {
            fn visit<'a>(&'a self, f: &mut dyn FnMut($crate::parameters::Module<'a>)) {
                match self {$(
                    Self::$variant { $($part),* } => {
                        $( $crate::parameters::Visit::visit($part, f); )*
                    }
                )*}
            }

            fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut($crate::parameters::ModuleMut<'a>)) {
                match self {$(
                    Self::$variant { $($part),* } => {
                        $( $crate::parameters::Visit::visit_mut($part, f); )*
                    }
                )*}
            }
        }
    };
}
pub(crate) use visit;

visit!(module Linear(Linear), Experts(Experts), Norm(RmsNorm), Tensor(Tensor));

/// An array that no other module holds, and what a layer computes with in its place.
#[derive(Debug, Clone)]
pub(crate) struct Tensor {
    path: String,
    /// As the checkpoint has it.
    stored: Array,
    derive: fn(&Array) -> MlxResult<Array>,
    derived: Array,
}

impl Tensor {
    pub(crate) fn new(path: &str, stored: Array) -> Self {
        let derived = stored.clone();
        Self { path: path.to_owned(), stored, derive: |it| Ok(it.clone()), derived }
    }

    /// One that a layer computes with as `derive` makes it.
    pub(crate) fn derived(
        path: &str,
        stored: Array,
        derive: fn(&Array) -> MlxResult<Array>,
    ) -> MlxResult<Self> {
        let derived = derive(&stored)?;
        derived.eval()?;
        Ok(Self { path: path.to_owned(), stored, derive, derived })
    }

    /// What is computed with.
    pub(crate) fn array(&self) -> &Array {
        &self.derived
    }

    fn parameter(&self) -> Parameter<'_> {
        Parameter::new(&self.path, ParameterKind::Other, &self.stored)
    }

    fn replace(&mut self, f: &mut Replace<'_>) -> Result<()> {
        if let Some(array) = self.parameter().replaced(f)? {
            self.stored = array.as_dtype(self.stored.dtype())?;
            self.derived = (self.derive)(&self.stored)?;
        }
        Ok(())
    }
}

/// What the weights take once loaded.
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let whole = Decoder::load(folder, ComputeDtype::Float32)?.footprint();
/// assert_eq!(whole.bytes, 4 * whole.parameters);
/// let half = Decoder::load(folder, ComputeDtype::Float16)?.footprint();
/// assert_eq!((half.parameters, half.bytes), (whole.parameters, whole.bytes / 2));
/// # Ok::<(), mlxgk_mlx_models::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Footprint {
    /// Parameters; a packed weight counts what it unpacks to.
    pub parameters: usize,
    /// Bytes in memory.
    pub bytes: usize,
}

impl Decoder {
    /// Calls `f` with every parameter, the token table first and the head last.
    ///
    /// ```
    /// use mlxgk_mlx_models::{ComputeDtype, Decoder, ParameterKind};
    ///
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
    /// let model = Decoder::load(folder, ComputeDtype::Float32)?;
    /// let mut trained = 0;
    /// model.visit_parameters(|it| {
    ///     if it.kind == ParameterKind::Norm {
    ///         trained += it.count;
    ///     }
    /// });
    /// assert_eq!(trained, 7 * model.hidden_size()); // two norms per block, and the last one
    /// # Ok::<(), mlxgk_mlx_models::Error>(())
    /// ```
    pub fn visit_parameters(&self, mut f: impl FnMut(Parameter<'_>)) {
        self.visit(&mut |module| module.parameters(&mut f));
    }

    /// Calls `f` with every parameter, in the order of
    /// [`visit_parameters`](Self::visit_parameters), and puts what it returns in the parameter's
    /// place, converted to the dtype that was there. Nothing is evaluated, so the arrays may be those
    /// a gradient is taken by; evaluate them before the model moves to another thread.
    ///
    /// A weight that is kept in bf16 by a model that computes in fp32 becomes fp32, unless its
    /// replacement is bf16 too.
    ///
    /// # Errors
    /// The first error of `f`, or when an array's shape is another or it is not float where the
    /// parameter is. Parameters before it are already replaced.
    pub fn visit_parameters_mut(
        &mut self,
        mut f: impl FnMut(Parameter<'_>) -> Result<Option<Array>>,
    ) -> Result<()> {
        let mut outcome = Ok(());
        self.visit_mut(&mut |mut module| {
            if outcome.is_ok() {
                outcome = module.replace(&mut f);
            }
        });
        outcome
    }

    /// Every product of the model, the token table first and an own head last; a mixture's experts
    /// are not among them, but among the [`products`](Self::products).
    pub fn linears(&self) -> Vec<&Linear> {
        let mut found = Vec::new();
        self.visit(&mut |module| {
            if let Module::Linear(it) = module {
                found.push(it);
            }
        });
        found
    }

    /// The product of this [path](Linear::path), to set an adapter.
    pub fn linear_mut(&mut self, path: &str) -> Option<&mut Linear> {
        let mut found = None;
        self.visit_mut(&mut |module| match module {
            ModuleMut::Linear(it) if it.path() == path => found = Some(it),
            _ => {}
        });
        found
    }

    /// Parameters and bytes as loaded, adapters included.
    pub fn footprint(&self) -> Footprint {
        let mut sum = Footprint::default();
        self.visit_parameters(|it| {
            sum.parameters += it.count;
            sum.bytes += it.array.nbytes();
        });
        sum
    }
}
