//! Where the operations of [`native`](self) do not exist: no [`Native`] can be had, so none is called.

use std::convert::Infallible;

use mlx_rs::{Array, Dtype, error::Result};
use mlxgk_kv_cache::Mask;

/// What nobody has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Native(Infallible);

impl Native {
    pub(crate) fn new(_: Dtype) -> Option<Self> {
        None
    }

    pub(crate) fn attention(
        self,
        _: &Array,
        _: &Array,
        _: &Array,
        _: f32,
        _: &Mask,
        _: Option<f32>,
    ) -> Result<Array> {
        match self.0 {}
    }

    pub(crate) fn rms_norm(self, _: &Array, _: &Array, _: f32) -> Result<Array> {
        match self.0 {}
    }

    pub(crate) fn rotate(self, _: &Array, _: &Array, _: &Array) -> Result<Array> {
        match self.0 {}
    }

    pub(crate) fn silu_gate(self, _: &Array, _: &Array) -> Result<Array> {
        match self.0 {}
    }

    pub(crate) fn widening_product(self, _: &Array, _: &Array) -> Result<Array> {
        match self.0 {}
    }
}
