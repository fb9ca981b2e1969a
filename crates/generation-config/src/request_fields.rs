//! What other engines keep in a generation config although it is about the request: the prompt's chat, the draft
//! model.

use serde_json::{Map, Value};

use crate::{Error, ErrorKind, GenerationConfig, Result};

/// The names, and what each is read as.
const NAMES: [(&str, &str); 5] = [
    ("use_speculative", "whether the draft model of `draft_model_id` helps"),
    ("draft_model_id", "the draft model (`assistant_model`)"),
    (
        "auto_chat_template",
        "whether a plain prompt is put into the model's chat template, if it has one",
    ),
    ("assume_user_chat", "a plain prompt is a user's message"),
    ("system_prompt", "the system message before a plain prompt"),
];

/// What a config says about the request it is for, under the names that the Python original has for it.
///
/// ```
/// use mlxgk_generation_config::{Chat, GenerationConfig};
/// use serde_json::json;
///
/// let config = GenerationConfig::from_json(&json!({
///     "max_tokens": 64, "system_prompt": "Be brief.", "assume_user_chat": true,
///     "use_speculative": true, "draft_model_id": "mlx_qwen3_0_6b", "num_draft_tokens": 3,
/// }))?;
/// let fields = config.request_fields()?;
/// assert_eq!(fields.system_prompt.as_deref(), Some("Be brief."));
/// assert_eq!((fields.chat, fields.draft_model.as_deref()), (Some(Chat::Always), Some("mlx_qwen3_0_6b")));
/// # Ok::<(), mlxgk_generation_config::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestFields {
    /// What stands before a plain prompt (`system_prompt`).
    pub system_prompt: Option<String>,
    /// Whether a plain prompt is a message (`assume_user_chat`, `auto_chat_template`); `None` where nothing is
    /// said.
    pub chat: Option<Chat>,
    /// The draft model to be loaded: `draft_model_id`, where `use_speculative` is true.
    pub draft_model: Option<String>,
}

/// Whether a plain prompt is put into the model's chat template.
///
/// ```
/// use mlxgk_generation_config::{Chat, GenerationConfig};
/// use serde_json::json;
///
/// let chat = |fields| GenerationConfig::from_json(&fields)?.request_fields().map(|it| it.chat);
/// assert_eq!(chat(json!({"assume_user_chat": true}))?, Some(Chat::Always));
/// assert_eq!(chat(json!({"auto_chat_template": true}))?, Some(Chat::IfTemplate));
/// assert_eq!(chat(json!({"auto_chat_template": false}))?, Some(Chat::Never));
/// # Ok::<(), mlxgk_generation_config::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chat {
    /// Yes; a model without one is an error.
    Always,
    /// Where the model has one.
    IfTemplate,
    /// No.
    Never,
}

impl GenerationConfig {
    /// What the config says about the request; nothing in most.
    ///
    /// # Errors
    /// When one of the fields has another type, or a draft model is asked for and none is named.
    pub fn request_fields(&self) -> Result<RequestFields> {
        RequestFields::of(&self.unknown)
    }

    /// As [`request_fields`](Self::request_fields), and takes them out, for a caller that acts on them.
    ///
    /// # Errors
    /// As [`request_fields`](Self::request_fields).
    pub fn take_request_fields(&mut self) -> Result<RequestFields> {
        let fields = self.request_fields()?;
        self.unknown.retain(|key, _| RequestFields::meaning(key).is_none());
        Ok(fields)
    }
}

impl RequestFields {
    /// What a field of a request is read as; `None` for any other name.
    pub fn meaning(name: &str) -> Option<&'static str> {
        NAMES.iter().find(|(it, _)| *it == name).map(|(_, meaning)| *meaning)
    }

    fn of(fields: &Map<String, Value>) -> Result<Self> {
        let switch = |name: &str| match fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(it)) => Ok(Some(*it)),
            Some(found) => Err(wrong_type(name, "true or false", found)),
        };
        let text = |name: &str| match fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(it)) => Ok(Some(it.clone())),
            Some(found) => Err(wrong_type(name, "a text", found)),
        };
        let chat = match (switch("assume_user_chat")?, switch("auto_chat_template")?) {
            (Some(true), _) => Some(Chat::Always),
            (_, Some(true)) => Some(Chat::IfTemplate),
            (_, Some(false)) => Some(Chat::Never),
            (_, None) => None,
        };
        let draft_model = text("draft_model_id")?;
        let draft_model = match switch("use_speculative")? {
            Some(true) if draft_model.is_none() => {
                let what = "`use_speculative` is true, but `draft_model_id` names no draft model";
                return Err(Error::of(ErrorKind::Value, "use_speculative", what));
            }
            Some(true) => draft_model,
            _ => None,
        };
        Ok(Self { system_prompt: text("system_prompt")?, chat, draft_model })
    }
}

fn wrong_type(name: &str, expected: &str, found: &Value) -> Error {
    let message = format!("`{name}` must be {expected}, found {found}");
    Error::of(ErrorKind::Type, name, message)
}
