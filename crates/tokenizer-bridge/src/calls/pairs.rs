//! Calls whose arguments are pairs of a key and a value, each between tags of its own.

use serde_json::{Map, Value};

use super::{
    Fault, KEY, KEY_END, Tool, ToolCall, VALUE, VALUE_END,
    functions::{typed, value_end},
};

/// A name, and pairs.
pub(super) fn call(text: &str, tools: &[Tool]) -> Result<ToolCall, Fault> {
    let (name, mut rest) = text.split_at(text.find(KEY).unwrap_or(text.len()));
    let tool = tools.iter().find(|it| it.name == name.trim()).ok_or(Fault::Wrong)?;
    let mut arguments = Map::new();
    while !rest.trim_start().is_empty() {
        let (key, after) = key(rest).ok_or(Fault::Wrong)?;
        // Without its end, what looks like the end of the call is part of the value.
        let end = value_end(after, VALUE_END, KEY).ok_or(Fault::Unfinished)?;
        arguments.insert(key.to_owned(), typed(&after[..end], &tool.parameters, key));
        rest = &after[end + VALUE_END.len()..];
    }
    let arguments = Value::Object(arguments).to_string();
    Ok(ToolCall { name: tool.name.clone(), arguments })
}

/// The key that a text begins with, and what follows it from its value on.
fn key(text: &str) -> Option<(&str, &str)> {
    let (key, after) = text.trim_start().strip_prefix(KEY)?.split_once(KEY_END)?;
    Some((key.trim(), after.trim_start().strip_prefix(VALUE)?))
}
