//! What texts say of each other: pure functions over words.

use std::collections::{BTreeMap, BTreeSet};

/// Words that say little of what a text is about, and do not count as keywords.
const FUNCTION_WORDS: &str = "a about after all also am an and any are as at be because been before being but \
by can could did do does done down each either else even for from had has have he her here him his how i if \
in into is it its just may me more most much must my no nor not now of off on once one only onto or other our \
out over own same she should since so some still such than that the their them then there these they this \
those through to too under until up upon us very was we were what when where which while who whom whose why \
will with within without would yet you your";

/// The words of a text: runs of letters, digits and underscores, in lower case.
///
/// ```
/// assert_eq!(mlxgk_isolation::metrics::words("The cache_size: 2 GB!"), ["the", "cache_size", "2", "gb"]);
/// ```
pub fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|it: char| !(it.is_alphanumeric() || it == '_'));
    words.filter(|it| !it.is_empty()).map(str::to_owned).collect()
}

/// TF-IDF vectors of some texts, as scikit-learn's `TfidfVectorizer` makes them by default: words of two
/// characters or more, `idf = ln((1 + n) / (1 + df)) + 1`, vectors of length 1.
///
/// ```
/// use mlxgk_isolation::metrics::TfIdf;
///
/// let texts = TfIdf::new(&["red fox", "red fox", "blue whale"]);
/// assert!((texts.cosine(0, 1) - 1.0).abs() < 1e-12);
/// assert_eq!(texts.cosine(0, 2), 0.0);
/// ```
#[derive(Debug, Clone)]
pub struct TfIdf {
    vectors: Vec<BTreeMap<String, f64>>,
}

impl TfIdf {
    /// The vectors of these texts, which are the corpus as well.
    pub fn new(texts: &[&str]) -> Self {
        let long = |it: &String| it.chars().nth(1).is_some();
        let mut vectors: Vec<BTreeMap<String, f64>> = Vec::with_capacity(texts.len());
        let mut documents = BTreeMap::<String, usize>::new();
        for text in texts {
            let mut counts = BTreeMap::new();
            for word in words(text).into_iter().filter(long) {
                *counts.entry(word).or_insert(0.0) += 1.0;
            }
            for word in counts.keys() {
                *documents.entry(word.clone()).or_default() += 1;
            }
            vectors.push(counts);
        }
        let count = 1.0 + texts.len() as f64;
        for vector in &mut vectors {
            for (word, value) in vector.iter_mut() {
                *value *= (count / (1.0 + documents[word] as f64)).ln() + 1.0;
            }
            let norm = vector.values().map(|it| it * it).sum::<f64>().sqrt();
            vector.values_mut().for_each(|it| *it /= norm);
        }
        Self { vectors }
    }

    /// The cosine between two of the texts, in 0..=1; 0 where one has no word.
    ///
    /// # Panics
    /// When there are not that many texts.
    pub fn cosine(&self, a: usize, b: usize) -> f64 {
        let other = &self.vectors[b];
        self.vectors[a].iter().filter_map(|(word, it)| Some(it * other.get(word)?)).sum()
    }

    /// The `count` words of a text with the largest weights, function words left out; where weights are equal,
    /// by the alphabet.
    ///
    /// # Panics
    /// When there are not that many texts.
    pub fn keywords(&self, text: usize, count: usize) -> Vec<&str> {
        let function: BTreeSet<&str> = FUNCTION_WORDS.split(' ').collect();
        let vector =
            self.vectors[text].iter().filter(|(word, _)| !function.contains(word.as_str()));
        let mut words: Vec<(&str, f64)> = vector.map(|(word, it)| (word.as_str(), *it)).collect();
        words.sort_by(|a, b| b.1.total_cmp(&a.1));
        words.into_iter().take(count).map(|it| it.0).collect()
    }
}

/// The share of terms that occur in a text as whole words, upper and lower case alike; `None` without terms.
///
/// ```
/// use mlxgk_isolation::metrics::leakage;
///
/// let terms = ["read replica", "index"].map(str::to_owned);
/// assert_eq!(leakage(&terms, "A Read-Replica without indexes."), Some(0.5));
/// ```
pub fn leakage(terms: &[String], text: &str) -> Option<f64> {
    let text = words(text);
    let found = terms.iter().filter(|it| occurs(&words(it), &text)).count();
    (!terms.is_empty()).then(|| found as f64 / terms.len() as f64)
}

/// How often terms occur in a text as whole words.
pub(crate) fn occurrences(terms: &[String], text: &str) -> usize {
    let text = words(text);
    let count =
        |term: &Vec<String>| text.windows(term.len().max(1)).filter(|it| it == term).count();
    terms.iter().map(|it| count(&words(it))).sum()
}

fn occurs(term: &[String], text: &[String]) -> bool {
    !term.is_empty() && text.windows(term.len()).any(|it| it == term)
}

/// The share of two texts' words that are in both: |A ∩ B| / |A ∪ B|; 0 where neither has a word.
///
/// ```
/// assert_eq!(mlxgk_isolation::metrics::jaccard("a red fox", "A blue fox!"), 0.5);
/// ```
pub fn jaccard(a: &str, b: &str) -> f64 {
    let set = |text| words(text).into_iter().collect::<BTreeSet<_>>();
    let (a, b) = (set(a), set(b));
    let all = a.union(&b).count();
    if all == 0 { 0.0 } else { a.intersection(&b).count() as f64 / all as f64 }
}

/// ROUGE-L of a text against a reference, as `rouge_score` computes it without stemming: the longest common
/// subsequence of words (runs of ASCII letters and digits) over either's words.
///
/// ```
/// use mlxgk_isolation::metrics::rouge_l;
///
/// // Two of the three words of the reference are in the text, in this order.
/// let found = rouge_l("a red fox", "fox, a small fox");
/// assert_eq!((found.recall, found.precision), (2.0 / 3.0, 0.5));
/// assert!((found.f - 4.0 / 7.0).abs() < 1e-12);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct RougeL {
    /// Of the text's words, the share that is in the common subsequence.
    pub precision: f64,
    /// Of the reference's words, the share that is in the common subsequence.
    pub recall: f64,
    /// The harmonic mean of both.
    pub f: f64,
}

/// [`RougeL`] of `text` against `reference`; all 0 where one has no word.
///
/// ```
/// let found = mlxgk_isolation::metrics::rouge_l("the grey fox ran", "a fox ran home");
/// assert_eq!((found.recall, found.precision, found.f), (0.5, 0.5, 0.5));
/// ```
pub fn rouge_l(reference: &str, text: &str) -> RougeL {
    let split = |text: &str| -> Vec<String> {
        let lower = text.to_lowercase();
        let words = lower.split(|it: char| !it.is_ascii_alphanumeric());
        words.filter(|it| !it.is_empty()).map(str::to_owned).collect()
    };
    let (reference, text) = (split(reference), split(text));
    let common = common_subsequence(&reference, &text) as f64;
    if common == 0.0 {
        return RougeL { precision: 0.0, recall: 0.0, f: 0.0 };
    }
    let (precision, recall) = (common / text.len() as f64, common / reference.len() as f64);
    RougeL { precision, recall, f: 2.0 * precision * recall / (precision + recall) }
}

/// The length of the longest common subsequence.
fn common_subsequence(a: &[String], b: &[String]) -> usize {
    // `row[j]`: of the words of `a` so far and the first j of `b`.
    let mut row = vec![0; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        for (j, other) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if word == other { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}

/// The share of a text's distinct trigrams of words that are in none of the sources; `None` where it has no
/// trigram.
///
/// ```
/// let novel = mlxgk_isolation::metrics::novel_trigrams("the red fox ran home", &["The red fox slept."]);
/// assert_eq!(novel, Some(2.0 / 3.0));
/// ```
pub fn novel_trigrams(text: &str, sources: &[&str]) -> Option<f64> {
    let trigrams = |text: &str| words(text).windows(3).map(<[_]>::to_vec).collect::<BTreeSet<_>>();
    let known: BTreeSet<_> = sources.iter().flat_map(|it| trigrams(it)).collect();
    let own = trigrams(text);
    (!own.is_empty()).then(|| own.difference(&known).count() as f64 / own.len() as f64)
}

/// Of a text's ten heaviest keywords, how many occur in another.
pub(crate) fn bleeding(texts: &TfIdf, of: usize, other: &str) -> f64 {
    let other: BTreeSet<String> = words(other).into_iter().collect();
    texts.keywords(of, 10).into_iter().filter(|it| other.contains(*it)).count() as f64
}
