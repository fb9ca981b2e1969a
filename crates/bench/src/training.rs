//! Steps of training that are timed.

use std::path::Path;
use std::time::Instant;

use mlx_genkit::{
    ComputeDtype, NoHook,
    mlx_models::Decoder,
    training::{
        AdapterFormat, Batch, Example, LoraConfig, Trainee, Trainer, TrainingConfig, attach_lora,
        clear_adapters, load_adapter, save_adapter,
    },
};
use serde_json::{Value, json};

use crate::{Result, peak_bytes, task::median};

/// Trains the adapter in the folder `adapter`, which is written first where it is missing, with AdamW.
/// Says the median step's tokens per second, without the first step, and the losses.
pub(crate) fn train(
    model: &Path,
    adapter: &Path,
    rows: &[Vec<u32>],
    steps: usize,
) -> Result<Value> {
    if steps < 2 {
        return Err("at least two steps are needed: the first is not counted".into());
    }
    let mut model = Decoder::load(model, ComputeDtype::Float32)?;
    if !adapter.exists() {
        attach_lora(&mut model, &LoraConfig::default())?;
        save_adapter(&model, adapter, AdapterFormat::Peft, "")?;
        clear_adapters(&mut model);
    }
    load_adapter(&mut model, adapter)?;
    let examples: Vec<Example> = rows.iter().cloned().map(Example::text).collect();
    let batch = [Batch::new(&examples)?];
    let trainee = Trainee::new(&mut model).adapters()?;
    let mut trainer = Trainer::new(trainee, TrainingConfig::new(steps as u64, 1e-3))?;
    let (mut times, mut losses) = (Vec::new(), Vec::new());
    for _ in 0..steps {
        let begun = Instant::now();
        let report = trainer.train_step(&batch, 0.0, &mut NoHook)?;
        times.push(begun.elapsed().as_secs_f64());
        losses.push(report.loss);
    }
    let tokens: usize = rows.iter().map(Vec::len).sum();
    Ok(json!({
        "tokens_per_second": tokens as f64 / median(times.split_off(1)),
        "losses": losses,
        "peak_bytes": peak_bytes()?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_step_is_refused() {
        for steps in [0, 1] {
            let error = train(Path::new("m"), Path::new("a"), &[], steps).unwrap_err();
            let expected = "at least two steps are needed: the first is not counted";
            assert_eq!(error.to_string(), expected);
        }
    }
}
