//! A minijinja environment that behaves like the jinja2 one transformers renders templates in.

use std::fmt;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind as JinjaErrorKind};

use super::python::Str;
use super::{budget, filters, methods};
use crate::error::{Error, ErrorKind};

/// How deep macros and recursive loops may call each other; Python's own limit is met at about this
/// depth, too.
const DEEPEST_CALL: usize = 150;

/// jinja2's syntax as transformers sets it up.
pub(super) fn syntax() -> Result<SyntaxConfig, minijinja::Error> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()
}

/// The environment, without templates.
pub(super) fn environment() -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(syntax()?);
    environment.set_fuel(Some(budget::FUEL));
    environment.set_recursion_limit(DEEPEST_CALL);
    // A template's name may end in `.html` or `.json`; it is plain text all the same.
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    // Without it errors know no lines.
    environment.set_debug(true);
    environment.set_formatter(|out, _, value| {
        fmt::Write::write_str(out, &budget::written(value)?)?;
        Ok(())
    });
    environment.set_unknown_method_callback(methods::call);
    filters::add_to(&mut environment);
    budget::add_to(&mut environment);
    environment.add_function("raise_exception", |message: &minijinja::Value| {
        let message = Str(message).to_string();
        let error = minijinja::Error::new(JinjaErrorKind::InvalidOperation, message.clone());
        Err::<minijinja::Value, _>(error.with_source(Refusal(message)))
    });
    Ok(environment)
}

/// The error of a template that cannot be compiled or rendered, in one sentence.
pub(super) fn failure(place: &str, error: &minijinja::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    // The innermost error tells what happened; those around it, that a macro was being called.
    let mut innermost = error;
    while let Some(it) = cause {
        if let Some(Refusal(message)) = it.downcast_ref() {
            let message = format!("the chat template refuses the conversation: {message}");
            return Error::new(ErrorKind::Refused, message);
        }
        innermost = it.downcast_ref().unwrap_or(innermost);
        cause = it.source();
    }
    let line = innermost.line().map(|line| format!(", line {line}")).unwrap_or_default();
    let kind = innermost.kind();
    let mut what = innermost.detail().map_or_else(|| kind.to_string(), str::to_owned);
    if what.contains("use % operator on unsupported types string") {
        what.push_str("; a template here formats text with the `format` filter");
    }
    if kind == JinjaErrorKind::OutOfFuel {
        what = "the template runs too long".to_owned();
    }
    let syntax = if kind == JinjaErrorKind::SyntaxError { "syntax error: " } else { "" };
    Error::new(ErrorKind::Template, format!("{place}{line}: {syntax}{what}"))
}

/// What `raise_exception` was called with.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}
