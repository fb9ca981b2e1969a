//! The strict loader: every tensor is asked for by name and shape, and none may be left over.
//!
//! Tensors are evaluated one at a time as they are taken, so that converting a checkpoint needs no
//! more than one tensor beyond the converted weights.

use mlx_rs::{
    Array, Dtype,
    error::{Exception, Result as MlxResult},
    ops::{ones_dtype, stack},
};

use crate::{
    Error, ErrorKind, Result,
    backend::Backend,
    checkpoint::{Naming, Skipped, Tensors},
    config::{Config, Dims},
    embedding::Embedding,
    experts::{Experts, Layout},
    foreign,
    input::quoted,
    linear::Linear,
    native::{Mode, Native, Packed, Quantization},
    norm::{NormWeight, RmsNorm},
    parameters::Tensor,
    quantization::{self, Scheme},
    routed_experts::ExpertNames,
    weight::{Quantized, Weight},
};

/// A checkpoint being taken apart.
#[derive(Debug, Clone)]
pub(crate) struct Weights {
    /// What errors call the checkpoint.
    name: String,
    /// By the names of a plain text model.
    tensors: Tensors,
    /// How the file's own names differ from those.
    naming: Naming,
    skipped: Vec<Skipped>,
    /// What the config says of packed weights.
    scheme: Scheme,
    dtype: Dtype,
    backend: Backend,
    /// Whether weights stay in their files until they are computed with.
    is_lazy: bool,
    of_head: Option<OfHead>,
}

/// That weights are those of a head for predicting further tokens: a model of one layer, which shares what is
/// around the layers with the model it belongs to.
#[derive(Debug, Clone)]
pub(crate) struct OfHead {
    /// Stands for `model.layers.0`.
    pub(crate) block: String,
    /// Stands for `model.norm`.
    pub(crate) norm: String,
    pub(crate) embedding: Embedding,
    pub(crate) head: Option<Linear>,
    /// How the checkpoint stores the weights of norms.
    pub(crate) form: NormWeight,
}

impl Weights {
    /// Wraps opened tensors; floats become `dtype`, or keep the checkpoint's where it is `None`.
    pub(crate) fn new(
        name: String,
        tensors: Tensors,
        config: &Config,
        dtype: Option<Dtype>,
    ) -> Result<Self> {
        Self::of_parts(name, tensors, config, dtype, false)
    }

    /// As [`new`](Self::new), but of what a multimodal checkpoint has beside the language model, heads for
    /// predicting further tokens are not left out.
    pub(crate) fn with_heads(
        name: String,
        tensors: Tensors,
        config: &Config,
        dtype: Option<Dtype>,
    ) -> Result<Self> {
        Self::of_parts(name, tensors, config, dtype, true)
    }

    fn of_parts(
        name: String,
        tensors: Tensors,
        config: &Config,
        dtype: Option<Dtype>,
        with_heads: bool,
    ) -> Result<Self> {
        let tensors = foreign::adopt(&name, config, tensors)?;
        let scheme = Scheme::read(config)?;
        let naming = Naming::of(&tensors);
        let heads = if with_heads { naming.heads(&tensors) } else { Tensors::new() };
        let (mut tensors, skipped) = naming.language_model(tensors, config.has("text_config"));
        tensors.extend(heads);
        let stored = || {
            // Of packed weights the scales are in it, but for modes that keep those as u8.
            let names =
                ["model.embed_tokens.scales", "model.embed_tokens.weight", "model.norm.weight"];
            let found = names.iter().filter_map(|&name| tensors.get(name)).map(Array::dtype);
            found.into_iter().find(Dtype::is_float).unwrap_or(Dtype::Float32)
        };
        let dtype = dtype.unwrap_or_else(stored);
        let backend = Backend::new(dtype)?;
        let (is_lazy, of_head) = (false, None);
        Ok(Self { name, tensors, naming, skipped, scheme, dtype, backend, is_lazy, of_head })
    }

    /// Leaves weights in their files until they are computed with.
    pub(crate) fn lazy(self, is_lazy: bool) -> Self {
        Self { is_lazy, ..self }
    }

    /// The tensors of one part alone, by the beginning of their names.
    pub(crate) fn only(&self, part: &str) -> Self {
        let mut alone = self.clone();
        alone.tensors.retain(|name, _| is_inside(name, part));
        alone
    }

    /// Makes of the weights of a head those of a model of one layer.
    pub(crate) fn of_head(self, of: OfHead) -> Self {
        Self { of_head: Some(of), ..self }
    }

    /// Whether a part has tensors.
    pub(crate) fn has_part(&self, part: &str) -> bool {
        self.tensors.keys().any(|name| is_inside(name, part))
    }

    /// What errors call the checkpoint.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where the block of a layer is: `model.layers.3`.
    pub(crate) fn block(&self, layer: usize) -> String {
        let of_head = self.of_head.as_ref().map(|it| it.block.clone());
        of_head.unwrap_or_else(|| format!("model.layers.{layer}"))
    }

    /// Where the norm behind the blocks is, which the family has at `usual`.
    pub(crate) fn last_norm(&self, usual: &str) -> String {
        self.of_head.as_ref().map_or_else(|| usual.to_owned(), |it| it.norm.clone())
    }

    /// Of a head's weights, how the model that it belongs to stores those of its norms.
    pub(crate) fn form_of_model(&self) -> Option<NormWeight> {
        self.of_head.as_ref().map(|it| it.form)
    }

    /// Of a head's weights, the embedding and the head of the model that it belongs to.
    pub(crate) fn shared_ends(&self) -> Option<(Embedding, Option<Linear>)> {
        self.of_head.as_ref().map(|it| (it.embedding.clone(), it.head.clone()))
    }

    /// The dtype that floats are converted to.
    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// How the model will be computed.
    pub(crate) fn backend(&self) -> Backend {
        self.backend
    }

    pub(crate) fn has(&self, tensor: &str) -> bool {
        self.tensors.contains_key(tensor)
    }

    fn error(&self, what: std::fmt::Arguments<'_>) -> Error {
        Error::new(ErrorKind::Weights, format!("{}: {what}", self.name))
    }

    /// A tensor's name in the file, for errors.
    fn in_file(&self, tensor: &str) -> String {
        quoted(&self.naming.in_file(tensor))
    }

    fn failed(&self, tensor: &str, e: &Exception) -> Error {
        self.error(format_args!("{} cannot be read: {}", self.in_file(tensor), e.what()))
    }

    fn missing(&self, tensor: &str) -> Error {
        let tensor = self.in_file(tensor);
        self.error(format_args!("the tensor {tensor} is missing; download the model again"))
    }

    fn remove(&mut self, tensor: &str) -> Result<Array> {
        let found = self.tensors.remove(tensor);
        found.ok_or_else(|| self.missing(tensor))
    }

    /// Takes a float tensor of exactly this shape, converted and in memory.
    fn take(&mut self, tensor: &str, shape: &[usize]) -> Result<Array> {
        self.take_as(tensor, shape, self.dtype)
    }

    fn take_as(&mut self, tensor: &str, shape: &[usize], dtype: Dtype) -> Result<Array> {
        let array = self.remove(tensor)?;
        if array.dtype().is_float() != dtype.is_float() {
            let (name, found) = (self.in_file(tensor), array.dtype());
            return Err(match tensor.strip_suffix(".weight") {
                Some(at) if found == Dtype::Uint32 => {
                    let scales = self.in_file(&format!("{at}.scales"));
                    self.error(format_args!(
                        "the tensor {name} is packed, but {scales} is missing; download the model again"
                    ))
                }
                _ => self.error(format_args!(
                    "the tensor {name} holds {found:?} where {dtype:?} is expected"
                )),
            });
        }
        if !array.shape().iter().map(|&it| it as usize).eq(shape.iter().copied()) {
            let (name, found) = (self.in_file(tensor), array.shape());
            return Err(self.error(format_args!(
                "the tensor {name} has shape {found:?}, but config.json makes it {shape:?}"
            )));
        }
        array
            .as_dtype(dtype)
            .and_then(|it| if self.is_lazy { Ok(it) } else { it.eval().map(|()| it) })
            .map_err(|e| self.failed(tensor, &e))
    }

    /// Takes `{at}.weight`, `[.., rows, columns]`, dense or packed.
    fn weight(
        &mut self,
        at: &str,
        leading: &[usize],
        rows: usize,
        columns: usize,
    ) -> Result<Weight> {
        if self.has(&format!("{at}.scales")) {
            return self.packed(at, leading, rows, columns);
        }
        let name = format!("{at}.weight");
        self.plain(&name, &[leading, &[rows, columns]].concat())
    }

    /// Takes a weight that is not packed.
    fn plain(&mut self, name: &str, shape: &[usize]) -> Result<Weight> {
        if let Some(native) = self.narrow(name) {
            return Ok(Weight::Bf16(native, self.take_as(name, shape, Dtype::Bfloat16)?));
        }
        let dense = self.take(name, shape)?;
        self.dense(name, dense)
    }

    fn dense(&self, name: &str, array: Array) -> Result<Weight> {
        Weight::dense(array).and_then(|it| self.settled(it)).map_err(|e| self.failed(name, &e))
    }

    /// A weight that is in memory, unless loading is lazy.
    fn settled(&self, weight: Weight) -> MlxResult<Weight> {
        if !self.is_lazy {
            weight.eval()?;
        }
        Ok(weight)
    }

    /// Whether the tensor is stored as bf16 and can be computed with as it is.
    fn narrow(&self, tensor: &str) -> Option<Native> {
        let stored = self.tensors.get(tensor).map(Array::dtype);
        self.backend.native().filter(|_| stored == Some(Dtype::Bfloat16))
    }

    /// Takes `{at}.weight`, `.scales` and, where the mode has them, `.biases`.
    fn packed(
        &mut self,
        at: &str,
        leading: &[usize],
        rows: usize,
        columns: usize,
    ) -> Result<Weight> {
        let last = |array: Option<&Array>| {
            array.and_then(|it| it.shape().last().copied()).map_or(0, |it| it as usize)
        };
        let weight = format!("{at}.weight");
        if !self.has(&weight) {
            return Err(self.missing(&weight));
        }
        let words = last(self.tensors.get(&weight));
        let scales = self.tensors.get(&format!("{at}.scales"));
        if let Some(found) = scales.map(Array::dtype)
            && !found.is_float()
            && found != Dtype::Uint8
        {
            let name = self.in_file(&format!("{at}.scales"));
            return Err(self.error(format_args!(
                "the tensor {name} holds {found:?}; scales are floats, or bytes"
            )));
        }
        let (groups, is_float) = (last(scales), scales.is_some_and(|it| it.dtype().is_float()));
        let Some(it) = quantization::of_shapes(words, groups, columns, is_float) else {
            return Err(self.error(format_args!(
                "{} is in none of MLX's quantization modes: {columns} columns in {words} words and \
                 {groups} {} per row",
                self.in_file(at),
                if is_float { "scales" } else { "scales of 8 bits" }
            )));
        };
        self.scheme.check(at, it)?;
        let shape = |last: usize| [leading, &[rows, last]].concat();
        let words = self.take_as(&weight, &shape(words), Dtype::Uint32)?;
        let mut of_groups = |name: &str| {
            let name = format!("{at}.{name}");
            let stored = self.tensors.get(&name).map_or(self.dtype, Array::dtype);
            let kept = Quantized::kept(self.backend, stored, self.dtype);
            self.take_as(&name, &shape(groups), if is_float { kept } else { Dtype::Uint8 })
        };
        let scales = of_groups("scales")?;
        let biases = if it.mode == Mode::Affine { Some(of_groups("biases")?) } else { None };
        let packed = Packed::new(words, scales, biases, it).map_err(|e| self.failed(at, &e))?;
        Ok(self.quantized(packed))
    }

    /// A weight of this model.
    pub(crate) fn quantized(&self, packed: Packed) -> Weight {
        Weight::Packed(Quantized { packed, backend: self.backend, dtype: self.dtype })
    }

    /// Takes the product at `at`, `[rows, columns]`, and its bias.
    pub(crate) fn linear(
        &mut self,
        at: &str,
        rows: usize,
        columns: usize,
        bias: bool,
    ) -> Result<Linear> {
        let weight = self.weight(at, &[], rows, columns)?;
        let bias = if bias { Some(self.take(&format!("{at}.bias"), &[rows])?) } else { None };
        Ok(Linear::new(at, weight, bias))
    }

    /// As [`linear`](Self::linear) without a bias, for a matrix that is computed with piece by piece: one
    /// that is stored as bf16 is kept in the compute dtype.
    pub(crate) fn wide_linear(&mut self, at: &str, rows: usize, columns: usize) -> Result<Linear> {
        if self.has(&format!("{at}.scales")) {
            return self.linear(at, rows, columns, false);
        }
        let name = format!("{at}.weight");
        let weight = self.take(&name, &[rows, columns])?;
        Ok(Linear::new(at, self.dense(&name, weight)?, None))
    }

    /// Takes `{at}.weight`, one matrix of `[rows, columns]` for each of `count`, to be computed with whole:
    /// they are kept in the compute dtype where they are not packed.
    pub(crate) fn stacked(
        &mut self,
        at: &str,
        [count, rows, columns]: [usize; 3],
    ) -> Result<Experts> {
        let weight = if self.has(&format!("{at}.scales")) {
            self.packed(at, &[count], rows, columns)?
        } else {
            let name = format!("{at}.weight");
            let dense = self.take(&name, &[count, rows, columns])?;
            self.dense(&name, dense)?
        };
        Ok(Experts::new(at.to_owned(), weight, None, Layout::Together))
    }

    /// Whether there is one tensor for a projection of all experts, as HF has it.
    pub(crate) fn has_experts_of_all(&self, at: &str, name: &str) -> bool {
        let name = format!("{at}.experts.{name}");
        self.has(&name) || self.has(&format!("{name}_blocks"))
    }

    /// Takes one projection, `[experts, rows, columns]`, of every expert: `{at}.switch_mlp.{name}` as
    /// mlx-lm stacks them, HF's `{at}.experts.{name}` of all, or its `{at}.experts.{index}.{each}`.
    pub(crate) fn experts(
        &mut self,
        at: &str,
        names: ExpertNames,
        (name, index): (&str, usize),
        [count, rows, columns]: [usize; 3],
        bias: bool,
    ) -> Result<Experts> {
        if self.has_experts_of_all(at, name) {
            let path = format!("{at}.experts.{name}");
            return self.experts_of_all(path, names, [count, rows, columns], bias);
        }
        let path = format!("{at}.{}.{name}", names.together);
        // Where any of them is stacked, what is missing is missed under that name. Some families have single
        // experts in a part of the same name.
        let part = format!("{at}.{}", names.together);
        let together = self.has(&format!("{path}.weight"))
            || (names.together != "experts" && self.has_part(&part));
        let each = names.each[index];
        let path = if together { path } else { format!("{at}.switch_mlp.{each}") };
        let mut take = |ending: &str, shape: &[usize]| -> Result<Array> {
            if together {
                return self.take(&format!("{path}.{ending}"), &[&[count], shape].concat());
            }
            let each = (0..count)
                .map(|it| self.take(&format!("{at}.experts.{it}.{each}.{ending}"), shape))
                .collect::<Result<Vec<_>>>()?;
            stack(&each, 0).map_err(|e| self.failed(&path, &e))
        };
        let bias = if bias { Some(take("bias", &[rows])?) } else { None };
        let weight = if together {
            self.weight(&path, &[count], rows, columns)?
        } else {
            let at = format!("{at}.experts");
            let each = (0..count)
                .map(|it| self.weight(&format!("{at}.{it}.{each}"), &[], rows, columns))
                .collect::<Result<Vec<_>>>()?;
            let weight = Weight::stacked(&each).and_then(|it| self.settled(it));
            weight.map_err(|e| self.failed(&path, &e))?
        };
        let layout = if together { Layout::Together } else { Layout::Each };
        Ok(Experts::new(path, weight, bias, layout))
    }

    /// Takes the one tensor that HF has for a projection of all experts.
    fn experts_of_all(
        &mut self,
        path: String,
        names: ExpertNames,
        [count, rows, columns]: [usize; 3],
        bias: bool,
    ) -> Result<Experts> {
        let bias =
            if bias { Some(self.take(&format!("{path}_bias"), &[count, rows])?) } else { None };
        if self.has(&format!("{path}_blocks")) {
            let weight = self.in_blocks(&path, [count, rows, columns])?;
            return Ok(Experts::new(path, weight, bias, Layout::Blocks));
        }
        if !names.transposed {
            let weight = self.plain(&path, &[count, rows, columns])?;
            return Ok(Experts::new(path, weight, bias, Layout::Bare));
        }
        let stored = self.take(&path, &[count, columns, rows])?;
        let turned = stored.swap_axes(-1, -2).map_err(|e| self.failed(&path, &e))?;
        let weight = self.dense(&path, turned)?;
        Ok(Experts::new(path, weight, bias, Layout::Transposed))
    }

    /// Takes `{path}_blocks` and `_scales`, OpenAI's mxfp4. Both give a byte's lower half to the first of
    /// two inputs, so four bytes are one of MLX's words.
    fn in_blocks(&mut self, path: &str, [count, rows, columns]: [usize; 3]) -> Result<Weight> {
        let group = Quantization::MXFP4.group_size as usize;
        if !columns.is_multiple_of(group) {
            return Err(self.error(format_args!(
                "{} has {columns} columns, which is not a multiple of {group}",
                self.in_file(path)
            )));
        }
        let groups = columns / group;
        let (blocks, scales) = (format!("{path}_blocks"), format!("{path}_scales"));
        let stored = self.take_as(&blocks, &[count, rows, groups, group / 2], Dtype::Uint8)?;
        let scales = self.take_as(&scales, &[count, rows, groups], Dtype::Uint8)?;
        let shape = [count, rows, columns / 8].map(|it| it as i32);
        let packed = stored.contiguous().and_then(|it| {
            let words = it.view::<u32>()?.reshape(&shape)?;
            Packed::new(words, scales, None, Quantization::MXFP4)
        });
        let packed = packed.map_err(|e| self.failed(&blocks, &e))?;
        self.settled(self.quantized(packed)).map_err(|e| self.failed(&blocks, &e))
    }

    /// Takes an array that is not the weight of a product.
    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::new(name, self.take(name, shape)?))
    }

    /// Takes an array that a layer computes with as `derive` makes it, in fp32 where it is `wide`.
    pub(crate) fn derived(
        &mut self,
        name: &str,
        shape: &[usize],
        wide: bool,
        derive: fn(&Array) -> MlxResult<Array>,
    ) -> Result<Tensor> {
        let stored = self.take_as(name, shape, if wide { Dtype::Float32 } else { self.dtype })?;
        Tensor::derived(name, stored, derive).map_err(|e| self.failed(name, &e))
    }

    /// The shape that a tensor has in the file.
    pub(crate) fn shape(&self, tensor: &str) -> Option<&[i32]> {
        self.tensors.get(tensor).map(Array::shape)
    }

    /// A norm over `size` numbers that no checkpoint holds, since its weight is 1.
    pub(crate) fn unit_norm(&self, size: usize, eps: f32) -> Result<RmsNorm> {
        let ones = ones_dtype(&[size as i32], self.dtype)?;
        RmsNorm::new("", ones, None, eps, NormWeight::Unit, self.backend)
    }

    /// Leaves out the tensors of a part that the graph does without, such as `model.layers.61`, and names
    /// it among those that were skipped. Of a head's weights nothing is left out: other parts are gone.
    pub(crate) fn leave_out(&mut self, part: &str) {
        if self.of_head.is_some() {
            return;
        }
        let before = self.tensors.len();
        self.tensors.retain(|name, _| !is_inside(name, part));
        match before - self.tensors.len() {
            0 => {}
            tensors => self.skipped.push(Skipped { part: part.to_owned(), tensors }),
        }
    }

    /// Takes a norm over `size` numbers.
    pub(crate) fn norm(
        &mut self,
        at: &str,
        size: usize,
        eps: f32,
        form: NormWeight,
    ) -> Result<RmsNorm> {
        if form == NormWeight::Unit {
            return self.unit_norm(size, eps);
        }
        let stored = self.take(&format!("{at}.weight"), &[size])?;
        let bias = match form {
            NormWeight::CentredBias => Some(self.take(&format!("{at}.bias"), &[size])?),
            _ => None,
        };
        RmsNorm::new(at, stored, bias, eps, form, self.backend)
    }

    /// The untied head, or `None` where the token table serves. As in HF, a head that is there and
    /// differs from the table is used even where the config calls it tied.
    pub(crate) fn head(&mut self, dims: &Dims, table: &Linear) -> Result<Option<Linear>> {
        let name = "lm_head.weight";
        if dims.tied && !self.has(name) {
            return Ok(None);
        }
        if dims.tied && !self.is_lazy && !table.is_quantized() && !self.has("lm_head.scales") {
            let same = table
                .weight()
                .dequantized()
                .and_then(|table| self.tensors[name].as_dtype(self.dtype)?.eq_values(&table))
                .map_err(|e| self.failed(name, &e))?;
            if same {
                self.tensors.remove(name);
                return Ok(None);
            }
        }
        self.linear("lm_head", dims.vocab, dims.hidden, false).map(Some)
    }

    /// Ends the loading: anything left over is a tensor that this architecture does not know. Returns
    /// what belongs to other modalities.
    pub(crate) fn finish(mut self) -> Result<Vec<Skipped>> {
        // Old checkpoints carry rotary tables, which every graph computes.
        self.tensors.retain(|name, _| !name.ends_with("rotary_emb.inv_freq"));
        match self.tensors.keys().min() {
            None => Ok(self.skipped),
            Some(first) => {
                let first = self.in_file(first);
                let more = match self.tensors.len() - 1 {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                Err(self.error(format_args!(
                    "this architecture has no tensor {first}{more}; is config.json this model's?"
                )))
            }
        }
    }
}

/// Whether a tensor belongs to a part: `mtp.norm.weight` to `mtp`.
fn is_inside(tensor: &str, part: &str) -> bool {
    tensor.strip_prefix(part).is_some_and(|it| it.starts_with('.'))
}
