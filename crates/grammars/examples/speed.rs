//! What grammars cost over a published vocabulary: the first one after a tokenizer is loaded, further
//! ones up to their first mask, and the masks of random texts. Times are the best of several tries, so
//! that they mean something beside other work.
//!
//! `cargo run --release -p mlxgk-grammars --example speed -- FOLDER`, with the folder of a
//! `tokenizer.json`

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::{error::Error, hint::black_box, path::PathBuf, time::Instant};

use mlxgk_grammars::{Grammar, GrammarProcessor, Vocabulary};
use mlxgk_logits_processors::{Context, LogitsProcessor};
use mlxgk_tokenizer_bridge::Tokenizer;
use mlxgk_torch::TorchRng;
use serde_json::Value;

/// The schemas and expressions that the tests walk through.
const CASES: &str = include_str!("../tests/cases.json");
/// Tokens of each random text.
const LENGTH: usize = 60;
/// How often something is done, of which the fastest counts.
const TRIES: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let folder: PathBuf =
        std::env::args_os().nth(1).ok_or("expected the folder of a tokenizer.json")?.into();
    let start = Instant::now();
    let tokenizer = Tokenizer::from_folder(&folder)?;
    println!("tokenizer loaded        {:8.1} ms", milliseconds(start));

    let count = tokenizer.texts().len();
    let special = (0..count as u32).rev().find(|&id| tokenizer.texts().is_special(id));
    let end = special.ok_or("the tokenizer has no special token that could end a text")?;
    let mut grammars = grammars()?.into_iter();
    let first = grammars.next().ok_or("no grammar")?;

    let (vocabulary, ms) = best(|| {
        let vocabulary = Vocabulary::from_tokenizer(&tokenizer, &[end])?;
        black_box(started(&vocabulary, &first.1, count)?);
        Ok(vocabulary)
    })?;
    println!("first grammar           {ms:8.1} ms, vocabulary of {count}");

    let (mut starts, mut masks) = (Vec::new(), Vec::new());
    for (at, (source, grammar)) in grammars.enumerate() {
        let (processor, ms) = best(|| started(&vocabulary, &grammar, count))?;
        starts.push((ms, source));
        walk(&processor, end, count, at as u64, &mut masks)?;
    }
    starts.sort_by(|a, b| a.0.total_cmp(&b.0));
    masks.sort_by(f64::total_cmp);
    let ms: Vec<f64> = starts.iter().map(|it| it.0).collect();
    println!("further ones, to a mask {}", spread(&ms, "ms"));
    println!("masks                   {}", spread(&masks, "µs"));
    for (ms, source) in starts.iter().rev().take(5) {
        println!("  {ms:8.1} ms  {}", source.chars().take(90).collect::<String>());
    }
    Ok(())
}

/// The grammars, each with its source.
fn grammars() -> Result<Vec<(String, Grammar)>, Box<dyn Error>> {
    let cases: Value = serde_json::from_str(CASES)?;
    let list = |key: &str| cases[key].as_array().cloned().unwrap_or_default();
    let mut grammars = Vec::new();
    for schema in list("schemas") {
        grammars.push((schema.to_string(), Grammar::json_schema(&schema)?));
    }
    for expression in list("expressions") {
        let text = expression.as_str().unwrap_or_default();
        grammars.push((text.to_owned(), Grammar::regex(text)?));
    }
    Ok(grammars)
}

/// What the last of several tries made, and the milliseconds of the fastest.
fn best<T>(
    mut work: impl FnMut() -> Result<T, Box<dyn Error>>,
) -> Result<(T, f64), Box<dyn Error>> {
    let mut timed = || {
        let start = Instant::now();
        work().map(|made| (made, milliseconds(start)))
    };
    let mut fastest = timed()?;
    for _ in 1..TRIES {
        let (made, ms) = timed()?;
        fastest = (made, ms.min(fastest.1));
    }
    Ok(fastest)
}

/// A processor that has made its first mask.
fn started(
    vocabulary: &Vocabulary,
    grammar: &Grammar,
    count: usize,
) -> Result<GrammarProcessor, Box<dyn Error>> {
    let processor = GrammarProcessor::new(vocabulary, grammar)?;
    processor.process(&Context::new(&[], 0), &mut vec![0.0; count])?;
    Ok(processor)
}

/// A random text of the grammar; adds what its masks took, in microseconds.
fn walk(
    processor: &GrammarProcessor,
    end: u32,
    count: usize,
    seed: u64,
    masks: &mut Vec<f64>,
) -> Result<(), Box<dyn Error>> {
    let mut random = TorchRng::new(seed);
    let (mut tokens, mut scores) = (Vec::new(), vec![0.0; count]);
    while tokens.len() < LENGTH {
        scores.fill(0.0);
        let start = Instant::now();
        processor.process(&Context::new(&tokens, 0), &mut scores)?;
        masks.push(1000.0 * milliseconds(start));
        let allowed: Vec<u32> =
            (0..count as u32).filter(|id| scores[*id as usize] == 0.0).collect();
        let at = (random.uniform_f32() * allowed.len() as f32) as usize;
        let token = allowed[at.min(allowed.len() - 1)];
        if token == end {
            break;
        }
        tokens.push(token);
    }
    Ok(())
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}

fn spread(sorted: &[f64], unit: &str) -> String {
    let at = |part: f64| sorted[(part * (sorted.len() - 1) as f64) as usize];
    format!(
        "{:8.1} {unit} in the middle, {:.1} at 90 %, {:.1} at most, {} in all",
        at(0.5),
        at(0.9),
        at(1.0),
        sorted.len()
    )
}
