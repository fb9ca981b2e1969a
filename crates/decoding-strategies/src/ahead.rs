//! The greedy and sampling loop with the choice on the device.

use crate::{
    DecoderSession, DeviceChoice, LanguageModel, LeftPadded, LoopOutput, Result, RowEvent,
    RowGroup, RowId, Speculative, TokenLoop, rows::Rows,
};

/// As [`SampleLoop`](crate::SampleLoop), for one group whose tokens the device chooses: the next pass is
/// under way before the host knows the token that it reads.
///
/// The pass after the last token is then under way for nothing, and taken back.
///
/// ```
/// use mlxgk_decoding_strategies::{
///     AheadLoop, DecoderSession, DeviceChoice, LeftPadded, Limits, RowGroup, SampleLoop,
///     TokenLoop,
/// };
/// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// let prompts = LeftPadded::new(&[vec![5, 9, 14]], 0)?;
/// let session = || DecoderSession::prefill(&model, &prompts, 64, NoHook);
/// let group = || RowGroup::greedy(Limits { max_new_tokens: 4, eos: vec![] });
/// let run = |mut it: Box<dyn TokenLoop + '_>| {
///     while it.step().transpose()?.is_some() {}
///     it.finish().map(|it| it.rows[0].tokens.clone())
/// };
/// let choice = DeviceChoice::of(&session()?, &group());
/// let choice = choice.expect("the device can take the likeliest token");
/// let ahead = run(Box::new(AheadLoop::new(session()?, &prompts, group(), choice)))?;
/// assert_eq!(ahead, run(Box::new(SampleLoop::new(session()?, &prompts, group())))?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct AheadLoop<'a> {
    session: DecoderSession<'a>,
    rows: Rows,
    choice: DeviceChoice,
    /// Whether the last tokens were fed and end all rows.
    is_beyond: bool,
}

impl<'a> AheadLoop<'a> {
    /// Continues prompts that the session has been fed. `choice` is the [group's](DeviceChoice::of).
    pub fn new(
        session: DecoderSession<'a>,
        prompts: &LeftPadded,
        group: RowGroup,
        choice: DeviceChoice,
    ) -> Self {
        Self { session, rows: Rows::of(prompts, group), choice, is_beyond: false }
    }

    fn advance(&mut self) -> Result<Vec<RowEvent>> {
        let mut events = self.rows.ended_at_once();
        if !self.rows.is_running() {
            return Ok(events);
        }
        let quantiles = self.rows.quantiles();
        let chosen = self.session.feed_chosen(self.choice, &quantiles)?;
        events.extend(self.rows.accept(&chosen)?);
        self.is_beyond = !self.rows.is_running();
        if let Some(places) = self.rows.retire() {
            self.session.select(&places)?;
        }
        Ok(events)
    }
}

impl TokenLoop for AheadLoop<'_> {
    fn wait(&mut self) -> Result<()> {
        self.session.scores().map(drop)
    }

    fn step(&mut self) -> Option<Result<Vec<RowEvent>>> {
        let step = self.advance();
        match &step {
            Ok(events) if events.is_empty() => return None,
            Ok(_) => {}
            Err(_) => self.rows.clear(),
        }
        Some(step)
    }

    fn leave(&mut self, row: RowId) -> bool {
        self.rows.leave(row)
    }

    fn finish(self: Box<Self>) -> Result<LoopOutput> {
        let Self { mut session, rows, is_beyond, .. } = *self;
        let is_single = rows.is_single();
        let rows = rows.into_outputs();
        if is_single && is_beyond {
            session.roll_back(1)?;
        }
        let cache = is_single.then(|| session.into_cache());
        Ok(LoopOutput { rows, cache, ..LoopOutput::default() })
    }
}
