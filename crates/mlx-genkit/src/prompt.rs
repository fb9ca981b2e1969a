//! What to continue.

use mlxgk_tokenizer_bridge::{Message, RenderOptions};

use crate::{Error, ErrorKind, Model, Result};

/// One prompt, in any of the forms a user has it.
///
/// ```
/// use mlx_genkit::Prompt;
///
/// assert_eq!(Prompt::from("Once upon a time"), Prompt::Text("Once upon a time".into()));
/// assert_eq!(Prompt::from([5, 17, 300]), Prompt::Ids(vec![5, 17, 300]));
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Prompt {
    /// Text to continue as it stands; the tokenizer adds its own special tokens, as HF's does.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
    /// A conversation, which the model's chat template turns into text.
    Messages(Vec<Message>),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(ids: Vec<u32>) -> Self {
        Self::Ids(ids)
    }
}

impl From<&[u32]> for Prompt {
    fn from(ids: &[u32]) -> Self {
        Self::Ids(ids.to_vec())
    }
}

impl<const N: usize> From<[u32; N]> for Prompt {
    fn from(ids: [u32; N]) -> Self {
        Self::Ids(ids.to_vec())
    }
}

impl From<&[Message]> for Prompt {
    fn from(messages: &[Message]) -> Self {
        Self::Messages(messages.to_vec())
    }
}

#[allow(clippy::use_self, reason = "`Self` cannot stand in the header")]
impl From<&Prompt> for Prompt {
    fn from(prompt: &Self) -> Self {
        prompt.clone()
    }
}

impl From<Vec<Message>> for Prompt {
    fn from(messages: Vec<Message>) -> Self {
        Self::Messages(messages)
    }
}

impl Prompt {
    /// The prompt's token ids under a model's tokenizer.
    ///
    /// # Errors
    /// When there is no tokenizer or chat template for it, or the prompt is empty.
    pub fn ids(&self, model: &Model) -> Result<Vec<u32>> {
        let ids = match self {
            Self::Ids(ids) => ids.clone(),
            Self::Text(text) => model.tokenizer()?.encode(text, true)?,
            Self::Messages(messages) => {
                // Without a tokenizer a missing chat template is not worth mentioning.
                let tokenizer = model.tokenizer()?;
                let options = RenderOptions { add_generation_prompt: true, ..Default::default() };
                let text = model.chat_template()?.render(messages, &options)?;
                // The template wrote the special tokens itself.
                tokenizer.encode(&text, false)?
            }
        };
        let refuse = |what: String| Err(Error::new(ErrorKind::Request, what));
        let vocab = model.decoder().vocab_size();
        if ids.is_empty() {
            return refuse("the prompt is empty; a model needs at least one token".to_owned());
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return refuse(format!("token id {id} is outside the vocabulary of {vocab}"));
        }
        Ok(ids)
    }
}
