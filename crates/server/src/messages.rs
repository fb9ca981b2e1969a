//! From a conversation to the tokens that the model is given.

use mlx_genkit::{
    Message,
    tokenizer_bridge::{ErrorKind, RenderOptions},
};
use serde_json::{Map, Value};

use crate::{
    app::App,
    fields::{Fields, wrong},
    refusal::Refusal,
};

/// A conversation as the chat template renders it.
#[derive(Debug)]
pub(crate) struct Rendered {
    pub(crate) text: String,
    pub(crate) tokens: Vec<u32>,
}

/// Takes a conversation's fields, and renders and encodes it, with the tools that the model may call.
pub(crate) fn read(
    fields: &mut Fields,
    tools: Option<Vec<Value>>,
    app: &App,
) -> Result<Rendered, Refusal> {
    let messages = match fields.take("messages") {
        Some(Value::Array(messages)) if !messages.is_empty() => messages,
        Some(found) => return Err(wrong("messages", "a list of messages, at least one", &found)),
        None => return Err(Refusal::field("messages", "`messages` are missing")),
    };
    let messages = messages.into_iter().enumerate().map(|(at, it)| message(at, it));
    let messages = messages.collect::<Result<Vec<_>, _>>()?;
    let options = RenderOptions {
        add_generation_prompt: true,
        tools,
        extra: fields.object("chat_template_kwargs")?.unwrap_or_default(),
        ..RenderOptions::default()
    };
    let text = app.about.template()?.render(&messages, &options).map_err(|e| match e.kind() {
        // A template that fails over a conversation says what it expects of one.
        ErrorKind::Template => Refusal::field("messages", e.to_string()),
        _ => mlx_genkit::Error::from(e).into(),
    })?;
    // The template wrote the special tokens itself.
    let tokens = app.about.tokenizer()?.encode(&text, false);
    let tokens = tokens.map_err(|e| Refusal::field("messages", e.to_string()))?;
    Ok(Rendered { text, tokens })
}

/// A message as templates expect it: its content one text, the arguments of its calls objects.
fn message(at: usize, message: Value) -> Result<Message, Refusal> {
    let refuse = |what: &str| Refusal::field("messages", format!("`messages[{at}]` {what}"));
    let Value::Object(mut message) = message else { return Err(refuse("must be an object")) };
    if !message.get("role").is_some_and(Value::is_string) {
        return Err(refuse("has no `role`"));
    }
    let calls = message.get_mut("tool_calls").filter(|it| !it.is_null());
    let has_calls = calls.is_some();
    if let Some(calls) = calls {
        let Value::Array(calls) = calls else {
            return Err(refuse("has `tool_calls` that are not a list"));
        };
        calls.iter_mut().for_each(read_arguments);
    }
    match message.get_mut("content") {
        Some(Value::String(_)) => {}
        Some(content @ Value::Array(_)) => {
            let text = joined(content);
            let what = "has a part of `content` that is not text; only text is supported";
            *content = Value::String(text.ok_or_else(|| refuse(what))?);
        }
        None | Some(Value::Null) if has_calls => {}
        None | Some(Value::Null) => return Err(refuse("has no `content`")),
        Some(_) => {
            return Err(refuse("has a `content` that is neither a text nor a list of parts"));
        }
    }
    serde_json::from_value(Value::Object(message)).map_err(|e| refuse(&format!("is wrong: {e}")))
}

/// The text of parts, one a line.
fn joined(parts: &Value) -> Option<String> {
    let text = |part: &Value| match part.get("type")?.as_str()? {
        "text" => Some(part.get("text")?.as_str()?.to_owned()),
        _ => None,
    };
    let texts: Option<Vec<String>> = parts.as_array()?.iter().map(text).collect();
    Some(texts?.join("\n"))
}

/// OpenAI's clients send a call's arguments as a text of JSON; templates expect what it says.
fn read_arguments(call: &mut Value) {
    let arguments = call.get_mut("function").and_then(|it| it.get_mut("arguments"));
    if let Some(arguments) = arguments
        && let Some(Ok(read)) = arguments.as_str().map(serde_json::from_str::<Map<String, Value>>)
    {
        *arguments = Value::Object(read);
    }
}
