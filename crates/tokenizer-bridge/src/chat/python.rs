//! Values written as Python's `str()` and `repr()` write them.
//!
//! minijinja does most of it; it differs for floats with an exponent and for characters that cannot
//! be printed.

use std::fmt::{self, Write};

use minijinja::Value;
use minijinja::value::ValueKind;

/// Writes a value as `str()` does, which is what `{{ value }}` prints.
pub(super) struct Str<'a>(pub(super) &'a Value);

impl fmt::Display for Str<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.kind(), self.0.as_str()) {
            (ValueKind::Undefined, _) => Ok(()),
            (_, Some(text)) => f.write_str(text),
            _ => write_repr(f, self.0),
        }
    }
}

/// Writes a float as Python does: the shortest digits that read back, an exponent from 1e16 on and
/// below 1e-4.
pub(super) struct Float(pub(super) f64);

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_nan() {
            return f.write_str("nan");
        }
        // Rust's `{:?}` has the same thresholds but writes 1e16 and 1e-7 for 1e+16 and 1e-07.
        let digits = format!("{:?}", self.0);
        match digits.split_once('e') {
            None => f.write_str(&digits),
            Some((mantissa, exponent)) => {
                let (sign, exponent) = match exponent.strip_prefix('-') {
                    Some(exponent) => ('-', exponent),
                    None => ('+', exponent),
                };
                write!(f, "{mantissa}e{sign}{exponent:0>2}")
            }
        }
    }
}

/// A number that is not an integer.
pub(super) fn as_float(value: &Value) -> Option<f64> {
    let is_float = value.is_number() && !value.is_integer();
    is_float.then(|| f64::try_from(value.clone()).ok()).flatten()
}

/// The value as `repr()` writes it.
fn write_repr(f: &mut impl Write, value: &Value) -> fmt::Result {
    if let Some(text) = value.as_str() {
        if value.is_safe() {
            f.write_str("Markup(")?;
            write_string(f, text)?;
            return f.write_char(')');
        }
        return write_string(f, text);
    }
    if let Some(float) = as_float(value) {
        return write!(f, "{}", Float(float));
    }
    let (open, close) = match value.kind() {
        ValueKind::Undefined => return f.write_str("Undefined"),
        ValueKind::Map => ('{', "}"),
        ValueKind::Seq | ValueKind::Iterable if value.is_tuple() && value.len() == Some(1) => {
            ('(', ",)")
        }
        ValueKind::Seq | ValueKind::Iterable if value.is_tuple() => ('(', ")"),
        ValueKind::Seq | ValueKind::Iterable => ('[', "]"),
        _ => return write!(f, "{value}"),
    };
    // A value that cannot be iterated after all (a macro, a loop) is written as minijinja writes it.
    let Ok(items) = value.try_iter() else { return write!(f, "{value}") };
    f.write_char(open)?;
    for (at, item) in items.enumerate() {
        if at > 0 {
            f.write_str(", ")?;
        }
        write_repr(f, &item)?;
        if open == '{' {
            f.write_str(": ")?;
            write_repr(f, &value.get_item(&item).unwrap_or_default())?;
        }
    }
    f.write_str(close)
}

fn write_string(f: &mut impl Write, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    f.write_char(quote)?;
    for it in text.chars() {
        match it {
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            '\\' => f.write_str("\\\\")?,
            it if it == quote => write!(f, "\\{it}")?,
            it if is_printable(it) => f.write_char(it)?,
            it => match u32::from(it) {
                code @ ..=0xFF => write!(f, "\\x{code:02x}")?,
                code @ ..=0xFFFF => write!(f, "\\u{code:04x}")?,
                code => write!(f, "\\U{code:08x}")?,
            },
        }
    }
    f.write_char(quote)
}

/// Python's `str.isprintable` for one character: no control, format, surrogate, private or
/// unassigned character, and no space but ` `. The standard library escapes the same ones.
fn is_printable(it: char) -> bool {
    if it.is_ascii() {
        return (' '..='~').contains(&it);
    }
    // The letter in front keeps a combining mark from being escaped for standing alone.
    let mut text = String::from('a');
    text.push(it);
    text.escape_debug().count() == 2
}
