//! What each processor costs per token, at Qwen's vocabulary and 512 tokens of history.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use mlxgk_logits_processors::{
    Context, Dry, EncoderNoRepeatNGram, EncoderRepetitionPenalty, Error,
    ExponentialDecayLengthPenalty, ForcedEos, FrequencyPenalty, InfNanRemove, LogitNormalization,
    LogitsProcessor, MinLength, NoBadWords, NoRepeatNGram, PrefixConstrained, PresencePenalty,
    RepetitionPenalty, SeedingScheme, SequenceBias, SequenceBreakers, SuppressTokens, SynthIdText,
    SynthIdTextWatermarkingConfig, TokenBias, TorchRng, Watermark, WatermarkingConfig, guide,
};

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
    let breakers = SequenceBreakers::new((0..4000).map(|it| vec![it]))?;
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

fn per_token(criterion: &mut Criterion) {
    let (said, scores, others) = (history(), scores(3), scores(4));
    let context = Context::new(&said, PROMPT);
    let mut group = criterion.benchmark_group("processors");
    let mut bench = |name: &str, before: &Vec<f32>, run: &dyn Fn(&mut [f32])| {
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(
                || before.clone(),
                |scores| run(black_box(scores)),
                BatchSize::PerIteration,
            );
        });
    };
    for (name, processor) in processors().unwrap_or_default() {
        bench(name, &scores, &|scores| {
            black_box(processor.process(&context, scores)).unwrap_or_default();
        });
    }
    bench("guidance", &scores, &|scores| {
        black_box(guide(scores, &others, 1.5)).unwrap_or_default();
    });

    // A watermark usually comes after top-k.
    let mut survivors = scores.clone();
    let mut sorted = scores.clone();
    sorted.sort_by(|a, b| b.total_cmp(a));
    survivors.iter_mut().filter(|it| **it < sorted[50]).for_each(|it| *it = f32::NEG_INFINITY);
    let config = SynthIdTextWatermarkingConfig::new(5, (0..30).collect());
    if let Ok(synthid) = SynthIdText::new(&config) {
        bench("SynthID (30 layers) after top-k", &survivors, &|scores| {
            black_box(synthid.process(&context, scores)).unwrap_or_default();
        });
    }
}

fn torch_generator(criterion: &mut Criterion) {
    let mut rng = TorchRng::new(5);
    criterion.bench_function("generator/two outputs per token", |bencher| {
        bencher.iter(|| (0..2 * VOCAB).fold(0, |all, _| all ^ rng.next_u32()));
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(1))
        .sample_size(30);
    targets = per_token, torch_generator
}
criterion_main!(benches);
