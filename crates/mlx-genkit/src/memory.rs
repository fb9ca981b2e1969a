//! Whether a request can begin in the memory there is: a process that runs out of it ends without a
//! sentence.

use std::fs;

use crate::{Error, ErrorKind, Model, Result};

/// Numbers per token and unit of the hidden size that a layer holds at once while prompts are read: the
/// stream, and what attention and the feed-forward half make of it.
const READING: usize = 8;

/// Refuses rows whose columns and scores cannot be held when the first token is chosen, with `read` tokens
/// of prompts read at once. What later tokens take is not known, because texts end when they like.
///
/// `field` is what makes the rows many, where it is one.
pub(crate) fn check(
    model: &Model,
    rows: usize,
    prompt_len: usize,
    read: usize,
    field: Option<&str>,
) -> Result<()> {
    let Some(available) = available() else { return Ok(()) };
    let decoder = model.decoder();
    // While rows are moved there are two of each, and a step has several copies of its scores.
    let columns = 2 * prompt_len.saturating_add(1).saturating_mul(decoder.kv_bytes_per_token());
    let scores = 6 * decoder.vocab_size() * size_of::<f32>();
    let reading = read.saturating_mul(READING * decoder.hidden_size() * size_of::<f32>());
    let needed = rows.saturating_mul(columns.saturating_add(scores)).saturating_add(reading);
    if needed <= available {
        return Ok(());
    }
    let megabytes = |bytes: usize| bytes.div_ceil(1 << 20);
    let what = format!(
        "{rows} rows of {prompt_len} tokens take about {} MB of memory, and there are {}",
        megabytes(needed),
        megabytes(available)
    );
    Err(match field {
        Some(field) => Error::of_field(field, format!("{what}: make `{field}` smaller")),
        None => Error::new(ErrorKind::Request, what),
    })
}

/// Bytes that this process may still allocate: what the machine has, and the process's limit (`ulimit
/// -v`). `None` where the system does not say.
fn available() -> Option<usize> {
    let free = kilobytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    let used = kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "VmSize:")?;
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let limit = limits.lines().find_map(|it| it.strip_prefix("Max address space"))?;
    // Not a number where it is unlimited.
    let limit = limit.split_whitespace().next()?.parse().unwrap_or(usize::MAX);
    Some(free.min(limit.saturating_sub(used)))
}

/// The value of a line such as `MemAvailable:   12345 kB`, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find_map(|it| it.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<usize>().ok()?.checked_mul(1024)
}
