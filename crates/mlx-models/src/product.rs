//! What can be adapted: the products of a model, and those of a mixture's experts.

use mlx_rs::Array;

use crate::{
    Adapter, Decoder, Linear, Result,
    experts::Experts,
    parameters::{Module, ModuleMut, Visit},
};

/// A product with weights that may carry an [`Adapter`].
///
/// ```
/// use mlxgk_mlx_models::{ComputeDtype, Decoder};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/qwen3-moe");
/// let model = Decoder::load(folder, ComputeDtype::Float32)?;
/// // All experts of a layer together are one product, `[experts, out, in]`.
/// let products = model.products();
/// let experts = products.iter().find(|it| it.path().ends_with("switch_mlp.up_proj")).unwrap();
/// assert_eq!(experts.shape().len(), 3);
/// assert!(model.linears().iter().all(|it| it.path() != experts.path()));
/// # Ok::<(), mlxgk_mlx_models::Error>(())
/// ```
pub trait Product {
    /// The name without an ending: `model.layers.0.self_attn.q_proj`, or of all experts together mlx-lm's,
    /// `model.layers.0.mlp.switch_mlp.up_proj`.
    fn path(&self) -> &str;

    /// `[out, in]`, or `[experts, out, in]`.
    fn shape(&self) -> Vec<usize>;

    /// Whether the weights are packed.
    fn is_quantized(&self) -> bool;

    /// The adapter, where one is set.
    fn adapter(&self) -> Option<&Adapter>;

    /// The weights with the adapter in them, fp32, not yet evaluated.
    ///
    /// # Errors
    /// When MLX fails.
    fn merged(&self) -> Result<Array>;

    /// Adds `adapter` to every product from here on, in place of one that was set.
    ///
    /// # Errors
    /// When its matrices do not fit, or cannot be computed.
    fn set_adapter(&mut self, adapter: Adapter) -> Result<()>;

    /// Takes the adapter off.
    fn clear_adapter(&mut self) -> Option<Adapter>;
}

macro_rules! product {
    ($($type:ty),*) => {$(
        impl Product for $type {
            fn path(&self) -> &str {
                self.path()
            }

            fn shape(&self) -> Vec<usize> {
                self.shape().to_vec()
            }

            fn is_quantized(&self) -> bool {
                self.is_quantized()
            }

            fn adapter(&self) -> Option<&Adapter> {
                self.adapter()
            }

            fn merged(&self) -> Result<Array> {
                self.merged()
            }

            fn set_adapter(&mut self, adapter: Adapter) -> Result<()> {
                self.set_adapter(adapter)
            }

            fn clear_adapter(&mut self) -> Option<Adapter> {
                self.clear_adapter()
            }
        }
    )*};
}

product!(Linear, Experts);

impl Decoder {
    /// Everything that can be adapted: the [`linears`](Self::linears), and the products of experts that
    /// have mlx-lm's names. Where HF keeps two products in one tensor there are none.
    pub fn products(&self) -> Vec<&dyn Product> {
        let mut found: Vec<&dyn Product> = Vec::new();
        self.visit(&mut |module| match module {
            Module::Linear(it) => found.push(it),
            Module::Experts(it) if it.is_adaptable() => found.push(it),
            _ => {}
        });
        found
    }

    /// The one of this [path](Product::path).
    pub fn product_mut(&mut self, path: &str) -> Option<&mut dyn Product> {
        let mut found: Option<&mut dyn Product> = None;
        self.visit_mut(&mut |module| match module {
            ModuleMut::Linear(it) if it.path() == path => found = Some(it),
            ModuleMut::Experts(it) if it.is_adaptable() && it.path() == path => found = Some(it),
            _ => {}
        });
        found
    }
}
