//! A caller's own warper.

use std::fmt;
use std::sync::Arc;

use mlxgk_logits_processors::{Error, ErrorKind, Result};

use crate::candidates::Candidates;

/// A warper of a caller's own: cuts or reshapes what the warpers before it left.
///
/// Any closure over [`Remaining`] is one.
///
/// ```
/// use mlxgk_samplers::{FastRng, Remaining, SamplerChain, SamplerState, Warper};
///
/// // Top-a (BlinkDL): what is at least as likely as 0.2 times the square of the highest.
/// let top_a = |remaining: &mut Remaining<'_>| {
///     let highest = remaining.iter().map(|it| it.prob).fold(0.0, f32::max);
///     remaining.keep(|it| it.prob >= 0.2 * highest * highest);
/// };
/// let mut sampler = SamplerChain::new(vec![Warper::custom(top_a)])?.sampler();
/// let scores = [0.7f32, 0.2, 0.07, 0.03].map(f32::ln);
/// let left =
///     sampler.distribution(&scores, &SamplerState::default(), &mut FastRng::new(0, 0))?;
/// assert_eq!(left.iter().map(|(id, _)| id).collect::<Vec<_>>(), [0, 1]);
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
pub trait CustomWarper: Send + Sync {
    /// Its name, for messages.
    fn name(&self) -> &str {
        "custom"
    }

    /// Cuts or reshapes. It is called for any row at any time, so it must be a function of what
    /// remains alone.
    fn warp(&self, remaining: &mut Remaining<'_>);
}

impl<F: Fn(&mut Remaining<'_>) + Send + Sync> CustomWarper for F {
    fn warp(&self, remaining: &mut Remaining<'_>) {
        self(remaining);
    }
}

/// A token that the warpers so far left.
///
/// ```
/// use mlxgk_samplers::{FastRng, Remaining, SamplerChain, SamplerState, Warper};
///
/// // Makes token 2 half as likely beside the others.
/// let halve = |remaining: &mut Remaining<'_>| {
///     remaining.rescore(|it| if it.id == 2 { it.score - 2f32.ln() } else { it.score });
/// };
/// let mut sampler = SamplerChain::new(vec![Warper::custom(halve)])?.sampler();
/// let scores = [0.25f32, 0.25, 0.5].map(f32::ln);
/// let left =
///     sampler.distribution(&scores, &SamplerState::default(), &mut FastRng::new(0, 0))?;
/// assert!((left.probability(2) - left.probability(0)).abs() < 1e-6);
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RemainingToken {
    /// The token.
    pub id: u32,
    /// Its score, which is finite.
    pub score: f32,
    /// Its probability among those that remain.
    pub prob: f32,
}

/// The tokens that the warpers so far left, in the order of their ids.
///
/// ```
/// use mlxgk_samplers::{FastRng, Remaining, SamplerChain, SamplerState, TopK, Warper};
///
/// // Lets through the better half of what the warpers before it left, by probability.
/// let half = |remaining: &mut Remaining<'_>| {
///     let mean = 1.0 / remaining.len() as f32;
///     remaining.keep(|it| it.prob >= mean);
/// };
/// let chain = SamplerChain::new(vec![Warper::TopK(TopK::new(3)?), Warper::custom(half)])?;
/// let (mut sampler, state) = (chain.sampler(), SamplerState::default());
/// let scores = [0.1f32, 0.2, 0.5, 0.2].map(f32::ln);
/// let left = sampler.distribution(&scores, &state, &mut FastRng::new(0, 0))?;
/// assert_eq!(left.iter().map(|(id, _)| id).collect::<Vec<_>>(), [2]);
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
#[derive(Debug)]
pub struct Remaining<'a>(&'a mut Candidates);

impl<'a> Remaining<'a> {
    fn new(candidates: &'a mut Candidates) -> Self {
        candidates.drop_banned();
        candidates.softmax();
        Self(candidates)
    }

    /// How many remain.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none remains.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many tokens the vocabulary has.
    pub fn vocab(&self) -> usize {
        self.0.vocab()
    }

    /// What remains.
    pub fn iter(&self) -> impl Iterator<Item = RemainingToken> {
        let ids = self.0.ids().unwrap_or_default().iter();
        let numbers = self.0.scores().iter().zip(self.0.probs());
        ids.zip(numbers).map(|(&id, (&score, &prob))| RemainingToken { id, score, prob })
    }

    /// Cuts all but those that the test accepts. When none is left, the draw is an error.
    pub fn keep(&mut self, test: impl Fn(RemainingToken) -> bool) {
        self.0.keep_listed(|id, score, prob| test(RemainingToken { id, score, prob }));
        self.0.softmax();
    }

    /// Gives every token another score; minus infinity cuts it.
    pub fn rescore(&mut self, score: impl Fn(RemainingToken) -> f32) {
        self.0.rescore_listed(|id, old, prob| score(RemainingToken { id, score: old, prob }));
        self.0.softmax();
    }
}

/// A [`CustomWarper`] in a chain; two are equal if they are one.
///
/// ```
/// use mlxgk_samplers::{Remaining, Warper};
///
/// let warper = Warper::custom(|remaining: &mut Remaining<'_>| remaining.keep(|it| it.id > 0));
/// assert!(matches!(warper, Warper::Custom(_)));
/// assert_eq!(warper, warper.clone());
/// // A second closure is another warper, even if it does the same.
/// assert_ne!(warper, Warper::custom(|it: &mut Remaining<'_>| it.keep(|it| it.id > 0)));
/// ```
#[derive(Clone)]
pub struct Custom(Arc<dyn CustomWarper>);

impl Custom {
    pub(crate) fn new(warper: impl CustomWarper + 'static) -> Self {
        Self(Arc::new(warper))
    }

    pub(crate) fn name(&self) -> &str {
        self.0.name()
    }

    /// Runs the warper, and checks what it left.
    pub(crate) fn warp(&self, candidates: &mut Candidates) -> Result<()> {
        self.0.warp(&mut Remaining::new(candidates));
        let what = match candidates.max() {
            f32::NEG_INFINITY => "cut every token",
            max if !max.is_finite() => "gave a score that is NaN or infinite",
            _ => return Ok(()),
        };
        let message = format!("no token can be drawn: the warper `{}` {what}", self.0.name());
        Err(Error::new(ErrorKind::NoTokenAllowed, message))
    }
}

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Custom").field(&self.0.name()).finish()
    }
}

impl PartialEq for Custom {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
