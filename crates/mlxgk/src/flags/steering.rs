//! The steering flags of several commands, and the steering they ask for.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::Args;
use mlx_genkit::{
    Model,
    steering::{
        Conflict, ErrorKind, Injection, Layers, Operation, Positions, Schedule, Steering,
        SteeringHook, SteeringVectors,
    },
};

use crate::{
    failure::{Failure, Result},
    files::named,
    terminal,
};

/// Steering of `generate`, `chat`, `score` and `validate`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Steering")]
pub(crate) struct SteerArgs {
    /// Steering file and strength (default 1); repeatable, later ones add to earlier ones
    #[arg(long, value_name = "FILE[:ALPHA]")]
    pub(crate) steer: Vec<Dose>,
    /// Layers to steer: 3, 2,5, 4..10 or 4..=9 (both 4 to 9), or all (the default: every layer in the
    /// file)
    #[arg(long, value_name = "LAYERS", requires = "steer")]
    pub(crate) steer_layers: Option<Layers>,
    /// Operation: add, add-unit, add-relative, norm-preserve, ablate,
    /// ablate-partial, ablate-add, ablate-subspace, clamp, cap-max, cap-min, rotate or replace
    #[arg(long, value_name = "OP", requires = "steer")]
    pub(crate) steer_op: Option<Operation>,
    /// Tokens to steer: all, prompt, generation (the last prompt token and everything after it),
    /// `prompt[A..B]`, `generation[A..B]` (from A up to B, without B; either may be left out),
    /// `tokens[ID;ID]`; several with commas, a `-` before one excludes it
    #[arg(long, value_name = "WHERE", requires = "steer", allow_hyphen_values = true)]
    pub(crate) steer_positions: Option<Positions>,
    /// Schedule of the strength over the answer: constant, warmup:N, ramp:START:END, cosine:N, decay:TAU,
    /// pulse:PERIOD:DUTY or points:T=A,T=A,...
    #[arg(long, value_name = "SCHEDULE")]
    pub(crate) steer_schedule: Option<Schedule>,
    /// Steer the logits instead of a layer: adds ALPHA · W v to them
    #[arg(long, value_name = "FILE[:ALPHA]")]
    pub(crate) steer_logits: Vec<Dose>,
    /// Limit the strength at each token so that KL(steered ‖ base) is at most this many nats
    #[arg(long, value_name = "NATS", value_parser = budget)]
    pub(crate) steer_kl: Option<f64>,
}

/// A file and how much of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Dose {
    pub(crate) file: PathBuf,
    pub(crate) alpha: f64,
}

impl SteerArgs {
    /// The hook for `model`; `None` where nothing is steered.
    pub(crate) fn hook(&self, model: &Model) -> Result<Option<SteeringHook>> {
        let steering = self.steering(model)?;
        if steering.is_empty() {
            return Ok(None);
        }
        Ok(Some(steering.hook(model.decoder()).map_err(steering_failure)?))
    }

    /// What the flags ask for.
    pub(crate) fn steering(&self, model: &Model) -> Result<Steering> {
        let schedule = self.schedule();
        let mut steering = Steering::new(self.residual(model)?, Conflict::Sum);
        for dose in &self.steer_logits {
            let vectors = read(&dose.file, model)?.for_logits();
            steering =
                steering.with(Injection::new(vectors, dose.alpha).schedule(schedule.clone()));
        }
        for (given, flag) in [
            (self.steer_schedule.is_some(), "--steer-schedule"),
            (self.steer_kl.is_some(), "--steer-kl"),
        ] {
            if given && steering.is_empty() {
                return Err(Failure::usage(format_args!("{flag} needs --steer or --steer-logits")));
            }
        }
        Ok(match self.steer_kl {
            Some(nats) => steering.budget(nats),
            None => steering,
        })
    }

    /// The same flags with one file in place of all.
    pub(crate) fn with_file(&self, dose: Dose) -> Self {
        Self { steer: vec![dose], steer_logits: Vec::new(), ..self.clone() }
    }

    fn schedule(&self) -> Schedule {
        self.steer_schedule.clone().unwrap_or_default()
    }

    fn residual(&self, model: &Model) -> Result<Vec<Injection>> {
        if self.steer.is_empty() {
            return Ok(Vec::new());
        }
        let mut sets = Vec::new();
        for dose in &self.steer {
            let vectors = read(&dose.file, model)?;
            sets.push((dose.alpha, self.chosen(vectors, &dose.file, model)?));
        }
        let operation = self.steer_op.unwrap_or_default();
        if !operation.uses_alpha() && self.steer.iter().any(|it| it.alpha != 0.0 && it.alpha != 1.0)
        {
            terminal::warning(&format!(
                "--steer-op {operation} has no strength; ALPHA is not used"
            ));
        }
        let injections = match operation {
            // A sum of vectors is one vector.
            Operation::Add | Operation::NormPreserve if sets.len() > 1 => {
                let parts: Vec<_> = sets.iter().map(|(alpha, it)| (*alpha, it)).collect();
                vec![Injection::new(
                    SteeringVectors::combined(&parts).map_err(steering_failure)?,
                    1.0,
                )]
            }
            Operation::AblateSubspace => {
                vec![Injection::subspace(sets.into_iter().map(|it| it.1).collect())]
            }
            _ => sets.into_iter().map(|(alpha, it)| Injection::new(it, alpha)).collect(),
        };
        let positions = self.steer_positions.clone().unwrap_or_default();
        let finish = |it: Injection| {
            it.operation(operation).positions(positions.clone()).schedule(self.schedule())
        };
        Ok(injections.into_iter().map(finish).collect())
    }

    /// The layers asked for: a single one has to be in the file, of a range those that are.
    fn chosen(
        &self,
        vectors: SteeringVectors,
        file: &Path,
        model: &Model,
    ) -> Result<SteeringVectors> {
        let Some(layers) = &self.steer_layers else { return Ok(vectors) };
        vectors
            .select(layers, model.decoder().components().layers)
            .map_err(|e| Failure::usage(format_args!("--steer-layers: {}: {e}", file.display())))
    }
}

/// Reads a steering file and checks it against the model, so that an error names it.
fn read(file: &Path, model: &Model) -> Result<SteeringVectors> {
    let vectors = named(SteeringVectors::load(file))?;
    vectors
        .check(model.decoder())
        .map_err(|e| Failure::usage(format_args!("{}: {e}", file.display())))?;
    Ok(vectors)
}

/// A file that cannot be written is a failure of the run, not of the command line.
pub(crate) fn steering_failure(error: mlx_genkit::steering::Error) -> Failure {
    match error.kind() {
        ErrorKind::File | ErrorKind::Run => Failure::other(error),
        _ => Failure::usage(error),
    }
}

/// `FILE` or `FILE:ALPHA`. What stands after the last colon is ALPHA, unless it looks like the rest
/// of a path; which of the two it is never depends on what files there are. `FILE:1` says that
/// colons in a name belong to it.
impl FromStr for Dose {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (file, alpha) = match text.rsplit_once(':') {
            Some((file, alpha)) if !alpha.contains(['/', '\\']) && !is_file_name(alpha) => {
                (file, Some(alpha))
            }
            _ => (text, None),
        };
        if file.is_empty() {
            return Err("expected FILE or FILE:ALPHA".to_owned());
        }
        let alpha = match alpha.map(|it| (it, it.parse::<f64>())) {
            None => 1.0,
            Some((_, Ok(alpha))) if alpha.is_finite() => alpha,
            Some((text, Ok(_))) => return Err(format!("ALPHA must be finite, but is {text}")),
            Some((text, Err(_))) => {
                return Err(format!("ALPHA must be a number, but is {text:?}"));
            }
        };
        Ok(Self { file: file.into(), alpha })
    }
}

/// Whether a text has a file's extension: something other than digits after a dot.
fn is_file_name(text: &str) -> bool {
    let extension = text.rsplit_once('.').map(|it| it.1).unwrap_or_default();
    text.parse::<f64>().is_err() && extension.starts_with(|it: char| it.is_ascii_alphabetic())
}

/// A file and its strength as people type them in a chat: `FILE`, `FILE:ALPHA` or `FILE ALPHA`.
pub(crate) fn typed_dose(text: &str) -> Result<Dose, String> {
    match text.rsplit_once(char::is_whitespace) {
        Some((file, alpha)) if alpha.parse::<f64>().is_ok() => {
            format!("{}:{alpha}", file.trim()).parse()
        }
        _ => text.parse(),
    }
}

fn budget(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(nats) if f64::is_finite(nats) && nats > 0.0 => Ok(nats),
        _ => Err("must be a number above 0".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dose_is_a_file_and_perhaps_a_number() {
        let of =
            |text: &str| text.parse::<Dose>().map(|it| (it.file.display().to_string(), it.alpha));
        assert_eq!(of("joy.safetensors"), Ok(("joy.safetensors".into(), 1.0)));
        assert_eq!(of("joy.safetensors:-1.5"), Ok(("joy.safetensors".into(), -1.5)));
        assert_eq!(of("a:b/joy.safetensors"), Ok(("a:b/joy.safetensors".into(), 1.0)));
        assert_eq!(of("a:b:2e0"), Ok(("a:b".into(), 2.0)));
        assert_eq!(of("C:\\joy.safetensors"), Ok(("C:\\joy.safetensors".into(), 1.0)));
        assert_eq!(of("a:joy.safetensors"), Ok(("a:joy.safetensors".into(), 1.0)));
        // Whatever files there are, also for a name that exists (the test runs beside it).
        for text in ["Cargo.toml", "nowhere.toml"] {
            assert_eq!(of(&format!("{text}:0.5")), Ok((text.into(), 0.5)));
            assert!(of(&format!("{text}:much")).unwrap_err().contains("must be a number"));
        }
        assert!(of("joy.safetensors:inf").unwrap_err().contains("must be finite"));
        assert!(of("joy.safetensors:").is_err());
        assert!(of(":1").is_err());
        let typed = |text| typed_dose(text).map(|it| (it.file.display().to_string(), it.alpha));
        assert_eq!(typed("joy.safetensors"), Ok(("joy.safetensors".into(), 1.0)));
        assert_eq!(typed("my joy.safetensors  -1.5"), Ok(("my joy.safetensors".into(), -1.5)));
        assert_eq!(typed("my joy.safetensors"), Ok(("my joy.safetensors".into(), 1.0)));
        assert!(of("").is_err());
    }
}
