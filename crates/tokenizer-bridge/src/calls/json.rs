//! Calls that are JSON. Arguments stay the text that the model wrote, to the last digit.

use serde::de::IgnoredAny;
use serde_json::{Deserializer, Map, Value};

use super::{ARGS, CALL_ID, Fault, MISTRAL, PYTHON, Tool, ToolCall};

/// `{"name": …, "arguments": {…}}`, where the arguments may be called `parameters`, and nothing else.
pub(super) fn call(text: &str, tools: &[Tool]) -> Result<ToolCall, Fault> {
    match object(text)? {
        (members, "") => read(&members, tools).ok_or(Fault::Wrong),
        _ => Err(Fault::Wrong),
    }
}

/// What follows `[TOOL_CALLS]`, from the first one on: a list of calls, or names with arguments.
pub(super) fn mistral(text: &str, tools: &[Tool]) -> Option<Vec<ToolCall>> {
    let mut calls = Vec::new();
    for part in text.split(MISTRAL).map(str::trim).filter(|it| !it.is_empty()) {
        match part.strip_prefix('[').filter(|_| !part.starts_with(ARGS)) {
            Some(list) => calls.extend(several(list.trim_end().strip_suffix(']')?, tools)?),
            None if part.starts_with('{') => calls.extend(several(part, tools)?),
            None => calls.push(named(part, tools)?),
        }
    }
    (!calls.is_empty()).then_some(calls)
}

/// Calls of Llama, which begin at once or after `<|python_tag|>`.
pub(super) fn llama(text: &str, tools: &[Tool]) -> Option<Vec<ToolCall>> {
    let text = text.trim_start();
    several(text.strip_prefix(PYTHON).unwrap_or(text), tools)
}

/// Calls one after another, with a comma, a semicolon or white space between them; at least one.
fn several(text: &str, tools: &[Tool]) -> Option<Vec<ToolCall>> {
    let (mut rest, mut calls) = (text.trim(), Vec::new());
    while !rest.is_empty() {
        let (members, after) = object(rest).ok()?;
        calls.push(read(&members, tools)?);
        rest = after.strip_prefix([',', ';']).unwrap_or(after).trim_start();
    }
    (!calls.is_empty()).then_some(calls)
}

/// `NAME[ARGS]{…}` or `NAME{…}`; an id may precede the arguments.
fn named(text: &str, tools: &[Tool]) -> Option<ToolCall> {
    let (head, arguments) = match text.split_once(ARGS) {
        Some(it) => it,
        None => text.split_at(text.find('{')?),
    };
    let name = head.split(CALL_ID).next()?.trim();
    let tool = tools.iter().find(|it| it.name == name)?;
    Some(ToolCall { name: tool.name.clone(), arguments: checked(arguments)? })
}

fn read(members: &[(String, &str)], tools: &[Tool]) -> Option<ToolCall> {
    let find = |name: &str| members.iter().find(|it| it.0 == name).map(|it| it.1);
    let name: String = serde_json::from_str(find("name")?).ok()?;
    tools.iter().find(|it| it.name == name)?;
    let arguments = match find("arguments").or_else(|| find("parameters")) {
        // A tool that takes nothing.
        None | Some("null") => "{}".to_owned(),
        Some(arguments) => checked(arguments)?,
    };
    Some(ToolCall { name, arguments })
}

/// Arguments that are an object, or a text that is the JSON of one.
pub(super) fn checked(arguments: &str) -> Option<String> {
    match serde_json::from_str(arguments).ok()? {
        Value::Object(_) => Some(arguments.trim().to_owned()),
        Value::String(text) => {
            serde_json::from_str::<Map<String, Value>>(&text).ok()?;
            Some(text)
        }
        _ => None,
    }
}

/// The members of an object, their values as they stand in the text.
type Members<'a> = Vec<(String, &'a str)>;

/// The object that a text begins with, and what follows it.
fn object(text: &str) -> Result<(Members<'_>, &str), Fault> {
    let text = text.trim_start();
    let mut rest = text.strip_prefix('{').ok_or(Fault::at(text))?.trim_start();
    let mut members = Vec::new();
    if let Some(after) = rest.strip_prefix('}') {
        return Ok((members, after.trim_start()));
    }
    loop {
        let (name, after) = value(rest)?;
        let name = serde_json::from_str(name).map_err(|_| Fault::Wrong)?;
        let after = after.strip_prefix(':').ok_or(Fault::at(after))?;
        let (value, after) = value(after)?;
        members.push((name, value));
        if let Some(after) = after.strip_prefix('}') {
            return Ok((members, after.trim_start()));
        }
        rest = after.strip_prefix(',').ok_or(Fault::at(after))?;
    }
}

/// The value that a text begins with, as it stands there, and what follows it.
fn value(text: &str) -> Result<(&str, &str), Fault> {
    let mut values = Deserializer::from_str(text).into_iter::<IgnoredAny>();
    match values.next() {
        Some(Ok(_)) => {
            let (value, rest) = text.split_at(values.byte_offset());
            Ok((value.trim(), rest.trim_start()))
        }
        Some(Err(e)) if !e.is_eof() => Err(Fault::Wrong),
        _ => Err(Fault::Unfinished),
    }
}
