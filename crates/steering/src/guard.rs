//! Guardrails: an answer that looks degenerate, or is the unsteered answer, is drawn once more.

use crate::{Suspicion, derive_seed, suspicions};

/// Why an answer was drawn again.
///
/// ```
/// use mlxgk_steering::{Reason, Suspicion};
///
/// let reason = Reason::Suspect(vec![Suspicion::Latex, Suspicion::Loop]);
/// assert_eq!(reason.to_string(), "LaTeX-like tokens, a loop");
/// assert_eq!(Reason::SameAsBase.to_string(), "the unsteered answer");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// It looked degenerate.
    Suspect(Vec<Suspicion>),
    /// It was the unsteered answer.
    SameAsBase,
}

/// An answer, and what the guardrails say of it.
///
/// ```
/// use mlxgk_steering::{Guard, Suspicion};
///
/// // Greedy decoding has nothing to draw again, so that what is suspect stands.
/// let guard = Guard { resamples: false, ..Guard::default() };
/// let draw = |_: &[usize], _| Ok::<_, std::convert::Infallible>(vec!["so so so so so"]);
/// let guarded = guard.draw(1, |it| (*it, &[]), draw)?.remove(0);
/// let (answer, verdict) = guarded.split();
/// assert_eq!((answer, verdict.resampled), ("so so so so so", None));
/// assert_eq!(verdict.suspicions, [Suspicion::Loop]);
/// # Ok::<(), std::convert::Infallible>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Guarded<A> {
    /// The last one drawn.
    pub answer: A,
    /// What is suspect about it; empty where it looks sound.
    pub suspicions: Vec<Suspicion>,
    /// Why the first draw was rejected; `None` where it was accepted.
    pub resampled: Option<Reason>,
}

/// What the guardrails say of an answer that is kept elsewhere.
pub type Verdict = Guarded<()>;

impl<A> Guarded<A> {
    /// The answer, and what is said of it.
    pub fn split(self) -> (A, Verdict) {
        let Self { answer, suspicions, resampled } = self;
        (answer, Guarded { answer: (), suspicions, resampled })
    }

    /// The same said of another answer, or of the same in another form.
    pub fn with<B>(self, answer: B) -> Guarded<B> {
        Guarded { answer, suspicions: self.suspicions, resampled: self.resampled }
    }
}

/// `LaTeX-like tokens, a loop`, or `the unsteered answer`.
impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Suspect(suspicions) => {
                let suspicions: Vec<_> = suspicions.iter().map(Suspicion::to_string).collect();
                f.write_str(&suspicions.join(", "))
            }
            Self::SameAsBase => f.write_str("the unsteered answer"),
        }
    }
}

/// Draws answers and checks them, whatever draws them.
///
/// ```
/// use mlxgk_steering::{Guard, Reason};
///
/// // Two prompts; the first draw of the second one is what the unsteered model answers.
/// let guard = Guard { seed: 1, resamples: true, base: Some(&[&[7, 7], &[1, 2]]) };
/// let mut draws = vec![vec![vec![1, 3]], vec![vec![5, 6], vec![1, 2]]];
/// let answers = guard.draw(
///     2,
///     |tokens: &Vec<u32>| ("a sound text", tokens),
///     |prompts, _seed| {
///         let drawn = draws.pop().unwrap_or_default();
///         assert_eq!(prompts.len(), drawn.len());
///         Ok::<_, std::convert::Infallible>(drawn)
///     },
/// )?;
/// assert_eq!(answers[0].resampled, None);
/// assert_eq!(answers[1].resampled, Some(Reason::SameAsBase));
/// assert_eq!(answers[1].answer, [1, 3]);
/// # Ok::<(), std::convert::Infallible>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Guard<'a> {
    /// Feeds both draws; the second has a stream of its own.
    pub seed: u64,
    /// Whether a second draw can differ from the first; not so for greedy decoding.
    pub resamples: bool,
    /// The tokens of the unsteered answers, by prompt, where answers must differ from them.
    pub base: Option<&'a [&'a [u32]]>,
}

impl Guard<'_> {
    /// Draws an answer to each of `prompts` prompts, and another to those whose answer is suspect or
    /// equal to the unsteered one. The second draw stands, whatever it is.
    ///
    /// `draw` answers the prompts with the given indices from a seed; `read` gives an answer's text
    /// and tokens.
    ///
    /// # Errors
    /// Those of `draw`.
    pub fn draw<A, E>(
        &self,
        prompts: usize,
        read: impl Fn(&A) -> (&str, &[u32]),
        mut draw: impl FnMut(&[usize], u64) -> Result<Vec<A>, E>,
    ) -> Result<Vec<Guarded<A>>, E> {
        let guarded = |answer: A, resampled| {
            let suspicions = suspicions(read(&answer).0);
            Guarded { answer, suspicions, resampled }
        };
        let all: Vec<usize> = (0..prompts).collect();
        let first = draw(&all, derive_seed(self.seed, 0))?;
        let mut answers: Vec<_> = first.into_iter().map(|it| guarded(it, None)).collect();
        if !self.resamples {
            return Ok(answers);
        }
        let reason = |(prompt, it): (usize, &Guarded<A>)| {
            let base = self.base.and_then(|it| it.get(prompt).copied());
            if !it.suspicions.is_empty() {
                return Some((prompt, Reason::Suspect(it.suspicions.clone())));
            }
            (base == Some(read(&it.answer).1)).then_some((prompt, Reason::SameAsBase))
        };
        let (rejected, reasons): (Vec<_>, Vec<_>) =
            answers.iter().enumerate().filter_map(reason).unzip();
        if rejected.is_empty() {
            return Ok(answers);
        }
        let second = draw(&rejected, derive_seed(self.seed, 1))?;
        for ((prompt, reason), answer) in rejected.into_iter().zip(reasons).zip(second) {
            answers[prompt] = guarded(answer, Some(reason));
        }
        Ok(answers)
    }
}
