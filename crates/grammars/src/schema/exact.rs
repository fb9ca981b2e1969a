//! Schemas that the engine reads inexactly, written as a Lark grammar: integers beyond 2^53, which it
//! rounds to doubles, and objects with a number of properties to keep, of which it knows one case.
//!
//! Only what holds such a place is written here; every other part of the schema is embedded in the
//! grammar as it is (`%json`).

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::references::target;
use super::{EXACT, integers, spacing};

/// States of an object that counts its properties, at most.
const STATES: usize = 20_000;
/// Keywords that say nothing about the text.
const ANNOTATIONS: [&str; 15] = [
    "$anchor",
    "$comment",
    "$defs",
    "$id",
    "$schema",
    "contentEncoding",
    "contentMediaType",
    "default",
    "definitions",
    "deprecated",
    "description",
    "examples",
    "readOnly",
    "title",
    "writeOnly",
];

type Fields = Map<String, Value>;

pub(super) struct Exact<'a> {
    root: &'a Value,
    /// References to schemas that hold something the engine reads inexactly.
    inexact: HashSet<&'a str>,
    /// Rules for what references lead to.
    rules: HashMap<&'a str, String>,
    text: String,
    count: usize,
}

impl<'a> Exact<'a> {
    pub(super) fn new(root: &'a Value) -> Self {
        let mut references = Vec::new();
        all_references(root, &mut references);
        let mut it = Self {
            root,
            inexact: HashSet::new(),
            rules: HashMap::new(),
            text: String::new(),
            count: 0,
        };
        // What a reference leads to may hold another reference.
        loop {
            let more: Vec<&str> = references
                .iter()
                .filter(|name| !it.inexact.contains(**name))
                .filter(|name| target(root, name).is_some_and(|schema| it.is_inexact(schema)))
                .copied()
                .collect();
            if more.is_empty() {
                return it;
            }
            it.inexact.extend(more);
        }
    }

    /// The whole schema as a grammar, where the engine would read it inexactly; errors name the
    /// place.
    pub(super) fn grammar(mut self) -> Result<Option<String>, String> {
        let mut root = self.root.clone();
        // Definitions count where they are used.
        if let Value::Object(fields) = &mut root {
            fields.retain(|name, _| name != "$defs" && name != "definitions");
        }
        if !self.is_inexact(&root) {
            return Ok(None);
        }
        let start = self.schema(self.root, "")?;
        Ok(Some(format!("start: {start}\n{}", self.text)))
    }

    fn is_inexact(&self, schema: &Value) -> bool {
        match schema {
            Value::Object(fields) => {
                let own = inexact_values(fields) || inexact_bounds(fields) || counts(fields);
                let reference = fields.get("$ref").and_then(Value::as_str);
                own || reference.is_some_and(|it| self.inexact.contains(it))
                    || fields.values().any(|it| self.is_inexact(it))
            }
            Value::Array(items) => items.iter().any(|it| self.is_inexact(it)),
            _ => false,
        }
    }

    fn rule(&mut self, body: &str) -> String {
        self.count += 1;
        let name = format!("r{}", self.count);
        let _ = writeln!(self.text, "{name}: {body}");
        name
    }

    fn terminal(&mut self, body: &str) -> String {
        self.count += 1;
        let name = format!("T{}", self.count);
        let _ = writeln!(self.text, "{name}: {body}");
        name
    }

    /// A rule for a schema.
    fn schema(&mut self, schema: &'a Value, place: &str) -> Result<String, String> {
        let Some(fields) = schema.as_object().filter(|_| self.is_inexact(schema)) else {
            return self.embedded(schema, place);
        };
        let only = |allowed: &[&str]| {
            let other = fields.keys().map(String::as_str).find(|it| {
                !allowed.contains(it) && !ANNOTATIONS.contains(it) && *it != "x-guidance"
            });
            match other {
                None => Ok(()),
                Some(keyword) => Err(format!(
                    "`{place}/{keyword}` is not supported together with integers beyond 2^53 or a number \
                     of properties to keep"
                )),
            }
        };
        if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
            only(&["$ref"])?;
            return self.reference(reference);
        }
        for keyword in ["const", "enum"] {
            if let Some(value) = fields.get(keyword) {
                only(&[keyword, "type"])?;
                let values = if keyword == "enum" { value.as_array() } else { None };
                let values = values.map_or_else(|| std::slice::from_ref(value), Vec::as_slice);
                let fits = |it: &&Value| fields.get("type").is_none_or(|kind| has_type(it, kind));
                return self.values(values.iter().filter(fits), place);
            }
        }
        for keyword in ["anyOf", "oneOf"] {
            let Some(Value::Array(parts)) = fields.get(keyword) else { continue };
            only(&[keyword])?;
            if keyword == "oneOf" {
                return Err(format!("`{place}/oneOf` is not supported here; use `anyOf`"));
            }
            let parts = parts.iter().enumerate();
            let rules: Result<Vec<_>, _> =
                parts.map(|(at, it)| self.schema(it, &format!("{place}/{keyword}/{at}"))).collect();
            return Ok(self.rule(&rules?.join(" | ")));
        }
        let kinds = match fields.get("type") {
            Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
            Some(Value::String(kind)) => vec![kind.as_str()],
            _ => {
                let what =
                    "needs a `type` in addition to the number of properties or the integers it has";
                return Err(format!("`{place}/type`: it {what}"));
            }
        };
        let mut rules = Vec::new();
        for &kind in &kinds {
            rules.push(match kind {
                "integer" => {
                    if kinds.len() == 1 {
                        only(&[
                            "type",
                            "minimum",
                            "maximum",
                            "exclusiveMinimum",
                            "exclusiveMaximum",
                            "format",
                        ])?;
                    }
                    self.integer(fields, place)?
                }
                "object" => {
                    if kinds.len() == 1 {
                        only(&[
                            "type",
                            "properties",
                            "required",
                            "additionalProperties",
                            "minProperties",
                            "maxProperties",
                        ])?;
                    }
                    self.object(fields, place)?
                }
                "array" => {
                    if kinds.len() == 1 {
                        only(&["type", "items", "prefixItems", "minItems", "maxItems"])?;
                    }
                    self.array(fields, place)?
                }
                kind => {
                    let mut plain = fields.clone();
                    plain.insert("type".to_owned(), kind.into());
                    self.embed(&plain.into())
                }
            });
        }
        Ok(self.rule(&rules.join(" | ")))
    }

    fn reference(&mut self, reference: &'a str) -> Result<String, String> {
        if let Some(rule) = self.rules.get(reference) {
            return Ok(rule.clone());
        }
        let Some(schema) = target(self.root, reference) else {
            return Err(format!("`$ref` {reference:?} leads nowhere"));
        };
        self.count += 1;
        let name = format!("r{}", self.count);
        self.rules.insert(reference, name.clone());
        let rule = self.schema(schema, reference.trim_start_matches('#'))?;
        let _ = writeln!(self.text, "{name}: {rule}");
        Ok(name)
    }

    /// A schema the engine can read, with what it refers to.
    fn embedded(&mut self, schema: &Value, place: &str) -> Result<String, String> {
        let mut references = Vec::new();
        all_references(schema, &mut references);
        let definition =
            |it: &&&str| !it.starts_with("#/$defs/") && !it.starts_with("#/definitions/");
        if let Some(other) = references.iter().find(definition) {
            let what = "together with integers beyond 2^53 or a number of properties to keep, references \
                        must lead into `$defs`";
            return Err(format!("`{place}`: {what}, but one is {other:?}"));
        }
        Ok(self.embed(schema))
    }

    fn embed(&mut self, schema: &Value) -> String {
        let mut fields = match schema {
            Value::Bool(false) => return self.rule("%json {\"not\": {}}"),
            Value::Object(fields) => fields.clone(),
            _ => Map::new(),
        };
        for name in ["$defs", "definitions"] {
            if let Some(definitions) = self.root.get(name) {
                fields.insert(name.to_owned(), definitions.clone());
            }
        }
        fields.insert("x-guidance".to_owned(), spacing());
        self.rule(&format!("%json {}", Value::from(fields)))
    }

    fn values(
        &mut self,
        values: impl Iterator<Item = &'a Value>,
        place: &str,
    ) -> Result<String, String> {
        let texts: Vec<String> = values.map(|it| literal(&compact(it))).collect();
        match texts.is_empty() {
            true => Err(format!("`{place}`: no value can satisfy it")),
            false => Ok(self.terminal(&texts.join(" | "))),
        }
    }

    fn integer(&mut self, fields: &Fields, place: &str) -> Result<String, String> {
        let bound = |name: &str, exclusive: bool, least: bool| match fields.get(name) {
            None => Ok(None),
            Some(value) => {
                let bound = value.as_number().and_then(|it| integers::bound(it, exclusive, least));
                bound.map(Some).ok_or_else(|| {
                    format!("`{place}/{name}`: must be a number below 1e37, but is {value}")
                })
            }
        };
        let least = [bound("minimum", false, true)?, bound("exclusiveMinimum", true, true)?];
        let greatest = [bound("maximum", false, false)?, bound("exclusiveMaximum", true, false)?];
        let least = least.into_iter().flatten().max();
        let greatest = greatest.into_iter().flatten().min();
        match integers::range(least, greatest) {
            Some(range) => Ok(self.terminal(&format!("/{range}/"))),
            None => Err(format!("`{place}`: no integer is between its bounds")),
        }
    }

    fn array(&mut self, fields: &'a Fields, place: &str) -> Result<String, String> {
        let count = |name: &str| match fields.get(name) {
            None => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or_else(|| {
                format!("`{place}/{name}`: must be a number of items, but is {value}")
            }),
        };
        let (least, greatest) = (count("minItems")?.unwrap_or(0), count("maxItems")?);
        if greatest.is_some_and(|it| it < least) {
            return Err(format!("`{place}`: `minItems` is greater than `maxItems`"));
        }
        let prefix = fields.get("prefixItems").and_then(Value::as_array);
        let prefix = prefix.map_or(&[][..], Vec::as_slice);
        let mut first = Vec::new();
        for (at, it) in prefix.iter().enumerate() {
            first.push(self.schema(it, &format!("{place}/prefixItems/{at}"))?);
        }
        let more = match fields.get("items") {
            Some(Value::Bool(false)) => None,
            Some(items) => Some(self.schema(items, &format!("{place}/items"))?),
            None => Some(self.embed(&json!({}))),
        };
        let known = first.len() as u64;
        let mut tail = match &more {
            Some(item) if greatest.is_none_or(|it| it > known) => {
                let (from, to) = (least.saturating_sub(known), greatest.map(|it| it - known));
                sequence(item, from, to, known > 0)
            }
            None if least > known => {
                return Err(format!("`{place}`: `minItems` is more than it has `prefixItems`"));
            }
            _ => String::new(),
        };
        for (at, item) in first.iter().enumerate().rev() {
            let at = at as u64;
            if greatest.is_some_and(|it| at >= it) {
                tail = String::new();
                continue;
            }
            let comma = if at > 0 { "\", \" " } else { "" };
            tail = format!("{comma}{item} {tail}");
            if at >= least {
                tail = format!("({tail})?");
            }
        }
        Ok(self.rule(&format!("\"[\" {tail} \"]\"")))
    }

    fn object(&mut self, fields: &'a Fields, place: &str) -> Result<String, String> {
        let count = |name: &str| match fields.get(name) {
            None => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or_else(|| {
                format!("`{place}/{name}`: must be a number of properties, but is {value}")
            }),
        };
        let (least, greatest) = (count("minProperties")?.unwrap_or(0), count("maxProperties")?);
        let properties = fields.get("properties").and_then(Value::as_object);
        let required: Vec<&str> = required(fields).collect();
        let additional = fields.get("additionalProperties");
        let mut items = Vec::new();
        for (name, schema) in properties.into_iter().flatten() {
            let needed = required.contains(&name.as_str());
            if schema == &Value::Bool(false) && !needed {
                continue;
            }
            let value = self.schema(schema, &format!("{place}/properties/{name}"))?;
            items.push((pair(&literal(&Value::from(name.as_str()).to_string()), &value), needed));
        }
        let other = match additional {
            Some(Value::Bool(false)) => None,
            Some(schema) => Some(self.schema(schema, &format!("{place}/additionalProperties"))?),
            None => Some(self.embed(&json!({}))),
        };
        for name in
            required.iter().filter(|it| !properties.is_some_and(|all| all.contains_key(**it)))
        {
            let Some(value) = &other else {
                return Err(format!("`{place}/required`: {name:?} is not among the properties"));
            };
            items.push((pair(&literal(&Value::from(*name).to_string()), value), true));
        }
        let other = other.map(|value| {
            let names = properties.into_iter().flatten().map(|(name, _)| name.as_str());
            let names = names.chain(required.iter().copied());
            let names: Vec<_> = names.map(|it| literal(&Value::from(it).to_string())).collect();
            let not = match names.is_empty() {
                true => String::new(),
                false => format!(" & ~({})", names.join(" | ")),
            };
            // Without escapes, so that no name can be written in two ways.
            let name = self.terminal(&format!("/\"[^\"\\\\\\x00-\\x1f\\x7f]*\"/{not}"));
            let pair = pair(&name, &value);
            self.rule(&pair)
        });
        let mut states = States { items: &items, other, known: HashMap::new() };
        let body = states.rule(self, 0, least, greatest, false)?.ok_or_else(|| {
            format!("`{place}`: no object can have as many of its properties as are required")
        })?;
        Ok(self.rule(&format!("\"{{\" {body} \"}}\"")))
    }
}

/// The rules for the rest of an object: from which property on, how many it must and may still have,
/// and whether one precedes.
struct States<'i> {
    items: &'i [(String, bool)],
    /// A pair beyond the known properties.
    other: Option<String>,
    known: HashMap<(usize, u64, Option<u64>, bool), Option<String>>,
}

impl States<'_> {
    /// `None` where nothing fits.
    fn rule(
        &mut self,
        grammar: &mut Exact<'_>,
        at: usize,
        least: u64,
        greatest: Option<u64>,
        begun: bool,
    ) -> Result<Option<String>, String> {
        let key = (at, least, greatest, begun);
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        if self.known.len() >= STATES {
            return Err("it has too many properties to count".to_owned());
        }
        let body = match self.items.get(at) {
            None => self.end(least, greatest, begun),
            Some((item, needed)) => {
                let (item, needed) = (item.clone(), *needed);
                let mut ways = Vec::new();
                if greatest != Some(0) {
                    let greatest = greatest.map(|it| it - 1);
                    let rest =
                        self.rule(grammar, at + 1, least.saturating_sub(1), greatest, true)?;
                    let comma = if begun { "\", \" " } else { "" };
                    ways.extend(rest.map(|rest| format!("{comma}{item} {rest}")));
                }
                if !needed {
                    ways.extend(self.rule(grammar, at + 1, least, greatest, begun)?);
                }
                (!ways.is_empty()).then(|| ways.join(" | "))
            }
        };
        let rule = body.map(|body| grammar.rule(&body));
        self.known.insert(key, rule.clone());
        Ok(rule)
    }

    /// What follows the known properties.
    fn end(&self, least: u64, greatest: Option<u64>, begun: bool) -> Option<String> {
        match &self.other {
            Some(pair) if greatest != Some(0) => Some(sequence(pair, least, greatest, begun)),
            _ => (least == 0).then(|| "\"\"".to_owned()),
        }
    }
}

/// Items with commas between them, and before the first where one precedes; possibly none.
fn sequence(item: &str, least: u64, greatest: Option<u64>, begun: bool) -> String {
    let times = |from: u64, to: Option<u64>| match to {
        Some(to) => format!("{{{from},{to}}}"),
        None => format!("{{{from},}}"),
    };
    let rest = |from: u64, to: Option<u64>| match to {
        Some(0) => String::new(),
        to => format!("(\", \" {item}){}", times(from, to)),
    };
    if begun {
        return rest(least, greatest);
    }
    let some = format!("{item} {}", rest(least.saturating_sub(1), greatest.map(|it| it - 1)));
    if least == 0 { format!("({some})?") } else { some }
}

fn pair(name: &str, value: &str) -> String {
    format!("{name} \": \" {value}")
}

/// A text as a Lark string.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// A value as JSON with the engine's white space.
fn compact(value: &Value) -> String {
    let join = |parts: Vec<String>| parts.join(", ");
    match value {
        Value::Array(items) => format!("[{}]", join(items.iter().map(compact).collect())),
        Value::Object(fields) => {
            let pair = |(name, it): (&String, &Value)| {
                format!("{}: {}", Value::from(name.as_str()), compact(it))
            };
            format!("{{{}}}", join(fields.iter().map(pair).collect()))
        }
        value => value.to_string(),
    }
}

fn has_type(value: &Value, kinds: &Value) -> bool {
    let is = |kind: &str| match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.as_number().and_then(integers::integer).is_some(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    };
    match kinds {
        Value::String(kind) => is(kind),
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).any(is),
        _ => true,
    }
}

fn all_references<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("$ref").and_then(Value::as_str));
            fields.values().for_each(|it| all_references(it, found));
        }
        Value::Array(items) => items.iter().for_each(|it| all_references(it, found)),
        _ => {}
    }
}

fn required(fields: &Fields) -> impl Iterator<Item = &str> {
    let names = fields.get("required").and_then(Value::as_array);
    names.into_iter().flatten().filter_map(Value::as_str)
}

/// Whether a value to be written has an integer that a double cannot hold.
fn inexact_values(fields: &Fields) -> bool {
    fn is_big(value: &Value) -> bool {
        match value {
            Value::Number(number) => {
                !number.is_f64()
                    && integers::integer(number)
                        .is_some_and(|it| it.unsigned_abs() > u128::from(EXACT))
            }
            Value::Array(items) => items.iter().any(is_big),
            Value::Object(fields) => fields.values().any(is_big),
            _ => false,
        }
    }
    ["const", "enum"].iter().any(|name| fields.get(*name).is_some_and(is_big))
}

/// Whether a bound of integers is beyond what doubles can tell apart.
fn inexact_bounds(fields: &Fields) -> bool {
    let integer = match fields.get("type") {
        Some(Value::String(kind)) => kind == "integer",
        Some(Value::Array(kinds)) => kinds.iter().any(|it| it == "integer"),
        _ => false,
    };
    let bounds = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];
    integer
        && bounds.iter().any(|name| {
            let bound = fields.get(*name).and_then(Value::as_number);
            let whole = |it| integers::integer(it).map(i128::unsigned_abs);
            bound.is_some_and(|it| match whole(it) {
                Some(whole) => whole > u128::from(EXACT),
                None => it.as_f64().is_some_and(|it| it.abs() > EXACT as f64),
            })
        })
}

/// Whether an object has to count properties that may be left out.
fn counts(fields: &Fields) -> bool {
    let Some(properties) = fields.get("properties").and_then(Value::as_object) else {
        return false;
    };
    let number = |name: &str| fields.get(name).and_then(Value::as_u64);
    let required: Vec<&str> = required(fields).collect();
    let optional = properties.keys().any(|name| !required.contains(&name.as_str()));
    let counts = number("minProperties").is_some_and(|it| it > required.len() as u64)
        || number("maxProperties").is_some();
    optional && counts && !fields.contains_key("patternProperties")
}
