//! Requests that are answered by a search over beams.

use std::time::Instant;

use mlxgk_decoding_strategies::{BeamOptions, BeamSearch, EarlyStopping, Kept};
use mlxgk_generation_config as fields;

use crate::{
    Generation, Result, Sequence,
    generate::{Job, prefill, text},
    healing::beyond,
};

/// Runs the search to its end.
pub(crate) fn generate(job: Job<'_>) -> Result<Generation> {
    let Job { model, resolved, padded, healed, .. } = job;
    let session = prefill(model, &resolved, &padded, job.copies, job.hook)?;
    let (rows, padding, options) = (padded.rows(), padded.padding(), options(&resolved));
    let (processors, rule, stop) = (job.processors, job.rule, job.stopping.stop().clone());
    let mut search = BeamSearch::new(session, rows, padding, processors, rule, stop, options)?;
    search.wait()?;
    let prefilled = Instant::now();
    for step in search.by_ref() {
        step?;
    }
    let (_, beams) = search.finish()?;
    let end = Instant::now();
    let sequences = beams
        .into_iter()
        .map(|beam| {
            Ok(Sequence {
                prompt_index: beam.prompt_index,
                text: beyond(&healed, beam.prompt_index).to_owned() + &text(model, &beam.tokens)?,
                tokens: beam.tokens,
                finish_reason: beam.finish_reason,
                score: Some(beam.score),
                beam_indices: Some(beam.beam_indices),
                kept: Kept::default(),
                hidden_states: None,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Generation {
        sequences,
        prompt_tokens: job.prompt_tokens,
        prefill: prefilled - job.begun,
        decode: end - prefilled,
        warnings: resolved.warnings,
        acceptance: None,
        healed_prompts: healed.into_iter().map(|it| it.ids).collect(),
    })
}

fn options(resolved: &fields::Resolved) -> BeamOptions {
    BeamOptions {
        num_beams: resolved.num_beams,
        num_return_sequences: resolved.num_return_sequences,
        length_penalty: resolved.config.length_penalty.unwrap_or(1.0),
        early_stopping: match resolved.config.early_stopping {
            None | Some(fields::EarlyStopping::Heuristic) => EarlyStopping::Heuristic,
            Some(fields::EarlyStopping::WhenFinished) => EarlyStopping::WhenFinished,
            Some(fields::EarlyStopping::Never) => EarlyStopping::Never,
        },
    }
}
