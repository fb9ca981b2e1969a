//! When a row ends, and why.
//!
//! Two reasons every loop knows: an end token, and the length. All others (a stop string, the clock,
//! whatever a caller thinks of) are [`StoppingCriterion`]s, asked after each token, row by row, as in
//! HF's `StoppingCriteriaList`.

use std::time::{Duration, Instant};

use mlxgk_logits_processors::{Context, Result};

/// When a row ends, as far as its tokens tell.
///
/// ```
/// use mlxgk_logits_processors::Context;
/// use mlxgk_sampling::{FinishReason, Limits, StopConditions};
///
/// let mut stop = StopConditions::from(Limits { max_new_tokens: 2, eos: vec![9] });
/// // Behind a prompt of one token.
/// assert_eq!(stop.check(&Context::new(&[5, 6], 1))?, None);
/// assert_eq!(stop.check(&Context::new(&[5, 6, 7], 1))?, Some(FinishReason::Length));
/// assert_eq!(stop.check(&Context::new(&[5, 9], 1))?, Some(FinishReason::Eos));
/// # Ok::<(), mlxgk_sampling::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// New tokens per row, the end token included.
    pub max_new_tokens: usize,
    /// Tokens that end a row; they stay in its tokens.
    pub eos: Vec<u32>,
}

/// Why a row ended.
///
/// ```
/// use mlxgk_sampling::FinishReason;
///
/// assert_eq!(FinishReason::StopString.as_str(), "stop_string");
/// assert_eq!(format!("ended by {}", FinishReason::Length), "ended by length");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// An end token was chosen.
    Eos,
    /// The row has all the tokens it may have.
    Length,
    /// One of the strings to stop at is in the text.
    StopString,
    /// The time was up.
    Time,
    /// A criterion of the caller's own ended it.
    Criterion,
}

impl FinishReason {
    /// A stable lower-case name, such as `stop_string`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Eos => "eos",
            Self::Length => "length",
            Self::StopString => "stop_string",
            Self::Time => "time",
            Self::Criterion => "criterion",
        }
    }
}

impl std::fmt::Display for FinishReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A reason to end a row after its newest token.
///
/// A closure from a context to `bool` is one; it ends rows as [`FinishReason::Criterion`].
///
/// ```
/// use mlxgk_logits_processors::Context;
/// use mlxgk_sampling::{FinishReason, Limits, StopConditions};
///
/// // Ends a text that says the same token three times in a row.
/// let stuck = |context: &Context<'_>| {
///     matches!(context.generated(), [.., a, b, c] if a == b && b == c)
/// };
/// let limits = Limits { max_new_tokens: 20, eos: vec![] };
/// let mut stop = StopConditions::new(limits, vec![Box::new(stuck)]);
/// assert_eq!(stop.check(&Context::new(&[5, 7, 7], 1))?, None);
/// assert_eq!(stop.check(&Context::new(&[5, 7, 7, 7], 1))?, Some(FinishReason::Criterion));
/// # Ok::<(), mlxgk_sampling::Error>(())
/// ```
pub trait StoppingCriterion: Send {
    /// Why the row ends with the last of `context.tokens`; `None` where it goes on.
    ///
    /// Asked once per new token and row, in order, as long as the row has not ended; by a beam search
    /// of every continuation it chooses among, `context.row` being the prompt.
    ///
    /// # Errors
    /// When it cannot tell; the error ends the row. Its kind is
    /// [`ErrorKind::Callback`](mlxgk_logits_processors::ErrorKind::Callback) where the criterion is
    /// the caller's own.
    fn ends(&mut self, context: &Context<'_>) -> Result<Option<FinishReason>>;
}

impl<F: FnMut(&Context<'_>) -> bool + Send> StoppingCriterion for F {
    fn ends(&mut self, context: &Context<'_>) -> Result<Option<FinishReason>> {
        Ok(self(context).then_some(FinishReason::Criterion))
    }
}

/// Ends every row once the time is up (HF `MaxTimeCriteria`). Looked at after a token, so that each
/// row has at least one.
///
/// ```
/// use std::time::{Duration, Instant};
///
/// use mlxgk_logits_processors::Context;
/// use mlxgk_sampling::{FinishReason, MaxTime, StoppingCriterion};
///
/// let begun = Instant::now();
/// let context = Context::new(&[5, 6], 1);
/// let mut generous = MaxTime::new(begun, Duration::from_secs(3600));
/// assert_eq!(generous.ends(&context)?, None);
/// let mut none_left = MaxTime::new(begun, Duration::ZERO);
/// assert_eq!(none_left.ends(&context)?, Some(FinishReason::Time));
/// # Ok::<(), mlxgk_sampling::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct MaxTime {
    begun: Instant,
    limit: Duration,
}

impl MaxTime {
    /// Lets `limit` pass from `begun` on.
    pub fn new(begun: Instant, limit: Duration) -> Self {
        Self { begun, limit }
    }
}

impl StoppingCriterion for MaxTime {
    fn ends(&mut self, _: &Context<'_>) -> Result<Option<FinishReason>> {
        Ok((self.begun.elapsed() > self.limit).then_some(FinishReason::Time))
    }
}

/// All the reasons that hold for a batch.
///
/// Where several hold at once, the first named is the one reported: the end token, the criteria in
/// their order, the length.
///
/// ```
/// use mlxgk_logits_processors::Context;
/// use mlxgk_sampling::{FinishReason, Limits, StopConditions};
///
/// let mut stop = StopConditions::from(Limits { max_new_tokens: 2, eos: vec![9] });
/// stop.push(Box::new(|it: &Context<'_>| it.tokens.ends_with(&[7, 8])));
/// assert!(stop.has_criteria());
/// // The length is reached as well; the criterion is named first.
/// let reason = stop.check(&Context::new(&[5, 7, 8], 1))?;
/// assert_eq!(reason, Some(FinishReason::Criterion));
/// # Ok::<(), mlxgk_sampling::Error>(())
/// ```
pub struct StopConditions {
    limits: Limits,
    criteria: Vec<Box<dyn StoppingCriterion>>,
}

impl StopConditions {
    /// The end tokens and the length, and further criteria.
    pub fn new(limits: Limits, criteria: Vec<Box<dyn StoppingCriterion>>) -> Self {
        Self { limits, criteria }
    }

    /// Adds a criterion after the others.
    pub fn push(&mut self, criterion: Box<dyn StoppingCriterion>) {
        self.criteria.push(criterion);
    }

    /// The end tokens and the length.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Why the row of `context` ends with its newest token, if it does.
    ///
    /// # Errors
    /// When a criterion cannot tell.
    pub fn check(&mut self, context: &Context<'_>) -> Result<Option<FinishReason>> {
        let new = context.generated();
        if new.last().is_some_and(|it| self.limits.eos.contains(it)) {
            return Ok(Some(FinishReason::Eos));
        }
        for criterion in &mut self.criteria {
            if let Some(reason) = criterion.ends(context)? {
                return Ok(Some(reason));
            }
        }
        let full = new.len() >= self.limits.max_new_tokens;
        Ok(full.then_some(FinishReason::Length))
    }

    /// Whether there are criteria beyond the end tokens and the length.
    pub fn has_criteria(&self) -> bool {
        !self.criteria.is_empty()
    }
}

impl From<Limits> for StopConditions {
    fn from(limits: Limits) -> Self {
        Self::new(limits, Vec::new())
    }
}

impl std::fmt::Debug for StopConditions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut it = f.debug_struct("StopConditions");
        it.field("limits", &self.limits).field("criteria", &self.criteria.len());
        it.finish()
    }
}
