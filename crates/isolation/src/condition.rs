//! What is compared: how a conversation is put into caches.

use std::{fmt, str::FromStr};

/// How a conversation is put into caches before each cluster's output is asked for.
///
/// In all but [`NoMessages`](Self::NoMessages), a cluster is also given the outputs that it reads, as text.
///
/// ```
/// use mlxgk_isolation::Condition;
///
/// assert_eq!("turn-reset".parse(), Ok(Condition::TurnReset));
/// assert_eq!(Condition::SharedPrefix.to_string(), "shared-prefix");
/// assert!("together".parse::<Condition>().unwrap_err().contains("sequential"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Condition {
    /// All turns in one cache.
    Sequential,
    /// The same behind an instruction to keep the clusters apart.
    Prompted,
    /// All turns in one cache, each behind a line that marks it.
    TurnMarked,
    /// The cache is dropped at every turn: what remains of a cluster is its last turn.
    TurnReset,
    /// A cache for each cluster.
    Semantic,
    /// As semantic, without passing outputs on.
    NoMessages,
    /// As semantic, with the turns dealt out by chance, to clusters of the same sizes.
    RandomPartition,
    /// As semantic; what all clusters are told first is read once, and its cache forked.
    SharedPrefix,
    /// As semantic, with no cache kept: each text is read from its beginning.
    Reprefill,
}

impl Condition {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Sequential,
        Self::Prompted,
        Self::TurnMarked,
        Self::TurnReset,
        Self::Semantic,
        Self::NoMessages,
        Self::RandomPartition,
        Self::SharedPrefix,
        Self::Reprefill,
    ];

    /// Its name, such as `turn-reset`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sequential => "sequential",
            Self::Prompted => "prompted",
            Self::TurnMarked => "turn-marked",
            Self::TurnReset => "turn-reset",
            Self::Semantic => "semantic",
            Self::NoMessages => "no-messages",
            Self::RandomPartition => "random-partition",
            Self::SharedPrefix => "shared-prefix",
            Self::Reprefill => "reprefill",
        }
    }

    /// What its random numbers are derived from. Two controls are the semantic condition computed in
    /// another way, and so draw what it draws.
    pub(crate) fn stream(self) -> u64 {
        match self {
            Self::SharedPrefix | Self::Reprefill => Self::Semantic as u64,
            other => other as u64,
        }
    }

    /// Whether all turns stand in one cache.
    pub(crate) fn is_unified(self) -> bool {
        matches!(self, Self::Sequential | Self::Prompted | Self::TurnMarked)
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|it| it.as_str() == text).ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            format!("unknown condition `{text}`; expected one of {known}")
        })
    }
}
