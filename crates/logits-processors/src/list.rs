//! Processors applied one after the other.

use std::fmt;

use crate::{Context, LogitsProcessor, Result, Row, Stage};

/// Processors applied in order; a processor itself.
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

    /// How many processors there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none, so that scores stay as they are.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
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
