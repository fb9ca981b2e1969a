//! Answers that get a second chance: one that looks broken, or equals the unsteered one, is drawn
//! once more.

use mlx_genkit::{
    GenerationConfig, Model, Prompt, Request, ResidualHook, Result, Seed, Sequence,
    steering::{Suspicion, suspicions},
};

/// An answer, and what had to be done for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Guarded {
    /// The answer that stands.
    pub sequence: Sequence,
    /// What is suspect about it; empty where it looks sound.
    pub suspicions: Vec<Suspicion>,
    /// Why an earlier draw was given up; `None` for a first one.
    pub resampled: Option<Reason>,
}

/// Why an answer was drawn again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It looked broken.
    Suspect(Vec<Suspicion>),
    /// It was the unsteered answer.
    SameAsBase,
}

/// Answers every prompt, as one batch under `config` (one answer per prompt), and draws those again,
/// once, that are suspect or equal their entry in `base`. A greedy config has nothing to draw.
///
/// `seed` feeds both draws; the second has a stream of its own.
///
/// # Errors
/// As [`Model::generate`].
pub fn guarded(
    model: &Model,
    prompts: &[Prompt],
    hook: &mut dyn ResidualHook,
    config: &GenerationConfig,
    seed: u64,
    base: Option<&[Guarded]>,
) -> Result<Vec<Guarded>> {
    let mut draw = |prompts: &[Prompt], seed: u64| {
        let request = Request::batch(prompts.iter().cloned()).config(config.clone());
        model.generate(request.seed(Seed::Fast(seed)).hook(&mut *hook))
    };
    let same = |at: usize, sequence: &Sequence| {
        base.is_some_and(|it| it[at].sequence.tokens == sequence.tokens)
    };
    let first = draw(prompts, stream(seed, 0))?.sequences;
    let mut answers: Vec<Guarded> = first
        .into_iter()
        .map(|it| Guarded { suspicions: suspicions(&it.text), sequence: it, resampled: None })
        .collect();
    if config.do_sample != Some(true) {
        return Ok(answers);
    }
    let reason = |(at, it): (usize, &Guarded)| match &it.suspicions[..] {
        [] if same(at, &it.sequence) => Some((at, Reason::SameAsBase)),
        [] => None,
        found => Some((at, Reason::Suspect(found.to_vec()))),
    };
    let again: Vec<(usize, Reason)> = answers.iter().enumerate().filter_map(reason).collect();
    if again.is_empty() {
        return Ok(answers);
    }
    let asked: Vec<Prompt> = again.iter().map(|(at, _)| prompts[*at].clone()).collect();
    let second = draw(&asked, stream(seed, 1))?.sequences;
    for ((at, reason), mut sequence) in again.into_iter().zip(second) {
        sequence.prompt_index = at;
        answers[at] =
            Guarded { suspicions: suspicions(&sequence.text), sequence, resampled: Some(reason) };
    }
    Ok(answers)
}

/// A seed of its own for every use of one: SplitMix64's mixing step.
pub(crate) fn stream(seed: u64, of: u64) -> u64 {
    let mut z = seed ^ of.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
