//! Reads the residual stream while a prompt is scored: how far each block moves each token.

use std::io::{Write, stdout};

use mlx_genkit::{
    ComputeDtype, HookPoint, Model, Request, ResidualHook, kv_cache::Step, mlx_models,
    mlx_rs::Array,
};

/// Per block and token, the length of what the block added, relative to the stream before it.
#[derive(Default)]
struct Movement {
    before: Option<Array>,
    blocks: Vec<Vec<f32>>,
}

impl ResidualHook for Movement {
    fn apply(&mut self, at: HookPoint, hidden: Array, _: &Step) -> mlx_models::Result<Array> {
        match (at, self.before.take()) {
            (HookPoint::ResidPre(_), _) => self.before = Some(hidden.clone()),
            (HookPoint::ResidPost(_), Some(before)) => {
                let length = |it: &Array| it.square()?.sum_axis(-1, false)?.sqrt();
                let moved = length(&hidden.subtract(&before)?)?.divide(length(&before)?)?;
                let moved = moved.flatten(None, None)?;
                let moved = moved.try_as_slice::<f32>().map_err(|e| {
                    mlx_models::Error::new(mlx_models::ErrorKind::Hook, e.to_string())
                })?;
                self.blocks.push(moved.to_vec());
            }
            (_, before) => self.before = before,
        }
        Ok(hidden)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let text = std::env::args().nth(1).unwrap_or_else(|| "The fox went to the harbour.".to_owned());
    let model = Model::bundled(ComputeDtype::Float32)?;
    let mut movement = Movement::default();
    let scored = model.score(Request::new(text).hook(&mut movement))?;

    let mut out = stdout();
    write!(out, "{:>12}", "token")?;
    for block in 0..movement.blocks.len() {
        write!(out, "  block {block}")?;
    }
    writeln!(out, "  log p of the next")?;
    for (index, &id) in scored.tokens.iter().enumerate().take(scored.logprobs.len()) {
        write!(out, "{:>12}", model.tokenizer()?.id_to_token(id).unwrap_or_default())?;
        for block in &movement.blocks {
            write!(out, "{:>9.2}", block[index])?;
        }
        writeln!(out, "{:>19.2}", scored.logprobs[index])?;
    }
    Ok(())
}
