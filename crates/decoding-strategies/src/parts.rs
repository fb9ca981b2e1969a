//! A batch that is too large to be held at once: its rows run a part at a time.

use crate::{
    LeftPadded, LoopOutput, Reorder, Result, RowEvent, RowGroup, RowId, SampleLoop, TokenLoop,
};

/// Makes the model of a part, given the indices of its prompts.
type Feed<'a, M> = Box<dyn FnMut(&[usize]) -> Result<M> + 'a>;

/// Greedy rows, of which a limited number run at once; the next ones begin when all of these have ended.
///
/// A row's tokens are those it would have beside all the others: it has the padding of the whole batch,
/// its own index and its own name. Draws are not served, because torch takes them for all rows in turn.
///
/// ```
/// use mlxgk_decoding_strategies::{
///     DecoderSession, InParts, LeftPadded, Limits, RowGroup, TokenLoop,
/// };
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let prompts = LeftPadded::new(&[vec![5, 9, 14], vec![7], vec![30, 2]], 0)?;
/// let mut parts = Vec::new();
/// let group = RowGroup::greedy(Limits { max_new_tokens: 3, eos: vec![] });
/// let mut it = InParts::new(&prompts, group, 2, |rows| {
///     parts.push(rows.to_vec());
///     DecoderSession::prefill(&model, &prompts.part(rows), 64, NoHook)
/// });
/// while it.step().transpose()?.is_some() {}
/// let output = Box::new(it).finish()?;
/// assert!(output.rows.len() == 3 && output.rows.iter().all(|it| it.tokens.len() == 3));
/// assert_eq!(parts, [vec![0, 1], vec![2]]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct InParts<'a, M> {
    rows: SampleLoop<M>,
    most: usize,
    feed: Feed<'a, M>,
}

impl<'a, M: Reorder> InParts<'a, M> {
    /// Continues prompts, `most` at a time. `feed` makes the model of a part: it is given the indices of the
    /// part's prompts, and feeds them, and in a [guided](RowGroup::guidance) group what they are moved away
    /// from behind them.
    pub fn new(
        prompts: &LeftPadded,
        group: RowGroup,
        most: usize,
        feed: impl FnMut(&[usize]) -> Result<M> + 'a,
    ) -> Self {
        let rows = SampleLoop::waiting(prompts, group);
        Self { rows, most: most.max(1), feed: Box::new(feed) }
    }

    /// Begins the next part where none runs and rows wait.
    fn begin(&mut self) -> Result<()> {
        if let Some(part) = self.rows.next_part(self.most) {
            self.rows.run(&part, (self.feed)(&part)?);
        }
        Ok(())
    }
}

impl<M: Reorder> TokenLoop for InParts<'_, M> {
    fn wait(&mut self) -> Result<()> {
        self.begin()?;
        self.rows.wait()
    }

    fn step(&mut self) -> Option<Result<Vec<RowEvent>>> {
        match self.begin() {
            Ok(()) => self.rows.step(),
            Err(e) => {
                self.rows.fail();
                Some(Err(e))
            }
        }
    }

    fn leave(&mut self, row: RowId) -> bool {
        self.rows.leave(row)
    }

    fn finish(self: Box<Self>) -> Result<LoopOutput> {
        Box::new(self.rows).finish()
    }
}

impl<M: std::fmt::Debug> std::fmt::Debug for InParts<'_, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut it = f.debug_struct("InParts");
        it.field("rows", &self.rows).field("most", &self.most).finish_non_exhaustive()
    }
}
