//! Processors applied one after the other.

use std::fmt;

use crate::{Context, Error, ErrorKind, LogitsProcessor, Result, Row, Stage};

/// Processors applied in order; a processor itself.
///
/// Order matters. A penalty before a bias gives another score than after it:
///
/// ```
/// use mlxgk_logits_processors::{
///     Context, LogitsProcessor, ProcessorList, RepetitionPenalty, TokenBias,
/// };
///
/// let penalty = || Box::new(RepetitionPenalty::new(2.0).unwrap()) as Box<dyn LogitsProcessor>;
/// let bias = || Box::new(TokenBias::new([(0, 1.0)]).unwrap()) as Box<dyn LogitsProcessor>;
/// let score = |list: ProcessorList| {
///     let mut scores = [3.0];
///     list.process(&Context::new(&[0], 1), &mut scores).map(|()| scores[0])
/// };
/// assert_eq!(score(ProcessorList::new(vec![penalty(), bias()])), Ok(2.5));
/// assert_eq!(score(ProcessorList::new(vec![bias(), penalty()])), Ok(2.0));
/// // HF applies biases before penalties, in whatever order they are given.
/// assert_eq!(score(ProcessorList::in_hf_order(vec![penalty(), bias()])), Ok(2.0));
/// ```
///
/// It prints itself, one numbered line per processor:
///
/// ```
/// # use mlxgk_logits_processors::{NoRepeatNGram, ProcessorList, RepetitionPenalty};
/// let mut list = ProcessorList::default();
/// list.push(RepetitionPenalty::new(1.2)?);
/// list.push(NoRepeatNGram::new(3)?);
/// assert_eq!(
///     list.to_string(),
///     " 1. RepetitionPenalty { penalty: 1.2, history: Whole }\n \
///       2. NoRepeatNGram { ngram_size: 3 }"
/// );
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Default)]
pub struct ProcessorList(Vec<Box<dyn LogitsProcessor>>);

impl ProcessorList {
    /// A list that applies the processors in the order given.
    pub fn new(processors: Vec<Box<dyn LogitsProcessor>>) -> Self {
        Self(processors)
    }

    /// A list in HF's order, whatever the order given; processors of one stage keep theirs.
    pub fn in_hf_order(mut processors: Vec<Box<dyn LogitsProcessor>>) -> Self {
        processors.sort_by_key(|it| it.stage());
        Self(processors)
    }

    /// Adds a caller's own processors as `generate(logits_processor=...)` does.
    ///
    /// The first of the caller's processors with the [name](LogitsProcessor::name) of one in the
    /// list takes its place. The others stand, in their order, before the first warper. Warpers,
    /// watermarks and the normalisation are never replaced, because HF adds them afterwards.
    ///
    /// ```
    /// use mlxgk_logits_processors::{LogitNormalization, ProcessorList, RepetitionPenalty, SuppressTokens};
    ///
    /// let mut generated = ProcessorList::default();
    /// generated.push(RepetitionPenalty::new(1.2)?);
    /// generated.push(LogitNormalization);
    /// let list = generated.with_user_processors(vec![
    ///     Box::new(SuppressTokens::new([7])),
    ///     Box::new(RepetitionPenalty::new(1.5)?),
    /// ]);
    /// assert_eq!(
    ///     format!("{list:?}"),
    ///     "[RepetitionPenalty { penalty: 1.5, history: Whole }, SuppressTokens([7]), LogitNormalization]"
    /// );
    /// # Ok::<(), mlxgk_logits_processors::Error>(())
    /// ```
    pub fn with_user_processors(self, user: Vec<Box<dyn LogitsProcessor>>) -> Self {
        let mut user: Vec<_> = user.into_iter().map(Some).collect();
        let (mut merged, mut after) = (Vec::new(), Vec::new());
        for processor in self.0 {
            if processor.stage() > Stage::User {
                after.push(processor);
                continue;
            }
            let name = processor.name();
            let own = user.iter_mut().find(|it| it.as_ref().is_some_and(|it| it.name() == name));
            merged.push(own.and_then(Option::take).unwrap_or(processor));
        }
        merged.extend(user.into_iter().flatten());
        merged.extend(after);
        Self(merged)
    }

    /// Appends a processor.
    pub fn push(&mut self, processor: impl LogitsProcessor + 'static) {
        self.0.push(Box::new(processor));
    }

    /// Puts a processor where its stage stands in HF's order, after others of that stage.
    ///
    /// ```
    /// use mlxgk_logits_processors::{LogitNormalization, LogitsProcessor, NoRepeatNGram, ProcessorList};
    ///
    /// let mut list = ProcessorList::default();
    /// list.push(LogitNormalization);
    /// list.insert(Box::new(NoRepeatNGram::new(3)?));
    /// let names: Vec<&str> = list.iter().map(LogitsProcessor::name).collect();
    /// assert_eq!(names, ["NoRepeatNGramLogitsProcessor", "LogitNormalization"]);
    /// # Ok::<(), mlxgk_logits_processors::Error>(())
    /// ```
    pub fn insert(&mut self, processor: Box<dyn LogitsProcessor>) {
        let at = self.0.iter().rposition(|it| it.stage() <= processor.stage());
        self.0.insert(at.map_or(0, |it| it + 1), processor);
    }

    /// Keeps the first `at` processors and returns the others: for one that acts between them.
    ///
    /// # Panics
    /// When there are fewer than `at`.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        Self(self.0.split_off(at))
    }

    /// How many processors there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none, so that scores stay as they are.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// An error by which no token could be chosen, as one that names the processor that banned the last
    /// of those that `scores`, as the model made them, allow; any other error as it is. All processors
    /// run again, so this is for the error alone.
    ///
    /// ```
    /// use mlxgk_logits_processors::{
    ///     Context, Error, ErrorKind, NoRepeatNGram, ProcessorList, SuppressTokens,
    /// };
    ///
    /// let mut list = ProcessorList::default();
    /// list.push(SuppressTokens::new([0]));
    /// list.push(NoRepeatNGram::new(1)?);
    /// let error = Error::new(ErrorKind::NoTokenAllowed, "every token is banned");
    /// let error = list.explain(error, &Context::new(&[1], 1), &[0.5, 0.25]);
    /// let expected = "every token is banned: `NoRepeatNGramLogitsProcessor` leaves none";
    /// assert_eq!(error.to_string(), expected);
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn explain(&self, error: Error, context: &Context<'_>, scores: &[f32]) -> Error {
        let banning = match error.kind() {
            ErrorKind::NoTokenAllowed => self.banning_all(context, scores),
            _ => None,
        };
        banning.map_or(error, |name| {
            let what = format!("every token is banned: `{name}` leaves none");
            Error::new(ErrorKind::NoTokenAllowed, what)
        })
    }

    /// The name of the processor that bans the last token that `scores` allow; `None` where one is left,
    /// or there was none to begin with.
    pub fn banning_all(&self, context: &Context<'_>, scores: &[f32]) -> Option<&'static str> {
        let is_banned = |scores: &[f32]| scores.iter().all(|it| *it == f32::NEG_INFINITY);
        let mut scores = scores.to_vec();
        if is_banned(&scores) {
            return None;
        }
        for it in self.iter() {
            it.process(context, &mut scores).ok()?;
            if is_banned(&scores) {
                return Some(it.name());
            }
        }
        None
    }

    /// The processors in the order of application.
    pub fn iter(&self) -> impl Iterator<Item = &dyn LogitsProcessor> {
        self.0.iter().map(AsRef::as_ref)
    }
}

impl LogitsProcessor for ProcessorList {
    fn name(&self) -> &'static str {
        "LogitsProcessorList"
    }

    fn process(&self, context: &Context<'_>, scores: &mut [f32]) -> Result<()> {
        self.0.iter().try_for_each(|it| it.process(context, scores))
    }

    fn process_rows(&self, rows: &mut [Row<'_>]) -> Result<()> {
        self.0.iter().try_for_each(|it| it.process_rows(rows))
    }

    fn forced_tokens(&self, context: &Context<'_>) -> Result<Vec<u32>> {
        for it in &self.0 {
            let forced = it.forced_tokens(context)?;
            if !forced.is_empty() {
                return Ok(forced);
            }
        }
        Ok(Vec::new())
    }
}

impl fmt::Debug for ProcessorList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.0).finish()
    }
}

/// One numbered line per processor, in the order of application.
impl fmt::Display for ProcessorList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, processor) in self.0.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            write!(f, "{:2}. {processor:?}", at + 1)?;
        }
        Ok(())
    }
}
