//! One message of a conversation.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One message of a conversation: a JSON object, usually with `role` and `content`.
///
/// Templates read what they like of a message (`tool_calls`, `reasoning_content`, `name`, content
/// that is a list of parts) and some print all of it. So nothing is dropped, renamed or reordered.
///
/// ```
/// use mlxgk_tokenizer_bridge::Message;
/// use serde_json::json;
///
/// let messages: Vec<Message> = serde_json::from_str(
///     r#"[{"role": "user", "content": "2 + 2?"},
///         {"role": "assistant", "tool_calls": [{"function": {"name": "add"}}]}]"#,
/// )?;
/// assert_eq!(messages[0], Message::new("user", "2 + 2?"));
/// assert_eq!(messages[1].role(), Some("assistant"));
/// assert_eq!(messages[1].content(), None);
///
/// let result = Message::new("tool", "4").with("name", "add");
/// assert_eq!(result.field("name"), Some(&json!("add")));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Message(pub(super) Map<String, Value>);

impl Message {
    /// A message with a role (`system`, `user`, `assistant`, `tool`, ...) and a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self::default().with("role", role.into()).with("content", content.into())
    }

    /// The message with one more field, or with another value for one it has.
    #[must_use]
    pub fn with(mut self, field: impl Into<String>, value: impl Into<Value>) -> Self {
        self.0.insert(field.into(), value.into());
        self
    }

    /// Who speaks, where the message says so.
    pub fn role(&self) -> Option<&str> {
        self.0.get("role")?.as_str()
    }

    /// The text, where the content is one.
    pub fn content(&self) -> Option<&str> {
        self.0.get("content")?.as_str()
    }

    /// Any field's value.
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }
}
