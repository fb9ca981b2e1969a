//! From the fields about the cache to the options of one for this model.

use mlxgk_generation_config::{CacheChoice, CacheQuantization};
use mlxgk_kv_cache::{CacheOptions, KvCache, Quantization};

use crate::{Error, Model, Result};

/// How a request's cache keeps its columns.
pub(crate) fn cache_options(choice: &CacheChoice, model: &Model) -> Result<CacheOptions> {
    let mut options = CacheOptions::new();
    if let Some(bound) = choice.bound {
        options = options.bounded(bound.keep, bound.size);
    }
    if let Some(how) = &choice.quantization {
        options = options.quantized(quantization(how, model)?);
    }
    Ok(options)
}

/// Refuses a cache to resume that keeps its columns in another way than the fields ask for. Without
/// such fields it keeps them as it does.
pub(crate) fn check_resumed(cache: &KvCache, options: &CacheOptions) -> Result<()> {
    if options == &CacheOptions::new() || options == cache.options() {
        return Ok(());
    }
    let (kept, asked) = (cache.options(), options);
    let field = if kept.bound == asked.bound { "kv_bits" } else { "max_kv_size" };
    let what = format!(
        "the cache to resume keeps {}, but `{field}` asks for one that keeps {}",
        described(kept),
        described(asked)
    );
    Err(Error::of_field(field, what))
}

/// What a cache with these options keeps, as part of a sentence.
fn described(options: &CacheOptions) -> String {
    let columns = match options.bound {
        None => "all tokens".to_owned(),
        Some((keep, size)) => format!("the first {keep} of a text and the newest, {size} in all"),
    };
    match options.quantization {
        None => columns,
        Some(it) => {
            let Quantization { bits, group_size, start, .. } = it;
            format!("{columns}, in {bits} bits and groups of {group_size} from token {start} on")
        }
    }
}

fn quantization(how: &CacheQuantization, model: &Model) -> Result<Quantization> {
    let decoder = model.decoder();
    let fits = |size: i32| decoder.head_dims().flatten().all(|dim| dim % size as usize == 0);
    let group_size = how.group_size.unwrap_or(if fits(64) { 64 } else { 32 });
    if !fits(group_size) {
        let dim = decoder.head_dims().flatten().find(|dim| dim % group_size as usize != 0);
        let dim = dim.unwrap_or_default();
        let (field, value) = match how.group_size {
            Some(size) => ("kv_group_size", format!("is {size}, which does not divide")),
            None => ("kv_bits", "needs groups of 32 or 64 numbers, which do not divide".to_owned()),
        };
        let what =
            format!("`{field}` {value} the {dim} numbers that a head of {} has", model.name());
        return Err(Error::of_field(field, what));
    }
    Ok(Quantization::new(group_size, how.bits)?.starting_at(how.start))
}
