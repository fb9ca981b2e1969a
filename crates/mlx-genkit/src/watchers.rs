//! What watches the rows of a request or changes them: its steering, hook, recorders and adapters,
//! as one hook.

use mlxgk_generation_config::Resolved;
use mlxgk_kv_cache::RowId;
use mlxgk_mlx_models::{NoHook, ResidualHook};

use crate::{
    Model, Request, Result, assistant::guesses_by_heads, attentions::AttentionRecorder,
    hidden::HiddenRecorder, row_adapters::RowAdapters,
};

/// See the [module](self).
pub(crate) struct Watchers<'a> {
    pub(crate) hook: Box<dyn ResidualHook + 'a>,
    pub(crate) hidden: Option<HiddenRecorder>,
    pub(crate) attentions: Option<AttentionRecorder>,
    /// The adapters of the rows, where they choose any.
    pub(crate) adapters: Option<RowAdapters>,
    /// Whether there is anything of all that.
    pub(crate) is_hooked: bool,
    /// Whether every token has to pass the hook, so that none may be found in a store.
    pub(crate) must_see_all: bool,
}

impl<'a> Watchers<'a> {
    /// Takes out of the request what it says about them. It has so many prompts, and rows for each.
    pub(crate) fn new(
        request: &mut Request<'a>,
        resolved: &Resolved,
        [prompts, copies]: [usize; 2],
        model: &Model,
    ) -> Result<Self> {
        let decoder = model.decoder();
        let hidden = HiddenRecorder::new(request.hidden_states.take(), resolved, decoder)?;
        let attentions = AttentionRecorder::new(request.attentions.take(), resolved, decoder)?;
        let is_recorded = hidden.is_some() || attentions.is_some();
        let (steering, hook) = (request.steering.take(), request.hook.take());
        let choices = std::mem::take(&mut request.adapters);
        let is_hooked = is_recorded || hook.is_some() || steering.is_some() || !choices.is_empty();
        // A hook without a name looks on, and has to see every token, and so have heads.
        let looks_on = hook
            .as_ref()
            .is_some_and(|it| steering.is_some() || it.name(RowId::default()).is_none());
        let must_see_all = is_recorded || looks_on || guesses_by_heads(&resolved.config);
        let steering = steering.map(|it| it.hook(decoder)).transpose()?;
        // Steering alone is not wrapped: where it only adds, a batch serves its rows with others'.
        let mut hook: Box<dyn ResidualHook + 'a> = match (steering, hook) {
            (Some(steering), Some(hook)) => Box::new((steering, hook)),
            (Some(steering), None) => Box::new(steering),
            (None, Some(hook)) => hook,
            (None, None) => Box::new(NoHook),
        };
        if let Some(hidden) = &hidden {
            hook = Box::new((hook, hidden.clone()));
        }
        if let Some(attentions) = &attentions {
            hook = Box::new((hook, attentions.clone()));
        }
        // Beams of a prompt share an id.
        let ids = if resolved.mode.streams() { copies } else { 1 };
        let adapters = RowAdapters::new(choices, [prompts, ids], model)?;
        if let Some(adapters) = &adapters {
            hook = Box::new((hook, adapters.clone()));
        }
        Ok(Self { hook, hidden, attentions, adapters, is_hooked, must_see_all })
    }

    /// Whether steering is held to a budget.
    pub(crate) fn has_budget(&self) -> bool {
        self.hook.budget(RowId::default()).is_some()
    }
}
