//! The schemas within a schema: only some keywords hold one, and everything else that looks like a
//! schema is data.

use serde_json::{Map, Value};

/// Keywords that hold a schema.
const ONE: [&str; 11] = [
    "additionalItems",
    "additionalProperties",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
];
/// Keywords that hold a list of schemas.
const LISTS: [&str; 5] = ["allOf", "anyOf", "items", "oneOf", "prefixItems"];
/// Keywords that hold schemas by name.
const MAPS: [&str; 5] =
    ["$defs", "definitions", "dependentSchemas", "patternProperties", "properties"];

/// What is done with a schema's fields, given its JSON pointer.
pub(super) type Work<'a> = &'a mut dyn FnMut(&mut Map<String, Value>, &str) -> Result<(), String>;

/// Runs `work` on every schema that is an object, outer ones first, with its JSON pointer.
pub(super) fn each_schema(schema: &mut Value, place: &str, work: Work<'_>) -> Result<(), String> {
    let Value::Object(fields) = schema else { return Ok(()) };
    work(fields, place)?;
    for (keyword, value) in fields.iter_mut() {
        match value {
            Value::Object(_) if ONE.contains(&keyword.as_str()) => {
                each_schema(value, &format!("{place}/{keyword}"), work)?;
            }
            Value::Array(items) if LISTS.contains(&keyword.as_str()) => {
                for (at, item) in items.iter_mut().enumerate() {
                    each_schema(item, &format!("{place}/{keyword}/{at}"), work)?;
                }
            }
            Value::Object(named) if MAPS.contains(&keyword.as_str()) => {
                for (name, item) in named.iter_mut() {
                    each_schema(item, &format!("{place}/{keyword}/{}", escaped(name)), work)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The schemas directly within one, each with its JSON pointer from there.
pub(super) fn children(schema: &Value) -> Vec<(String, &Value)> {
    let mut all = Vec::new();
    let fields = schema.as_object();
    for (keyword, value) in fields.into_iter().flatten() {
        match value {
            Value::Array(items) if LISTS.contains(&keyword.as_str()) => {
                let items = items.iter().enumerate();
                all.extend(items.map(|(at, it)| (format!("/{keyword}/{at}"), it)));
            }
            Value::Object(named) if MAPS.contains(&keyword.as_str()) => {
                let named = named.iter();
                all.extend(named.map(|(name, it)| (format!("/{keyword}/{}", escaped(name)), it)));
            }
            value if ONE.contains(&keyword.as_str()) => all.push((format!("/{keyword}"), value)),
            _ => {}
        }
    }
    all
}

/// A name as a part of a JSON pointer.
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}
