//! From the fields about the cache to the options of one for this model.

use std::collections::BTreeSet;

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
    let heads: Vec<_> = model.decoder().head_dims().collect();
    let group_size = how.group_size.unwrap_or(if misfit(&heads, 64).is_none() { 64 } else { 32 });
    let Some((layer, of, dim)) = misfit(&heads, group_size) else {
        return Ok(Quantization::new(group_size, how.bits)?.starting_at(how.start));
    };
    let (field, value) = match how.group_size {
        Some(size) => ("kv_group_size", format!("is {size}, which does not divide")),
        None => ("kv_bits", "needs groups of 32 or 64 numbers, which do not divide".to_owned()),
    };
    let sizes: BTreeSet<usize> = heads.into_iter().flatten().flatten().collect();
    let sizes: Vec<String> = sizes.iter().map(usize::to_string).collect();
    let (name, all) = (model.name(), sizes.join(", "));
    let whose = match sizes.len() {
        1 => format!("the {dim} numbers that a head of {name} has"),
        _ => format!(
            "the {dim} numbers of a head's {of} in layer {layer} of {name}, whose layers keep {all} \
             numbers per head"
        ),
    };
    Err(Error::of_field(field, format!("`{field}` {value} {whose}")))
}

/// The first layer whose keys or values have heads that groups of so many numbers do not divide, which of
/// the two it is, and how many numbers those have.
fn misfit(heads: &[Option<[usize; 2]>], group_size: i32) -> Option<(usize, &'static str, usize)> {
    let layers = heads.iter().enumerate().filter_map(|(layer, it)| Some((layer, (*it)?)));
    let dims = layers
        .flat_map(|(layer, [keys, values])| [(layer, "keys", keys), (layer, "values", values)]);
    let mut misfits = dims.filter(|(_, _, dim)| !dim.is_multiple_of(group_size as usize));
    misfits.next()
}
