//! `strftime_now(format)`: today's date for templates that print it.

use std::time::SystemTime;

use jiff::Zoned;
use jiff::fmt::strtime;
use minijinja::{Error, ErrorKind, Value};

/// The longest format, in bytes. Dates are short, and writing one takes far longer than its length.
const LONGEST: usize = 1024;

/// The function a template calls. `now` is the moment it tells; the present one if `None`.
pub(super) fn function(now: Option<SystemTime>) -> Value {
    Value::from_function(move |format: &str| {
        if format.len() > LONGEST {
            let what = format!("strftime_now cannot write a format of more than {LONGEST} bytes");
            return Err(Error::new(ErrorKind::InvalidOperation, what));
        }
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
