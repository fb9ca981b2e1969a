//! What a prompt has in common with earlier ones, read from a store and given to it.

use std::sync::Arc;

use mlxgk_kv_cache::{CacheOptions, Column, Effect, KvCache, PrefixScope, PrefixStore, RowId};
use mlxgk_mlx_models::{Decoder, HookPoint, ResidualHook};

use crate::Result;

/// A prompt's place in a [`PrefixStore`].
#[derive(Debug)]
pub(crate) struct Prefixes {
    store: PrefixStore,
    scope: PrefixScope,
    effects: Vec<Effect>,
}

impl Prefixes {
    pub(crate) fn new(store: PrefixStore, scope: PrefixScope, effects: Vec<Effect>) -> Self {
        Self { store, scope, effects }
    }

    /// A cache of what the store holds of a prompt, but for its last token, which is read in any case.
    pub(crate) fn find(&self, prompt: &[u32]) -> Result<Option<KvCache>> {
        let Some((_, before)) = prompt.split_last() else { return Ok(None) };
        let columns: Vec<Column> = before.iter().copied().map(Column::Token).collect();
        Ok(self.store.find(&self.scope, &columns, &self.effects[..before.len()])?)
    }

    /// Tokens until the block ends that the cache's next token is in.
    pub(crate) fn until_block_end(&self, cache: &KvCache) -> usize {
        self.scope.block() - cache.len() % self.scope.block()
    }

    /// Gives the store the block that the cache ends with, where it does.
    pub(crate) fn publish(&self, cache: &KvCache) -> Result<()> {
        if !cache.is_empty() && cache.len().is_multiple_of(self.scope.block()) {
            self.store.publish(&self.scope, cache, &self.effects[..cache.len()])?;
        }
        Ok(())
    }
}

/// What a hook does to each token of a prompt before anything is generated: its name, or nothing where all
/// it does is to add vectors, and it adds none to that token; an adapter changes every token. So steering
/// that begins with the answer shares its prompts with every other.
pub(crate) fn effects(
    model: &Decoder,
    hook: &dyn ResidualHook,
    row: RowId,
    prompt: &[u32],
) -> Result<Vec<Effect>> {
    let Some(name) = hook.name(row) else { return Ok(vec![None; prompt.len()]) };
    if !hook.adapters(row).is_none() {
        return Ok(vec![Some(name); prompt.len()]);
    }
    let mut cache = model.new_cache_with(&[0], &CacheOptions::new())?;
    cache.set_row_ids(&[row])?;
    cache.set_prompt_end(prompt.len());
    let ids = mlx_rs::Array::from_slice(prompt, &[1, prompt.len() as i32]);
    let step = cache.step(prompt.len()).with_tokens(&ids);
    let mut is_moved = vec![false; prompt.len()];
    // What is done after the last block is in no cache.
    let points = (0..model.layers().len()).flat_map(|it| {
        [HookPoint::ResidPre(it), HookPoint::ResidMid(it), HookPoint::ResidPost(it)]
    });
    for point in points {
        let Some(additions) = hook.additions(point, &step, 0)? else {
            return Ok(vec![Some(name); prompt.len()]);
        };
        for addition in additions {
            for (is_moved, factor) in is_moved.iter_mut().zip(&addition.factors) {
                *is_moved |= *factor != 0.0;
            }
        }
    }
    Ok(is_moved.into_iter().map(|it| it.then(|| Arc::clone(&name))).collect())
}
