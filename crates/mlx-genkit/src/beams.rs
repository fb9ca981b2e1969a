//! Requests that are answered by a search over beams.

use std::time::Instant;

use mlxgk_decoding_strategies::{
    Beam, BeamOptions, BeamSearch, Constraint, EarlyStopping, HeapBeamSearch, Kept, Variant,
};
use mlxgk_generation_config::{self as fields, GenerationMode, Resolved};

use crate::{
    Error, ErrorKind, Generation, Result, Sequence,
    generate::{Job, prefill},
    healing::beyond,
    stream::RowText,
};

/// Runs the search to its end.
pub(crate) fn generate(job: Job<'_>) -> Result<Generation> {
    let options = options(&job.resolved);
    let variant = match job.resolved.mode {
        GenerationMode::GroupBeamSearch => Some(Variant::Groups {
            groups: job.resolved.config.num_beam_groups.unwrap_or(1),
            diversity_penalty: job.resolved.config.diversity_penalty.unwrap_or(0.0),
        }),
        GenerationMode::ConstrainedBeamSearch => Some(Variant::Words(constraints(&job)?)),
        _ => None,
    };
    let Job { model, resolved, padded, processors, stopping, trimmed, healed, .. } = job;
    let session = prefill(model, &resolved, &padded, job.copies, job.hook)?;
    let (rows, padding) = (padded.rows(), padded.padding());
    let (beams, prefilled) = match variant {
        None => {
            let mut search =
                BeamSearch::new(session, rows, padding, processors, job.rule, stopping, options)?;
            search.wait()?;
            let prefilled = Instant::now();
            search.by_ref().try_for_each(|step| step)?;
            (search.finish()?.1, prefilled)
        }
        Some(variant) => {
            let (stop, pad) = (stopping.stop().clone(), job.pad);
            let mut search = HeapBeamSearch::new(
                session, rows, padding, processors, stop, pad, options, variant,
            )?;
            search.wait()?;
            let prefilled = Instant::now();
            search.by_ref().try_for_each(|step| step)?;
            (search.finish()?.1, prefilled)
        }
    };
    let end = Instant::now();
    let sequence = |beam: Beam| {
        let (prompt, healed) = (&rows[beam.prompt_index], beyond(&healed, beam.prompt_index));
        Ok(Sequence {
            prompt_index: beam.prompt_index,
            text: RowText::new(model, prompt, healed, &trimmed)?.whole(&beam.tokens)?,
            tokens: beam.tokens,
            finish_reason: beam.finish_reason,
            score: Some(beam.score),
            beam_indices: Some(beam.beam_indices),
            beam_scores: Some(beam.transition_scores),
            kept: Kept::default(),
            hidden_states: None,
        })
    };
    Ok(Generation {
        sequences: beams.into_iter().map(sequence).collect::<Result<Vec<_>>>()?,
        prompt_tokens: job.prompt_tokens,
        prefill: prefilled - job.begun,
        decode: end - prefilled,
        warnings: resolved.warnings,
        acceptance: None,
        healed_prompts: healed.into_iter().map(|it| it.ids).collect(),
    })
}

fn options(resolved: &Resolved) -> BeamOptions {
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

/// The words of `force_words_ids`, each of which the model can say.
fn constraints(job: &Job<'_>) -> Result<Vec<Constraint>> {
    let vocab = job.model.decoder().vocab_size();
    let token = |id: &fields::TokenId| match u32::try_from(*id) {
        Ok(token) if job.stopping.stop().eos.contains(&token) => {
            Err(wrong(&format!("{token}, which ends a sequence")))
        }
        Ok(token) if (token as usize) < vocab => Ok(token),
        _ => Err(wrong(&format!("{id}, which is outside the vocabulary of {vocab}"))),
    };
    let words = job.resolved.config.force_words_ids.as_deref().unwrap_or_default();
    words
        .iter()
        .map(|word| {
            let phrases = word.alternatives().iter().map(|it| it.iter().map(token).collect());
            Ok(Constraint::any_of(phrases.collect::<Result<_>>()?)?)
        })
        .collect()
}

fn wrong(what: &str) -> Error {
    Error::new(ErrorKind::Request, format!("`force_words_ids` holds {what}"))
}
