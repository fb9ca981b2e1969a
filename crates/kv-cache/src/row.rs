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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// What a cache knows of one row.
#[derive(Debug, Clone)]
pub(crate) struct RowState {
    pub(crate) id: RowId,
    /// Columns before the row's first token.
    pub(crate) padding: usize,
    /// By column, as far as they were recorded, left padding included.
    pub(crate) tokens: Vec<u32>,
    /// The column after the prompt's last, where the owner said so.
    pub(crate) prompt_end: Option<usize>,
    /// How strongly a hook acts on each column, as far as that was set.
    pub(crate) strengths: Vec<f32>,
    /// What hook the columns went through.
    pub(crate) filled: Filled,
}

/// What hook a row's columns went through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Filled {
    /// None that names itself.
    #[default]
    Bare,
    /// The one of this name.
    Under(Arc<str>),
    /// Whichever comes next is taken as theirs.
    Any,
}

impl RowState {
    pub(crate) fn new(id: RowId, padding: usize) -> Self {
        Self {
            id,
            padding,
            tokens: Vec::new(),
            prompt_end: None,
            strengths: Vec::new(),
            filled: Filled::Bare,
        }
    }

    /// Forgets the columns from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.strengths.truncate(len);
    }

    /// Moves every column by `shift`; what would come to stand before the first is padding and goes.
    pub(crate) fn shift(&mut self, shift: isize) {
        let moved = |columns: usize| columns.saturating_add_signed(shift);
        let (filler, dropped) = (moved(0), 0_usize.saturating_add_signed(-shift));
        self.padding = moved(self.padding);
        self.prompt_end = self.prompt_end.map(moved);
        self.tokens = shifted(&self.tokens, filler, dropped, 0);
        self.strengths = shifted(&self.strengths, filler, dropped, 1.0);
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
