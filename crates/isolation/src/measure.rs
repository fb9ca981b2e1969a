//! What is measured of an example under a condition.

use std::collections::BTreeMap;

use mlx_genkit::FinishReason;

use crate::{
    CacheSize, Example, Output,
    metrics::{TfIdf, bleeding, jaccard, leakage, novel_trigrams, rouge_l},
};

/// What is measured. Of contamination, over the specialists (the clusters that read no other's output); of
/// synthesis, over the clusters that do.
///
/// ```
/// use mlxgk_isolation::Measure;
///
/// assert_eq!(Measure::Leakage.as_str(), "vocabulary_leakage");
/// ```
///
/// See also the example of [`Report`](crate::Report).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Measure {
    /// The share of another specialist's terms in what a specialist wrote, over all ordered pairs.
    Leakage,
    /// TF-IDF cosine between what two specialists wrote, over all pairs.
    Cosine,
    /// Shared words of two specialists' texts, over all pairs.
    Jaccard,
    /// Of a specialist's ten heaviest keywords, how many another's text has, over all ordered pairs.
    Bleeding,
    /// Attention that falls on other clusters' turns.
    Attention,
    /// KL(here ‖ sequential) per token.
    Kl,
    /// Log-probability per token of other specialists' terms as the output's beginning.
    TermLogprob,
    /// ROUGE-L recall of an input's output in the output that reads it, over all such pairs.
    Coverage,
    /// The share of a synthesis's trigrams that no output it reads has.
    NovelTrigrams,
    /// Of all outputs, each as a text of its own.
    Perplexity,
    /// The share of outputs that were cut off by their length.
    CutOff,
    /// Tokens of the largest cache.
    CacheTokens,
    /// Bytes that the next token can see in the largest cache.
    CacheBytes,
    /// Tokens read, each as often as it was.
    ReadTokens,
    /// Seconds in which they were read.
    Prefill,
    /// Seconds in which answers and outputs were written.
    Decode,
}

/// What was measured, where it could be.
pub type Values = BTreeMap<Measure, f64>;

impl Measure {
    /// All of them, in the order of tables.
    pub const ALL: [Self; 16] = [
        Self::Leakage,
        Self::Cosine,
        Self::Jaccard,
        Self::Bleeding,
        Self::Attention,
        Self::Kl,
        Self::TermLogprob,
        Self::Coverage,
        Self::NovelTrigrams,
        Self::Perplexity,
        Self::CutOff,
        Self::CacheTokens,
        Self::CacheBytes,
        Self::ReadTokens,
        Self::Prefill,
        Self::Decode,
    ];

    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Leakage => "vocabulary_leakage",
            Self::Cosine => "tf_idf_cosine",
            Self::Jaccard => "jaccard",
            Self::Bleeding => "keyword_bleeding",
            Self::Attention => "attention_on_other_clusters",
            Self::Kl => "kl_from_sequential",
            Self::TermLogprob => "other_terms_logprob",
            Self::Coverage => "coverage",
            Self::NovelTrigrams => "novel_trigrams",
            Self::Perplexity => "perplexity",
            Self::CutOff => "cut_off",
            Self::CacheTokens => "cache_tokens",
            Self::CacheBytes => "cache_bytes",
            Self::ReadTokens => "read_tokens",
            Self::Prefill => "prefill_seconds",
            Self::Decode => "decode_seconds",
        }
    }

    /// The name in tables, and the digits after the point.
    pub(crate) fn heading(self) -> (&'static str, usize) {
        match self {
            Self::Leakage => ("leak", 3),
            Self::Cosine => ("cosine", 3),
            Self::Jaccard => ("jaccard", 3),
            Self::Bleeding => ("bleed", 2),
            Self::Attention => ("attn", 3),
            Self::Kl => ("KL", 3),
            Self::TermLogprob => ("terms", 2),
            Self::Coverage => ("cover", 3),
            Self::NovelTrigrams => ("novel", 3),
            Self::Perplexity => ("ppl", 1),
            Self::CutOff => ("cut", 2),
            Self::CacheTokens => ("tokens", 0),
            Self::CacheBytes => ("bytes", 0),
            Self::ReadTokens => ("read", 0),
            Self::Prefill => ("prefill", 3),
            Self::Decode => ("decode", 3),
        }
    }

    /// What it is, for the report.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Leakage => "Vocabulary leakage",
            Self::Cosine => "TF-IDF cosine",
            Self::Jaccard => "Jaccard",
            Self::Bleeding => "Keyword bleeding (of ten)",
            Self::Attention => "Attention on other clusters",
            Self::Kl => "KL from sequential, nats per token",
            Self::TermLogprob => "Log-probability of other terms",
            Self::Coverage => "Coverage (ROUGE-L recall)",
            Self::NovelTrigrams => "Novel trigrams",
            Self::Perplexity => "Perplexity",
            Self::CutOff => "Cut off by length",
            Self::CacheTokens => "Tokens of the largest cache",
            Self::CacheBytes => "Bytes of the largest cache",
            Self::ReadTokens => "Tokens read",
            Self::Prefill => "Prefill, seconds",
            Self::Decode => "Decode, seconds",
        }
    }
}

/// What there is to be measured.
pub(crate) struct Outcome<'a> {
    pub(crate) example: &'a Example,
    pub(crate) outputs: &'a [Output],
    pub(crate) caches: &'a [CacheSize],
}

impl Outcome<'_> {
    /// How much of each specialist's vocabulary is in each other's text: owner of the terms, writer, share.
    pub(crate) fn leakage(&self) -> Vec<(usize, usize, f64)> {
        let pairs = pairs(&self.example.specialists());
        let share = |(owner, writer): (usize, usize)| {
            let terms = &self.example.clusters[owner].terms;
            Some((owner, writer, leakage(terms, &self.outputs[writer].text())?))
        };
        pairs.into_iter().filter_map(share).collect()
    }
}

/// Measures a condition; `read`, `prefill` and `decode` are what it took.
pub(crate) fn measures(outcome: &Outcome<'_>, took: (usize, f64, f64)) -> Values {
    let Outcome { example, outputs, caches } = *outcome;
    let specialists = example.specialists();
    let texts: Vec<String> = specialists.iter().map(|&it| outputs[it].text()).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let vectors = TfIdf::new(&texts);
    let pairs = pairs(&(0..texts.len()).collect::<Vec<_>>());
    let internals = || specialists.iter().filter_map(|&it| outputs[it].internals.as_ref());
    let edges = || {
        let clusters = example.clusters.iter().enumerate();
        clusters.flat_map(|(reader, it)| it.inputs.iter().map(move |&input| (input, reader)))
    };
    let said = |it: usize| outputs[it].said.text.as_str();
    let novel = example.clusters.iter().enumerate().filter(|(_, it)| !it.inputs.is_empty());
    let novel = novel.filter_map(|(reader, it)| {
        let sources: Vec<&str> = it.inputs.iter().map(|&input| said(input)).collect();
        novel_trigrams(said(reader), &sources)
    });
    let largest = |size: fn(&CacheSize) -> usize| caches.iter().map(size).max().map(|it| it as f64);
    let cut = |it: &Output| f64::from(u8::from(it.said.finish_reason == FinishReason::Length));
    let (read, prefill, decode) = took;
    let values = [
        (Measure::Leakage, mean(outcome.leakage().into_iter().map(|it| it.2))),
        (Measure::Cosine, mean(pairs.iter().map(|&(a, b)| vectors.cosine(a, b)))),
        (Measure::Jaccard, mean(pairs.iter().map(|&(a, b)| jaccard(texts[a], texts[b])))),
        (Measure::Bleeding, mean(pairs.iter().map(|&(a, b)| bleeding(&vectors, a, texts[b])))),
        (Measure::Attention, mean(internals().filter_map(|it| Some(it.attention?.other)))),
        (Measure::Kl, mean(internals().filter_map(|it| it.kl))),
        (Measure::TermLogprob, mean(internals().filter_map(|it| it.term_logprob))),
        (Measure::Coverage, mean(edges().map(|(a, b)| rouge_l(said(a), said(b)).recall))),
        (Measure::NovelTrigrams, mean(novel)),
        (Measure::Perplexity, mean(outputs.iter().filter_map(|it| it.perplexity))),
        (Measure::CutOff, mean(outputs.iter().map(cut))),
        (Measure::CacheTokens, largest(|it| it.tokens)),
        (Measure::CacheBytes, largest(|it| it.live_bytes)),
        (Measure::ReadTokens, Some(read as f64)),
        (Measure::Prefill, Some(prefill)),
        (Measure::Decode, Some(decode)),
    ];
    values.into_iter().filter_map(|(measure, value)| Some((measure, value?))).collect()
}

/// All ordered pairs of two different ones.
fn pairs(of: &[usize]) -> Vec<(usize, usize)> {
    let with = |&a: &usize| of.iter().filter(move |it| **it != a).map(move |&b| (a, b));
    of.iter().flat_map(with).collect()
}

/// The mean; `None` of nothing.
pub(crate) fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0_usize), |(sum, count), it| (sum + it, count + 1));
    (count > 0).then(|| sum / count as f64)
}
