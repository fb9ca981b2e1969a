//! References that lead back to themselves before anything is written.

use std::collections::HashSet;

use serde_json::Value;

/// Refuses a `$ref` that leads back to itself through references and combinations alone: no text can
/// tell when to stop following it.
pub(super) fn check_loops(root: &Value) -> Result<(), String> {
    let mut done = HashSet::new();
    let mut targets: Vec<&str> = Vec::new();
    collect(root, &mut targets);
    for target in targets {
        follow(root, target, &mut Vec::new(), &mut done)?;
    }
    Ok(())
}

/// All values of `$ref` that point into the document.
fn collect<'a>(value: &'a Value, targets: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            targets.extend(fields.get("$ref").and_then(Value::as_str).filter(|it| local(it)));
            fields.values().for_each(|it| collect(it, targets));
        }
        Value::Array(items) => items.iter().for_each(|it| collect(it, targets)),
        _ => {}
    }
}

fn local(reference: &str) -> bool {
    reference == "#" || reference.starts_with("#/")
}

/// What a reference into the document leads to.
pub(super) fn target<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(&reference.strip_prefix('#')?.replace("%25", "%").replace("%20", " "))
}

fn follow<'a>(
    root: &'a Value,
    reference: &'a str,
    path: &mut Vec<&'a str>,
    done: &mut HashSet<&'a str>,
) -> Result<(), String> {
    if path.contains(&reference) {
        return Err(format!(
            "`{}`: its `$ref` leads back to itself without anything in between",
            reference.trim_start_matches('#')
        ));
    }
    if !done.contains(reference)
        && let Some(schema) = target(root, reference)
    {
        path.push(reference);
        in_place(root, schema, path, done)?;
        path.pop();
        done.insert(reference);
    }
    Ok(())
}

/// Follows what a schema demands of the very same value.
fn in_place<'a>(
    root: &'a Value,
    schema: &'a Value,
    path: &mut Vec<&'a str>,
    done: &mut HashSet<&'a str>,
) -> Result<(), String> {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str).filter(|it| local(it)) {
        follow(root, reference, path, done)?;
    }
    for keyword in ["allOf", "anyOf", "oneOf"] {
        for part in schema.get(keyword).and_then(Value::as_array).into_iter().flatten() {
            in_place(root, part, path, done)?;
        }
    }
    Ok(())
}
