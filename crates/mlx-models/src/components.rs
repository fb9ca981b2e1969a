//! What a loaded model is made of.

use crate::Decoder;

/// A decoder's parts, found once when it is loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Components {
    /// Shape of the token table, `[vocabulary, hidden]`.
    pub embedding: [usize; 2],
    /// Number of blocks.
    pub layers: usize,
    /// Whether the token table is also the head.
    pub tied_head: bool,
    /// Whether the head's weights are packed.
    pub quantized: bool,
    /// What embeddings are multiplied by (Gemma).
    pub embedding_scale: Option<f32>,
    /// The cap on logits (Gemma 2).
    pub logit_cap: Option<f32>,
}

/// Says where a model's embedding, blocks, norm and head are; the same as
/// [`Decoder::components`], under the name the Python original has for it.
pub fn detect_components(model: &Decoder) -> Components {
    model.components()
}
