//! Calls whose arguments stand between tags, each as a text: what type a text is of, the tool's schema says.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{FUNCTION, Fault, Tool, ToolCall};

const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";

/// `<function=…>`, parameters, `</function>`.
pub(super) fn call(text: &str, tools: &[Tool]) -> Result<ToolCall, Fault> {
    let text = text.trim().strip_prefix(FUNCTION).ok_or(Fault::Wrong)?;
    let text = text.strip_suffix(FUNCTION_END).ok_or(Fault::Unfinished)?;
    read(text, tools).ok_or(Fault::Wrong)
}

fn read(text: &str, tools: &[Tool]) -> Option<ToolCall> {
    let (name, mut rest) = text.split_once('>')?;
    let tool = tools.iter().find(|it| it.name == name.trim())?;
    let mut arguments = Map::new();
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            break;
        }
        let (name, after) = rest.strip_prefix(PARAMETER)?.split_once('>')?;
        let end = value_end(after, PARAMETER_END, PARAMETER)?;
        let value = &after[..end];
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = value.strip_suffix('\n').unwrap_or(value);
        let value = typed(value, &tool.parameters, name.trim());
        arguments.insert(name.trim().to_owned(), value);
        rest = &after[end + PARAMETER_END.len()..];
    }
    let arguments = Value::Object(arguments).to_string();
    Some(ToolCall { name: tool.name.clone(), arguments })
}

/// Where a value's closing tag is: the first one that the next argument follows, or nothing.
pub(super) fn value_end(text: &str, close: &str, next: &str) -> Option<usize> {
    let ends = text.match_indices(close).map(|(at, _)| at);
    let is_end = |at: &usize| {
        let after = text[at + close.len()..].trim_start();
        after.is_empty() || after.starts_with(next)
    };
    ends.into_iter().find(is_end)
}

/// An argument's text as the value that the schema lets it be: a text, unless that is not allowed.
pub(super) fn typed(text: &str, parameters: &Value, name: &str) -> Value {
    let property = parameters.get("properties").and_then(|it| it.get(name));
    let types = types(property, parameters);
    let read = match text.trim() {
        // As Python writes them.
        "True" => Some(Value::Bool(true)),
        "False" => Some(Value::Bool(false)),
        "None" => Some(Value::Null),
        text => serde_json::from_str(text).ok(),
    };
    let fits = |value: &Value| match value {
        // Nobody writes a list or an object and means a text, unless the schema says so.
        Value::Array(_) | Value::Object(_) if types.is_empty() => true,
        _ if types.contains("string") => {
            type_of(value) != "string" && types.contains(type_of(value))
        }
        _ => !types.is_empty(),
    };
    read.filter(fits).unwrap_or_else(|| text.into())
}

/// The types that a schema within `root` allows; empty where it does not say.
pub(super) fn types<'a>(schema: Option<&'a Value>, root: &'a Value) -> BTreeSet<&'a str> {
    let Some(schema) = schema.and_then(|it| resolved(it, root)) else { return BTreeSet::new() };
    let list = |name: &str| schema.get(name).and_then(Value::as_array).into_iter().flatten();
    match schema.get("type") {
        Some(Value::String(one)) => return BTreeSet::from([one.as_str()]),
        Some(Value::Array(several)) => return several.iter().filter_map(Value::as_str).collect(),
        _ => {}
    }
    let mut types: BTreeSet<&str> = list("enum").chain(schema.get("const")).map(type_of).collect();
    for part in ["anyOf", "oneOf"].into_iter().flat_map(list) {
        // Of parts within parts there is no end where they refer to each other.
        let part = resolved(part, root).and_then(|it| it.get("type")?.as_str());
        types.extend(part);
    }
    types
}

/// The schema that another one stands for: what it refers to, where it does.
pub(super) fn resolved<'a>(schema: &'a Value, root: &'a Value) -> Option<&'a Value> {
    const MOST: usize = 8;
    let mut schema = schema;
    for _ in 0..MOST {
        let whole = match schema.get("allOf").and_then(Value::as_array) {
            Some(all) if all.len() == 1 => &all[0],
            _ => schema,
        };
        let Some(reference) = whole.get("$ref").and_then(Value::as_str) else { return Some(whole) };
        schema = root.pointer(reference.strip_prefix('#')?)?;
    }
    None
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
