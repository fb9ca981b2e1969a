//! What a template may make while it is rendered: the functions its operators become, and the
//! account they keep.

use std::cell::Cell;
use std::fmt;

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::python::{Str, as_float};

/// Bytes of texts that a rendering may make, in all, beside eight times what it is given.
const TEXT: usize = 32 << 20;
/// Items of lists that a rendering may make or look at, in all.
const ITEMS: usize = 4 << 20;
/// Bytes of texts and lists that filters, comparisons and methods may look at, in all, beside 128 times
/// what it is given.
const SEEN: usize = 128 << 20;
/// What an item of a list counts as, in bytes.
const ITEM: usize = 16;
/// Instructions that a rendering may run.
pub(super) const FUEL: u64 = 3_000_000;
/// How deep what a namespace keeps may be nested.
const DEEPEST: usize = 64;

/// What is left of an account.
#[derive(Clone, Copy)]
struct Left {
    text: usize,
    items: usize,
    seen: usize,
}

thread_local! {
    static LEFT: Cell<Left> =
        const { Cell::new(Left { text: usize::MAX, items: usize::MAX, seen: usize::MAX }) };
}

/// Runs a rendering under an account of its own; `given` are the bytes of its variables.
pub(super) fn within<T>(given: usize, work: impl FnOnce() -> T) -> T {
    struct Restore(Left);
    impl Drop for Restore {
        fn drop(&mut self) {
            LEFT.set(self.0);
        }
    }
    let beside = |least: usize, times: usize| least.saturating_add(given.saturating_mul(times));
    let left = Left { text: beside(TEXT, 8), items: ITEMS, seen: beside(SEEN, 128) };
    let _restore = Restore(LEFT.replace(left));
    work()
}

/// Takes so much from one part of the account.
fn take(
    part: impl FnOnce(&mut Left) -> &mut usize,
    count: usize,
    beyond: &'static str,
) -> Result<(), Error> {
    let mut left = LEFT.get();
    let part = part(&mut left);
    *part =
        part.checked_sub(count).ok_or_else(|| Error::new(ErrorKind::InvalidOperation, beyond))?;
    LEFT.set(left);
    Ok(())
}

/// Takes bytes of text from the account.
pub(super) fn text(bytes: usize) -> Result<(), Error> {
    take(|it| &mut it.text, bytes, "the template makes too much text")
}

/// Takes items of lists from the account.
pub(super) fn items(count: usize) -> Result<(), Error> {
    take(|it| &mut it.items, count, "the template makes lists that are too long")
}

/// Takes a value that is looked at from the account.
pub(super) fn seen(it: &Value) -> Result<(), Error> {
    let bytes = it.as_str().map(str::len);
    let bytes = bytes.or_else(|| it.len().map(|it| it.saturating_mul(ITEM))).unwrap_or(0);
    take(|it| &mut it.seen, bytes, "the template looks at long texts or lists too often")
}

/// A value as `str()` writes it, counted while it is written: a small value may print as a long text.
pub(super) fn written(value: &Value) -> Result<String, Error> {
    struct Counted(String);
    impl fmt::Write for Counted {
        fn write_str(&mut self, part: &str) -> fmt::Result {
            text(part.len()).map_err(|_| fmt::Error)?;
            self.0.push_str(part);
            Ok(())
        }
    }
    let mut out = Counted(String::new());
    match fmt::write(&mut out, format_args!("{}", Str(value))) {
        Ok(()) => Ok(out.0),
        Err(fmt::Error) => {
            text(usize::MAX)?;
            Ok(out.0)
        }
    }
}

pub(super) fn add_to(environment: &mut minijinja::Environment<'_>) {
    environment.add_function("__mlxgk_join", |a: &Value, b: &Value| {
        Ok::<_, Error>(written(a)? + &written(b)?)
    });
    environment.add_function("__mlxgk_add", |a: &Value, b: &Value| add(a, b));
    environment.add_function("__mlxgk_multiply", |a: &Value, b: &Value| multiply(a, b));
    environment.add_function("__mlxgk_slice", slice);
    environment.add_function("__mlxgk_items", |it: &Value| {
        if it.is_none() {
            return Err(invalid("'NoneType' object is not iterable"));
        }
        seen(it)?;
        Ok(it.clone())
    });
    environment.add_function("__mlxgk_seen", looked_at);
    environment.add_filter("__mlxgk_seen", looked_at);
    environment.add_function("__mlxgk_keep", |it: &Value| {
        keep(it, 0)?;
        Ok::<_, Error>(it.clone())
    });
    environment.add_function("__mlxgk_count", |bytes: usize| {
        text(bytes)?;
        Ok::<_, Error>("")
    });
}

fn looked_at(it: &Value) -> Result<Value, Error> {
    seen(it)?;
    Ok(it.clone())
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

fn impossible(operator: &str, a: &Value, b: &Value) -> Error {
    invalid(format!(
        "tried to use {operator} operator on unsupported types {} and {}",
        a.kind(),
        b.kind()
    ))
}

fn is_list(it: &Value) -> bool {
    matches!(it.kind(), ValueKind::Seq | ValueKind::Iterable)
}

/// A number as the integer it is; Python counts with booleans.
fn integer(it: &Value) -> Option<i128> {
    let counts = it.is_integer() || it.kind() == ValueKind::Bool;
    counts.then(|| i128::try_from(it.clone()).ok()).flatten()
}

fn float(it: &Value) -> Option<f64> {
    as_float(it).or_else(|| integer(it).map(|it| it as f64))
}

/// Python's `a + b`: of texts where one is HTML-safe, the other is escaped.
pub(super) fn add(a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(left), Some(right)) = (a.as_str(), b.as_str()) {
        if a.is_safe() || b.is_safe() {
            let part = |it: &Value, plain: &str| {
                if it.is_safe() { plain.to_owned() } else { super::filters::escaped(plain) }
            };
            let (left, right) = (part(a, left), part(b, right));
            text(left.len() + right.len())?;
            return Ok(Value::from_safe_string(left + &right));
        }
        text(left.len() + right.len())?;
        return Ok([left, right].concat().into());
    }
    if let (Some(left), Some(right)) = (integer(a), integer(b)) {
        return left.checked_add(right).map(Value::from).ok_or_else(|| impossible("+", a, b));
    }
    if let (Some(left), Some(right)) = (float(a), float(b)) {
        return Ok((left + right).into());
    }
    if is_list(a) && is_list(b) && a.is_tuple() == b.is_tuple() {
        let mut list = Vec::new();
        for it in a.try_iter()?.chain(b.try_iter()?) {
            items(1)?;
            list.push(it);
        }
        return Ok(if a.is_tuple() { Tuple::from(list).into() } else { list.into() });
    }
    Err(impossible("+", a, b))
}

/// Python's `a * b`.
fn multiply(a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(left), Some(right)) = (integer(a), integer(b)) {
        return left.checked_mul(right).map(Value::from).ok_or_else(|| impossible("*", a, b));
    }
    if let (Some(left), Some(right)) = (float(a), float(b)) {
        return Ok((left * right).into());
    }
    let (it, times) = if integer(b).is_some() { (a, b) } else { (b, a) };
    let Some(times) = integer(times) else { return Err(impossible("*", a, b)) };
    let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
    if let Some(part) = it.as_str() {
        text(part.len().saturating_mul(times))?;
        let made = part.repeat(times);
        return Ok(if it.is_safe() { Value::from_safe_string(made) } else { made.into() });
    }
    if is_list(it) {
        let one: Vec<Value> = it.try_iter()?.collect();
        items(one.len().saturating_mul(times))?;
        let list: Vec<Value> = std::iter::repeat_n(one, times).flatten().collect();
        return Ok(if it.is_tuple() { Tuple::from(list).into() } else { list.into() });
    }
    Err(impossible("*", a, b))
}

/// Python's `it[start:stop:step]`.
fn slice(it: &Value, start: &Value, stop: &Value, step: &Value) -> Result<Value, Error> {
    seen(it)?;
    let index = |it: &Value| match integer(it) {
        None if !it.is_none() => Err(invalid("slice indices must be integers or None")),
        number => Ok(number),
    };
    let (start, stop, step) = (index(start)?, index(stop)?, index(step)?.unwrap_or(1));
    let within = |len: usize| {
        let len = i128::try_from(len).unwrap_or(i128::MAX);
        let (first, last) = if step < 0 { (-1, len - 1) } else { (0, len) };
        let place =
            |at: i128| (if at < 0 { at.saturating_add(len) } else { at }).clamp(first, last);
        let begin = start.map_or(if step < 0 { last } else { first }, place);
        let end = stop.map_or(if step < 0 { first } else { last }, place);
        let is_inside = move |at: &i128| if step < 0 { *at > end } else { *at < end };
        let next = move |at: &i128| at.checked_add(step).filter(is_inside);
        std::iter::successors(Some(begin).filter(is_inside), next)
            .filter_map(|at| usize::try_from(at).ok())
    };
    if step == 0 {
        return Err(invalid("slice step cannot be zero"));
    }
    if let Some(part) = it.as_str() {
        text(part.len())?;
        let letters: Vec<char> = part.chars().collect();
        return Ok(within(letters.len()).map(|at| letters[at]).collect::<String>().into());
    }
    if is_list(it) {
        let all: Vec<Value> = it.try_iter()?.collect();
        items(all.len())?;
        let list: Vec<Value> = within(all.len()).map(|at| all[at].clone()).collect();
        return Ok(if it.is_tuple() { Tuple::from(list).into() } else { list.into() });
    }
    Err(invalid(format!("a value of type {} cannot be sliced", it.kind())))
}

/// Refuses what a namespace must not keep: another namespace, which may hold the first, and lists
/// that grow deeper each time.
fn keep(it: &Value, depth: usize) -> Result<(), Error> {
    let Some(object) = it.as_object() else { return Ok(()) };
    if depth > DEEPEST {
        return Err(invalid("the template nests values too deep"));
    }
    if object.type_name().ends_with("Namespace") {
        return Err(invalid("the template keeps a namespace in a namespace"));
    }
    match it.kind() {
        ValueKind::Seq => it.try_iter()?.try_for_each(|it| {
            items(1)?;
            keep(&it, depth + 1)
        }),
        ValueKind::Map => it.try_iter()?.try_for_each(|key| {
            items(1)?;
            keep(&it.get_item(&key)?, depth + 1)
        }),
        _ => Ok(()),
    }
}
