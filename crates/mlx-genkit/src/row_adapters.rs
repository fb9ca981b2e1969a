//! Which adapter each row of a request runs under.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use mlx_rs::Array;
use mlxgk_kv_cache::{RowId, Step};
use mlxgk_mlx_models::{AdapterChoice, Addition, HookPoint, ResidualHook, Result as HookResult};

use crate::{Error, ErrorKind, Model, Result};

/// The adapters of a request's rows, as a hook that does nothing else. Clones share the rows' numbers.
#[derive(Debug, Clone)]
pub(crate) struct RowAdapters {
    /// Of each prompt, and what a cache calls it.
    choices: Arc<[(AdapterChoice, Option<Arc<str>>)]>,
    /// Rows that have ids of their own, for each prompt.
    copies: u64,
    /// The id of the first row.
    first: Arc<AtomicU64>,
}

impl RowAdapters {
    /// Those that a request chooses, for so many prompts and rows with ids of their own for each; `None`
    /// where it chooses nothing.
    pub(crate) fn new(
        choices: Vec<AdapterChoice>,
        [prompts, copies]: [usize; 2],
        model: &Model,
    ) -> Result<Option<Self>> {
        if choices.iter().all(AdapterChoice::is_none) && matches!(choices.len(), 0 | 1) {
            return Ok(None);
        }
        if choices.len() != 1 && choices.len() != prompts {
            let what = format!("{} adapters are chosen for {prompts} prompts", choices.len());
            return Err(Error::new(ErrorKind::Request, what));
        }
        let named = choices.into_iter().map(|choice| {
            let name = model.decoder().name_of_choice(&choice)?;
            Ok::<_, Error>((choice, name))
        });
        let named: Vec<_> = named.collect::<Result<_>>()?;
        Ok(Some(Self { choices: named.into(), copies: copies as u64, first: Arc::default() }))
    }

    /// Says that the rows' ids begin at another than 0.
    pub(crate) fn begin_at(&self, first: RowId) {
        self.first.store(first.get(), Ordering::Relaxed);
    }

    /// What a row runs under. Those that guidance moves away from stand after all others, in the same
    /// order.
    fn of(&self, row: RowId) -> &(AdapterChoice, Option<Arc<str>>) {
        let row = row.get().saturating_sub(self.first.load(Ordering::Relaxed));
        &self.choices[(row / self.copies) as usize % self.choices.len()]
    }
}

impl ResidualHook for RowAdapters {
    fn apply(&mut self, _: HookPoint, hidden: Array, _: &Step) -> HookResult<Array> {
        Ok(hidden)
    }

    fn name(&self, row: RowId) -> Option<Arc<str>> {
        self.of(row).1.clone()
    }

    fn additions(&self, _: HookPoint, _: &Step, _: usize) -> HookResult<Option<Vec<Addition>>> {
        Ok(Some(Vec::new()))
    }

    fn adapters(&self, row: RowId) -> AdapterChoice {
        self.of(row).0.clone()
    }
}
