//! Classifier-free guidance: what a request is moved away from.

use mlxgk_decoding_strategies::LeftPadded;
use mlxgk_generation_config::Resolved;

use crate::{Error, ErrorKind, Model, Prompt, Result};

/// The scale, and the prompts with what they are guided away from behind them.
#[derive(Debug)]
pub(crate) struct Guidance {
    pub(crate) scale: f64,
    pub(crate) rows: LeftPadded,
}

impl Guidance {
    /// What `guidance_scale` asks for; `None` where it asks for nothing.
    pub(crate) fn new(
        resolved: &Resolved,
        model: &Model,
        negative: &[Prompt],
        prompts: &LeftPadded,
    ) -> Result<Option<Self>> {
        let Some(scale) = resolved.config.guidance_scale.filter(|it| *it != 1.0) else {
            return match negative.is_empty() {
                true => Ok(None),
                false => {
                    let what = "negative prompts need a `guidance_scale` other than 1";
                    Err(Error::new(ErrorKind::Request, what))
                }
            };
        };
        if !scale.is_finite() {
            let what = format!("`guidance_scale` must be a finite number, but is {scale}");
            return Err(Error::new(ErrorKind::Request, what));
        }
        let count = prompts.rows().len();
        if !matches!(negative.len(), 0 | 1) && negative.len() != count {
            let what = format!("{} negative prompts for {count} prompts", negative.len());
            return Err(Error::new(ErrorKind::Request, what));
        }
        let negative = negative.iter().map(|it| it.ids(model)).collect::<Result<Vec<_>>>()?;
        let unpadded = prompts.rows().iter().zip(prompts.padding());
        let with: Vec<Vec<u32>> = unpadded.map(|(row, &padding)| row[padding..].to_vec()).collect();
        let without = |(row, prompt): (usize, &Vec<u32>)| match negative.as_slice() {
            // HF goes on from the prompt's last token alone.
            [] => prompt[prompt.len() - 1..].to_vec(),
            [one] => one.clone(),
            several => several[row].clone(),
        };
        let without: Vec<Vec<u32>> = with.iter().enumerate().map(without).collect();
        let rows = LeftPadded::new(&[with, without].concat(), 0)?;
        Ok(Some(Self { scale, rows }))
    }
}
