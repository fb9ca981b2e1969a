//! The calls of tools that a model writes: taken out of its text as that grows, and as a grammar that leaves
//! it nothing else to write.
//!
//! A chat template tells a model of its tools, and each family has its own form for calling one. Which it is
//! can be seen in the template, because that writes the calls of earlier turns.

mod functions;
mod grammar;
mod harmony;
mod json;
mod pairs;
mod reader;

use serde_json::Value;

use crate::Tokenizer;

pub use self::grammar::CallGrammar;
pub use self::reader::{CallReader, Written};

/// The form in which a model writes calls.
///
/// ```
/// use mlxgk_tokenizer_bridge::{CallFormat, ChatTemplate};
///
/// let template = ChatTemplate::new("{{ '<tool_call>' }}{{ messages[0].tool_calls | tojson }}")?;
/// assert_eq!(template.call_format(), Some(CallFormat::Hermes));
/// assert_eq!(ChatTemplate::new("{{ messages[0].content }}")?.call_format(), None);
/// # Ok::<(), mlxgk_tokenizer_bridge::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes, Qwen 2.5, Qwen 3, SmolLM3.
    Hermes,
    /// `<tool_call><function=…><parameter=…>…</parameter></function></tool_call>`: Qwen3-Coder,
    /// Qwen 3.5.
    Functions,
    /// `[TOOL_CALLS][{"name": …, "arguments": {…}}]`: Mistral up to 2024.
    Mistral,
    /// `[TOOL_CALLS]…[ARGS]{…}`: Mistral from 2025 on.
    MistralArgs,
    /// `<tool_call>…<arg_key>…</arg_key><arg_value>…</arg_value></tool_call>`: GLM 4.5 and later.
    Glm,
    /// `<|channel|>commentary to=functions.… <|constrain|>json<|message|>{…}<|call|>`: gpt-oss, whose thoughts
    /// and answers are such messages, too.
    Harmony,
    /// `{"name": …, "parameters": {…}}`, which may follow `<|python_tag|>`: Llama 3.1 and later.
    Llama,
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// The name of a tool that the model was given.
    pub name: String,
    /// The arguments: a JSON object, as the model wrote it where it wrote JSON.
    pub arguments: String,
}

impl CallFormat {
    /// The form that a template writes calls in, where it is one of these.
    pub(crate) fn of_source(template: &str) -> Option<Self> {
        let has = |it: &str| template.contains(it);
        if has(MISTRAL) {
            return Some(if has(ARGS) { Self::MistralArgs } else { Self::Mistral });
        }
        if has(OPEN) {
            return Some(match (has(KEY), has(FUNCTION)) {
                (true, _) => Self::Glm,
                (false, true) => Self::Functions,
                (false, false) => Self::Hermes,
            });
        }
        if has(harmony::CHANNEL) && has(harmony::MESSAGE) {
            return Some(Self::Harmony);
        }
        (has("ipython") && has("\"parameters\": ")).then_some(Self::Llama)
    }

    /// The words of the form that tokenizers have as special tokens, which are left out of a text unless
    /// they are asked for.
    pub fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Hermes | Self::Functions => &[OPEN, CLOSE],
            Self::Glm => &[OPEN, CLOSE, KEY, KEY_END, VALUE, VALUE_END],
            Self::Mistral | Self::MistralArgs => &[MISTRAL, CALL_ID, ARGS],
            Self::Harmony => &harmony::MARKS,
            Self::Llama => &[PYTHON],
        }
    }

    /// Those of the [marks](Self::marks) that are special tokens of a tokenizer, with their ids.
    pub fn special_marks(self, tokenizer: &Tokenizer) -> Vec<(&'static str, u32)> {
        let special = |mark: &&'static str| {
            let id = tokenizer.token_to_id(mark).filter(|it| tokenizer.is_special(*it))?;
            Some((*mark, id))
        };
        self.marks().iter().filter_map(special).collect()
    }
}

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const FUNCTION: &str = "<function=";
const KEY: &str = "<arg_key>";
const KEY_END: &str = "</arg_key>";
const VALUE: &str = "<arg_value>";
const VALUE_END: &str = "</arg_value>";
const MISTRAL: &str = "[TOOL_CALLS]";
const CALL_ID: &str = "[CALL_ID]";
const ARGS: &str = "[ARGS]";
const PYTHON: &str = "<|python_tag|>";
const THINK: &str = "<think>";
const THOUGHT: &str = "</think>";

/// What a model knows about a tool.
#[derive(Debug, Clone)]
struct Tool {
    name: String,
    /// The JSON schema of its arguments.
    parameters: Value,
}

/// The tools of a request that have a name, in OpenAI's form.
fn tools(given: &[Value]) -> Vec<Tool> {
    let tool = |tool: &Value| {
        let function = tool.get("function")?;
        let name = function.get("name")?.as_str()?.to_owned();
        let parameters = function.get("parameters").cloned().unwrap_or_default();
        Some(Tool { name, parameters })
    };
    given.iter().filter_map(tool).collect()
}

/// Why a text is not a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// More text may make it one.
    Unfinished,
    Wrong,
}

impl Fault {
    /// Of a text in which something else should stand here.
    fn at(rest: &str) -> Self {
        if rest.is_empty() { Self::Unfinished } else { Self::Wrong }
    }
}
