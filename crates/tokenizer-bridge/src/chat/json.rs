//! `tojson` as transformers defines it: Python's `json.dumps`, without jinja2's HTML escapes.

use std::fmt::{self, Write};

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::arguments::{bind, text};
use super::budget;
use super::filters::Generator;
use super::python::{Float, as_float};

/// The filter `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [ensure_ascii, indent, separators, sort_keys] =
        bind(args, ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = indent.as_ref().map(indentation).transpose()?.flatten();
    let (item, key) = match separators.filter(|it| !it.is_none()) {
        Some(separators) => {
            let item = separators.get_item_by_index(0)?;
            let key = separators.get_item_by_index(1)?;
            (text(&item, "separators")?.to_owned(), text(&key, "separators")?.to_owned())
        }
        None => ((if indent.is_some() { "," } else { ", " }).to_owned(), ": ".to_owned()),
    };
    let style = Style {
        ensure_ascii: ensure_ascii.is_some_and(|it| it.is_true()),
        sort_keys: sort_keys.is_some_and(|it| it.is_true()),
        indent,
        item,
        key,
    };
    let mut json = String::new();
    style.write(&mut json, value, 0)?;
    Ok(Value::from(json))
}

/// The text one level is indented by: a string, or a number of spaces; nothing for `None`.
fn indentation(indent: &Value) -> Result<Option<String>, Error> {
    // Beyond any use; an untrusted template must not ask for gigabytes of spaces.
    const MOST: i64 = 1000;
    if indent.is_none() {
        return Ok(None);
    }
    if let Some(text) = indent.as_str() {
        return Ok(Some(text.to_owned()));
    }
    match i64::try_from(indent.clone()) {
        Ok(spaces) if spaces <= MOST => {
            Ok(Some(" ".repeat(usize::try_from(spaces).unwrap_or_default())))
        }
        _ => {
            let what = format!("`indent` is {indent}, neither a text nor a number up to {MOST}");
            Err(Error::new(ErrorKind::InvalidOperation, what))
        }
    }
}

struct Style {
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    item: String,
    key: String,
}

impl Style {
    fn write(&self, out: &mut String, value: &Value, level: usize) -> Result<(), Error> {
        let indentation = self.indent.as_ref().map_or(0, String::len) * (level + 1);
        budget::items(1)?;
        budget::text(indentation + value.as_str().map_or(8, str::len))?;
        if value.downcast_object_ref::<Generator>().is_some() {
            let what = "an object of type generator is not JSON serializable";
            return Err(Error::new(ErrorKind::BadSerialization, what));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(out, value),
            ValueKind::String => self.string(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?;
                self.items(out, ['[', ']'], items, level, |out, item| {
                    self.write(out, &item, level + 1)
                })?;
            }
            ValueKind::Map => self.map(out, value, level)?,
            kind => {
                let what = format!("tojson cannot write a value that is {kind}");
                return Err(Error::new(ErrorKind::BadSerialization, what));
            }
        }
        Ok(())
    }

    fn map(&self, out: &mut String, map: &Value, level: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = map.try_iter()?.collect();
        if self.sort_keys {
            keys.sort();
        }
        self.items(out, ['{', '}'], keys.into_iter(), level, |out, key| {
            match key.kind() {
                ValueKind::String => self.string(out, key.as_str().unwrap_or_default()),
                // JSON has only texts for keys.
                ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                    out.push('"');
                    self.write(out, &key, level)?;
                    out.push('"');
                }
                kind => {
                    let what = format!("tojson cannot write a key that is a {kind}");
                    return Err(Error::new(ErrorKind::BadSerialization, what));
                }
            }
            out.push_str(&self.key);
            self.write(out, &map.get_item(&key)?, level + 1)
        })
    }

    /// Writes items between brackets, each on a line of its own where there is an indentation.
    fn items(
        &self,
        out: &mut String,
        [open, close]: [char; 2],
        items: impl Iterator<Item = Value>,
        level: usize,
        mut write: impl FnMut(&mut String, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let new_line = |out: &mut String, level: usize| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(indent.as_str(), level));
            }
        };
        out.push(open);
        let mut empty = true;
        for item in items {
            if !std::mem::replace(&mut empty, false) {
                out.push_str(&self.item);
            }
            new_line(out, level + 1);
            write(out, item)?;
        }
        if !empty {
            new_line(out, level);
        }
        out.push(close);
        Ok(())
    }

    fn number(&self, out: &mut String, value: &Value) {
        match as_float(value) {
            None => out.push_str(&value.to_string()),
            Some(float) if float.is_nan() => out.push_str("NaN"),
            Some(f64::INFINITY) => out.push_str("Infinity"),
            Some(f64::NEG_INFINITY) => out.push_str("-Infinity"),
            Some(float) => out.push_str(&Float(float).to_string()),
        }
    }

    fn string(&self, out: &mut String, text: &str) {
        out.push('"');
        for it in text.chars() {
            match it {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                ' '..='~' => out.push(it),
                '\u{20}'.. if !self.ensure_ascii => out.push(it),
                it => escape(out, it).unwrap_or_default(),
            }
        }
        out.push('"');
    }
}

/// A character as one or two `\uXXXX`, in UTF-16.
fn escape(out: &mut String, it: char) -> fmt::Result {
    it.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))
}
