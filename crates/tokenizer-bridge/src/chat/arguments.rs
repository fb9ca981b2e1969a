//! Arguments as Python binds them: by position, then by name.

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};

/// The values of the named parameters, whichever way each was passed; `None` where it was not.
pub(super) fn bind<const N: usize>(
    args: &[Value],
    parameters: [&str; N],
) -> Result<[Option<Value>; N], Error> {
    let (positional, kwargs) = match args.split_last() {
        Some((last, before)) if last.is_kwargs() => (before, Some(last)),
        _ => (args, None),
    };
    if positional.len() > N {
        let what = format!("at most {N} arguments were expected, {} were given", positional.len());
        return Err(Error::new(ErrorKind::TooManyArguments, what));
    }
    let mut bound = [const { None }; N];
    for (at, value) in positional.iter().enumerate() {
        bound[at] = Some(value.clone());
    }
    let kwargs: Option<Kwargs> = kwargs.map(|it| it.clone().try_into()).transpose()?;
    if let Some(kwargs) = kwargs {
        for name in kwargs.args() {
            let Some(at) = parameters.iter().position(|it| *it == name) else {
                let what = format!("unknown keyword argument `{name}`");
                return Err(Error::new(ErrorKind::TooManyArguments, what));
            };
            bound[at] = Some(kwargs.peek(name)?);
        }
    }
    Ok(bound)
}

/// A parameter that is a text.
pub(super) fn text<'a>(value: &'a Value, parameter: &str) -> Result<&'a str, Error> {
    value.as_str().ok_or_else(|| {
        let what = format!("`{parameter}` is a {} where a string is expected", value.kind());
        Error::new(ErrorKind::InvalidOperation, what)
    })
}

/// A parameter that must be there.
pub(super) fn required(value: Option<Value>, parameter: &str) -> Result<Value, Error> {
    let missing = || Error::new(ErrorKind::MissingArgument, format!("`{parameter}` is missing"));
    value.ok_or_else(missing)
}

/// A parameter that is a whole number, where it was given and is not `None`.
pub(super) fn integer(value: Option<&Value>, parameter: &str) -> Result<Option<i64>, Error> {
    let Some(value) = value.filter(|it| !it.is_none()) else { return Ok(None) };
    let integer = i64::try_from(value.clone()).map_err(|_| {
        let what = format!("`{parameter}` is a {} where an integer is expected", value.kind());
        Error::new(ErrorKind::InvalidOperation, what)
    });
    integer.map(Some)
}
