//! One row of a batch: who it is, and what the cache knows of it besides its columns.

use std::{fmt, sync::Arc};

use crate::{Error, Result};

/// The name of a row, which stays with it whichever rows join and leave.
///
/// A new cache numbers its rows from 0; an owner that moves rows between batches gives them names of
/// its own ([`KvCache::set_row_ids`](crate::KvCache::set_row_ids)). A row that is repeated, for beams
/// or several samples, shares its name with its copies.
///
/// ```
/// use mlxgk_kv_cache::{KvCache, LayerSpec, RowId};
///
/// let mut cache = KvCache::new(&[LayerSpec::Full], 2);
/// assert_eq!(cache.row_ids(), [RowId::new(0), RowId::new(1)]);
/// cache.set_row_ids(&[RowId::new(7), RowId::new(9)])?;
/// assert_eq!(cache.row_ids()[1].to_string(), "9");
/// # Ok::<(), mlxgk_kv_cache::Error>(())
/// ```
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct RowId(u64);

impl RowId {
    /// The row of this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The names that a new cache of `count` rows gives them: 0, 1, 2 and so on.
    pub fn first(count: usize) -> Vec<Self> {
        (0..count as u64).map(Self).collect()
    }
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a column of a row was made from.
///
/// ```
/// use mlx_rs::{Dtype, ops::zeros_dtype};
/// use mlxgk_kv_cache::{Column, KvCache, LayerSpec};
///
/// // A soft prompt of one embedding before two tokens.
/// let fed = [Column::embedded(&[0.5, 1.0]), Column::Token(5), Column::Token(9)];
/// let mut cache = KvCache::new(&[LayerSpec::Full], 1);
/// let new = zeros_dtype(&[1, 1, 3, 8], Dtype::Float32)?;
/// let mut pass = cache.begin(&[&fed], &[])?;
/// pass.append(0, &new, &new)?;
/// pass.commit()?;
/// assert_eq!((cache.columns(0)[1].token(), cache.columns(0)[0].token()), (Some(5), None));
/// assert!(cache.tokens(0).is_empty()); // no prompt of tokens begins like this
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Column {
    /// A token of the vocabulary, or what pads a row on its left.
    Token(u32),
    /// An embedding without a token, such as a soft prompt's, by a hash of its numbers. It never
    /// equals a token, so that a prompt cannot be mistaken for one that begins with it.
    Embedded(u64),
}

impl Column {
    /// The column of an embedding, by a hash of its numbers (64-bit FNV-1a of their bytes).
    ///
    /// ```
    /// use mlxgk_kv_cache::Column;
    ///
    /// assert_eq!(Column::embedded(&[0.5, 1.0]), Column::embedded(&[0.5, 1.0]));
    /// assert_ne!(Column::embedded(&[0.5, 1.0]), Column::embedded(&[1.0, 0.5]));
    /// ```
    pub fn embedded(embedding: &[f32]) -> Self {
        let bytes = embedding.iter().flat_map(|it| it.to_le_bytes());
        let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Self::Embedded(bytes.fold(0xcbf2_9ce4_8422_2325, hash))
    }

    /// The token; `None` for an embedding.
    pub fn token(self) -> Option<u32> {
        if let Self::Token(token) = self { Some(token) } else { None }
    }
}

/// What a cache knows of one row.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct RowState {
    pub(crate) id: RowId,
    /// Columns before the row's first token.
    pub(crate) padding: usize,
    /// What stands in each column, left padding included.
    pub(crate) columns: Vec<Column>,
    /// The column after the prompt's last, where the owner has set it.
    pub(crate) prompt_end: Option<usize>,
    /// How strongly a hook acts on each column, as far as that was set.
    pub(crate) strengths: Vec<f32>,
    /// What hook the columns went through.
    pub(crate) filled: Filled,
}

/// What hook a row's columns went through.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Filled {
    /// None that names itself.
    #[default]
    Bare,
    /// The one of this name.
    Under(#[serde(with = "name")] Arc<str>),
    /// Whichever comes next is taken as theirs.
    Any,
}

impl RowState {
    pub(crate) fn new(id: RowId, padding: usize) -> Self {
        Self {
            id,
            padding,
            columns: Vec::new(),
            prompt_end: None,
            strengths: Vec::new(),
            filled: Filled::Bare,
        }
    }

    /// Moves every column by `shift`; what would come to precede the first is padding and goes.
    pub(crate) fn shift(&mut self, shift: isize) {
        let moved = |columns: usize| columns.saturating_add_signed(shift);
        let (filler, dropped) = (moved(0), 0_usize.saturating_add_signed(-shift));
        self.padding = moved(self.padding);
        self.prompt_end = self.prompt_end.map(moved);
        self.columns = shifted(&self.columns, filler, dropped, Column::Token(0));
        self.strengths = shifted(&self.strengths, filler, dropped, 1.0);
    }

    /// Up to which column the other row holds what this one does: rows of one name that came the same way,
    /// as beams have for all but the newest tokens.
    pub(crate) fn in_common(&self, other: &Self) -> usize {
        let hooked_alike = self.id == other.id && self.filled == other.filled;
        if !hooked_alike || self.padding != other.padding || self.strengths != other.strengths {
            return 0;
        }
        self.columns.iter().zip(&other.columns).take_while(|(a, b)| a == b).count()
    }

    /// The name of the steering that the columns went through.
    pub(crate) fn steering(&self) -> Option<&str> {
        match &self.filled {
            Filled::Under(name) => Some(name),
            Filled::Bare | Filled::Any => None,
        }
    }

    /// Refuses another steering than the one that the columns went through.
    pub(crate) fn check_steering(&self, name: Option<&str>) -> Result<()> {
        if self.filled == Filled::Any || self.steering() == name {
            return Ok(());
        }
        let named = |it: Option<&str>| match it {
            Some(name) => format!("under the steering `{name}`"),
            None => "without steering".to_owned(),
        };
        Err(Error::steering(format!(
            "the cache was filled {} and cannot be continued {}: start a new one, or call \
             `allow_other_steering` where the two are meant to mix",
            named(self.steering()),
            named(name)
        )))
    }
}

/// A shared name as a plain string.
mod name {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(name: &Arc<str>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(name)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<str>, D::Error> {
        Ok(String::deserialize(from)?.into())
    }
}

/// `filler` times `with`, then the columns after the first `dropped`.
fn shifted<T: Copy>(columns: &[T], filler: usize, dropped: usize, with: T) -> Vec<T> {
    if columns.is_empty() {
        // Nothing was noted yet, so the padding need not be noted either.
        return Vec::new();
    }
    let mut all = vec![with; filler];
    all.extend_from_slice(columns.get(dropped..).unwrap_or_default());
    all
}
