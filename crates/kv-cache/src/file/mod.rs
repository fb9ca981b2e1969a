//! Caches as files, in the format of mlx-lm's prompt caches.
//!
//! What is written, mlx-lm since 0.32 loads, except bounded layers that are quantized, which it does
//! not have. What mlx-lm has no place for (the tokens, the steering, the model's fingerprint) stands in
//! the metadata, which it hands on unread.

mod container;
mod layout;

pub(crate) use self::container::Container;

use std::{collections::BTreeMap, fmt::Write, path::Path};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use self::layout::{FileLayer, Version};
use crate::{
    CacheOptions, CacheState, Column, Error, KvCache, LayerSpec, Result, RowId, row::RowState,
    saved::CacheDescription,
};

/// Whose cache a file holds.
///
/// ```
/// use mlxgk_kv_cache::{CacheFile, CacheOrigin, ErrorKind, KvCache, LayerSpec};
/// # use mlx_rs::{Dtype, ops::zeros_dtype};
///
/// # let mut cache = KvCache::new(&[LayerSpec::Full], 1);
/// # let mut pass = cache.begin_tokens(&[&[5, 9]], &[])?;
/// # let new = zeros_dtype(&[1, 2, 2, 16], Dtype::Float32)?;
/// # pass.append(0, &new, &new)?;
/// # pass.commit()?;
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("prompt.safetensors");
/// let origin = |fingerprint: &str| CacheOrigin {
///     model: "./tiny".into(),
///     fingerprint: fingerprint.into(),
///     notes: [("about".into(), "the manual".into())].into(),
/// };
/// cache.save(&path, &origin("a"))?;
/// let file = CacheFile::open(&path)?;
/// assert_eq!(file.origin().unwrap().notes["about"], "the manual");
/// // After more training, the model's fingerprint is another.
/// assert_eq!(file.check_origin(&origin("b")).unwrap_err().kind(), ErrorKind::File);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheOrigin {
    /// The model's folder or hub id, for people (and for mlx-lm, which loads a model by it).
    pub model: String,
    /// A hash that tells models apart: a cache of one means nothing to another.
    pub fingerprint: String,
    /// What else is to be kept, by name.
    pub notes: BTreeMap<String, String>,
}

/// A prompt-cache file that was read: this crate's own, or one of mlx-lm, up to 0.31 or since.
///
/// ```
/// use mlxgk_kv_cache::{CacheFile, CacheOrigin, KvCache, LayerSpec};
/// # use mlx_rs::{Dtype, ops::zeros_dtype};
///
/// # let mut cache = KvCache::new(&[LayerSpec::Full], 1);
/// # let mut pass = cache.begin_tokens(&[&[5, 9]], &[])?;
/// # let new = zeros_dtype(&[1, 2, 2, 16], Dtype::Float32)?;
/// # pass.append(0, &new, &new)?;
/// # pass.commit()?;
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("prompt.safetensors");
/// cache.save(&path, &CacheOrigin::default())?;
/// let file = CacheFile::open(&path)?;
/// assert_eq!((file.format(), file.len()), ("mlxgk (loads in mlx-lm since 0.32)", 2));
/// assert_eq!(file.tokens(), Some(vec![5, 9]));
/// // Keys and values of two tokens: 2 · 2 heads · 2 tokens · 16 numbers of 4 bytes.
/// assert_eq!(file.layers().collect::<Vec<_>>(), [("KVCache", 512)]);
/// // A model whose layers see something else cannot take it.
/// assert!(file.into_cache(&[LayerSpec::Sliding { window: 8 }]).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct CacheFile {
    /// As it was opened, for messages.
    name: String,
    version: Version,
    notes: BTreeMap<String, String>,
    layers: Vec<FileLayer>,
    own: Option<Own>,
}

/// What a file of ours says beyond mlx-lm's.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct Own {
    version: u32,
    fingerprint: String,
    layers: Vec<LayerSpec>,
    options: CacheOptions,
    least_padding: isize,
    /// Without its columns, which stand beside it in a shorter form.
    row: RowState,
    columns: Vec<Value>,
}

/// The version of the description written here.
const VERSION: u32 = 1;
/// Names of the metadata that are not the caller's.
const RESERVED: [&str; 6] =
    ["format", "mlxgk", "model", "steering", "tokenizer_config", "tokens_sha256"];

impl KvCache {
    /// Writes the cache to a file, whole or not at all; what was there before stays whole until then.
    /// Equal caches give equal files. The name should end with `.safetensors`, by which mlx-lm knows the
    /// format.
    ///
    /// ```
    /// use mlx_rs::{Dtype, ops::zeros_dtype};
    /// use mlxgk_kv_cache::{CacheFile, CacheOrigin, KvCache, LayerSpec};
    ///
    /// let layers = [LayerSpec::Full];
    /// let mut cache = KvCache::new(&layers, 1);
    /// let mut pass = cache.begin_tokens(&[&[5, 9]], &[])?;
    /// let new = zeros_dtype(&[1, 2, 2, 16], Dtype::Float32)?;
    /// pass.append(0, &new, &new)?;
    /// pass.commit()?;
    ///
    /// let folder = tempfile::tempdir()?;
    /// let path = folder.path().join("prompt.safetensors");
    /// let origin = CacheOrigin { model: "./tiny".into(), ..CacheOrigin::default() };
    /// cache.save(&path, &origin)?;
    /// let file = CacheFile::open(&path)?;
    /// assert_eq!(file.origin().unwrap().model, "./tiny");
    /// assert_eq!(file.into_cache(&layers)?.tokens(0), [5, 9]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// When the cache holds nothing, several rows or padding, or the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>, origin: &CacheOrigin) -> Result<()> {
        self.container(origin)?.write(path.as_ref())
    }

    /// A SHA-256 of everything that the cache holds and a token can still see: two caches with the
    /// same hash continue in the same way, and are equal files.
    ///
    /// # Errors
    /// As [`save`](Self::save), and when MLX fails.
    pub fn state_hash(&self) -> Result<String> {
        Ok(hex(&self.container(&CacheOrigin::default())?.to_bytes()?))
    }

    fn container(&self, origin: &CacheOrigin) -> Result<Container> {
        let [row] = self.rows.as_slice() else {
            let what = format!("a file holds one row, and the cache has {}", self.batch());
            return Err(Error::argument(what));
        };
        if self.is_empty() || row.padding > 0 || self.options.single_pass {
            let what = "a file holds a row without padding, to which something was fed and kept";
            return Err(Error::argument(what));
        }
        if let Some(name) = origin.notes.keys().find(|it| RESERVED.contains(&it.as_str())) {
            return Err(Error::argument(format!("a note cannot have the name {name:?}")));
        }
        if let Some(name) = origin.notes.keys().find(|it| it.is_empty() || it.contains('.')) {
            return Err(Error::argument(format!("a note's name is empty or has a dot: {name:?}")));
        }
        let columns: Vec<Value> = row.columns.iter().map(written).collect();
        let own = Own {
            version: VERSION,
            fingerprint: origin.fingerprint.clone(),
            layers: self.layers().collect(),
            options: self.options.clone(),
            least_padding: self.least_padding,
            // The name of a row is its owner's affair.
            row: RowState { id: RowId::new(0), columns: Vec::new(), ..row.clone() },
            columns,
        };
        let mut notes = origin.notes.clone();
        notes.insert("format".into(), "mlxgk-cache".into());
        notes.insert("model".into(), origin.model.clone());
        // mlx-lm's programs ask for it.
        notes.insert("tokenizer_config".into(), "{}".into());
        notes.insert("tokens_sha256".into(), hash(&own.columns));
        if let Some(steering) = row.steering() {
            notes.insert("steering".into(), steering.to_owned());
        }
        notes.insert("mlxgk".into(), json!(own).to_string());
        let mut container = Container::default();
        let notes = notes.into_iter().map(|(key, value)| (format!("0.{key}"), value));
        container.metadata.extend(notes);
        layout::write(&layout::layers(&self.state()?)?, &mut container);
        Ok(container)
    }
}

impl CacheFile {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, is truncated or damaged, holds no prompt cache or one of several rows; the
    /// sentence names the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let name = path.as_ref().display().to_string();
        let wrong = |what: String| Error::file(format!("{name} {what}"));
        let container = Container::read(path.as_ref())?;
        let Some((version, mut notes)) = layout::version(&container) else {
            return Err(wrong("is a safetensors file, but not one with a prompt cache".into()));
        };
        let own: Option<Own> = match notes.remove("mlxgk") {
            None => None,
            Some(text) => Some(
                serde_json::from_str(&text)
                    .map_err(|e| wrong(format!("has a description that cannot be read: {e}")))?,
            ),
        };
        if let Some(own) = &own {
            if own.version != VERSION {
                let other = own.version;
                return Err(wrong(format!("is of version {other}, and only {VERSION} is read")));
            }
            if notes.get("tokens_sha256") != Some(&hash(&own.columns)) {
                return Err(wrong("is damaged: its tokens are not those of its hash".into()));
            }
        }
        let layers = layout::read(&container, version).map_err(wrong)?;
        if layers.is_empty() {
            return Err(wrong("holds no layers".into()));
        }
        Ok(Self { version, notes, layers, own, name })
    }

    /// Whose cache it is; `None` where the file does not say, as mlx-lm's own do not.
    pub fn origin(&self) -> Option<CacheOrigin> {
        let own = self.own.as_ref()?;
        let notes = self.notes.iter().filter(|(key, _)| !RESERVED.contains(&key.as_str()));
        Some(CacheOrigin {
            model: self.notes.get("model").cloned().unwrap_or_default(),
            fingerprint: own.fingerprint.clone(),
            notes: notes.map(|(key, value)| (key.clone(), value.clone())).collect(),
        })
    }

    /// Everything that stands in the file by name: what mlx-lm calls its metadata.
    pub fn notes(&self) -> &BTreeMap<String, String> {
        &self.notes
    }

    /// Whose format it is, and which versions of mlx-lm load it.
    pub fn format(&self) -> &'static str {
        match (&self.own, self.version) {
            (Some(_), _) => "mlxgk (loads in mlx-lm since 0.32)",
            (None, Version::New) => "mlx-lm since 0.32",
            (None, Version::Old) => "mlx-lm up to 0.31",
        }
    }

    /// Tokens held; 0 where only states are, which do not say.
    pub fn len(&self) -> usize {
        let own = self.own.as_ref().map(|it| it.columns.len());
        own.or_else(|| self.layers.iter().find_map(FileLayer::tokens)).unwrap_or(0)
    }

    /// Whether it says of no token that it was fed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tokens up to the first embedding; `None` where the file does not say which they are.
    pub fn tokens(&self) -> Option<Vec<u32>> {
        let columns = &self.own.as_ref()?.columns;
        Some(columns.iter().map_while(|it| u32::try_from(it.as_u64()?).ok()).collect())
    }

    /// The name of the steering that the tokens went through, where there was one.
    pub fn steering(&self) -> Option<&str> {
        self.own.as_ref()?.row.steering()
    }

    /// How columns are kept; `None` where it takes the model to tell.
    pub fn options(&self) -> Option<&CacheOptions> {
        self.own.as_ref().map(|it| &it.options)
    }

    /// mlx-lm's class of each layer that the file holds, and the bytes of its arrays.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = (&'static str, usize)> + '_ {
        self.layers.iter().map(|it| (it.class, it.bytes()))
    }

    /// Refuses another model than the one whose cache it is, where the file says.
    ///
    /// # Errors
    /// When the fingerprints differ; the sentence names both models.
    pub fn check_origin(&self, model: &CacheOrigin) -> Result<()> {
        match self.origin() {
            Some(it) if it.fingerprint != model.fingerprint => Err(Error::file(format!(
                "{} is a cache of {} with other weights than those of {}: build it again with this \
                 model",
                self.name, it.model, model.model
            ))),
            _ => Ok(()),
        }
    }

    /// The cache, for a model whose layers see what `specs` say.
    ///
    /// # Errors
    /// When the file is mlx-lm's, which does not say what tokens it holds (see
    /// [`into_cache_of`](Self::into_cache_of)), or its layers are not the model's.
    pub fn into_cache(self, specs: &[LayerSpec]) -> Result<KvCache> {
        let name = self.name;
        let wrong = |what: String| Error::file(format!("{name} {what}"));
        let Some(own) = self.own else {
            return Err(wrong("does not name its tokens, since mlx-lm writes none".into()));
        };
        if own.layers != specs {
            return Err(wrong("is a cache of a model with other layers".into()));
        }
        let read = |it: &Value| {
            read(it).ok_or_else(|| wrong(format!("holds {it}, which is not a column")))
        };
        let columns = own.columns.iter().map(read).collect::<Result<Vec<_>>>()?;
        let row = RowState { columns, ..own.row };
        built(self.layers, specs, own.options, row, own.least_padding).map_err(wrong)
    }

    /// The cache of a file of mlx-lm, by the tokens that it was made from: the file does not say which
    /// they are, so that this is the caller's word.
    ///
    /// # Errors
    /// When it holds another number of tokens, or its layers are not the model's.
    pub fn into_cache_of(self, specs: &[LayerSpec], tokens: &[u32]) -> Result<KvCache> {
        let name = self.name;
        let wrong = |what: String| Error::file(format!("{name} {what}"));
        let mut row = RowState::new(RowId::new(0), 0);
        row.columns = tokens.iter().copied().map(Column::Token).collect();
        let options = layout::options(&self.layers, specs).map_err(wrong)?;
        built(self.layers, specs, options, row, 0).map_err(wrong)
    }
}

fn built(
    layers: Vec<FileLayer>,
    specs: &[LayerSpec],
    options: CacheOptions,
    row: RowState,
    least_padding: isize,
) -> Result<KvCache, String> {
    let (arrays, described) = layout::arrays(layers, specs, &options, row.columns.len())?;
    let description = CacheDescription::of_row(described, options, row, least_padding);
    KvCache::from_state(&CacheState { arrays, description })
        .map_err(|e| format!("holds no cache: {e}"))
}

/// A column in the file: a token's number, or the hash of an embedding as a text.
fn written(column: &Column) -> Value {
    match column {
        Column::Token(token) => Value::from(*token),
        Column::Embedded(hash) => Value::from(format!("{hash:016x}")),
    }
}

fn read(column: &Value) -> Option<Column> {
    match column {
        Value::String(hash) => Some(Column::Embedded(u64::from_str_radix(hash, 16).ok()?)),
        number => Some(Column::Token(u32::try_from(number.as_u64()?).ok()?)),
    }
}

/// The SHA-256 of the columns, as a list in JSON without spaces.
fn hash(columns: &[Value]) -> String {
    hex(json!(columns).to_string().as_bytes())
}

/// The SHA-256 of some bytes.
fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        // A string takes whatever is written to it.
        _ = write!(text, "{byte:02x}");
        text
    })
}
