//! The safe face of the C++ operations.
//!
//! What makes the calls sound: an operation is reached only through a [`Native`], which exists only
//! where the linked library brings them; `check` has held shapes and types against what
//! `cpp/mlxgk.h` asks for; arrays and stream are borrowed for the whole call; and C++ itself takes any
//! layout in memory.

#![allow(unsafe_code, reason = "C functions that mlx-rs does not know")]

use mlx_rs::{Array, error::Result, fast::ScaledDotProductAttentionMask};
use mlx_sys::mlx_array;

use self::linked::{Linked, call, call_all, linked};
use crate::{
    Packed, Quantization, check,
    routing::{Groups, Routing},
};

/// A handle with no array behind it.
const EMPTY: mlx_array = mlx_array { ctx: std::ptr::null_mut() };

#[cfg(mlxgk_native_ops)]
mod linked;

/// Where no library brings them: nothing is linked, so there is no [`Native`] to call anything on.
#[cfg(not(mlxgk_native_ops))]
mod linked {
    pub(super) type Linked = std::convert::Infallible;

    pub(super) fn linked() -> Option<Linked> {
        None
    }

    macro_rules! call {
        ($native:ident, $operation:ident($($argument:expr),*)) => {{
            let _ = || ($($argument),*);
            match $native.0 {}
        }};
    }
    pub(super) use call;
    pub(super) use call as call_all;
}

/// The operations. A value exists only where they can be called; it costs nothing to keep or copy.
///
/// All compute in fp32 on the CPU and are ordinary operations of MLX's graph: lazy, and
/// differentiable in reverse mode. Arrays may lie in memory in any way.
///
/// ```
/// use mlx_rs::Array;
/// use mlxgk_native::Native;
///
/// # fn main() -> Result<(), mlx_rs::error::Exception> {
/// let (x, weight) = (Array::from_slice(&[3.0_f32, 4.0], &[1, 2]), Array::from_slice(&[1.0_f32, 2.0], &[2]));
/// if let Some(native) = Native::new() {
///     let norm = native.rms_norm(&x, &weight, 0.0)?; // [3, 4] / √12.5 · [1, 2]
///     assert_eq!(norm.shape(), [1, 2]);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Native(Linked);

impl Native {
    /// The operations, where the library that MLX is linked from brings them: on Linux, as
    /// `cargo xtask setup` makes it. Otherwise `None`.
    #[must_use]
    pub fn new() -> Option<Self> {
        linked().map(Self)
    }

    /// Softmax attention with grouped key/value heads, `softmax(scale · q kᵀ) v`.
    ///
    /// `queries` is `[batch, heads, tokens, dim]`, `keys` and `values` are
    /// `[batch, groups, columns, dim]`, and `groups` divides `heads`; returns
    /// `[batch, heads, tokens, dim]`. A mask of booleans (`true` is seen) broadcasts to
    /// `[batch, heads, tokens, columns]`; under a causal one the last token sees every column. With
    /// `soft_cap` c the scores become `c · tanh(s / c)` before the mask. A query that sees nothing
    /// gets zeros.
    ///
    /// # Errors
    /// When shapes or types do not fit, or `soft_cap` is not positive.
    #[allow(clippy::needless_pass_by_value, reason = "MLX's own function takes the mask by value")]
    pub fn attention(
        self,
        queries: &Array,
        keys: &Array,
        values: &Array,
        scale: f32,
        mask: Option<ScaledDotProductAttentionMask<'_>>,
        soft_cap: Option<f32>,
    ) -> Result<Array> {
        let seen = check::attention(queries, keys, values, mask.as_ref(), soft_cap)?;
        let causal = matches!(mask, Some(ScaledDotProductAttentionMask::Causal));
        call!(
            self,
            mlxgk_attention(
                queries.as_ptr(),
                keys.as_ptr(),
                values.as_ptr(),
                seen.as_ref().map_or(EMPTY, Array::as_ptr),
                scale,
                causal,
                soft_cap.unwrap_or(0.0)
            )
        )
    }

    /// The same on packed keys and values of `[batch, groups, columns, dim]`, which are unpacked as they
    /// are read. Both are packed alike, in the affine mode; scales and biases are fp32, fp16 or bf16.
    ///
    /// # Errors
    /// As [`attention`](Self::attention).
    #[allow(clippy::needless_pass_by_value, reason = "as for `attention`")]
    pub fn packed_attention(
        self,
        queries: &Array,
        keys: &Packed,
        values: &Packed,
        scale: f32,
        mask: Option<ScaledDotProductAttentionMask<'_>>,
        soft_cap: Option<f32>,
    ) -> Result<Array> {
        let seen = check::packed_attention(queries, keys, values, mask.as_ref(), soft_cap)?;
        let causal = matches!(mask, Some(ScaledDotProductAttentionMask::Causal));
        let Quantization { group_size, bits, .. } = keys.quantization();
        let biases = |it: &Packed| it.biases().map_or(EMPTY, Array::as_ptr);
        call!(
            self,
            mlxgk_packed_attention(
                queries.as_ptr(),
                keys.words().as_ptr(),
                keys.scales().as_ptr(),
                biases(keys),
                values.words().as_ptr(),
                values.scales().as_ptr(),
                biases(values),
                seen.as_ref().map_or(EMPTY, Array::as_ptr),
                group_size,
                bits,
                scale,
                causal,
                soft_cap.unwrap_or(0.0)
            )
        )
    }

    /// `x / sqrt(mean(x²) + eps) · weight` over the last axis of `x`; `weight` is `[that axis]`.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn rms_norm(self, x: &Array, weight: &Array, eps: f32) -> Result<Array> {
        check::rms_norm(x, weight)?;
        call!(self, mlxgk_rms_norm(x.as_ptr(), weight.as_ptr(), eps))
    }

    /// Rotates the first `2 · half` dimensions of `x`, `[batch, heads, tokens, dim]`, by tables:
    /// `x · cos + rotate_half(x) · sin`.
    ///
    /// `cos` is `[batch or 1, 1, tokens, 1, half]`, and `sin` `[batch or 1, 1, tokens, 2, half]`: first
    /// `-sin`, which the second half of the dimensions is multiplied by, then `sin`.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn rotate(self, x: &Array, cos: &Array, sin: &Array) -> Result<Array> {
        check::rotate(x, cos, sin)?;
        call!(self, mlxgk_rotate(x.as_ptr(), cos.as_ptr(), sin.as_ptr()))
    }

    /// Heads of `dim` cut out of arrays of `[batch, tokens, heads · dim]`, through the
    /// [norm](Self::rms_norm) of each array where there are weights of `[dim]`, and
    /// [rotated](Self::rotate), in one operation: `[batch, heads, tokens, dim]` for each array.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn turned_heads<const N: usize>(
        self,
        xs: [&Array; N],
        norms: Option<([&Array; N], f32)>,
        cos: &Array,
        sin: &Array,
        dim: i32,
    ) -> Result<[Array; N]> {
        for (at, x) in xs.into_iter().enumerate() {
            check::turned_heads(x, norms.map(|it| it.0[at]), cos, sin, dim)?;
        }
        let (handles, weights) = (xs.map(Array::as_ptr), norms.map(|it| it.0.map(Array::as_ptr)));
        call_all!(
            self,
            mlxgk_turned_heads(
                handles.as_ptr(),
                weights.as_ref().map_or(std::ptr::null(), |it| it.as_ptr()),
                N as i32,
                norms.map_or(0.0, |it| it.1),
                cos.as_ptr(),
                sin.as_ptr(),
                dim
            )
        )
    }

    /// `silu(gate) · up`, for two arrays of one shape.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn silu_gate(self, gate: &Array, up: &Array) -> Result<Array> {
        check::gate(gate, up)?;
        call!(self, mlxgk_gate(gate.as_ptr(), up.as_ptr(), true))
    }

    /// `σ(gate) · x`, for two arrays of one shape.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn sigmoid_gate(self, gate: &Array, x: &Array) -> Result<Array> {
        check::gate(gate, x)?;
        call!(self, mlxgk_gate(gate.as_ptr(), x.as_ptr(), false))
    }

    /// A convolution of each channel by itself, which sees a token and those before it:
    /// `y_t = bias + Σ_i weight_i · x_{t - width + 1 + i}`, and with `silu` the silu of that.
    ///
    /// `x` is `[batch, tokens, channels]`, `before`, what precedes it, `[batch, width - 1, channels]`,
    /// `weight` `[width, channels]`, `bias` `[channels]`; returns `[batch, tokens, channels]`.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn causal_convolution(
        self,
        x: &Array,
        before: &Array,
        weight: &Array,
        bias: Option<&Array>,
        silu: bool,
    ) -> Result<Array> {
        check::causal_convolution(x, before, weight, bias)?;
        let bias = bias.map_or(EMPTY, Array::as_ptr);
        call!(
            self,
            mlxgk_causal_convolution(x.as_ptr(), before.as_ptr(), weight.as_ptr(), bias, silu)
        )
    }

    /// Recurrences over one matrix `S` per head: it fades, `S ← eᵍ S`, and is written to, `S ← S + k vᵀ`, or
    /// with rates `β` by the delta rule, `S ← S + k β (v - Sᵀk)ᵀ`; the output is `Sᵀq`.
    ///
    /// Queries and keys are `[batch, tokens, key heads, key dim]`, values `[batch, tokens, heads, value dim]`,
    /// of one token at least; key heads divide heads, and consecutive heads share one. `log_decays`, `g`, are
    /// `[batch, tokens, heads, 1]`, or `[.., key dim]` where each row of `S` fades by itself; `rates` are
    /// `[batch, tokens, heads, 1]`. With `unit` queries and keys are brought to length 1 first,
    /// `x / sqrt(Σ x² + 1e-6)`, and queries are then divided by the root of key dim.
    ///
    /// Returns the outputs, which are like the values, and what `S` is behind the last token if it is `state`
    /// before the first, `[batch, heads, key dim, value dim]`. A text that is read in parts gives the same
    /// as in one, to the last bit. Gradients are computed token by token.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn recurrence(
        self,
        queries_keys_values: [&Array; 3],
        log_decays: &Array,
        rates: Option<&Array>,
        state: &Array,
        unit: bool,
    ) -> Result<[Array; 2]> {
        check::recurrence(queries_keys_values, log_decays, rates, state)?;
        let [queries, keys, values] = queries_keys_values.map(Array::as_ptr);
        let rates = rates.map_or(EMPTY, Array::as_ptr);
        call_all!(
            self,
            mlxgk_recurrence(
                queries,
                keys,
                values,
                log_decays.as_ptr(),
                state.as_ptr(),
                rates,
                unit
            )
        )
    }

    /// Which experts each token is fed to, by a router's logits of `[.., experts]`, and how much each counts:
    /// u32 and fp32 of `[.., chosen]`, the best expert first, and of equal ones the first. `correction`,
    /// `[1.., experts]`, is added to the scores where experts are chosen. No gradient goes through the choice.
    ///
    /// # Errors
    /// When shapes or types do not fit, or there are too few experts for the routing.
    pub fn route(
        self,
        logits: &Array,
        correction: Option<&Array>,
        routing: &Routing,
    ) -> Result<(Array, Array)> {
        check::route(logits, correction, routing)?;
        let all = Groups { count: 1, kept: 1, judged_by: 1 };
        let Groups { count, kept, judged_by } = routing.groups.unwrap_or(all);
        let results: Result<[Array; 2]> = call_all!(
            self,
            mlxgk_route(
                logits.as_ptr(),
                correction.map_or(EMPTY, Array::as_ptr),
                routing.scores as i32,
                routing.chosen as i32,
                count as i32,
                kept as i32,
                judged_by as i32,
                routing.normalise.is_some(),
                routing.normalise.unwrap_or(0.0),
                routing.least_sum,
                routing.scale,
                routing.logit_cap.unwrap_or(0.0)
            )
        );
        results.map(|[chosen, shares]| (chosen, shares))
    }

    /// For each row of `logits`, `[rows, vocabulary]`, the log-probability of its entry of `ids`, u32
    /// `[rows]`: `logit - log Σ e^logit`; NaN where there is no such id.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn token_logprobs(self, logits: &Array, ids: &Array) -> Result<Array> {
        check::token_logprobs(logits, ids)?;
        call!(self, mlxgk_token_logprobs(logits.as_ptr(), ids.as_ptr()))
    }

    /// `x weightᵀ` for `x` of `[.., in]` and bf16 `weight` of `[out, in]`: the product with the weights
    /// in fp32, from half the memory.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn widening_product(self, x: &Array, weight: &Array) -> Result<Array> {
        check::widening_product(x, weight)?;
        call!(self, mlxgk_widening_product(x.as_ptr(), weight.as_ptr(), EMPTY, EMPTY))
    }

    /// The [products](Self::widening_product) of `x` with several matrices of `[out, in]`, in one
    /// operation; each is what it is alone, to the last bit.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn widening_products<const N: usize>(
        self,
        x: &Array,
        weights: [&Array; N],
    ) -> Result<[Array; N]> {
        check::some(N)?;
        for weight in weights {
            check::widening_product(x, weight)?;
        }
        let handles = weights.map(Array::as_ptr);
        call_all!(
            self,
            mlxgk_widening_products(x.as_ptr(), handles.as_ptr(), N as i32, false, EMPTY)
        )
    }

    /// `silu(x gateᵀ) · (x upᵀ)` for two bf16 matrices of one shape, in one operation.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn gated_widening_product(self, x: &Array, gate: &Array, up: &Array) -> Result<Array> {
        check::widening_product(x, gate)?;
        check::widening_product(x, up)?;
        check::pair(gate.shape(), up.shape())?;
        let handles = [gate, up].map(Array::as_ptr);
        call!(self, mlxgk_widening_products(x.as_ptr(), handles.as_ptr(), 2, true, EMPTY))
    }

    /// [`widening_product`](Self::widening_product) with `weight[chosen]`, one matrix of `[experts, out, in]` per place of `chosen`, u32:
    /// `x` is `[.., rows, in]`, its leading axes those of `chosen` or 1; returns
    /// `[chosen.., rows, out]`. Where there is no such matrix, the result is NaN.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn gathered_widening_product(
        self,
        x: &Array,
        weight: &Array,
        chosen: &Array,
    ) -> Result<Array> {
        check::gathered_widening_product(x, weight, chosen)?;
        call!(self, mlxgk_widening_product(x.as_ptr(), weight.as_ptr(), chosen.as_ptr(), EMPTY))
    }

    /// `silu(x gate[chosen]ᵀ) · (x up[chosen]ᵀ)` of a mixture's experts: `x` is `[tokens.., in]`, `chosen`, u32,
    /// `[tokens.., any]`, and each matrix `[experts, out, in]`; returns `[chosen.., out]`. `weights` are gate and
    /// up, or one whose matrices have the rows of gate before those of up. Where there is no such expert, the
    /// result is NaN.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn gathered_gated_widening_product<const N: usize>(
        self,
        x: &Array,
        weights: [&Array; N],
        chosen: &Array,
    ) -> Result<Array> {
        check::halves(&weights.map(|it| it.shape().to_vec()))?;
        for weight in weights {
            check::narrow(weight)?;
            check::gathered_gate(x, weight.shape(), chosen)?;
        }
        let handles = weights.map(Array::as_ptr);
        call!(
            self,
            mlxgk_widening_products(x.as_ptr(), handles.as_ptr(), N as i32, true, chosen.as_ptr())
        )
    }

    /// What a mixture makes of its experts' outputs, `Σ shareᵢ · xᵢ weight[chosenᵢ]ᵀ` over the last axis of
    /// `chosen`, u32 `[tokens.., any]`: `x` is `[chosen.., in]`, `weight` `[experts, out, in]`, and `shares` are
    /// of the shape of `chosen`; returns `[tokens.., out]`. Where there is no such expert, the result is NaN.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn mixed_widening_product(
        self,
        x: &Array,
        weight: &Array,
        chosen: &Array,
        shares: &Array,
    ) -> Result<Array> {
        check::narrow(weight)?;
        check::mixed(x, weight.shape(), chosen, shares)?;
        let (chosen, shares) = (chosen.as_ptr(), shares.as_ptr());
        call!(self, mlxgk_widening_product(x.as_ptr(), weight.as_ptr(), chosen, shares))
    }

    /// `x Wᵀ` for `x` of `[.., in]` and a packed `W` of `[out, in]`; the scales and biases of the affine
    /// mode are fp32 or bf16.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn packed_product(self, x: &Array, weight: &Packed) -> Result<Array> {
        check::product(x, weight)?;
        self.packed(x, weight, [EMPTY, EMPTY])
    }

    /// The [products](Self::packed_product) of `x` with several matrices of `[out, in]` that are packed
    /// alike, in one operation; each is what it is alone, to the last bit.
    ///
    /// # Errors
    /// When shapes, types or quantizations do not fit.
    pub fn packed_products<const N: usize>(
        self,
        x: &Array,
        weights: [&Packed; N],
    ) -> Result<[Array; N]> {
        let (quantization, handles) = alike(&weights)?;
        for weight in weights {
            check::product(x, weight)?;
            check::natively(x, weight)?;
        }
        let Quantization { mode, group_size, bits } = quantization;
        call_all!(
            self,
            mlxgk_packed_products(
                x.as_ptr(),
                handles.as_ptr(),
                N as i32,
                false,
                EMPTY,
                mode as i32,
                group_size,
                bits
            )
        )
    }

    /// `silu(x gateᵀ) · (x upᵀ)` for two matrices of one shape that are packed alike, in one operation.
    ///
    /// # Errors
    /// When shapes, types or quantizations do not fit.
    pub fn gated_packed_product(self, x: &Array, gate: &Packed, up: &Packed) -> Result<Array> {
        check::pair(&gate.shape(), &up.shape())?;
        for weight in [gate, up] {
            check::product(x, weight)?;
        }
        self.packed_gate(x, &[gate, up], EMPTY)
    }

    /// [`packed_product`](Self::packed_product) with `W[chosen]`, as in
    /// [`gathered_widening_product`](Self::gathered_widening_product).
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn gathered_packed_product(
        self,
        x: &Array,
        weight: &Packed,
        chosen: &Array,
    ) -> Result<Array> {
        check::gathered_product(x, weight, chosen)?;
        self.packed(x, weight, [chosen.as_ptr(), EMPTY])
    }

    /// [`mixed_widening_product`](Self::mixed_widening_product) with packed weights.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn mixed_packed_product(
        self,
        x: &Array,
        weight: &Packed,
        chosen: &Array,
        shares: &Array,
    ) -> Result<Array> {
        check::mixed(x, &weight.shape(), chosen, shares)?;
        self.packed(x, weight, [chosen, shares].map(Array::as_ptr))
    }

    /// [`gathered_gated_widening_product`](Self::gathered_gated_widening_product) with packed weights, all
    /// packed alike.
    ///
    /// # Errors
    /// When shapes, types or quantizations do not fit.
    pub fn gathered_gated_packed_product<const N: usize>(
        self,
        x: &Array,
        weights: [&Packed; N],
        chosen: &Array,
    ) -> Result<Array> {
        check::halves(&weights.map(Packed::shape))?;
        for weight in weights {
            check::gathered_gate(x, &weight.shape(), chosen)?;
        }
        self.packed_gate(x, &weights, chosen.as_ptr())
    }

    fn packed_gate(self, x: &Array, weights: &[&Packed], chosen: mlx_array) -> Result<Array> {
        let (Quantization { mode, group_size, bits }, handles) = alike(weights)?;
        for weight in weights {
            check::natively(x, weight)?;
        }
        call!(
            self,
            mlxgk_packed_products(
                x.as_ptr(),
                handles.as_ptr(),
                weights.len() as i32,
                true,
                chosen,
                mode as i32,
                group_size,
                bits
            )
        )
    }

    fn packed(self, x: &Array, weight: &Packed, [chosen, shares]: [mlx_array; 2]) -> Result<Array> {
        check::natively(x, weight)?;
        let Quantization { mode, group_size, bits } = weight.quantization();
        call!(
            self,
            mlxgk_packed_product(
                x.as_ptr(),
                weight.words().as_ptr(),
                weight.scales().as_ptr(),
                weight.biases().map_or(EMPTY, Array::as_ptr),
                chosen,
                shares,
                mode as i32,
                group_size,
                bits
            )
        )
    }
}

/// How all of some matrices are packed, and the handles of their arrays, one matrix after another.
fn alike(weights: &[&Packed]) -> Result<(Quantization, Vec<mlx_array>)> {
    let quantization = check::packed_alike(weights)?;
    let arrays = weights.iter().flat_map(|it| [Some(it.words()), Some(it.scales()), it.biases()]);
    Ok((quantization, arrays.flatten().map(Array::as_ptr).collect()))
}
