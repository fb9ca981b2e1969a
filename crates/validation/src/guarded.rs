//! Answers of the model under guardrails ([`mlx_genkit::Guardrails`]).

use mlx_genkit::{
    GenerationConfig, Guardrails, Model, Prompt, Request, ResidualHook, Result, Seed, Sequence,
    steering::derive_seed,
};

/// An answer of the model, and what the guardrails say of it.
pub type Guarded = mlx_genkit::steering::Guarded<Sequence>;

/// Answers every prompt, as one batch under `config` (one answer per prompt), and draws those again,
/// once, that are suspect or equal their entry in `base`. A greedy config has nothing to draw.
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
    let stream = |draw| Seed::Fast(derive_seed(seed, draw));
    let mut guardrails = Guardrails::new().seed(stream(1));
    if let Some(base) = base {
        guardrails = guardrails.differing_from(base.iter().map(|it| it.answer.tokens.clone()));
    }
    let request = Request::batch(prompts.iter().cloned()).config(config.clone()).seed(stream(0));
    let generation = model.generate(request.hook(hook).guardrails(guardrails))?;
    let guarded = |mut it: Sequence| {
        let verdict = it.verdict.take().unwrap_or_default();
        verdict.with(it)
    };
    Ok(generation.sequences.into_iter().map(guarded).collect())
}
