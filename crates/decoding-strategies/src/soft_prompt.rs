//! Embeddings that stand before the first token of each row.

use mlx_rs::{Array, Dtype, ops::concatenate};
use mlxgk_kv_cache::Column;
use mlxgk_mlx_models::Decoder;

use crate::{Error, ErrorKind, Result};

/// A soft prompt, `[virtual tokens, hidden]`.
#[derive(Debug)]
pub(crate) struct SoftPrompt(Array);

impl SoftPrompt {
    /// Checks the shape.
    pub(crate) fn new(soft_prompt: &Array, model: &Decoder) -> Result<Self> {
        let hidden = model.hidden_size() as i32;
        match *soft_prompt.shape() {
            [count, width] if count > 0 && width == hidden => Ok(Self(soft_prompt.clone())),
            ref found => {
                let what = format!(
                    "a soft prompt for this model is [virtual tokens, {hidden}], found {found:?}"
                );
                Err(Error::new(ErrorKind::Prompt, what))
            }
        }
    }

    /// The number of virtual tokens.
    pub(crate) fn len(&self) -> usize {
        self.0.dim(0) as usize
    }

    /// The columns of a soft prompt and the prompts after it, and their embeddings: padding, the soft
    /// prompt, the row's own tokens.
    pub(crate) fn before(
        &self,
        rows: &[Vec<u32>],
        padding: &[usize],
        model: &Decoder,
    ) -> Result<(Vec<Vec<Column>>, Array)> {
        let vocab = model.vocab_size();
        if let Some(id) = rows.iter().flatten().find(|&&it| it as usize >= vocab) {
            let what = format!("token id {id} is outside the vocabulary of {vocab}");
            return Err(Error::new(ErrorKind::Prompt, what));
        }
        let soft = self.0.as_dtype(Dtype::Float32)?;
        let numbers: Vec<f32> =
            soft.to_vec_exact().map_err(|e| Error::new(ErrorKind::Model, e.to_string()))?;
        let virtual_tokens: Vec<Column> =
            numbers.chunks(model.hidden_size()).map(Column::embedded).collect();
        let (mut columns, mut embedded) = (Vec::new(), Vec::new());
        for (row, &padding) in rows.iter().zip(padding) {
            let (padding, own) = row.split_at(padding.min(row.len()));
            let tokens = |ids: &[u32]| ids.iter().copied().map(Column::Token).collect::<Vec<_>>();
            columns.push([tokens(padding), virtual_tokens.clone(), tokens(own)].concat());
            let embed = |ids: &[u32]| model.embed(&Array::from_slice(ids, &[1, ids.len() as i32]));
            let own = embed(own)?;
            let soft = self.0.as_dtype(own.dtype())?.expand_dims(0)?;
            embedded.push(if padding.is_empty() {
                concatenate(&[&soft, &own], 1)?
            } else {
                concatenate(&[&embed(padding)?, &soft, &own], 1)?
            });
        }
        let embedded: Vec<&Array> = embedded.iter().collect();
        Ok((columns, concatenate(&embedded, 0)?))
    }
}
