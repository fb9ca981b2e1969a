//! What the kinds of cache cost, as ratios of one run. Not criterion's: it measures times only, and here
//! they are of interest beside bytes and errors.
//!
//! `-- bundled` or `-- 0.6B` measures one of the two models, `-- bundled prefix` or any other of the parts
//! one of them.

// A command line speaks on stdout.
#![allow(clippy::print_stdout, reason = "it prints what it measured")]

use std::time::{Duration, Instant};

use mlx_genkit::{
    ComputeDtype, GenerationConfig, Model, NoHook, Request,
    kv_cache::{CacheOptions, KvCache, PrefixStore, Quantization},
    mlx_rs::{Array, memory::active_memory, random},
};
use mlxgk_bench::{Result, models};

/// Columns that a token is decoded behind.
const COLUMNS: usize = 8192;
/// Tokens that two prompts share, and that are forked.
const SHARED: usize = 2000;
/// One token less than whole blocks, so that as much as can be has to be read again.
const WORST: usize = 2047;
const GROUP: i32 = 64;

fn main() -> Result<()> {
    let folder = models::default_folder();
    // Cargo adds an argument of its own.
    let mut asked = std::env::args().skip(1).filter(|it| !it.starts_with("--"));
    let (asked, part) = (asked.next(), asked.next());
    let wanted = |name: &str| asked.as_deref().is_none_or(|it| it == name);
    if wanted("bundled") {
        let model = Model::load(models::endless_bundled(&folder)?, ComputeDtype::Float32)?;
        measure("bundled model", &model, 40, part.as_deref())?;
    }
    if wanted("0.6B") {
        let model = Model::load(models::random_qwen3(&folder)?, ComputeDtype::Float32)?;
        measure("0.6B shape", &model, 6, part.as_deref())?;
    }
    Ok(())
}

fn measure(name: &str, model: &Model, rounds: usize, part: Option<&str>) -> Result<()> {
    println!("{name}:");
    let wanted = |name: &str| part.is_none_or(|it| it == name);
    if wanted("kinds") {
        println!("a token behind {COLUMNS} others, in {rounds} rounds of all kinds:");
        kinds(model, rounds)?;
    }
    if wanted("fork") {
        fork(model)?;
    }
    if wanted("prefix") {
        passes(model)?;
        prefix(model, SHARED)?;
        prefix(model, WORST)?;
    }
    if wanted("conversation") {
        conversation(model)?;
    }
    Ok(())
}

/// Ids below 2,000, which all vocabularies here have.
fn ids(count: usize, salt: usize) -> Vec<u32> {
    (0..count).map(|at| ((at * 7919 + salt * 613 + 13) % 2000) as u32).collect()
}

/// Decoding, bytes and errors of each kind.
fn kinds(model: &Model, rounds: usize) -> Result<()> {
    let mut kinds = vec![("fp32".to_owned(), CacheOptions::new())];
    for bits in [8, 6, 5, 4, 3, 2] {
        let how = Quantization::new(GROUP, bits)?;
        kinds.push((format!("{bits} bits"), CacheOptions::new().quantized(how)));
    }
    if model.decoder().head_dims().flatten().flatten().all(|it| it % 128 == 0) {
        let how = Quantization::new(128, 4)?;
        kinds.push(("4 bits, groups of 128".into(), CacheOptions::new().quantized(how)));
    }
    let mut caches = Vec::new();
    for (_, options) in &kinds {
        caches.push(filled(model, options, COLUMNS)?);
    }
    let fp16 = caches[0].live_bytes() as f64 / 2.0;
    let bytes: Vec<f64> = caches.iter().map(|it| it.live_bytes() as f64).collect();
    let mut times = vec![Vec::new(); kinds.len()];
    // All in turn, so that what else the machine does is shared by them.
    for round in 0..=rounds {
        for (cache, times) in caches.iter_mut().zip(&mut times) {
            let begun = Instant::now();
            model.decoder().forward(&[&[7]], cache, &mut NoHook)?.eval()?;
            // The first step makes room.
            if round > 0 {
                times.push(begun.elapsed());
            }
        }
    }
    let times: Vec<f64> = times.into_iter().map(|it| median(it).as_secs_f64()).collect();
    let text = ids(256, 1);
    let exact = logprobs(model, &text, &kinds[0].1)?;
    println!("| cache | ms per token | of fp32's | bytes, of fp16's | log-probabilities off by |");
    println!("|---|---|---|---|---|");
    for (at, (name, options)) in kinds.iter().enumerate() {
        let found = logprobs(model, &text, options)?;
        let off = found.iter().zip(&exact).map(|(a, b)| (a - b).abs()).sum::<f32>();
        println!(
            "| {name} | {:.2} | {:.2} | {:.3} | {:.4} |",
            times[at] * 1e3,
            times[at] / times[0],
            bytes[at] / fp16,
            off / exact.len() as f32
        );
    }
    Ok(())
}

/// A cache of `columns` columns of noise, which no forward pass is needed for.
fn filled(model: &Model, options: &CacheOptions, columns: usize) -> Result<KvCache> {
    let decoder = model.decoder();
    let mut probe = decoder.new_cache(1);
    decoder.forward(&[&[7]], &mut probe, &mut NoHook)?.eval()?;
    let held = probe.arrays().next().map(|it| it.shape().to_vec()).ok_or("nothing is kept")?;
    let noise = |seed| -> Result<Array> {
        let shape = [1, held[1], columns as i32, held[3]];
        Ok(random::normal::<f32>(&shape, None, None, &random::key(seed)?)?)
    };
    let (keys, values) = (noise(1)?, noise(2)?);
    let mut cache = decoder.new_cache_with(&[0], options)?;
    let layers = cache.layers().len();
    let mut pass = cache.begin_tokens(&[&ids(columns, 0)], &[])?;
    for layer in 0..layers {
        pass.append(layer, &keys, &values)?;
    }
    pass.commit()?;
    cache.evaluate()?;
    Ok(cache)
}

/// What each token of a text has as its log-probability, from the second on.
fn logprobs(model: &Model, text: &[u32], options: &CacheOptions) -> Result<Vec<f32>> {
    let mut cache = model.decoder().new_cache_with(&[0], options)?;
    let logits = model.decoder().forward(&[text], &mut cache, &mut NoHook)?;
    let vocab = model.decoder().vocab_size();
    let numbers: Vec<f32> = logits.contiguous()?.to_vec_exact()?;
    let rows = numbers.chunks(vocab).zip(&text[1..]);
    let of_row = |(row, &token): (&[f32], &u32)| {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f32 = row.iter().map(|it| (it - top).exp()).sum();
        row[token as usize] - top - total.ln()
    };
    Ok(rows.map(of_row).collect())
}

/// A fork, and the first write to it.
fn fork(model: &Model) -> Result<()> {
    let cache = filled(model, &CacheOptions::new(), SHARED)?;
    let before = active_memory()?;
    let begun = Instant::now();
    let mut fork = cache.fork();
    let took = begun.elapsed();
    let copied = active_memory()?.saturating_sub(before);
    model.decoder().forward(&[&[7]], &mut fork, &mut NoHook)?.eval()?;
    fork.evaluate()?;
    let written = active_memory()?.saturating_sub(before);
    println!(
        "a fork of {SHARED} tokens takes {:.3} ms and {copied} bytes of {}; its first token then \
         {written} bytes",
        took.as_secs_f64() * 1e3,
        cache.allocated_bytes()
    );
    Ok(())
}

fn greedy(chunk: Option<usize>) -> GenerationConfig {
    GenerationConfig {
        do_sample: Some(false),
        max_new_tokens: Some(1),
        prefill_chunk_size: chunk,
        ..Default::default()
    }
}

/// What a prompt costs in passes of so many tokens: what cutting it at the ends of blocks does.
fn passes(model: &Model) -> Result<()> {
    let sizes = [2048, 256, 128, 64, 32];
    let mut times = vec![Vec::new(); sizes.len()];
    for _ in 0..3 {
        for (size, times) in sizes.iter().zip(&mut times) {
            let request = Request::new(ids(SHARED, 5)).config(greedy(Some(*size)));
            let begun = Instant::now();
            model.generate(request)?;
            times.push(begun.elapsed());
        }
    }
    for (size, times) in sizes.iter().zip(times) {
        let took = median(times).as_secs_f64() * 1e3;
        println!("{SHARED} tokens in passes of {size}: {took:.1} ms");
    }
    Ok(())
}

/// The first token of a prompt whose beginning was read before, and of one that shares nothing.
fn prefix(model: &Model, common: usize) -> Result<()> {
    let store = PrefixStore::new(usize::MAX);
    let first = |salt: usize, ending: usize| -> Result<Duration> {
        let prompt = [ids(common, salt), ids(8, ending)].concat();
        let request = Request::new(prompt).config(greedy(None)).prefix_store(&store);
        let begun = Instant::now();
        model.generate(request)?;
        Ok(begun.elapsed())
    };
    let (mut alone, mut shared) = (Vec::new(), Vec::new());
    for round in 0..3 {
        alone.push(first(10 + round, 1)?);
        shared.push(first(10 + round, 2)?);
    }
    let (alone, shared) = (median(alone).as_secs_f64(), median(shared).as_secs_f64());
    println!(
        "first token after {common} tokens that were read before and 8 that were not: {:.1} ms, else \
         {:.1} ms, {:.1} times as long; the store holds {:.2} times the cache",
        shared * 1e3,
        alone * 1e3,
        alone / shared,
        store.counters().bytes as f64 / (3 * common * model.decoder().kv_bytes_per_token()) as f64
    );
    Ok(())
}

/// Memory of a conversation that is bounded.
fn conversation(model: &Model) -> Result<()> {
    let mut cache = model.decoder().new_cache_with(&[0], &CacheOptions::new().bounded(4, 1024))?;
    let before = active_memory()?;
    let mut most = [0; 2];
    for turn in 0..200 {
        model.decoder().forward(&[&ids(50, turn)], &mut cache, &mut NoHook)?.eval()?;
        cache.evaluate()?;
        let half = usize::from(turn >= 40);
        most[half] = most[half].max(active_memory()?.saturating_sub(before));
    }
    println!(
        "10,000 tokens with max_kv_size 1024: {:.1} MB at most up to token 2,000, {:.1} MB after",
        most[0] as f64 / 1e6,
        most[1] as f64 / 1e6
    );
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
