//! Answers of the model under the guardrails of [`mlx_genkit::steering::Guard`].

use mlx_genkit::{
    GenerationConfig, Model, Prompt, Request, ResidualHook, Result, Seed, Sequence, steering::Guard,
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
    let base: Option<Vec<&[u32]>> =
        base.map(|it| it.iter().map(|it| it.answer.tokens.as_slice()).collect());
    let resamples = config.do_sample == Some(true);
    Guard { seed, resamples, base: base.as_deref() }.draw(
        prompts.len(),
        |it: &Sequence| (&it.text, &it.tokens),
        |asked, seed| {
            let request = Request::batch(asked.iter().map(|&at| prompts[at].clone()));
            let request = request.config(config.clone()).seed(Seed::Fast(seed));
            let mut answers = model.generate(request.hook(&mut *hook))?.sequences;
            answers.iter_mut().zip(asked).for_each(|(it, &at)| it.prompt_index = at);
            Ok(answers)
        },
    )
}
