//! jinja2's filters and tests where minijinja's take other arguments or refuse undefined values.

use std::sync::Arc;

use minijinja::formatting::FormatStyle;
use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters, functions};

use super::arguments::{bind, integer, required};
use super::budget;
use super::json::tojson;
use super::methods::{check_format, replaced, split_lines};
use super::python::Str;

/// The arguments of a filter, positional and named.
type Arguments = Rest<ValueOrKwargs>;

pub(super) fn add_to(environment: &mut Environment<'_>) {
    environment
        .add_filter("tojson", |value: &Value, args: Arguments| tojson(value, &args.into_values()));
    environment.add_filter("string", string);
    environment.add_filter("replace", replace);
    environment.add_filter(
        "format",
        |state: &mut State<'_, '_>, value: &Value, args: Arguments| {
            check_format(FormatStyle::Printf, &Str(value).to_string())?;
            let made = filters::format(state, value, args)?;
            budget::text(made.as_str().map_or(0, str::len))?;
            Ok::<_, Error>(made)
        },
    );
    environment.add_filter("sum", sum);
    counted(environment);
    environment.add_filter("join", join);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("round", round);
    environment.add_filter("indent", indent);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("first", |value: &Value| undefined_or(value, filters::first));
    environment
        .add_filter("last", |value: Value| undefined_or(&value, |it| filters::last(it.clone())));
    environment.add_filter("items", |value: &Value| {
        if value.is_undefined() {
            Ok(Value::from_iter::<[Value; 0]>([]))
        } else {
            filters::items(value)
        }
    });
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", |value: &Value| {
        is_sequence(value) || value.kind() == ValueKind::Iterable
    });
    environment.add_function("dict", dict);
}

fn undefined_or(
    value: &Value,
    filter: impl FnOnce(&Value) -> Result<Value, Error>,
) -> Result<Value, Error> {
    if value.is_undefined() { Ok(Value::UNDEFINED) } else { filter(value) }
}

fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() { Ok(0) } else { filters::length(value) }
}

/// `sum(attribute=None, start=0)`.
fn sum(state: &mut State<'_, '_>, value: Value, args: Arguments) -> Result<Value, Error> {
    let [attribute, start] = bind(&args.into_values(), ["attribute", "start"])?;
    let items = attribute_of_all(state, value, attribute)?;
    let start = start.unwrap_or_else(|| Value::from(0));
    items.try_iter()?.try_fold(start, |total, it| budget::add(&total, &it))
}

/// The items, or an attribute of each.
fn attribute_of_all(
    state: &mut State<'_, '_>,
    value: Value,
    attribute: Option<Value>,
) -> Result<Value, Error> {
    match attribute.filter(|it| !it.is_none()) {
        None => Ok(value),
        Some(attribute) => {
            let attribute = Kwargs::from_iter([("attribute", attribute)]);
            state.apply_filter("map", &[value, attribute.into()])
        }
    }
}

/// `join(d='', attribute=None)`.
fn join(state: &mut State<'_, '_>, value: Value, args: Arguments) -> Result<String, Error> {
    let [separator, attribute] = bind(&args.into_values(), ["d", "attribute"])?;
    let items = attribute_of_all(state, value, attribute)?;
    let separator = separator.map(|it| Str(&it).to_string()).unwrap_or_default();
    let mut joined = String::new();
    for (at, item) in items.try_iter()?.enumerate() {
        if at > 0 {
            budget::text(separator.len())?;
            joined.push_str(&separator);
        }
        joined.push_str(&budget::written(&item)?);
    }
    Ok(joined)
}

/// `string`: what is HTML-safe stays it.
fn string(value: &Value) -> Result<Value, Error> {
    if value.as_str().is_some() {
        Ok(value.clone())
    } else {
        budget::written(value).map(Value::from)
    }
}

/// `replace(old, new, count=None)`.
fn replace(value: &Value, args: Arguments) -> Result<String, Error> {
    let [old, new, count] = bind(&args.into_values(), ["old", "new", "count"])?;
    let count = integer(count.as_ref(), "count")?.and_then(|it| usize::try_from(it).ok());
    let [old, new] = [required(old, "old")?, required(new, "new")?].map(|it| Str(&it).to_string());
    replaced(&budget::written(value)?, &old, &new, count)
}

/// What Python's filters give where they do not make a list: it can be gone through, it is always
/// true, and it is not JSON.
#[derive(Debug)]
pub(super) struct Generator(Vec<Value>);

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.clone())
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }
}

/// minijinja's filters of lists, with the items they look at counted.
fn counted(environment: &mut Environment<'_>) {
    environment.add_filter("__mlxgk_map", filters::map);
    environment.add_filter("__mlxgk_select", filters::select);
    environment.add_filter("__mlxgk_reject", filters::reject);
    environment.add_filter("__mlxgk_selectattr", filters::selectattr);
    environment.add_filter("__mlxgk_rejectattr", filters::rejectattr);
    environment.add_filter("__mlxgk_unique", filters::unique);
    environment.add_filter("__mlxgk_batch", filters::batch);
    environment.add_filter("__mlxgk_slice", filters::slice);
    for name in ["map", "select", "reject", "selectattr", "rejectattr", "unique", "batch", "slice"]
    {
        environment.add_filter(name, move |state: &mut State<'_, '_>, args: Arguments| {
            let made = call(state, name, &args.into_values())?;
            let items = made.try_iter()?.collect();
            Ok::<_, Error>(Value::from_object(Generator(items)))
        });
    }
    environment.add_filter("__mlxgk_sort", filters::sort);
    environment.add_filter("__mlxgk_groupby", filters::groupby);
    environment.add_filter("__mlxgk_dictsort", filters::dictsort);
    environment.add_filter("__mlxgk_list", filters::list);
    environment.add_filter("__mlxgk_min", filters::min);
    environment.add_filter("__mlxgk_max", filters::max);
    for name in ["sort", "groupby", "dictsort", "list", "min", "max"] {
        environment.add_filter(name, move |state: &mut State<'_, '_>, args: Arguments| {
            call(state, name, &args.into_values())
        });
    }
}

fn call(state: &mut State<'_, '_>, name: &str, args: &[Value]) -> Result<Value, Error> {
    let invalid = |what: &str| Err(Error::new(ErrorKind::InvalidOperation, what.to_owned()));
    let value = args.first().cloned().unwrap_or_default();
    if value.is_none() {
        // These look first whether there is anything.
        return match name {
            "map" | "select" | "reject" | "selectattr" | "rejectattr" => {
                Ok(Vec::<Value>::new().into())
            }
            _ => invalid("'NoneType' object is not iterable"),
        };
    }
    let len = value.len().unwrap_or(0);
    // Sorting and looking for what was seen compare each item with several others.
    let compares = matches!(name, "sort" | "unique" | "groupby" | "dictsort");
    budget::items(if compares { len.saturating_mul(16) } else { len })?;
    if matches!(name, "batch" | "slice") {
        let count = integer(args.get(1), "count")?.unwrap_or(1);
        budget::items(usize::try_from(count).unwrap_or(usize::MAX))?;
    }
    if name == "max" {
        // Of equals the first; minijinja takes the last.
        let mut items: Vec<Value> = value.try_iter()?.collect();
        items.reverse();
        let args: Vec<Value> =
            std::iter::once(items.into()).chain(args.iter().skip(1).cloned()).collect();
        return state.apply_filter("__mlxgk_max", &args);
    }
    state.apply_filter(&format!("__mlxgk_{name}"), args)
}

/// `default(default_value='', boolean=False)`.
fn default(value: &Value, args: Arguments) -> Result<Value, Error> {
    let [otherwise, boolean] = bind(&args.into_values(), ["default_value", "boolean"])?;
    let falsy_too = boolean.is_some_and(|it| it.is_true());
    if value.is_undefined() || (falsy_too && !value.is_true()) {
        return Ok(otherwise.unwrap_or_else(|| Value::from("")));
    }
    Ok(value.clone())
}

/// `int(default=0, base=10)`: anything that is not a number becomes the default.
fn int(state: &State<'_, '_>, value: &Value, args: Arguments) -> Result<Value, Error> {
    let [otherwise, base] = bind(&args.into_values(), ["default", "base"])?;
    let base = integer(base.as_ref(), "base")?.and_then(|it| u32::try_from(it).ok());
    let otherwise = otherwise.unwrap_or_else(|| Value::from(0));
    filters::int(state, &trimmed(value), Some(otherwise), base, no_kwargs())
}

/// `float(default=0.0)`: anything that is not a number becomes the default.
fn float(state: &State<'_, '_>, value: &Value, args: Arguments) -> Result<Value, Error> {
    let [otherwise] = bind(&args.into_values(), ["default"])?;
    let otherwise = otherwise.unwrap_or_else(|| Value::from(0.0));
    filters::float(state, &trimmed(value), Some(otherwise), no_kwargs())
}

/// Digits, before or after the point, of which there is a power of ten among floats.
const PRECISIONS: u64 = 300;

/// `round(precision=0, method='common')`: `ceil` and `floor` make a float of an integer.
fn round(value: Value, args: Arguments) -> Result<Value, Error> {
    let [precision, method] = bind(&args.into_values(), ["precision", "method"])?;
    let invalid = |what: &str| Error::new(ErrorKind::InvalidOperation, format!("round: {what}"));
    let method = match &method {
        None => None,
        Some(it) => match it.as_str() {
            Some(name @ ("common" | "ceil" | "floor")) => Some(name),
            _ => return Err(invalid("method must be common, ceil or floor")),
        },
    };
    let precision = integer(precision.as_ref(), "precision")?;
    if let Some(precision) = precision.filter(|it| it.unsigned_abs() > PRECISIONS) {
        // There is no such power of ten among floats. Python's `round` takes none.
        return match method {
            None | Some("common") if precision > 0 => Ok(value),
            None | Some("common") if value.is_integer() => Ok(Value::from(0)),
            None | Some("common") => Ok(Value::from(0.0_f64.copysign(f64::try_from(value)?))),
            _ => Err(invalid("precision is out of range")),
        };
    }
    let precision = precision.map(|it| it as i32);
    let value = match i64::try_from(value.clone()) {
        Ok(number) if value.is_integer() && matches!(method, Some("ceil" | "floor")) => {
            Value::from(number as f64)
        }
        _ => value,
    };
    filters::round(value, precision, method, no_kwargs())
}

/// Python reads numbers with spaces around them.
fn trimmed(value: &Value) -> Value {
    value.as_str().map_or_else(|| value.clone(), |text| text.trim().into())
}

fn no_kwargs() -> Kwargs {
    Kwargs::from_iter::<[(&str, Value); 0]>([])
}

/// `indent(width=4, first=False, blank=False)`; the width may be the text to indent with.
fn indent(value: &Value, args: Arguments) -> Result<String, Error> {
    let [width, first, blank] = bind(&args.into_values(), ["width", "first", "blank"])?;
    let indentation = match &width {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => {
                // Beyond any use; an untrusted template must not ask for gigabytes of spaces.
                let spaces = width.as_usize().filter(|&it| it <= 1000).ok_or_else(|| {
                    let what =
                        format!("`width` is {width}, neither a text nor a number up to 1000");
                    Error::new(ErrorKind::InvalidOperation, what)
                })?;
                " ".repeat(spaces)
            }
        },
    };
    let [first, blank] = [first, blank].map(|it| it.is_some_and(|it| it.is_true()));
    // The newline at the end keeps the last line where the text ends in one.
    let source = format!("{}\n", Str(value));
    let mut indented = String::with_capacity(source.len());
    for (at, line) in split_lines(&source, false).enumerate() {
        if at > 0 {
            indented.push('\n');
        }
        if if at == 0 { first } else { blank || !line.is_empty() } {
            budget::text(indentation.len())?;
            indented.push_str(&indentation);
        }
        indented.push_str(line);
    }
    Ok(indented)
}

/// HTML escapes as Python's markupsafe writes them; what is escaped already stays.
fn escape(value: &Value) -> Value {
    if value.is_safe() {
        return value.clone();
    }
    Value::from_safe_string(escaped(&Str(value).to_string()))
}

/// A text with markupsafe's escapes.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = text.to_owned();
    for (from, to) in
        [('&', "&amp;"), ('<', "&lt;"), ('>', "&gt;"), ('\'', "&#39;"), ('"', "&#34;")]
    {
        escaped = escaped.replace(from, to);
    }
    escaped
}

/// jinja2 calls a sequence whatever has a length and items: texts, dicts and undefined values too.
fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Undefined
    )
}

/// `dict(pairs or dict, **more)`.
fn dict(args: Arguments) -> Result<Value, Error> {
    let args = args.into_values();
    let (value, more) = match args.split_last() {
        Some((last, before)) if last.is_kwargs() => (before.first(), last.clone().try_into()?),
        _ => (args.first(), no_kwargs()),
    };
    let value = match value.filter(|it| it.kind() != ValueKind::Map) {
        None => value.cloned(),
        Some(pairs) => {
            let mut map = Vec::new();
            for pair in pairs.try_iter()? {
                map.push((pair.get_item_by_index(0)?, pair.get_item_by_index(1)?));
            }
            Some(Value::from_pairs(map))
        }
    };
    functions::dict(value, more)
}
