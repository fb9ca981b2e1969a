//! Products of one input with several matrices in one operation, where the backend has it: a token then
//! takes fewer nodes of MLX's graph, and threads share longer work.

use mlx_rs::{Array, error::Result as MlxResult};

use crate::{
    native::{Native, Packed},
    weight::Weight,
};

/// Matrices whose products with one input are one operation.
#[derive(Debug)]
pub(crate) enum Together<'a, const N: usize> {
    /// bf16 weights.
    Bf16(Native, [&'a Array; N]),
    /// Weights that are packed alike.
    Packed(Native, [&'a Packed; N]),
}

/// The most rows that are gated in the operation that computes the products. More are a prompt or a batch
/// to train on, whose gradients need the products themselves.
const GATED_ROWS: usize = 16;

impl<'a, const N: usize> Together<'a, N> {
    /// `None` where they are products one by one.
    pub(crate) fn of(weights: [&'a Weight; N]) -> Option<Self> {
        match weights.first()? {
            Weight::Bf16(native, _) => {
                let narrow: Option<Vec<&Array>> = weights.into_iter().map(Weight::narrow).collect();
                Some(Self::Bf16(*native, narrow?.try_into().ok()?))
            }
            Weight::Packed(first) => {
                let native = first.backend.native()?;
                let how = first.packed.quantization();
                let packed: Option<Vec<&Packed>> =
                    weights.into_iter().map(Weight::packed).collect();
                let packed = packed.filter(|all| all.iter().all(|it| it.quantization() == how));
                Some(Self::Packed(native, packed?.try_into().ok()?))
            }
            Weight::Dense(_) => None,
        }
    }

    /// `x Wᵀ` for each of them, as [`Weight::product`] gives it.
    pub(crate) fn products(self, x: &Array) -> MlxResult<[Array; N]> {
        match self {
            Self::Bf16(native, it) => native.widening_products(x, it),
            Self::Packed(native, it) => native.packed_products(x, it),
        }
    }
}

impl<const N: usize> Together<'_, N> {
    /// `silu(x gate[chosen]ᵀ) · (x up[chosen]ᵀ)` of experts, of which these are gate and up, or a matrix with
    /// the rows of both; `None` where tokens are too many.
    pub(crate) fn gathered_gate(self, x: &Array, chosen: &Array) -> MlxResult<Option<Array>> {
        if !are_few(chosen) {
            return Ok(None);
        }
        match self {
            Self::Bf16(native, it) => native.gathered_gated_widening_product(x, it, chosen),
            Self::Packed(native, it) => native.gathered_gated_packed_product(x, it, chosen),
        }
        .map(Some)
    }
}

impl Together<'_, 1> {
    /// `Σ shareᵢ · x W[chosenᵢ]ᵀ` over the last axis of `chosen`; `None` where tokens are too many.
    pub(crate) fn mixed(
        self,
        x: &Array,
        chosen: &Array,
        shares: &Array,
    ) -> MlxResult<Option<Array>> {
        if !are_few(chosen) {
            return Ok(None);
        }
        match self {
            Self::Bf16(native, [it]) => native.mixed_widening_product(x, it, chosen, shares),
            Self::Packed(native, [it]) => native.mixed_packed_product(x, it, chosen, shares),
        }
        .map(Some)
    }
}

/// Whether experts are chosen for no more tokens than are gated in one operation.
fn are_few(chosen: &Array) -> bool {
    chosen.size() <= GATED_ROWS * chosen.dim(-1) as usize
}

impl Together<'_, 2> {
    /// `silu(x gateᵀ) · (x upᵀ)`; `None` where rows are too many.
    pub(crate) fn gated(self, x: &Array) -> MlxResult<Option<Array>> {
        if x.size() > GATED_ROWS * x.dim(-1) as usize {
            return Ok(None);
        }
        match self {
            Self::Bf16(native, [gate, up]) => native.gated_widening_product(x, gate, up),
            Self::Packed(native, [gate, up]) => native.gated_packed_product(x, gate, up),
        }
        .map(Some)
    }
}
