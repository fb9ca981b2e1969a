//! The one weight product of every graph: with a bias, as a token table, and with an adapter.
//!
//! Every matrix-vector product of a model goes through [`Linear`] or
//! [`Experts`](crate::experts::Experts), so a backend with a faster kernel is plugged in at
//! [`Weight`] and nowhere else.

use std::sync::Arc;

use mlx_rs::{
    Array, Dtype,
    error::{Exception, Result as MlxResult},
    ops::{addmm, concatenate, gather_mm},
    stop_gradient,
    transforms::eval,
};

use crate::{
    Error, ErrorKind, Result,
    adapter_dropout::AdapterDropout,
    parameters::{Parameter, ParameterKind, Replace},
    row_adapters::Stack,
    together::Together,
    weight::Weight,
};

/// `y = x Wᵀ + b`, or a token table, whose rows are looked up.
///
/// It keeps the name it was loaded under, and may carry an [`Adapter`].
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let linears = model.linears();
/// let query = linears.iter().find(|it| it.path() == "model.layers.0.self_attn.q_proj").unwrap();
/// assert_eq!(query.shape(), [32, 32]);
/// assert!(!query.is_quantized() && query.adapter().is_none());
/// # Ok::<(), mlxgk_mlx_models::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Linear {
    path: Arc<str>,
    weight: Weight,
    bias: Option<Array>,
    adapter: Option<Adapter>,
    /// Of an adapter with magnitudes: by what each row of the adapted matrix is multiplied, `[out]`.
    /// Computed again whenever matrix or adapter change.
    stretch: Option<Array>,
    /// The adapters that rows choose by name.
    stack: Option<Stack>,
    /// What the adapter does not see, while it is trained.
    dropout: Option<AdapterDropout>,
}

impl Linear {
    pub(crate) fn new(path: impl Into<Arc<str>>, weight: Weight, bias: Option<Array>) -> Self {
        Self {
            path: path.into(),
            weight,
            bias,
            adapter: None,
            stretch: None,
            stack: None,
            dropout: None,
        }
    }

    /// The name without an ending: `model.layers.0.self_attn.q_proj`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Shape of the matrix, `[out, in]`; of a token table `[vocabulary, hidden]`.
    pub fn shape(&self) -> [usize; 2] {
        match self.weight.shape().as_slice() {
            &[out, columns] => [out, columns],
            _ => [0, 0],
        }
    }

    /// Whether the weights are packed.
    pub fn is_quantized(&self) -> bool {
        self.weight.is_quantized()
    }

    /// The matrix in the dtype that the model computes in, `[out, in]`, without the adapter; not yet
    /// evaluated where it is packed.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn dequantized(&self) -> Result<Array> {
        Ok(self.weight.dequantized()?)
    }

    /// The adapter, where one is set.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// Adds `adapter` to every product and every row from here on, in place of one that was set.
    ///
    /// # Errors
    /// When its matrices do not fit this one, or cannot be computed.
    pub fn set_adapter(&mut self, adapter: Adapter) -> Result<()> {
        let (fits, found) = (self.shape(), adapter.shape());
        if found != fits {
            let path = &self.path;
            return Err(Error::new(
                ErrorKind::Weights,
                format!("the adapter for `{path}` is for {found:?}, but its shape is {fits:?}"),
            ));
        }
        if adapter.magnitude.is_some() && self.stack.is_some() {
            let what =
                format!("`{}` has named adapters, beside which DoRA is not defined", self.path);
            return Err(Error::new(ErrorKind::Weights, what));
        }
        self.adapter = Some(adapter);
        self.renew_stretch()?;
        if let Some(stretch) = &self.stretch {
            stretch.eval()?;
        }
        Ok(())
    }

    /// Takes the adapter off.
    pub fn clear_adapter(&mut self) -> Option<Adapter> {
        self.stretch = None;
        self.adapter.take()
    }

    /// The matrix with the adapter in it, fp32 `[out, in]`, not yet evaluated: what
    /// [`dequantized`](Self::dequantized) would have to be for the same products without an adapter.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn merged(&self) -> Result<Array> {
        let weight = self.weight.dequantized()?.as_dtype(Dtype::Float32)?;
        let Some(adapter) = &self.adapter else { return Ok(weight) };
        let sum = weight.add(adapter.matrix()?)?;
        match &adapter.magnitude {
            None => Ok(sum),
            Some(magnitude) => {
                let stretch = magnitude.as_dtype(Dtype::Float32)?.divide(row_norms(&sum)?)?;
                Ok(sum.multiply(stretch.expand_dims(-1)?)?)
            }
        }
    }

    /// What an adapter's magnitudes make of the rows of the adapted matrix, through whose norms no
    /// gradient is taken.
    fn renew_stretch(&mut self) -> MlxResult<()> {
        self.stretch = None;
        let Some(adapter) = &self.adapter else { return Ok(()) };
        let Some(magnitude) = &adapter.magnitude else { return Ok(()) };
        let weight = self.weight.dequantized()?;
        let norms = row_norms(&weight.as_dtype(Dtype::Float32)?.add(adapter.matrix()?)?)?;
        let stretch = magnitude.as_dtype(Dtype::Float32)?.divide(stop_gradient(norms)?)?;
        self.stretch = Some(stretch.as_dtype(weight.dtype())?);
        Ok(())
    }

    /// Puts the named adapters in place, or takes them off.
    pub(crate) fn set_stack(&mut self, stack: Option<Stack>) {
        self.stack = stack;
    }

    /// The matrix with the adapter in it, in the dtype that the model computes in: for those who compute
    /// with the matrix and not with its products. Refuses where rows run under adapters of their own.
    pub(crate) fn matrix(&self) -> Result<Array> {
        if self.stack.as_ref().is_some_and(Stack::is_chosen) {
            let what = format!(
                "`{}` is computed with as a matrix, in which rows cannot have adapters of their own",
                self.path
            );
            return Err(Error::new(ErrorKind::Weights, what));
        }
        let matrix = self.weight.dequantized()?;
        match &self.adapter {
            None => Ok(matrix),
            Some(_) => Ok(self.merged()?.as_dtype(matrix.dtype())?),
        }
    }

    pub(crate) fn weight(&self) -> &Weight {
        &self.weight
    }

    /// Drops numbers that the adapter is given from here on, or does not any more.
    pub(crate) fn set_dropout(&mut self, dropout: Option<AdapterDropout>) {
        self.dropout = dropout.filter(|it| it.rate > 0.0);
    }

    /// What the adapter is given of `x`.
    fn seen_by_adapter(&self, x: &Array) -> MlxResult<Array> {
        match &self.dropout {
            None => Ok(x.clone()),
            Some(dropout) => dropout.apply(&self.path, x),
        }
    }

    /// `x Wᵀ + b` for `x` of `[.., in]`.
    pub(crate) fn forward(&self, x: &Array) -> MlxResult<Array> {
        if let (Some(adapter), Some(stretch)) = (&self.adapter, &self.stretch) {
            let y = self.weight.product(x)?;
            let y = match &self.dropout {
                None => adapter.added(&y, x)?.multiply(stretch)?,
                Some(_) => {
                    // PEFT drops what the matrix is given, too, in what the magnitudes change.
                    let x = self.seen_by_adapter(x)?;
                    let own = adapter.product(&x)?.as_dtype(y.dtype())?.multiply(stretch)?;
                    let one = Array::from_f32(1.0).as_dtype(stretch.dtype())?;
                    let changed = self.weight.product(&x)?.multiply(stretch.subtract(one)?)?;
                    y.add(changed)?.add(own)?
                }
            };
            return match &self.bias {
                None => Ok(y),
                Some(bias) => y.add(bias),
            };
        }
        match (&self.weight, &self.bias) {
            (Weight::Dense(weight), Some(bias)) => {
                self.adapted(addmm(bias, x, weight.facing(x), None, None)?, x)
            }
            (weight, _) => self.finished(weight.product(x)?, x),
        }
    }

    /// The products of one input, each as [`forward`](Self::forward) gives it, in one operation where the
    /// backend has it.
    pub(crate) fn forward_each<const N: usize>(
        linears: [&Self; N],
        x: &Array,
    ) -> MlxResult<[Array; N]> {
        let together = Together::of(linears.map(|it| &it.weight));
        let together = together.filter(|_| linears.iter().all(|it| it.stretch.is_none()));
        let each: Vec<Array> = match together {
            None => linears.iter().map(|it| it.forward(x)).collect::<MlxResult<_>>()?,
            Some(together) => {
                let products = linears.iter().zip(together.products(x)?);
                products.map(|(it, y)| it.finished(y, x)).collect::<MlxResult<_>>()?
            }
        };
        each.try_into().map_err(|_| Exception::custom("a product is missing"))
    }

    /// `silu(gate(x)) · up(x)`, where that is one operation.
    pub(crate) fn gated(gate: &Self, up: &Self, x: &Array) -> MlxResult<Option<Array>> {
        let is_bare = |it: &Self| {
            it.bias.is_none() && it.adapter.is_none() && it.stretch.is_none() && it.stack.is_none()
        };
        let together = Together::of([&gate.weight, &up.weight]);
        match together.filter(|_| is_bare(gate) && is_bare(up)) {
            None => Ok(None),
            Some(together) => together.gated(x),
        }
    }

    /// What becomes of `x Wᵀ`.
    fn finished(&self, y: Array, x: &Array) -> MlxResult<Array> {
        let y = match &self.bias {
            None => y,
            Some(bias) => y.add(bias)?,
        };
        self.adapted(y, x)
    }

    /// What adapters without magnitudes make of `x Wᵀ + b`.
    fn adapted(&self, y: Array, x: &Array) -> MlxResult<Array> {
        let y = match &self.adapter {
            None => y,
            Some(adapter) => adapter.added(&y, &self.seen_by_adapter(x)?)?,
        };
        match self.stack.as_ref().map(|it| it.product(&self.path, x)).transpose()?.flatten() {
            None => Ok(y),
            Some(of_rows) => y.add(of_rows.as_dtype(y.dtype())?),
        }
    }

    /// Rows of a token table: ids of `[batch, tokens]` to `[batch, tokens, hidden]`.
    pub(crate) fn rows(&self, ids: &Array) -> MlxResult<Array> {
        let rows = self.weight.rows(ids)?;
        let Some(adapter) = &self.adapter else { return Ok(rows) };
        let rows = rows.add(adapter.rows(ids)?.as_dtype(rows.dtype())?)?;
        match &self.stretch {
            None => Ok(rows),
            Some(stretch) => rows.multiply(stretch.take_axis(ids, 0)?.expand_dims(-1)?),
        }
    }

    pub(crate) fn parameters(&self, f: &mut dyn FnMut(Parameter<'_>)) {
        self.weight.parameters(&self.path, f);
        if let Some(bias) = &self.bias {
            f(Parameter::new(&format!("{}.bias", self.path), ParameterKind::Bias, bias));
        }
        for (name, array) in self.adapter.iter().flat_map(Adapter::arrays) {
            f(Parameter::new(&format!("{}.{name}", self.path), ParameterKind::Adapter, array));
        }
    }

    pub(crate) fn replace(&mut self, f: &mut Replace<'_>) -> Result<()> {
        self.weight.replace(&self.path, f)?;
        if let Some(bias) = &mut self.bias {
            let path = format!("{}.bias", self.path);
            if let Some(array) = Parameter::new(&path, ParameterKind::Bias, bias).replaced(f)? {
                *bias = array.as_dtype(bias.dtype())?;
            }
        }
        if let Some(adapter) = &self.adapter {
            self.adapter = Some(adapter.renewed(&self.path, f)?);
            self.renew_stretch()?;
        }
        Ok(())
    }
}

/// PEFT's names, since the shapes are PEFT's.
const LORA_A: &str = "lora_A.weight";
const LORA_B: &str = "lora_B.weight";
const MAGNITUDE: &str = "lora_magnitude_vector";

/// The length of each row.
fn row_norms(matrix: &Array) -> MlxResult<Array> {
    matrix.square()?.sum_axis(-1, false)?.sqrt()
}

/// A low-rank addition to a matrix, `W + scale · B A` (LoRA, Hu et al., 2021): the product becomes
/// `y = W x + b + scale · B (A x)`, the row of a token table `W[id] + scale · B[id] A`.
///
/// As in PEFT, `A` is `[rank, in]`, `B` is `[out, rank]` and `scale` is `alpha / rank`; a checkpoint
/// of mlx-lm holds both transposed (`lora_a`, `lora_b`), and the scale itself.
///
/// With [magnitudes](Self::with_magnitude) m the rows of the sum take those lengths (DoRA, Liu et al.,
/// 2024): `y = m / ‖W + scale · B A‖ · (W x + scale · B (A x)) + b`, where the norms are by row, and
/// constants to a gradient.
///
/// Of a mixture's experts each has its own: `A` is `[experts, rank, in]`, `B` `[experts, out, rank]`, as in
/// mlx-lm.
///
/// ```
/// use mlx_rs::Array;
/// use mlxgk_mlx_models::{Adapter, ComputeDtype, Decoder};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let mut model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let product = model.linear_mut("model.layers.0.self_attn.q_proj").unwrap();
/// let before = product.merged()?;
/// // Rank 1: every number of the matrix grows by 0.5 · 2 · 1.
/// let a = Array::from_slice(&[2.0_f32; 32], &[1, 32]);
/// let b = Array::from_slice(&[1.0_f32; 32], &[32, 1]);
/// product.set_adapter(Adapter::new(a, b, 0.5)?)?;
/// let grown = before.add(Array::from_f32(1.0))?;
/// assert!(product.merged()?.all_close(&grown, None, None, None)?);
/// assert_eq!(product.clear_adapter().unwrap().rank(), 1);
/// # Ok::<(), mlxgk_mlx_models::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Adapter {
    a: Array,
    b: Array,
    scale: f32,
    magnitude: Option<Array>,
}

impl Adapter {
    /// An adapter of two float matrices, `a` of `[rank, in]` and `b` of `[out, rank]`, or of two per
    /// expert, which are evaluated here.
    ///
    /// # Errors
    /// When their shapes or dtypes are others, or MLX cannot compute them.
    pub fn new(a: Array, b: Array, scale: f32) -> Result<Self> {
        let matrices = match (a.shape(), b.shape()) {
            ([rank, _], [_, same]) => rank == same,
            ([experts, rank, _], [all, _, same]) => experts == all && rank == same,
            _ => false,
        };
        if !matrices || !a.dtype().is_float() || !b.dtype().is_float() {
            let what = format!(
                "an adapter takes float matrices of [rank, in] and [out, rank], or as many of each as there are \
                 experts, found {:?} {:?} and {:?} {:?}",
                a.dtype(),
                a.shape(),
                b.dtype(),
                b.shape()
            );
            return Err(Error::new(ErrorKind::Weights, what));
        }
        eval([&a, &b])?;
        Ok(Self { a, b, scale, magnitude: None })
    }

    /// The same with magnitudes, `[out]`, which are evaluated here.
    ///
    /// # Errors
    /// When there is not one float per row, or MLX cannot compute them.
    pub fn with_magnitude(self, magnitude: Array) -> Result<Self> {
        let (found, rows) = (magnitude.shape(), self.b.dim(0));
        if self.b.ndim() != 2 {
            let what = "magnitudes (DoRA) are for a single matrix, not for a mixture's experts";
            return Err(Error::new(ErrorKind::Weights, what));
        }
        if found != [rows] || !magnitude.dtype().is_float() {
            let dtype = magnitude.dtype();
            let what = format!("magnitudes are {dtype:?} {found:?}, expected {rows} floats");
            return Err(Error::new(ErrorKind::Weights, what));
        }
        magnitude.eval()?;
        Ok(Self { magnitude: Some(magnitude), ..self })
    }

    /// The adapter that adds what both add, `scale₁ · B₁ A₁ + scale₂ · B₂ A₂`: its rank is the sum of
    /// theirs.
    ///
    /// # Errors
    /// When they are for other shapes, or one has magnitudes, which do not add up.
    pub fn plus(&self, other: &Self) -> Result<Self> {
        if self.shape() != other.shape() {
            let (one, two) = (self.shape(), other.shape());
            let what = format!("an adapter for {one:?} cannot be added to one for {two:?}");
            return Err(Error::new(ErrorKind::Weights, what));
        }
        if self.magnitude.is_some() || other.magnitude.is_some() {
            let what = "a DoRA adapter cannot be added to another, since it is not a sum";
            return Err(Error::new(ErrorKind::Weights, what));
        }
        let scaled = |it: &Self| -> MlxResult<Array> {
            let b = it.b.as_dtype(Dtype::Float32)?;
            b.multiply(Array::from_f32(it.scale))
        };
        let a = concatenate(&[&self.a, &other.a], -2)?;
        let b = concatenate(&[&scaled(self)?, &scaled(other)?], -1)?;
        Self::new(a, b, 1.0)
    }

    /// The shape that it is for: `[out, in]`, or `[experts, out, in]`.
    pub fn shape(&self) -> Vec<usize> {
        let mut shape: Vec<usize> = self.b.shape().iter().map(|&it| it as usize).collect();
        if let Some(last) = shape.last_mut() {
            *last = self.a.dim(-1) as usize;
        }
        shape
    }

    /// How many rows `A` has.
    pub fn rank(&self) -> usize {
        self.a.dim(-2) as usize
    }

    /// `[rank, in]`, or that per expert.
    pub fn a(&self) -> &Array {
        &self.a
    }

    /// `[out, rank]`, or that per expert.
    pub fn b(&self) -> &Array {
        &self.b
    }

    /// `[out]`, where it has magnitudes.
    pub fn magnitude(&self) -> Option<&Array> {
        self.magnitude.as_ref()
    }

    /// `scale · B A`, fp32 `[.., out, in]`.
    pub(crate) fn matrix(&self) -> MlxResult<Array> {
        let wide = |it: &Array| it.as_dtype(Dtype::Float32);
        wide(&self.b)?.matmul(wide(&self.a)?)?.multiply(Array::from_f32(self.scale))
    }

    /// `scale · B (A x)` of the experts in `chosen`: see [`Experts`](crate::experts::Experts).
    pub(crate) fn gathered(&self, x: &Array, chosen: &Array) -> MlxResult<Array> {
        let inner = gather_mm(x, self.a.swap_axes(-1, -2)?, None, chosen, false)?;
        let product = gather_mm(&inner, self.b.swap_axes(-1, -2)?, None, chosen, false)?;
        product.multiply(Array::from_f32(self.scale))
    }

    /// Asks `f` for each of its arrays under the names they have at `path`, and takes what it returns.
    pub(crate) fn renewed(&self, path: &str, f: &mut Replace<'_>) -> Result<Self> {
        let mut renewed = self.clone();
        for (name, array) in self.arrays() {
            let path = format!("{path}.{name}");
            let array = Parameter::new(&path, ParameterKind::Adapter, array).replaced(f)?;
            match (name, array) {
                (_, None) => {}
                (LORA_A, Some(array)) => renewed.a = array,
                (LORA_B, Some(array)) => renewed.b = array,
                (_, array) => renewed.magnitude = array,
            }
        }
        Ok(renewed)
    }

    /// Its arrays by name.
    pub(crate) fn arrays(&self) -> Vec<(&'static str, &Array)> {
        let magnitude = self.magnitude.as_ref().map(|it| (MAGNITUDE, it));
        [(LORA_A, &self.a), (LORA_B, &self.b)].into_iter().chain(magnitude).collect()
    }

    /// What `B A` is multiplied by.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    fn product(&self, x: &Array) -> MlxResult<Array> {
        x.matmul(self.a.t())?.matmul(self.b.t())?.multiply(Array::from_f32(self.scale))
    }

    /// `y + scale · B (A x)` in the dtype of `y`. The product adds to a copy of `y`, so nothing of its size
    /// is computed besides.
    fn added(&self, y: &Array, x: &Array) -> MlxResult<Array> {
        let inner = x.matmul(self.a.t())?;
        addmm(y, &inner, self.b.t(), self.scale, None)?.as_dtype(y.dtype())
    }

    fn rows(&self, ids: &Array) -> MlxResult<Array> {
        self.b.take_axis(ids, 0)?.matmul(&self.a)?.multiply(Array::from_f32(self.scale))
    }
}
