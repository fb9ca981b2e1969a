//! Python's methods of `str`, `list`, `tuple` and `dict`, those that change nothing.
//!
//! jinja2 calls the real ones, so templates use whatever Python has. Methods that would change a
//! value in place are refused by transformers' sandbox and are unknown here.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::arguments::{bind, integer, required, text};
use super::budget;
use super::filters::escaped;
use super::python::Str;

/// Called for every method minijinja does not know, which is all of them.
pub(super) fn call(
    _: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    args.iter().chain([value]).try_for_each(budget::seen)?;
    let made = match (value.kind(), value.as_str()) {
        (_, Some(text)) if value.is_safe() => safe_method(text, method, args),
        (_, Some(text)) => string_method(text, method, args),
        (ValueKind::Map, _) => map_method(value, method, args),
        (ValueKind::Seq, _) => sequence_method(value, method, args),
        _ => Err(ErrorKind::UnknownMethod.into()),
    }?;
    budget::text(made.as_str().map_or(0, str::len))?;
    budget::items(made.len().unwrap_or(0))?;
    Ok(made)
}

/// `text.replace(old, new, count)`, of which all are replaced where there is no count.
pub(super) fn replaced(
    it: &str,
    old: &str,
    new: &str,
    count: Option<usize>,
) -> Result<String, Error> {
    let found = it.matches(old).take(count.unwrap_or(usize::MAX)).count();
    budget::text(found.saturating_mul(new.len()))?;
    Ok(count.map_or_else(|| it.replace(old, new), |count| it.replacen(old, new, count)))
}

/// Refuses a format that asks for a width or precision of more than three digits, or takes one from
/// an argument.
pub(super) fn check_format(style: FormatStyle, format: &str) -> Result<(), Error> {
    let wide = |spec: &str| {
        let mut numbers = spec.split(|it: char| !it.is_ascii_digit());
        numbers.any(|it| it.len() > 3)
    };
    let beyond = match style {
        FormatStyle::StrFormat => format.replace("{{", "").split('{').skip(1).any(|it| {
            // A field in a field has no end of its own.
            let spec = |field: &str| field.split_once(':').is_some_and(|(_, spec)| wide(spec));
            it.split_once('}').is_none_or(|(field, _)| spec(field))
        }),
        FormatStyle::Printf => format.split('%').skip(1).any(|it| {
            let spec = |it: &char| !it.is_ascii_digit() && !"-+ #.*".contains(*it);
            let end = it.find(|c| spec(&c)).unwrap_or(it.len());
            it[..end].contains('*') || wide(&it[..end])
        }),
    };
    if beyond {
        let what = "a format here has a fixed width of at most three digits";
        return Err(Error::new(ErrorKind::InvalidOperation, what));
    }
    Ok(())
}

/// A method of a text that is HTML-safe: what is put into it is escaped, and it stays safe.
fn safe_method(it: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let escape = |it: &Value| match it.as_str() {
        Some(text) if !it.is_safe() => escaped(text).into(),
        _ => it.clone(),
    };
    let mut args = args.to_vec();
    match (method, &mut args[..]) {
        ("replace", [_, new, ..]) => *new = escape(new),
        ("join", [items, ..]) => *items = items.try_iter()?.map(|it| escape(&it)).collect(),
        ("format", all) => all.iter_mut().for_each(|it| *it = escape(it)),
        _ => {}
    }
    let safe = |it: Value| match it.as_str() {
        Some(text) => Value::from_safe_string(text.to_owned()),
        None => it,
    };
    let made = string_method(it, method, &args)?;
    Ok(match made.kind() {
        ValueKind::Seq if made.is_tuple() => {
            Tuple::from(made.try_iter()?.map(safe).collect::<Vec<_>>()).into()
        }
        ValueKind::Seq => made.try_iter()?.map(safe).collect(),
        _ => safe(made),
    })
}

fn string_method(it: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let value = match method {
        "upper" => no_arguments(args, it.to_uppercase())?,
        "lower" => no_arguments(args, it.to_lowercase())?,
        // Of the letters that fold further than their lower case, only this one is met in practice.
        "casefold" => no_arguments(args, it.to_lowercase().replace('ß', "ss"))?,
        "capitalize" => no_arguments(args, capitalize(it))?,
        "title" => no_arguments(args, title(it))?,
        "swapcase" => no_arguments(args, it.chars().flat_map(swap_case).collect::<String>())?,

        "strip" | "lstrip" | "rstrip" => {
            let [chars] = bind(args, ["chars"])?;
            let chars = chars.filter(|it| !it.is_none());
            let chars = chars.as_ref().map(|chars| text(chars, "chars")).transpose()?;
            let strips = |it: char| chars.map_or_else(|| is_space(it), |chars| chars.contains(it));
            let it = if method == "rstrip" { it } else { it.trim_start_matches(strips) };
            if method == "lstrip" { it } else { it.trim_end_matches(strips) }.into()
        }
        "removeprefix" => affix(args, "prefix", |prefix| it.strip_prefix(prefix).unwrap_or(it))?,
        "removesuffix" => affix(args, "suffix", |suffix| it.strip_suffix(suffix).unwrap_or(it))?,
        "replace" => {
            let [old, new, count] = bind(args, ["old", "new", "count"])?;
            let (old, new) = (required(old, "old")?, required(new, "new")?);
            let (old, new) = (text(&old, "old")?, text(&new, "new")?);
            let count = integer(count.as_ref(), "count")?.and_then(|it| usize::try_from(it).ok());
            replaced(it, old, new, count)?.into()
        }
        "center" | "ljust" | "rjust" | "zfill" => padded(it, method, args)?,

        "split" | "rsplit" => {
            let [separator, most] = bind(args, ["sep", "maxsplit"])?;
            let separator = separator.filter(|it| !it.is_none());
            let most = integer(most.as_ref(), "maxsplit")?;
            let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
            let parts = match &separator {
                None if method == "split" => split_spaces(it, most),
                None => rsplit_spaces(it, most),
                Some(separator) => split(it, separator_text(separator)?, method, most),
            };
            parts.into_iter().map(Value::from).collect()
        }
        "partition" | "rpartition" => {
            let [separator] = bind(args, ["sep"])?;
            let separator = required(separator, "sep")?;
            let separator = separator_text(&separator)?;
            let parts = match method {
                "partition" => it.split_once(separator).ok_or([it, "", ""]),
                _ => it.rsplit_once(separator).ok_or(["", "", it]),
            };
            let parts =
                parts.map_or_else(|none| none, |(before, after)| [before, separator, after]);
            Tuple::from(parts.map(Value::from)).into()
        }
        "splitlines" => {
            let [keep_ends] = bind(args, ["keepends"])?;
            split_lines(it, keep_ends.is_some_and(|it| it.is_true())).collect()
        }
        "join" => {
            let [items] = bind(args, ["iterable"])?;
            let mut joined = String::new();
            for (at, item) in required(items, "iterable")?.try_iter()?.enumerate() {
                let item = text(&item, "iterable")?;
                budget::text(it.len() + item.len())?;
                joined.push_str(if at > 0 { it } else { "" });
                joined.push_str(item);
            }
            joined.into()
        }
        "format" => {
            check_format(FormatStyle::StrFormat, it)?;
            format(FormatStyle::StrFormat, it, args)?.into()
        }

        "startswith" | "endswith" => {
            let [affix, start, end] = bind(args, ["affix", "start", "end"])?;
            let affix = required(affix, "affix")?;
            let part = slice(it, start.as_ref(), end.as_ref())?.map(|(_, part)| part);
            let matches = |affix: &Value| {
                let affix = text(affix, "affix")?;
                Ok(part.is_some_and(|part| match method {
                    "startswith" => part.starts_with(affix),
                    _ => part.ends_with(affix),
                }))
            };
            if affix.is_tuple() {
                let found: Result<Vec<bool>, Error> =
                    affix.try_iter()?.map(|it| matches(&it)).collect();
                found?.contains(&true).into()
            } else {
                matches(&affix)?.into()
            }
        }
        "find" | "rfind" | "index" | "rindex" | "count" => search(it, method, args)?,

        "isalpha" => all(args, it, char::is_alphabetic)?,
        "isalnum" => all(args, it, char::is_alphanumeric)?,
        // Of digits beyond ASCII the standard library only knows that they are numeric.
        "isdigit" | "isdecimal" => all(args, it, |it| it.is_ascii_digit())?,
        "isnumeric" => all(args, it, char::is_numeric)?,
        "isspace" => all(args, it, is_space)?,
        "isascii" => no_arguments(args, it.is_ascii())?,
        "islower" => no_arguments(args, is_case(it, char::is_lowercase, char::is_uppercase))?,
        "isupper" => no_arguments(args, is_case(it, char::is_uppercase, char::is_lowercase))?,
        "istitle" => no_arguments(args, it.chars().any(is_cased) && title(it) == it)?,
        _ => return Err(ErrorKind::UnknownMethod.into()),
    };
    Ok(value)
}

fn map_method(map: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let entries = |entry: fn(Value, Value) -> Value| {
        let () = nothing(args)?;
        let map = map.clone();
        Ok(Value::make_object_iterable(map, move |map| {
            match map.as_object().and_then(|it| it.try_iter_pairs()) {
                // Its length stays known, on which `loop.last` rests.
                Some(pairs) => Box::new(pairs.map(move |(key, value)| entry(key, value))),
                None => Box::new(std::iter::empty()),
            }
        }))
    };
    match method {
        "items" => entries(|key, value| Tuple::from([key, value]).into()),
        "keys" => entries(|key, _| key),
        "values" => entries(|_, value| value),
        "copy" => no_arguments(args, map.clone()),
        "get" => {
            let [key, default] = bind(args, ["key", "default"])?;
            let found = map.as_object().and_then(|it| it.get_value(&key.unwrap_or_default()));
            Ok(found.or(default).unwrap_or_else(|| Value::from(())))
        }
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

fn sequence_method(sequence: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match method {
        "copy" => no_arguments(args, sequence.clone()),
        "count" => {
            let wanted = required(bind(args, ["value"])?[0].take(), "value")?;
            Ok(sequence.try_iter()?.filter(|it| *it == wanted).count().into())
        }
        "index" => {
            let wanted = required(bind(args, ["value"])?[0].take(), "value")?;
            let at = sequence.try_iter()?.position(|it| it == wanted);
            at.map(Value::from).ok_or_else(|| not_found(&wanted))
        }
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

fn nothing(args: &[Value]) -> Result<(), Error> {
    bind(args, []).map(|[]| ())
}

fn no_arguments(args: &[Value], value: impl Into<Value>) -> Result<Value, Error> {
    nothing(args).map(|()| value.into())
}

fn not_found(wanted: &Value) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("`{}` is not in there", Str(wanted)))
}

/// Whether the text is not empty and all its characters are of a kind.
fn all(args: &[Value], it: &str, is: impl Fn(char) -> bool) -> Result<Value, Error> {
    no_arguments(args, !it.is_empty() && it.chars().all(is))
}

fn is_case(it: &str, is: fn(char) -> bool, is_other: fn(char) -> bool) -> bool {
    it.chars().any(is) && !it.chars().any(is_other)
}

fn is_cased(it: char) -> bool {
    it.is_lowercase() || it.is_uppercase()
}

/// Python counts four separator controls among the spaces, which Unicode does not.
pub(super) fn is_space(it: char) -> bool {
    it.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&it)
}

fn capitalize(it: &str) -> String {
    let mut chars = it.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    first.chain(chars.as_str().to_lowercase().chars()).collect()
}

/// Every letter that follows none is made upper case, every other one lower case.
fn title(it: &str) -> String {
    let mut titled = String::with_capacity(it.len());
    let mut after_letter = false;
    for it in it.chars() {
        if after_letter {
            titled.extend(it.to_lowercase());
        } else {
            titled.extend(it.to_uppercase());
        }
        after_letter = is_cased(it);
    }
    titled
}

fn swap_case(it: char) -> Vec<char> {
    if it.is_uppercase() { it.to_lowercase().collect() } else { it.to_uppercase().collect() }
}

fn affix<'a>(
    args: &[Value],
    parameter: &str,
    cut: impl FnOnce(&str) -> &'a str,
) -> Result<Value, Error> {
    let [affix] = bind(args, [parameter])?;
    let affix = required(affix, parameter)?;
    Ok(cut(text(&affix, parameter)?).into())
}

/// `center`, `ljust`, `rjust` and `zfill`: the text with fill characters up to a width.
fn padded(it: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    // Beyond any use; an untrusted template must not ask for gigabytes of spaces.
    const WIDEST: i64 = 10_000;
    let [width, fill] = bind(args, ["width", "fillchar"])?;
    let width = integer(Some(&required(width, "width")?), "width")?.unwrap_or_default();
    if width > WIDEST {
        let what = format!("a width of {width} is more than {WIDEST}");
        return Err(Error::new(ErrorKind::InvalidOperation, what));
    }
    let missing = usize::try_from(width).unwrap_or_default().saturating_sub(it.chars().count());
    let fill = fill.as_ref().map_or(Ok(" "), |fill| text(fill, "fillchar"))?;
    budget::text(fill.len().saturating_mul(missing))?;
    let fill = |n: usize| fill.repeat(n);
    Ok(match method {
        "ljust" => it.to_owned() + &fill(missing),
        "rjust" => fill(missing) + it,
        // The extra one goes to the left when the width is odd, as in CPython.
        "center" => {
            let left = missing / 2 + (missing & usize::try_from(width).unwrap_or_default() & 1);
            fill(left) + it + &fill(missing - left)
        }
        _ => {
            let digits = it.trim_start_matches(['+', '-']);
            let sign = if it.len() == digits.len() { "" } else { &it[..1] };
            format!("{sign}{}{}", "0".repeat(missing), &it[sign.len()..])
        }
    }
    .into())
}

fn separator_text(separator: &Value) -> Result<&str, Error> {
    match text(separator, "sep")? {
        "" => Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        separator => Ok(separator),
    }
}

fn split<'a>(it: &'a str, separator: &str, method: &str, most: usize) -> Vec<&'a str> {
    let pieces = most.saturating_add(1);
    if method == "split" {
        return it.splitn(pieces, separator).collect();
    }
    let mut parts: Vec<&str> = it.rsplitn(pieces, separator).collect();
    parts.reverse();
    parts
}

/// Splits at runs of spaces; the piece after the last split keeps its inner and trailing ones.
fn split_spaces(it: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = it.trim_start_matches(is_space);
    while !rest.is_empty() {
        let end = if parts.len() < most { rest.find(is_space) } else { None };
        let (part, after) = rest.split_at(end.unwrap_or(rest.len()));
        parts.push(part);
        rest = after.trim_start_matches(is_space);
    }
    parts
}

fn rsplit_spaces(it: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = it.trim_end_matches(is_space);
    while !rest.is_empty() {
        let space =
            if parts.len() < most { rest.char_indices().rfind(|it| is_space(it.1)) } else { None };
        let (before, part) = rest.split_at(space.map_or(0, |(at, space)| at + space.len_utf8()));
        parts.push(part);
        rest = before.trim_end_matches(is_space);
    }
    parts.reverse();
    parts
}

/// The lines of a text, at every line boundary Python knows.
pub(super) fn split_lines(it: &str, keep_ends: bool) -> impl Iterator<Item = &str> {
    const BOUNDARIES: [char; 10] = [
        '\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}',
        '\u{2029}',
    ];
    let mut rest = it;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.find(BOUNDARIES).unwrap_or(rest.len());
        let boundary = if rest[end..].starts_with("\r\n") {
            2
        } else {
            rest[end..].chars().next().map_or(0, char::len_utf8)
        };
        let line = &rest[..if keep_ends { end + boundary } else { end }];
        rest = &rest[end + boundary..];
        Some(line)
    })
}

/// The part from character `start` to `end` (negative ones count from the end) and the number of
/// characters before it; `None` where `start` lies behind `end`, and nothing is found, not even "".
fn slice<'a>(
    it: &'a str,
    start: Option<&Value>,
    end: Option<&Value>,
) -> Result<Option<(usize, &'a str)>, Error> {
    if start.is_none() && end.is_none() {
        return Ok(Some((0, it)));
    }
    let len = it.chars().count();
    let position = |value: Option<&Value>, parameter, otherwise| {
        let Some(at) = integer(value, parameter)? else { return Ok(otherwise) };
        let at = if at < 0 { at.saturating_add_unsigned(len as u64) } else { at };
        Ok::<_, Error>(usize::try_from(at).unwrap_or_default())
    };
    let start = position(start, "start", 0)?;
    let end = position(end, "end", len)?.min(len);
    if start > end {
        return Ok(None);
    }
    let byte = |at: usize| it.char_indices().nth(at).map_or(it.len(), |(byte, _)| byte);
    Ok(Some((start, &it[byte(start)..byte(end)])))
}

fn search(it: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let [wanted, start, end] = bind(args, ["sub", "start", "end"])?;
    let wanted = required(wanted, "sub")?;
    let sub = text(&wanted, "sub")?;
    let part = slice(it, start.as_ref(), end.as_ref())?;
    if method == "count" {
        return Ok(part.map_or(0, |(_, part)| part.matches(sub).count()).into());
    }
    let found = part.and_then(|(before, part)| {
        let byte = if method.starts_with('r') { part.rfind(sub) } else { part.find(sub) };
        byte.map(|byte| before + part[..byte].chars().count())
    });
    match found {
        Some(at) => Ok(at.into()),
        None if method.ends_with("find") => Ok((-1).into()),
        None => Err(not_found(&wanted)),
    }
}
