//! The strict loader: every tensor is asked for by name and shape, and none may be left over.
//!
//! Tensors are evaluated one at a time as they are taken, so that converting a checkpoint needs no
//! more than one tensor beyond the converted weights.

use mlx_rs::{Array, Dtype, error::Exception, ops::stack};

use crate::{
    Error, ErrorKind, Result,
    backend::Backend,
    checkpoint::{Tensors, language_model},
    config::{Config, Dims},
    linear::{Embedding, Experts, Linear, LinearWeight, Packed, Weight},
    native::Native,
    norm::{NormWeight, RmsNorm},
};

/// A checkpoint being taken apart.
#[derive(Debug)]
pub(crate) struct Weights {
    /// What errors call the checkpoint.
    name: String,
    tensors: Tensors,
    dtype: Dtype,
    backend: Backend,
    footprint: Footprint,
}

/// What the weights take once loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Parameters; a packed weight counts what it unpacks to.
    pub parameters: usize,
    /// Bytes in memory.
    pub bytes: usize,
}

impl Weights {
    /// Wraps opened tensors; floats become `dtype`, or keep the checkpoint's where it is `None`.
    pub(crate) fn new(
        name: String,
        tensors: Tensors,
        config: &Config,
        dtype: Option<Dtype>,
    ) -> Result<Self> {
        refuse_foreign_quantization(config)?;
        let tensors = if config.has("text_config") { language_model(tensors) } else { tensors };
        let stored = || {
            let table = tensors.get("model.embed_tokens.scales");
            let table = table.or_else(|| tensors.get("model.embed_tokens.weight"));
            table.map_or(Dtype::Float32, Array::dtype)
        };
        let dtype = dtype.unwrap_or_else(stored);
        let backend = Backend::new(dtype)?;
        Ok(Self { name, tensors, dtype, backend, footprint: Footprint::default() })
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

    fn failed(&self, tensor: &str, e: &Exception) -> Error {
        self.error(format_args!("`{tensor}` cannot be read: {}", e.what()))
    }

    fn remove(&mut self, tensor: &str) -> Result<Array> {
        let found = self.tensors.remove(tensor);
        found.ok_or_else(|| self.error(format_args!("the tensor `{tensor}` is missing")))
    }

    /// Takes a float tensor of exactly this shape, converted and in memory.
    pub(crate) fn take(&mut self, tensor: &str, shape: &[usize]) -> Result<Array> {
        let array = self.take_as(tensor, shape, self.dtype)?;
        self.footprint.parameters += array.size();
        Ok(array)
    }

    /// Takes a weight of two axes as it is stored, if that is bf16 and can be computed with as it is.
    fn take_narrow(&mut self, tensor: &str, shape: &[usize]) -> Result<Option<(Native, Array)>> {
        let stored = self.tensors.get(tensor).map(Array::dtype);
        let Some(native) = self.backend.native().filter(|_| stored == Some(Dtype::Bfloat16)) else {
            return Ok(None);
        };
        let array = self.take_as(tensor, shape, Dtype::Bfloat16)?;
        self.footprint.parameters += array.size();
        Ok(Some((native, array)))
    }

    fn take_as(&mut self, tensor: &str, shape: &[usize], dtype: Dtype) -> Result<Array> {
        let array = self.remove(tensor)?;
        if !array.shape().iter().map(|&it| it as usize).eq(shape.iter().copied()) {
            let found = array.shape();
            return Err(self.error(format_args!(
                "the tensor `{tensor}` has shape {found:?}, but config.json makes it {shape:?}"
            )));
        }
        if array.dtype().is_float() != dtype.is_float() {
            let found = array.dtype();
            return Err(self.error(format_args!(
                "the tensor `{tensor}` holds {found:?} where {dtype:?} is expected"
            )));
        }
        let array = array
            .as_dtype(dtype)
            .and_then(|it| it.eval().map(|()| it))
            .map_err(|e| self.failed(tensor, &e))?;
        self.footprint.bytes += array.nbytes();
        Ok(array)
    }

    /// Takes `{at}.weight`, `[.., rows, columns]`, dense or packed.
    fn weight(
        &mut self,
        at: &str,
        leading: &[usize],
        rows: usize,
        columns: usize,
    ) -> Result<Weight> {
        let name = format!("{at}.weight");
        let shape = |last: usize| [leading, &[rows, last]].concat();
        if !self.has(&format!("{at}.scales")) {
            let dense = self.take(&name, &shape(columns))?;
            return Weight::dense(&dense).map_err(|e| self.failed(&name, &e));
        }
        self.packed(at, leading, rows, columns).map(Weight::Quantized)
    }

    /// Takes `{at}.weight`, `.scales` and `.biases`. Group size and bits follow from the shapes, as
    /// in mlx-lm, so per-layer overrides need no table.
    fn packed(
        &mut self,
        at: &str,
        leading: &[usize],
        rows: usize,
        columns: usize,
    ) -> Result<Packed> {
        let last = |array: Option<&Array>| {
            array.and_then(|it| it.shape().last().copied()).map_or(0, |it| it as usize)
        };
        let words = last(self.tensors.get(&format!("{at}.weight")));
        let groups = last(self.tensors.get(&format!("{at}.scales")));
        let group_size = columns.checked_div(groups).unwrap_or(0);
        let bits = words * 32 / columns;
        let fits = group_size * groups == columns && bits * columns == words * 32;
        if !fits || ![2, 3, 4, 5, 6, 8].contains(&bits) {
            return Err(self.error(format_args!(
                "`{at}` is no affine-quantized weight of {columns} columns: {words} words and {groups} \
                 groups per row"
            )));
        }
        let shape = |last: usize| [leading, &[rows, last]].concat();
        let weight = self.take_as(&format!("{at}.weight"), &shape(words), Dtype::Uint32)?;
        let scales = self.take_as(&format!("{at}.scales"), &shape(groups), self.dtype)?;
        let biases = self.take_as(&format!("{at}.biases"), &shape(groups), self.dtype)?;
        self.footprint.parameters += leading.iter().product::<usize>() * rows * columns;
        Ok(Packed { weight, scales, biases, group_size: group_size as i32, bits: bits as i32 })
    }

    pub(crate) fn linear(
        &mut self,
        at: &str,
        rows: usize,
        columns: usize,
        bias: bool,
    ) -> Result<Linear> {
        let name = format!("{at}.weight");
        let narrow = if self.has(&format!("{at}.scales")) {
            None
        } else {
            self.take_narrow(&name, &[rows, columns])?
        };
        let weight = match narrow {
            Some((native, weight)) => LinearWeight::Widening(native, weight),
            None => LinearWeight::Plain(self.weight(at, &[], rows, columns)?),
        };
        let bias = if bias { Some(self.take(&format!("{at}.bias"), &[rows])?) } else { None };
        Ok(Linear { weight, bias })
    }

    /// Takes one projection of every expert: `{at}.switch_mlp.{name}` as mlx-lm stacks them, or
    /// HF's `{at}.experts.{index}.{name}`.
    pub(crate) fn experts(
        &mut self,
        at: &str,
        name: &str,
        count: usize,
        rows: usize,
        columns: usize,
    ) -> Result<Experts> {
        let stacked = format!("{at}.switch_mlp.{name}");
        if self.has(&format!("{stacked}.weight")) {
            return self.weight(&stacked, &[count], rows, columns).map(Experts);
        }
        let each = (0..count)
            .map(|it| self.take(&format!("{at}.experts.{it}.{name}.weight"), &[rows, columns]))
            .collect::<Result<Vec<_>>>()?;
        let weight = stack(&each, 0).and_then(|it| Weight::dense(&it));
        weight.map(Experts).map_err(|e| self.failed(&stacked, &e))
    }

    pub(crate) fn embedding(&mut self, at: &str, rows: usize, columns: usize) -> Result<Embedding> {
        if self.has(&format!("{at}.scales")) {
            return self.packed(at, &[], rows, columns).map(Embedding::Quantized);
        }
        let name = format!("{at}.weight");
        if let Some((native, table)) = self.take_narrow(&name, &[rows, columns])? {
            return Ok(Embedding::Widening(native, table));
        }
        let table = self.take(&name, &[rows, columns])?;
        Embedding::dense(table).map_err(|e| self.failed(&name, &e))
    }

    /// A norm over the hidden size.
    pub(crate) fn norm(&mut self, at: &str, dims: &Dims, stored: NormWeight) -> Result<RmsNorm> {
        self.sized_norm(at, dims.hidden, dims.eps, stored)
    }

    /// A norm over one head.
    pub(crate) fn head_norm(
        &mut self,
        at: &str,
        dims: &Dims,
        stored: NormWeight,
    ) -> Result<RmsNorm> {
        self.sized_norm(at, dims.head_dim, dims.eps, stored)
    }

    fn sized_norm(
        &mut self,
        at: &str,
        size: usize,
        eps: f32,
        stored: NormWeight,
    ) -> Result<RmsNorm> {
        let name = format!("{at}.weight");
        let weight = self.take(&name, &[size])?;
        RmsNorm::new(weight, eps, stored, self.backend)
    }

    /// The untied head, or `None` where the token table serves. As in HF, a head that is there and
    /// differs from the table is used even where the config calls it tied.
    pub(crate) fn head(&mut self, dims: &Dims, table: &Embedding) -> Result<Option<Linear>> {
        if dims.tied && !self.has("lm_head.weight") {
            return Ok(None);
        }
        if let (true, Embedding::Dense { table, .. }) = (dims.tied, table) {
            let same = self.tensors["lm_head.weight"]
                .as_dtype(self.dtype)
                .and_then(|head| head.eq_values(table))
                .map_err(|e| self.failed("lm_head.weight", &e))?;
            if same {
                self.tensors.remove("lm_head.weight");
                return Ok(None);
            }
        }
        self.linear("lm_head", dims.vocab, dims.hidden, false).map(Some)
    }

    /// Ends the loading: anything left over is a tensor that this architecture does not know.
    pub(crate) fn finish(mut self) -> Result<Footprint> {
        // Old checkpoints carry rotary tables, which every graph computes.
        self.tensors.retain(|name, _| !name.ends_with("rotary_emb.inv_freq"));
        let mut left: Vec<&String> = self.tensors.keys().collect();
        left.sort();
        match left.as_slice() {
            [] => Ok(self.footprint),
            [first, rest @ ..] => {
                let more = if rest.is_empty() {
                    String::new()
                } else {
                    format!(" and {} more", rest.len())
                };
                Err(self.error(format_args!("this architecture has no tensor `{first}`{more}")))
            }
        }
    }
}

/// Only MLX's affine scheme is read; GPTQ, AWQ, fp8 and MLX's microscaling modes are refused by name.
fn refuse_foreign_quantization(config: &Config) -> Result<()> {
    for key in ["quantization", "quantization_config"] {
        let Some(settings) = config.object(key)? else { continue };
        if let Some(method) = settings.str("quant_method")? {
            return Err(config.error(
                key,
                format_args!(
                    "names the method {method:?}; only MLX's affine quantization is supported"
                ),
            ));
        }
        let mode = settings.str("mode")?.unwrap_or("affine");
        if mode != "affine" {
            return Err(config.error(
                key,
                format_args!("names the mode {mode:?}; only \"affine\" is supported"),
            ));
        }
    }
    Ok(())
}
