//! The norm of all gradients together, and its bound.

use mlx_rs::{Array, Dtype, ops::stack, transforms::eval};

use crate::{Result, head::host};

/// Scales gradients down where the norm of all of them together is above `max_norm`, as torch's
/// `clip_grad_norm_`: by `max_norm / (norm + 1e-6)`. Returns them with the norm that they had before.
/// A norm that is not finite scales nothing.
///
/// # Errors
/// When MLX fails.
pub fn clip_global_norm(gradients: Vec<Array>, max_norm: Option<f32>) -> Result<(Vec<Array>, f32)> {
    if gradients.is_empty() {
        return Ok((gradients, 0.0));
    }
    let mut norms = Vec::with_capacity(gradients.len());
    for gradient in &gradients {
        norms.push(gradient.as_dtype(Dtype::Float32)?.square()?.sum(None)?);
    }
    let norm = host(&stack(&norms, 0)?.sum(None)?.sqrt()?)?[0];
    let factor = max_norm.map_or(1.0, |most| (most / (norm + 1e-6)).min(1.0));
    if factor >= 1.0 || !norm.is_finite() {
        return Ok((gradients, norm));
    }
    let factor = Array::from_f32(factor);
    let mut clipped = Vec::with_capacity(gradients.len());
    for gradient in &gradients {
        clipped.push(gradient.multiply(&factor)?);
    }
    eval(&clipped)?;
    Ok((clipped, norm))
}
