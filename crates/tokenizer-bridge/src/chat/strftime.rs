//! `strftime_now(format)`: today's date for templates that print it.

use std::time::SystemTime;

use jiff::Zoned;
use jiff::fmt::strtime;
use minijinja::{Error, ErrorKind, Value};

/// The function a template calls. `now` is the moment it tells; the present one if `None`.
pub(super) fn function(now: Option<SystemTime>) -> Value {
    Value::from_function(move |format: &str| {
        let now = match now {
            None => Ok(Zoned::now()),
            Some(now) => Zoned::try_from(now),
        };
        let text = now.and_then(|now| strtime::format(format, &now));
        text.map_err(|error| {
            let what = format!("strftime_now cannot write `{format}`: {error}");
            Error::new(ErrorKind::InvalidOperation, what)
        })
    })
}
