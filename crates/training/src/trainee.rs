//! What is trained: a model's own parameters, its adapters, a soft prompt, steering vectors.
//!
//! Each has a name and an fp32 master copy. A step puts the masters, in the dtype that the model
//! computes in, where the model looks for them; everything else of the model stays as it is, to the
//! bit.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use mlx_rs::{
    Array, Dtype,
    error::Result as MlxResult,
    ops::{broadcast_to, concatenate},
    transforms::eval,
};
use mlxgk_kv_cache::{Column, RowId, Step};
use mlxgk_mlx_models::{AdapterChoice, Decoder, HookPoint, ParameterKind, ResidualHook};
use regex::RegexSet;

use crate::{
    Batch, Error, ErrorKind, Result,
    folder::{check_stored, write_folder},
};

/// The name of a soft prompt among what is trained.
pub const SOFT_PROMPT: &str = "soft_prompt";

/// A model under training.
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder};
/// use mlxgk_training::{LoraConfig, Trainee, attach_lora};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let mut model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let adapted = attach_lora(&mut model, &LoraConfig::default())?.len();
/// // The adapters, and a steering vector after the second block.
/// let trainee = Trainee::new(&mut model).adapters()?.vectors(&[1])?;
/// assert_eq!(trainee.names().len(), 2 * adapted + 1); // A and B of each
/// assert_eq!(trainee.count(), trainee.masters().iter().map(|it| it.size()).sum::<usize>());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Trainee<'m> {
    pub(crate) decoder: &'m mut Decoder,
    /// `[virtual tokens, hidden]`.
    soft_prompt: Option<Array>,
    /// `[hidden]` each, added after the block.
    vectors: BTreeMap<usize, Array>,
    names: Vec<String>,
    /// fp32.
    masters: Vec<Array>,
}

impl<'m> Trainee<'m> {
    /// A model of which nothing is trained yet.
    pub fn new(decoder: &'m mut Decoder) -> Self {
        let (names, masters) = (Vec::new(), Vec::new());
        Self { decoder, soft_prompt: None, vectors: BTreeMap::new(), names, masters }
    }

    /// Trains every adapter that is set on the model.
    ///
    /// # Errors
    /// When there is none.
    pub fn adapters(mut self) -> Result<Self> {
        let before = self.names.len();
        self.add(&mut |name, kind| kind == ParameterKind::Adapter && !name.is_empty())?;
        if self.names.len() == before {
            return Err(Error::config("the model has no adapter to be trained"));
        }
        Ok(self)
    }

    /// Trains the model's own parameters whose names match one of the regular expressions `train`
    /// (all, where there is none) and none of `freeze`, wherever in the name.
    ///
    /// # Errors
    /// When an expression is wrong, nothing is left to be trained, or a matrix that matches is packed:
    /// that can be trained through an adapter only.
    pub fn weights(mut self, train: &[&str], freeze: &[&str]) -> Result<Self> {
        let set = |patterns: &[&str]| {
            RegexSet::new(patterns).map_err(|e| Error::config(format!("a parameter pattern: {e}")))
        };
        let (chosen, frozen) = (set(train)?, set(freeze)?);
        let mut packed = None;
        let before = self.names.len();
        self.add(&mut |name, kind| {
            let matches = (train.is_empty() || chosen.is_match(name)) && !frozen.is_match(name);
            match kind {
                ParameterKind::Adapter | ParameterKind::Scales | ParameterKind::Offsets => false,
                ParameterKind::Packed => {
                    if matches && packed.is_none() {
                        packed = Some(name.to_owned());
                    }
                    false
                }
                _ => matches,
            }
        })?;
        if let Some(name) = packed {
            let what = format!("`{name}` is packed and cannot be trained itself; train an adapter");
            return Err(Error::config(what));
        }
        if self.names.len() == before {
            return Err(Error::config("no parameter is left to be trained by these patterns"));
        }
        Ok(self)
    }

    /// Trains a soft prompt, `[virtual tokens, hidden]`, that precedes every row: what the first
    /// block is given, after a factor that a family multiplies its embeddings by.
    ///
    /// # Errors
    /// When it has another shape.
    pub fn soft_prompt(mut self, soft_prompt: &Array) -> Result<Self> {
        let hidden = self.decoder.hidden_size();
        if soft_prompt.ndim() != 2 || soft_prompt.dim(0) < 1 || soft_prompt.dim(1) != hidden as i32
        {
            let what = format!(
                "a soft prompt for this model is [virtual tokens, {hidden}], found {:?}",
                soft_prompt.shape()
            );
            return Err(Error::new(ErrorKind::Adapter, what));
        }
        self.push(SOFT_PROMPT.to_owned(), soft_prompt)?;
        self.restore()?;
        Ok(self)
    }

    /// Trains a steering vector after each of these blocks, from 0: `h + v` at every place, the names
    /// as in steering files (`resid_post.{layer}`).
    ///
    /// # Errors
    /// When the model has no such layer.
    pub fn vectors(mut self, layers: &[usize]) -> Result<Self> {
        let (hidden, count) = (self.decoder.hidden_size(), self.decoder.layers().len());
        for &layer in layers {
            if layer >= count {
                let what = format!("layer {layer} of a model with {count} layers");
                return Err(Error::config(what));
            }
            let zeros = Array::from_slice(&vec![0.0_f32; hidden], &[hidden as i32]);
            self.push(HookPoint::ResidPost(layer).to_string(), &zeros)?;
        }
        self.restore()?;
        Ok(self)
    }

    /// Names of what is trained.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The fp32 masters, one per name.
    pub fn masters(&self) -> &[Array] {
        &self.masters
    }

    /// How many numbers are trained.
    pub fn count(&self) -> usize {
        self.masters.iter().map(Array::size).sum()
    }

    /// The model. What is trained stands in it as the last step left it.
    pub fn decoder(&self) -> &Decoder {
        self.decoder
    }

    /// Checks that the folder `base` stores everything that is trained, as it is before the first step, so
    /// that [`save_model`](Self::save_model) can write it there.
    ///
    /// # Errors
    /// When a file cannot be read, or a parameter is stored under another name or in another layout.
    pub fn check_model(&self, base: &Path) -> Result<()> {
        let names = self.names.iter().map(String::as_str);
        check_stored(base, &names.zip(&self.masters).collect::<Vec<_>>())
    }

    /// Writes the model in the folder `base` to `out` with what is trained in place of its own, in the
    /// dtypes that `base` stores; a folder `out` that is there is replaced.
    ///
    /// # Errors
    /// When `base` has no tensor of a parameter that is trained, or a file cannot be read or written.
    pub fn save_model(&self, base: &Path, out: &Path) -> Result<()> {
        write_folder(base, out, self.names.iter().cloned().zip(self.masters.clone()).collect())
    }

    /// Puts other masters in place, fp32 of the same shapes.
    ///
    /// # Errors
    /// When there are others than there were, or MLX fails.
    pub fn set_masters(&mut self, masters: &[Array]) -> Result<()> {
        let fits = masters.len() == self.masters.len()
            && masters.iter().zip(&self.masters).all(|(new, old)| new.shape() == old.shape());
        if !fits {
            return Err(Error::config(
                "the parameters put in place are not those that are trained",
            ));
        }
        self.masters =
            masters.iter().map(|it| it.as_dtype(Dtype::Float32)).collect::<MlxResult<_>>()?;
        eval(&self.masters)?;
        self.restore()
    }

    /// Puts the masters into the model, in its dtype.
    pub(crate) fn restore(&mut self) -> Result<()> {
        let values = self.computed()?;
        let all: Vec<usize> = (0..values.len()).collect();
        self.install(&all, &values)
    }

    /// The masters in the dtype that the model computes in, evaluated.
    pub(crate) fn computed(&self) -> Result<Vec<Array>> {
        let dtype = self.decoder.dtype();
        let values: Vec<Array> =
            self.masters.iter().map(|it| it.as_dtype(dtype)).collect::<MlxResult<_>>()?;
        eval(&values)?;
        Ok(values)
    }

    /// Puts `values` in the places of those parameters.
    pub(crate) fn install(&mut self, which: &[usize], values: &[Array]) -> Result<()> {
        let mut by_name: HashMap<&str, &Array> = HashMap::new();
        for (&index, value) in which.iter().zip(values) {
            let name = self.names[index].as_str();
            match layer_of_vector(name) {
                Some(layer) => _ = self.vectors.insert(layer, value.clone()),
                None if name == SOFT_PROMPT => self.soft_prompt = Some(value.clone()),
                None => _ = by_name.insert(name, value),
            }
        }
        put(self.decoder, &by_name)
    }

    /// Whether block `layer` is the only part that may use this parameter.
    pub(crate) fn is_of_other_layers(&self, index: usize, layers: &std::ops::Range<usize>) -> bool {
        let name = &self.names[index];
        let layer = layer_of_vector(name).or_else(|| layer_of(name));
        layer.is_some_and(|it| !layers.contains(&it))
    }

    /// Whether the head uses this parameter: its own, or the token table where they are tied.
    pub(crate) fn is_of_head(&self, index: usize) -> bool {
        let name = &self.names[index];
        let table = if self.decoder.components().tied_head { ".embed_tokens." } else { "lm_head." };
        format!(".{name}").contains(table)
    }

    /// Virtual tokens before each row.
    pub(crate) fn before(&self) -> usize {
        self.soft_prompt.as_ref().map_or(0, |it| it.dim(0) as usize)
    }

    /// What the first block is given for a batch.
    pub(crate) fn embed(&self, batch: &Batch) -> Result<Array> {
        let ids: Vec<u32> = batch.tokens.concat();
        let shape = [batch.rows() as i32, batch.width() as i32];
        let embedded = self.decoder.embed(&Array::from_slice(&ids, &shape))?;
        let Some(soft) = &self.soft_prompt else { return Ok(embedded) };
        let soft = broadcast_to(
            soft.as_dtype(embedded.dtype())?.expand_dims(0)?,
            &[shape[0], soft.dim(0), soft.dim(1)],
        )?;
        Ok(concatenate(&[&soft, &embedded], 1)?)
    }

    /// What stands in each column of a batch. A pass that nothing follows is never compared with
    /// another, so a virtual token's numbers are left out.
    pub(crate) fn columns(&self, batch: &Batch) -> Vec<Vec<Column>> {
        let virtual_tokens = vec![Column::Embedded(0); self.before()];
        let row = |tokens: &Vec<u32>| {
            let tokens = tokens.iter().copied().map(Column::Token);
            virtual_tokens.iter().copied().chain(tokens).collect()
        };
        batch.tokens.iter().map(row).collect()
    }

    /// The hook that adds the vectors under training, after the caller's own.
    pub(crate) fn hook<'h>(&self, hook: &'h mut dyn ResidualHook) -> WithVectors<'h> {
        WithVectors { hook, vectors: self.vectors.clone() }
    }

    /// Adds the parameters of the model that `chosen` wants.
    fn add(&mut self, chosen: &mut dyn FnMut(&str, ParameterKind) -> bool) -> Result<()> {
        let mut found = Vec::new();
        self.decoder.visit_parameters(|it| {
            if chosen(it.path, it.kind) {
                found.push((it.path.to_owned(), it.array.clone()));
            }
        });
        for (name, array) in found {
            self.push(name, &array)?;
        }
        self.restore()
    }

    fn push(&mut self, name: String, array: &Array) -> Result<()> {
        if self.names.contains(&name) {
            return Err(Error::config(format!("`{name}` is to be trained twice")));
        }
        let master = array.as_dtype(Dtype::Float32)?;
        master.eval()?;
        self.names.push(name);
        self.masters.push(master);
        Ok(())
    }
}

/// Puts arrays in the places of a model's parameters.
pub(crate) fn put(decoder: &mut Decoder, by_name: &HashMap<&str, &Array>) -> Result<()> {
    if by_name.is_empty() {
        return Ok(());
    }
    decoder.visit_parameters_mut(|it| Ok(by_name.get(it.path).map(|&it| it.clone())))?;
    Ok(())
}

/// `resid_post.4`: 4.
fn layer_of_vector(name: &str) -> Option<usize> {
    name.strip_prefix("resid_post.")?.parse().ok()
}

/// `model.layers.4.mlp…`: 4.
fn layer_of(name: &str) -> Option<usize> {
    let (_, after) = name.split_once("layers.")?;
    after.split('.').next()?.parse().ok()
}

/// A hook, and vectors added after it.
pub(crate) struct WithVectors<'h> {
    hook: &'h mut dyn ResidualHook,
    pub(crate) vectors: BTreeMap<usize, Array>,
}

impl ResidualHook for WithVectors<'_> {
    fn apply(
        &mut self,
        point: HookPoint,
        hidden: Array,
        step: &Step,
    ) -> mlxgk_mlx_models::Result<Array> {
        let hidden = self.hook.apply(point, hidden, step)?;
        match point {
            HookPoint::ResidPost(layer) => match self.vectors.get(&layer) {
                Some(vector) => Ok(hidden.add(vector.as_dtype(hidden.dtype())?)?),
                None => Ok(hidden),
            },
            _ => Ok(hidden),
        }
    }

    fn adapters(&self, row: RowId) -> AdapterChoice {
        self.hook.adapters(row)
    }
}
