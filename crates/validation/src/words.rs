//! Word lists that tell voices apart.

use std::collections::{BTreeMap, BTreeSet};

use mlx_genkit::{Error, ErrorKind, Result};

/// Words by voice, and the voice that steering is to lead to.
///
/// ```
/// use mlxgk_validation::WordLists;
///
/// let lists = WordLists::from_json(r#"{"pirate": ["arr", "matey"], "poet": ["o"]}"#, "pirate")?;
/// assert!(lists.is_heard("Arr, the sea!"));
/// assert_eq!(lists.heard("O sea, o sea, arr!"), Some("poet"));
/// let error = WordLists::from_json(r#"{"poet": ["o"]}"#, "pirate").unwrap_err();
/// assert!(error.to_string().contains("poet")); // the voices that there are
/// # Ok::<(), mlx_genkit::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WordLists {
    lists: BTreeMap<String, BTreeSet<String>>,
    wanted: String,
}

impl WordLists {
    /// Reads a JSON object of word arrays; `wanted` is one of its keys.
    ///
    /// ```
    /// use mlxgk_validation::WordLists;
    ///
    /// let lists = WordLists::from_json(r#"{"glad": ["joy", "merry"], "sad": ["alas"]}"#, "glad")?;
    /// assert_eq!(lists.heard("What joy, alas, what merry joy!"), Some("glad"));
    /// assert_eq!(lists.heard("A joy, alas."), None);
    /// # Ok::<(), mlx_genkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the text is not such an object, or has no list of the wanted name.
    pub fn from_json(text: &str, wanted: &str) -> Result<Self> {
        let refuse = |what: String| Error::new(ErrorKind::Request, what);
        let value: BTreeMap<String, Vec<String>> = serde_json::from_str(text)
            .map_err(|e| refuse(format!("word lists are a JSON object of arrays of words: {e}")))?;
        if !value.contains_key(wanted) {
            let known: Vec<&str> = value.keys().map(String::as_str).collect();
            let known = known.join(", ");
            return Err(refuse(format!("unknown voice {wanted:?}; expected one of {known}")));
        }
        let lower = |words: Vec<String>| words.iter().map(|it| it.to_lowercase()).collect();
        let lists = value.into_iter().map(|(name, words)| (name, lower(words))).collect();
        Ok(Self { lists, wanted: wanted.to_owned() })
    }

    /// The voice that steering is to lead to.
    pub fn wanted(&self) -> &str {
        &self.wanted
    }

    /// Whether the wanted voice is heard in a text.
    pub fn is_heard(&self, text: &str) -> bool {
        self.heard(text) == Some(&self.wanted)
    }

    /// The voice with the most words in a text; `None` without such a word, or at a tie.
    pub fn heard(&self, text: &str) -> Option<&str> {
        let lower = text.to_lowercase();
        let words: Vec<&str> =
            lower.split(|it: char| !(it.is_ascii_lowercase() || it == '\'')).collect();
        let count = |list: &BTreeSet<String>| {
            let known = |it: &&&str| list.contains(**it) || list.contains(it.trim_matches('\''));
            words.iter().filter(known).count()
        };
        let counts: Vec<(usize, &str)> =
            self.lists.iter().map(|(name, list)| (count(list), name.as_str())).collect();
        let best = counts.iter().map(|it| it.0).max().filter(|&it| it > 0)?;
        let mut leaders = counts.iter().filter(|it| it.0 == best);
        match (leaders.next(), leaders.next()) {
            (Some((_, name)), None) => Some(name),
            _ => None,
        }
    }
}

/// Distinct words and distinct pairs of neighbours, as shares of all, over several texts.
pub(crate) fn distinct<'a>(texts: impl Iterator<Item = &'a str>) -> [f64; 2] {
    let (mut ones, mut twos) = (BTreeSet::new(), BTreeSet::new());
    let (mut words, mut pairs) = (0_usize, 0_usize);
    for text in texts {
        let all: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
        words += all.len();
        pairs += all.len().saturating_sub(1);
        twos.extend(all.windows(2).map(|it| it.join(" ")));
        ones.extend(all);
    }
    let share = |kinds: usize, all: usize| if all == 0 { 0.0 } else { kinds as f64 / all as f64 };
    [share(ones.len(), words), share(twos.len(), pairs)]
}
