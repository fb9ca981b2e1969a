//! What each processor costs per token, at Qwen's vocabulary and 512 tokens of history.
//!
//! It times by hand: criterion would take longer to build than everything else in this crate.

#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use mlxgk_logits_processors::{
    Context, Dry, EncoderNoRepeatNGram, EncoderRepetitionPenalty, Error,
    ExponentialDecayLengthPenalty, ForcedEos, FrequencyPenalty, InfNanRemove, LogitNormalization,
    LogitsProcessor, MinLength, NoBadWords, NoRepeatNGram, PrefixConstrained, PresencePenalty,
    RepetitionPenalty, SeedingScheme, SequenceBias, SequenceBreakers, SuppressTokens, SynthIdText,
    SynthIdTextWatermarkingConfig, TokenBias, Watermark, WatermarkingConfig, guide,
};
use mlxgk_torch::TorchRng;

const VOCAB: usize = 151_936;
const HISTORY: usize = 512;
const PROMPT: usize = 256;

fn scores(seed: u64) -> Vec<f32> {
    let mut rng = TorchRng::new(seed);
    (0..VOCAB).map(|_| (rng.uniform_f32() - 0.5) * 16.0).collect()
}

/// Tokens as a text has them: many rare ones, some often.
fn history() -> Vec<u32> {
    let mut rng = TorchRng::new(1);
    (0..HISTORY).map(|_| (rng.uniform_f32().powi(3) * VOCAB as f32) as u32).collect()
}

fn sequences() -> Vec<Vec<u32>> {
    let mut rng = TorchRng::new(2);
    (0..100).map(|at| (0..at % 4 + 1).map(|_| rng.randint(VOCAB as u64) as u32).collect()).collect()
}

type Named = (&'static str, Box<dyn LogitsProcessor>);

fn processors() -> Result<Vec<Named>, Error> {
    let own_hash = WatermarkingConfig {
        seeding_scheme: SeedingScheme::SelfHash,
        ..WatermarkingConfig::default()
    };
    let synthid = SynthIdTextWatermarkingConfig::new(5, (0..30).collect());
    let biases = sequences().into_iter().map(|it| (it, 0.5));
    // Breakers that the text does not hold: the whole history is searched.
    let breakers = SequenceBreakers::new((VOCAB as u32..).take(4000).map(|it| vec![it]))?;
    Ok(vec![
        ("repetition penalty", Box::new(RepetitionPenalty::new(1.2)?)),
        ("encoder repetition penalty", Box::new(EncoderRepetitionPenalty::new(1.2)?)),
        ("frequency penalty", Box::new(FrequencyPenalty::new(0.5)?)),
        ("presence penalty", Box::new(PresencePenalty::new(0.5)?)),
        ("DRY", Box::new(Dry::new(0.8, 1.75, 2)?.with_breakers(breakers))),
        ("no repeat n-gram (3)", Box::new(NoRepeatNGram::new(3)?)),
        ("encoder no repeat n-gram (3)", Box::new(EncoderNoRepeatNGram::new(3)?)),
        ("sequence bias (100)", Box::new(SequenceBias::new(biases)?)),
        ("no bad words (100)", Box::new(NoBadWords::new(sequences(), &[])?)),
        ("token bias (300)", Box::new(TokenBias::new((0..300).map(|it| (it * 500, 1.0)))?)),
        ("min length", Box::new(MinLength::new(1000, [151_645]))),
        ("prefix constrained", Box::new(PrefixConstrained::new(|_| vec![5, 70_000, 9]))),
        ("forced eos", Box::new(ForcedEos::new(HISTORY + 1, [151_645]))),
        ("inf nan remove", Box::new(InfNanRemove)),
        ("exponential decay", Box::new(ExponentialDecayLengthPenalty::new(5, 1.01, [151_645])?)),
        ("suppress tokens (90)", Box::new(SuppressTokens::new((0..90).collect::<Vec<_>>()))),
        ("log softmax", Box::new(LogitNormalization)),
        ("watermark, left hash", Box::new(Watermark::new(&WatermarkingConfig::default(), VOCAB)?)),
        ("watermark, self hash", Box::new(Watermark::new(&own_hash, VOCAB)?)),
        ("SynthID (30 layers)", Box::new(SynthIdText::new(&synthid)?)),
    ])
}

/// Prints the best of many runs, which other load on the machine disturbs least.
fn bench(name: &str, before: &[f32], run: impl Fn(&mut [f32]) -> Result<(), Error>) {
    let mut scores = before.to_vec();
    let mut best = Duration::MAX;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(300) {
        scores.copy_from_slice(before);
        let started = Instant::now();
        let result = run(black_box(&mut scores));
        best = best.min(started.elapsed());
        if let Err(error) = result {
            return println!("{name:34} {error}");
        }
    }
    println!("{name:34} {:10.2} µs", best.as_secs_f64() * 1e6);
}

fn main() -> Result<(), Error> {
    let (so_far, scores, others) = (history(), scores(3), scores(4));
    let context = Context::new(&so_far, PROMPT);
    for (name, processor) in processors()? {
        bench(name, &scores, |scores| processor.process(&context, scores));
    }
    bench("guidance", &scores, |scores| guide(scores, &others, 1.5));

    // A watermark usually comes after top-k.
    let mut sorted = scores.clone();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let mut survivors = scores;
    survivors.iter_mut().filter(|it| **it < sorted[50]).for_each(|it| *it = f32::NEG_INFINITY);
    let config = SynthIdTextWatermarkingConfig::new(5, (0..30).collect());
    let synthid = SynthIdText::new(&config)?;
    bench("SynthID (30 layers) after top-k", &survivors, |scores| {
        synthid.process(&context, scores)
    });
    Ok(())
}
