//! Several adapters in one model, of which every row of a batch runs under its own.
//!
//! The matrices of all that are loaded stand in one pair per product, rank after rank. What a row runs
//! under is a factor per rank: its own adapters' scales, and 0 for the others. So a pass costs two
//! products more, however many adapters its rows have.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mlx_rs::{
    Array, Dtype,
    error::{Exception, Result as MlxResult},
    ops::concatenate,
};
use mlxgk_kv_cache::RowId;
use sha2::{Digest, Sha256};

use crate::{Adapter, Decoder, Error, ErrorKind, ResidualHook, Result};

/// Which of the adapters that a model has [by name](Decoder::add_named_adapter) a row runs under: none,
/// one, or the sum of several, each times a factor.
///
/// ```
/// use mlxgk_mlx_models::AdapterChoice;
///
/// let one = AdapterChoice::from("pirate");
/// let both = AdapterChoice::from("pirate").and("robot", 0.5);
/// assert!(AdapterChoice::none().is_none());
/// assert_eq!(both.to_string(), "pirate + 0.5 robot");
/// # assert_eq!(one.to_string(), "pirate");
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AdapterChoice(Arc<[(Arc<str>, f32)]>);

impl AdapterChoice {
    /// The model without any.
    pub fn none() -> Self {
        Self::default()
    }

    /// What is added so far, and `factor` times the adapter called `name`.
    #[must_use]
    pub fn and(&self, name: &str, factor: f32) -> Self {
        let more = [(Arc::from(name), factor)];
        Self(self.0.iter().cloned().chain(more).collect())
    }

    /// What both add.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        match (self.is_none(), other.is_none()) {
            (_, true) => self.clone(),
            (true, _) => other.clone(),
            _ => Self(self.0.iter().chain(other.0.iter()).cloned().collect()),
        }
    }

    /// Whether no adapter is chosen.
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// What the adapter called `name` is multiplied by; 0 where it is not chosen.
    fn factor(&self, name: &str) -> f32 {
        self.0.iter().filter(|it| &*it.0 == name).map(|it| it.1).sum()
    }
}

impl From<&str> for AdapterChoice {
    fn from(name: &str) -> Self {
        Self::none().and(name, 1.0)
    }
}

impl From<Option<&str>> for AdapterChoice {
    fn from(name: Option<&str>) -> Self {
        name.map(Self::from).unwrap_or_default()
    }
}

/// `pirate + 0.5 robot`; `no adapter`.
impl std::fmt::Display for AdapterChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_none() {
            return f.write_str("no adapter");
        }
        for (at, (name, factor)) in self.0.iter().enumerate() {
            let plus = if at > 0 { " + " } else { "" };
            match factor {
                1.0 => write!(f, "{plus}{name}")?,
                factor => write!(f, "{plus}{factor} {name}")?,
            }
        }
        Ok(())
    }
}

/// The adapters that a decoder has by name.
#[derive(Debug, Default)]
pub(crate) struct NamedAdapters {
    loaded: BTreeMap<Arc<str>, Loaded>,
    rows: Arc<Mutex<Rows>>,
}

/// One adapter.
#[derive(Debug)]
struct Loaded {
    /// What it adds to each product, by the product's path.
    products: Vec<(String, Adapter)>,
    /// Of all its numbers.
    hash: String,
}

/// What the rows of the pass under way run under: shared by all products.
#[derive(Debug, Default)]
struct Rows {
    /// The kinds of stacks that there are: the adapters in them, with their ranks and scales.
    layouts: Vec<Vec<(Arc<str>, usize, f32)>>,
    /// One entry where all rows run under the same.
    chosen: Vec<AdapterChoice>,
    /// By layout, the factors, `[rows, ranks]`: made for the first product that asks, kept as long as
    /// rows run under the same; `None` within where all are 0.
    masks: Vec<Option<Option<Array>>>,
}

impl Rows {
    /// The number of a kind of stack, entered where it is new.
    fn layout(&mut self, layout: Vec<(Arc<str>, usize, f32)>) -> usize {
        if let Some(at) = self.layouts.iter().position(|it| *it == layout) {
            return at;
        }
        self.layouts.push(layout);
        self.masks.push(None);
        self.layouts.len() - 1
    }

    fn mask(&mut self, layout: usize) -> Option<Array> {
        let (parts, chosen) = (&self.layouts[layout], &self.chosen);
        self.masks[layout]
            .get_or_insert_with(|| {
                let of_row = |choice: &AdapterChoice| {
                    let of_part = |(name, rank, scale): &(Arc<str>, usize, f32)| {
                        std::iter::repeat_n(scale * choice.factor(name), *rank)
                    };
                    parts.iter().flat_map(of_part).collect::<Vec<f32>>()
                };
                let factors: Vec<f32> = chosen.iter().flat_map(of_row).collect();
                let ranks = parts.iter().map(|it| it.1).sum::<usize>();
                let shape = [chosen.len() as i32, ranks as i32];
                factors.iter().any(|it| *it != 0.0).then(|| Array::from_slice(&factors, &shape))
            })
            .clone()
    }
}

/// The named adapters of one product, together.
#[derive(Debug, Clone)]
pub(crate) struct Stack {
    /// `[ranks, in]`.
    a: Array,
    /// `[out, ranks]`.
    b: Array,
    layout: usize,
    rows: Arc<Mutex<Rows>>,
}

impl Stack {
    fn new(parts: &[(Arc<str>, &Adapter)], rows: &Arc<Mutex<Rows>>) -> MlxResult<Self> {
        let layout = parts.iter().map(|(name, it)| {
            let rank = it.a().dim(0) as usize;
            (Arc::clone(name), rank, it.scale())
        });
        let layout = locked(rows).layout(layout.collect());
        let a: Vec<&Array> = parts.iter().map(|it| it.1.a()).collect();
        let b: Vec<&Array> = parts.iter().map(|it| it.1.b()).collect();
        let (a, b) = (concatenate(&a, 0)?, concatenate(&b, 1)?);
        mlx_rs::transforms::eval([&a, &b])?;
        Ok(Self { a, b, layout, rows: Arc::clone(rows) })
    }

    /// What the rows' adapters add to a product with `x`, `[batch, .., in]`; `None` where they add
    /// nothing.
    pub(crate) fn product(&self, path: &str, x: &Array) -> MlxResult<Option<Array>> {
        let Some(mask) = locked(&self.rows).mask(self.layout) else { return Ok(None) };
        let rows = mask.dim(0);
        if rows > 1 && (x.ndim() < 2 || x.dim(0) != rows) {
            let what = format!(
                "`{path}` is given {:?}, in which {rows} rows cannot have adapters of their own",
                x.shape()
            );
            return Err(Exception::custom(what));
        }
        let mut shape = vec![1; x.ndim()];
        if let [first, .., last] = &mut shape[..] {
            (*first, *last) = (rows, mask.dim(1));
        }
        let inner = x.matmul(self.a.t())?;
        let mask = mask.reshape(&shape)?.as_dtype(inner.dtype())?;
        Ok(Some(inner.multiply(mask)?.matmul(self.b.t())?))
    }

    /// Whether some row of the pass under way runs under one of them.
    pub(crate) fn is_chosen(&self) -> bool {
        locked(&self.rows).mask(self.layout).is_some()
    }
}

impl Decoder {
    /// Loads an adapter beside others, for rows that [choose](ResidualHook::adapters) it by `name`:
    /// one [`Adapter`] per product, by its [path](crate::Linear::path). What is
    /// [set](crate::Linear::set_adapter) on a product serves all rows; these serve their own, and what both
    /// add is added.
    ///
    /// # Errors
    /// When the name is taken, a product does not exist, is not one of a block's or has another shape, or
    /// an adapter has magnitudes (DoRA), whose norms are those of a model with that adapter alone.
    /// The model is then as it was.
    pub fn add_named_adapter(
        &mut self,
        name: &str,
        adapters: Vec<(String, Adapter)>,
    ) -> Result<()> {
        let refuse = |what: String| Err(Error::new(ErrorKind::Weights, what));
        if self.adapters.loaded.contains_key(name) {
            return refuse(format!("the model has an adapter named `{name}` already"));
        }
        for (path, adapter) in &adapters {
            let Some(linear) = self.linears().into_iter().find(|it| it.path() == path) else {
                let why = match self.products().iter().any(|it| it.path() == path) {
                    false => format!("the model has no `{path}`"),
                    true => format!(
                        "`{path}` are experts, where rows cannot have adapters of their own"
                    ),
                };
                return refuse(format!("adapter `{name}`: {why}"));
            };
            if !path.contains("layers.") {
                return refuse(format!(
                    "adapter `{name}` is for `{path}`, outside the blocks, where rows cannot have \
                     adapters of their own"
                ));
            }
            let found = adapter.shape();
            if found != linear.shape() {
                let fits = linear.shape();
                return refuse(format!(
                    "adapter `{name}`: `{path}` is {fits:?}, and the adapter for {found:?}"
                ));
            }
            if adapter.magnitude().is_some() {
                return refuse(format!(
                    "adapter `{name}` is DoRA, which serves all rows of a model or none: its norms are \
                     those of a model with that adapter alone"
                ));
            }
            if linear.adapter().is_some_and(|it| it.magnitude().is_some()) {
                return refuse(format!(
                    "`{path}` has a DoRA adapter, to which `{name}` cannot be added"
                ));
            }
        }
        let hash = hash(&adapters)?;
        self.adapters.loaded.insert(Arc::from(name), Loaded { products: adapters, hash });
        self.restack()
    }

    /// Forgets the adapter of this name; `false` where there is none.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn remove_named_adapter(&mut self, name: &str) -> Result<bool> {
        let found = self.adapters.loaded.remove(name).is_some();
        self.restack()?;
        Ok(found)
    }

    /// The names of the adapters that rows can choose.
    pub fn named_adapters(&self) -> impl Iterator<Item = &str> {
        self.adapters.loaded.keys().map(|it| &**it)
    }

    /// What a row that runs under `choice` is called in a cache ([`ResidualHook::name`]): the adapters with
    /// a hash of their numbers. `None` for none.
    ///
    /// # Errors
    /// When the model has no adapter of a name.
    pub fn name_of_choice(&self, choice: &AdapterChoice) -> Result<Option<Arc<str>>> {
        if choice.is_none() {
            return Ok(None);
        }
        let mut text = String::from("adapters");
        for (name, factor) in choice.0.iter() {
            let loaded = self.adapters.loaded.get(name).ok_or_else(|| self.no_adapter(name))?;
            // A string takes whatever is written to it.
            _ = write!(text, " {name} × {factor} ({})", &loaded.hash[..16]);
        }
        Ok(Some(text.into()))
    }

    /// What the rows of a pass run under from here on.
    pub(crate) fn choose_adapters(&self, rows: &[RowId], hook: &dyn ResidualHook) -> Result<()> {
        let mut chosen: Vec<AdapterChoice> = rows.iter().map(|&it| hook.adapters(it)).collect();
        let names = chosen.iter().flat_map(|it| it.0.iter()).map(|it| &it.0);
        for name in names {
            if !self.adapters.loaded.contains_key(name) {
                return Err(self.no_adapter(name));
            }
        }
        if self.adapters.loaded.is_empty() {
            return Ok(());
        }
        if chosen.iter().all(|it| *it == chosen[0]) {
            chosen.truncate(1);
        }
        let mut rows = locked(&self.adapters.rows);
        if rows.chosen != chosen {
            rows.chosen = chosen;
            rows.masks.fill(None);
        }
        Ok(())
    }

    fn no_adapter(&self, name: &str) -> Error {
        let known: Vec<&str> = self.named_adapters().collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let what = format!("the model has no adapter named `{name}` (it has: {known})");
        Error::new(ErrorKind::Weights, what)
    }

    /// Makes each product's stack of what is loaded.
    fn restack(&mut self) -> Result<()> {
        let rows = Arc::new(Mutex::new(Rows::default()));
        let paths: Vec<String> = self.linears().iter().map(|it| it.path().to_owned()).collect();
        for path in paths {
            let loaded = self.adapters.loaded.iter();
            let parts: Vec<(Arc<str>, &Adapter)> = loaded
                .flat_map(|(name, it)| {
                    let of_path = it.products.iter().filter(|it| it.0 == path);
                    of_path.map(|it| (Arc::clone(name), &it.1))
                })
                .collect();
            let stack = match parts.is_empty() {
                true => None,
                false => Some(Stack::new(&parts, &rows)?),
            };
            if let Some(linear) = self.linear_mut(&path) {
                linear.set_stack(stack);
            }
        }
        self.adapters.rows = rows;
        Ok(())
    }
}

/// A hash of all numbers, scales and paths.
fn hash(adapters: &[(String, Adapter)]) -> Result<String> {
    let mut hash = Sha256::new();
    for (path, adapter) in adapters {
        hash.update(path.as_bytes());
        hash.update(adapter.scale().to_le_bytes());
        for array in [adapter.a(), adapter.b()] {
            let array = array.as_dtype(Dtype::Float32)?.contiguous()?;
            let unreadable = |e| Error::new(ErrorKind::Weights, format!("`{path}`: {e}"));
            let numbers: Vec<f32> = array.to_vec_exact().map_err(unreadable)?;
            numbers.iter().for_each(|it| hash.update(it.to_le_bytes()));
        }
    }
    Ok(hash.finalize().iter().fold(String::new(), |mut text, byte| {
        // A string takes whatever is written to it.
        _ = write!(text, "{byte:02x}");
        text
    }))
}

/// One pass uses it at a time, so a panic elsewhere leaves nothing half done.
fn locked(rows: &Mutex<Rows>) -> MutexGuard<'_, Rows> {
    rows.lock().unwrap_or_else(PoisonError::into_inner)
}
