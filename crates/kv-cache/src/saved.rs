//! A cache taken apart into named arrays and a description, and put together again: for files.

use std::collections::BTreeMap;

use mlx_rs::Array;

use crate::{
    CacheOptions, Error, KvCache, LayerSpec, Quantization, Result,
    buffer::Buffer,
    cache::{Kept, Layer},
    columns::Format,
    mark::Timeline,
    row::RowState,
};

/// Everything that a cache holds: [`KvCache::state`], [`KvCache::from_state`].
///
/// Checkpoints and marks are not part of it.
///
/// See the example of [`KvCache::state`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CacheState {
    /// By name, without room for further columns: `layers.0.keys` and `layers.0.values`,
    /// `[batch, kv heads, sinks + columns, dimension]`, or `layers.0.keys.packed`, `.scales` and
    /// `.biases` and the same of the values; `layers.3.state.0` and so on.
    pub arrays: BTreeMap<String, Array>,
    /// What the arrays mean.
    pub description: CacheDescription,
}

/// What the arrays of a [`CacheState`] mean. It can be serialized; its fields are private to
/// the cache.
///
/// ```
/// use mlx_rs::{Dtype, ops::zeros_dtype};
/// use mlxgk_kv_cache::{CacheDescription, KvCache, LayerSpec};
///
/// let mut cache = KvCache::new(&[LayerSpec::Full], 1);
/// let new = zeros_dtype(&[1, 2, 2, 16], Dtype::Float32)?;
/// let mut pass = cache.begin_tokens(&[&[5, 9]], &[])?;
/// pass.append(0, &new, &new)?;
/// pass.commit()?;
/// let json = serde_json::to_string(&cache.state()?.description)?;
/// let read: CacheDescription = serde_json::from_str(&json)?;
/// assert_eq!((read.len(), read.packing(0)), (2, None));
/// assert_eq!(read.layers().collect::<Vec<_>>(), [LayerSpec::Full]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct CacheDescription {
    version: u32,
    pub(crate) columns: usize,
    planned: usize,
    least_padding: isize,
    pub(crate) options: CacheOptions,
    pub(crate) layers: Vec<LayerDescription>,
    rows: Vec<RowState>,
}

/// The version of descriptions written here.
const VERSION: u32 = 1;

#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct LayerDescription {
    pub(crate) spec: LayerSpec,
    /// The first column held; what comes before was dropped.
    pub(crate) first: usize,
    /// How the columns are packed; `None` for dense ones.
    pub(crate) quantization: Option<Quantization>,
    /// Arrays of a state.
    pub(crate) states: usize,
}

impl CacheDescription {
    /// Of a cache of one row, that was fed all that was planned.
    pub(crate) fn of_row(
        layers: Vec<LayerDescription>,
        options: CacheOptions,
        row: RowState,
        least_padding: isize,
    ) -> Self {
        let columns = row.columns.len();
        Self {
            version: VERSION,
            columns,
            planned: 0,
            least_padding,
            options,
            layers,
            rows: vec![row],
        }
    }

    /// Columns held.
    pub fn len(&self) -> usize {
        self.columns
    }

    /// Whether nothing was fed.
    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// Group size and bits of a layer's columns; `None` where they are dense.
    pub fn packing(&self, layer: usize) -> Option<(i32, i32)> {
        self.layers.get(layer)?.quantization.map(|it| (it.group_size, it.bits))
    }

    /// What each layer may see.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = LayerSpec> + '_ {
        self.layers.iter().map(|layer| layer.spec)
    }
}

impl KvCache {
    /// Everything the cache holds. The arrays are not evaluated.
    ///
    /// ```
    /// use mlx_rs::{Dtype, ops::zeros_dtype};
    /// use mlxgk_kv_cache::{KvCache, LayerSpec};
    ///
    /// let mut cache = KvCache::new(&[LayerSpec::Full], 1);
    /// let mut pass = cache.begin_tokens(&[&[5, 9]], &[])?;
    /// let new = zeros_dtype(&[1, 2, 2, 16], Dtype::Float32)?;
    /// pass.append(0, &new, &new)?;
    /// pass.commit()?;
    /// let state = cache.state()?;
    /// assert_eq!(state.arrays["layers.0.keys"].shape(), [1, 2, 2, 16]);
    /// let again = KvCache::from_state(&state)?;
    /// assert_eq!((again.len(), again.tokens(0)), (2, vec![5, 9]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// When MLX fails.
    pub fn state(&self) -> Result<CacheState> {
        let mut arrays = BTreeMap::new();
        let mut layers = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let mut described =
                LayerDescription { spec: layer.spec, first: 0, quantization: None, states: 0 };
            match &layer.kept {
                Kept::Columns(buffer) if !buffer.arrays.is_empty() => {
                    described.first = buffer.first;
                    if let Format::Quantized(how) = buffer.format {
                        described.quantization = Some(how);
                    }
                    let held = buffer
                        .without_room(self.len)
                        .map_err(|e| Error::mlx("taking columns out of the cache", &e))?;
                    for (name, array) in buffer.format.names().iter().zip(held) {
                        arrays.insert(format!("layers.{index}.{name}"), array);
                    }
                }
                Kept::State(state) => {
                    described.states = state.len();
                    for (which, array) in state.iter().enumerate() {
                        arrays.insert(format!("layers.{index}.state.{which}"), array.clone());
                    }
                }
                _ => {}
            }
            layers.push(described);
        }
        let description = CacheDescription {
            version: VERSION,
            columns: self.len,
            planned: self.planned,
            least_padding: self.least_padding,
            options: self.options.clone(),
            layers,
            rows: self.rows.clone(),
        };
        Ok(CacheState { arrays, description })
    }

    /// The cache that a state was taken from.
    ///
    /// # Errors
    /// When the description is of another version, or an array is missing, superfluous or of another
    /// shape than described; the sentence names it.
    pub fn from_state(state: &CacheState) -> Result<Self> {
        let CacheState { arrays, description } = state;
        if description.version != VERSION {
            return Err(Error::argument(format!(
                "the cache was described in version {}, and this is version {VERSION}",
                description.version
            )));
        }
        let batch = description.rows.len();
        let columns = description.columns;
        if let Some(row) = description.rows.iter().find(|row| row.columns.len() != columns) {
            let held = row.columns.len();
            return Err(Error::argument(format!("row {} has {held} of {columns} columns", row.id)));
        }
        let mut left = arrays.clone();
        let mut take = |name: &str| match left.remove(name) {
            Some(array) if array.ndim() > 0 && array.dim(0) as usize == batch => Ok(array),
            Some(array) => {
                let shape = array.shape();
                Err(Error::argument(format!("{name} has shape {shape:?}, not one of {batch} rows")))
            }
            None => Err(Error::argument(format!("the cache's {name} is missing"))),
        };
        let mut layers = Vec::new();
        for (index, described) in description.layers.iter().enumerate() {
            let sight = description.options.sight(described.spec);
            let format = described.quantization.map_or(Format::Dense, Format::Quantized);
            let kept = match Kept::new(sight, format) {
                Kept::State(_) => {
                    let name = |which| format!("layers.{index}.state.{which}");
                    let state = (0..described.states).map(|it| take(&name(it)));
                    Kept::State(state.collect::<Result<_>>()?)
                }
                Kept::Columns(_) if columns > 0 => {
                    let slots = sight.sinks();
                    let held = columns.checked_sub(described.first).map(|it| it + slots);
                    let names = format.names().iter();
                    let array = |name: &&str| {
                        let name = format!("layers.{index}.{name}");
                        let array = take(&name)?;
                        if array.ndim() != 4 || Some(array.dim(2) as usize) != held {
                            let shape = array.shape();
                            return Err(Error::argument(format!(
                                "{name} has shape {shape:?}, not that of {columns} columns from {}",
                                described.first
                            )));
                        }
                        Ok(array)
                    };
                    let arrays = names.map(array).collect::<Result<_>>()?;
                    Kept::Columns(Buffer::holding(arrays, format, slots, described.first))
                }
                empty => empty,
            };
            layers.push(Layer { spec: described.spec, sight, kept });
        }
        if let Some(name) = left.keys().next() {
            return Err(Error::argument(format!("{name} is not an array of the cache described")));
        }
        let cache = Self {
            layers,
            options: description.options.clone(),
            len: columns,
            planned: description.planned,
            reserved: 0,
            least_padding: description.least_padding,
            rows: description.rows.clone(),
            timeline: Timeline::default(),
            widest: 0,
        };
        cache.check_layers()?;
        Ok(cache)
    }
}
