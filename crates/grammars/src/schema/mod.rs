//! A JSON schema made ready for the engine: what it cannot do is written in another way, left out
//! with a warning, or refused with its place.

mod exact;
mod formats;
mod integers;
mod references;
mod walk;

use serde_json::{Map, Number, Value, json};

use self::exact::Exact;
use self::walk::{children, each_schema};

/// The formats the engine enforces, beside those of dates and times; by the standard any other is an
/// annotation.
const FORMATS: [&str; 7] = ["duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];
/// How deep a schema may be nested; the engine recurses into it.
const DEEPEST: usize = 100;
/// Integers up to here are doubles.
const EXACT: u64 = 1 << 53;
/// The largest whole-number factor in `multipleOf`; the engine has a state for each remainder.
const LARGEST_FACTOR: f64 = 10_000.0;
/// Schemas tried to find the place of an error.
const TRIED: usize = 200;

/// A schema for the engine.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) schema: Value,
    /// The whole as a Lark grammar, where the engine's own reading would not be exact.
    pub(crate) lark: Option<String>,
    pub(crate) warnings: Vec<String>,
}

/// Checks a schema and writes it as the engine can read it; errors and warnings have the place as a
/// JSON pointer.
pub(crate) fn prepare(schema: &Value) -> Result<Prepared, String> {
    let mut schema = match schema {
        Value::Object(_) => schema.clone(),
        Value::Bool(true) => json!({}),
        Value::Bool(false) => return Err("no value can satisfy it: it is `false`".to_owned()),
        _ => return Err("it must be an object or a boolean".to_owned()),
    };
    check_depth(&schema, 0)?;
    let mut warnings = Vec::new();
    each_schema(&mut schema, "", &mut |fields, place| check(fields, place, &mut warnings))?;
    references::check_loops(&schema)?;
    let lark = Exact::new(&schema).grammar()?;
    if let Value::Object(fields) = &mut schema {
        fields.entry("x-guidance").or_insert_with(spacing);
    }
    Ok(Prepared { schema, lark, warnings })
}

/// The engine's settings for compact JSON.
fn spacing() -> Value {
    json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "})
}

fn check_depth(value: &Value, depth: usize) -> Result<(), String> {
    if depth > DEEPEST {
        return Err(format!("it is nested more than {DEEPEST} levels deep"));
    }
    match value {
        Value::Array(items) => items.iter().try_for_each(|it| check_depth(it, depth + 1)),
        Value::Object(fields) => fields.values().try_for_each(|it| check_depth(it, depth + 1)),
        _ => Ok(()),
    }
}

/// Checks what one schema says about formats and numbers.
fn check(
    fields: &mut Map<String, Value>,
    place: &str,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    if let Some(Value::String(format)) = fields.get("format") {
        if let Some(pattern) = formats::pattern(format) {
            fields.remove("format");
            demand(fields, "pattern", pattern.into());
        } else if !FORMATS.contains(&format.as_str()) {
            warnings.push(format!("`{place}/format`: {format:?} is not enforced"));
            fields.remove("format");
        }
    }
    for name in ["const", "enum"] {
        if let Some(rounded) = fields.get(name).and_then(rounded) {
            return Err(format!(
                "`{place}/{name}`: {rounded} is beyond 64 bits, so it cannot be kept exactly"
            ));
        }
    }
    name_patterns(fields);
    if let Some(factor) = fields.get("multipleOf") {
        check_factor(factor).map_err(|what| format!("`{place}/multipleOf`: {what}"))?;
    }
    let integer = fields.get("type").is_some_and(|it| it == "integer");
    for (name, up) in [
        ("minimum", true),
        ("exclusiveMinimum", true),
        ("maximum", false),
        ("exclusiveMaximum", false),
    ] {
        // The engine's bounds are doubles; a number has to stay within the schema's own.
        if let Some(Value::Number(bound)) = fields.get(name)
            && !integer
            && let Some(inward) = inward(bound, up)
        {
            fields.insert(name.to_owned(), inward.into());
        }
    }
    Ok(())
}

/// Sets a keyword, beside what it says already.
fn demand(fields: &mut Map<String, Value>, keyword: &str, value: Value) {
    if !fields.contains_key(keyword) {
        fields.insert(keyword.to_owned(), value);
    } else if let Value::Array(all) = fields.entry("allOf").or_insert_with(|| json!([])) {
        all.push(json!({keyword: value}));
    }
}

/// Makes properties of patterns that are one name, `^name$`: a pattern beside a property of its name
/// would leave no name for the pattern itself.
fn name_patterns(fields: &mut Map<String, Value>) {
    let name = |pattern: &str| {
        let name = pattern.strip_prefix('^')?.strip_suffix('$')?;
        let plain = |it: char| it.is_ascii_alphanumeric() || it == '_' || it == '-';
        name.chars().all(plain).then(|| name.to_owned())
    };
    let Some(Value::Object(patterns)) = fields.get_mut("patternProperties") else { return };
    let mut named = Vec::new();
    patterns.retain(|pattern, schema| match name(pattern) {
        Some(name) => {
            named.push((name, std::mem::take(schema)));
            false
        }
        None => true,
    });
    if named.is_empty() {
        return;
    }
    if patterns.is_empty() {
        fields.remove("patternProperties");
    }
    let properties = fields.entry("properties").or_insert_with(|| json!({}));
    if let Value::Object(properties) = properties {
        for (name, schema) in named {
            let schema = match properties.remove(&name) {
                Some(own) => json!({"allOf": [own, schema]}),
                None => schema,
            };
            properties.insert(name, schema);
        }
    }
}

/// A number in a value that was an integer beyond what can be kept.
fn rounded(value: &Value) -> Option<&Number> {
    match value {
        Value::Number(number) => {
            let float = number.as_f64().filter(|_| number.is_f64())?;
            (float.fract() == 0.0 && float.abs() > EXACT as f64).then_some(number)
        }
        Value::Array(items) => items.iter().find_map(rounded),
        Value::Object(fields) => fields.values().find_map(rounded),
        _ => None,
    }
}

fn check_factor(factor: &Value) -> Result<(), String> {
    let Some(mut value) = factor.as_f64().filter(|it| *it > 0.0) else {
        return Err(format!("must be a positive number, but is {factor}"));
    };
    for _ in 0..10 {
        if value.fract() == 0.0 {
            break;
        }
        value *= 10.0;
    }
    if value.fract() != 0.0 || value > LARGEST_FACTOR {
        return Err(format!(
            "{factor} has too many digits; the limit is {LARGEST_FACTOR} without the decimal point"
        ));
    }
    Ok(())
}

/// The next double within a bound that is none itself.
fn inward(bound: &Number, up: bool) -> Option<f64> {
    let exact = integers::integer(bound).filter(|it| it.unsigned_abs() > u128::from(EXACT))?;
    let near = exact as f64;
    let outside = if up { (near as i128) < exact } else { (near as i128) > exact };
    Some(match (outside, up) {
        (false, _) => near,
        (true, true) => near.next_up(),
        (true, false) => near.next_down(),
    })
}

/// The JSON pointer of the innermost schema of which, alone, the engine says the same as of the
/// whole.
pub(crate) fn place_of(schema: &Value, fails: impl Fn(&Value) -> bool) -> Option<String> {
    let mut tried = 0;
    let (mut place, mut current) = (String::new(), schema.clone());
    'deeper: loop {
        for (pointer, child) in children(&current) {
            tried += 1;
            if tried > TRIED {
                break 'deeper;
            }
            let alone = with_definitions(child, schema);
            if fails(&alone) {
                (place, current) = (place + &pointer, child.clone());
                continue 'deeper;
            }
        }
        break;
    }
    (!place.is_empty()).then_some(place)
}

/// A part of a schema with what its references may lead to and the whole's settings.
fn with_definitions(part: &Value, whole: &Value) -> Value {
    let Value::Object(fields) = part else { return part.clone() };
    let mut fields = fields.clone();
    for name in ["$defs", "definitions", "x-guidance", "$schema"] {
        if let Some(value) = whole.get(name) {
            fields.entry(name).or_insert_with(|| value.clone());
        }
    }
    fields.into()
}
