//! Caches of several texts as one.

use mlx_rs::error::Exception;
use mlxgk_kv_cache::KvCache;

use crate::{Decoder, Error, ErrorKind, ResidualHook, Result, feed::READ_AGAIN};

impl Decoder {
    /// The caches of several texts as one, each text's keys moved to where it follows the others. The first
    /// `again` tokens of each text but the first are read again, through `hook`, behind what precedes them;
    /// what is left has not seen the texts before it: see [`KvCache::concat`]. With 0 nothing is read.
    ///
    /// ```
    /// use mlxgk_mlx_models::{ComputeDtype, Decoder, NoHook};
    ///
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama");
    /// let model = Decoder::load(folder, ComputeDtype::Float32)?;
    /// let mut caches = [model.new_cache(1), model.new_cache(1)];
    /// model.forward(&[&[5, 9, 14]], &mut caches[0], &mut NoHook)?;
    /// model.forward(&[&[7, 30, 11, 2]], &mut caches[1], &mut NoHook)?;
    /// let mut both = model.concat(&[&caches[0], &caches[1]], 1, &mut NoHook)?;
    /// assert_eq!(both.tokens(0), [5, 9, 14, 7, 30, 11, 2]);
    /// model.forward(&[&[8]], &mut both, &mut NoHook)?;
    /// # Ok::<(), mlxgk_mlx_models::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`KvCache::concat`], and for a model with longrope, whose rotation depends on the length of the
    /// whole, or with a layer whose keys cannot be moved (latent attention, a norm after the rotation). What
    /// is read again has to be tokens, under the hook that the caches were filled under.
    pub fn concat(
        &self,
        caches: &[&KvCache],
        again: usize,
        hook: &mut dyn ResidualHook,
    ) -> Result<KvCache> {
        let refuse = |what: &str| Err(Error::new(ErrorKind::Cache, what));
        if self.options.original_context.is_some() {
            return refuse(
                "longrope rotates a text by the length of the whole, so that keys of parts are \
                           not those of it",
            );
        }
        let Some((first, others)) = caches.split_first() else {
            return refuse("there is no cache to put others after");
        };
        if caches.iter().any(|it| !it.layers().eq(self.layers.iter().copied())) {
            return refuse("the cache was made for another model");
        }
        let mut all = first.fork();
        for other in others {
            let reread = all.before_concat(other, again)?;
            for part in reread.chunks(READ_AGAIN) {
                self.feed(&[part], None, &mut all, hook)?;
                all.evaluate()?;
            }
            all.concat(other, reread.len(), &mut |layer, keys, by| {
                let attention = self.blocks[layer].attention();
                attention.and_then(|it| it.turned(keys, by)).unwrap_or_else(|| {
                    let what = format!("the keys of layer {layer} cannot be moved");
                    Err(Exception::custom(what))
                })
            })?;
        }
        all.evaluate()?;
        Ok(all)
    }
}
