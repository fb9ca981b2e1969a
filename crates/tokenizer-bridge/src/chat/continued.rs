//! A prompt that ends within its last message, for the model to continue it (transformers'
//! `continue_final_message`).
//!
//! As there, the message's end is marked before the template sees it, and the text is cut where the
//! mark comes out.

use serde_json::{Map, Value};

use super::{REASONING, RenderOptions};
use crate::error::{Error, ErrorKind, Result};

/// The mark; whether its space comes out tells whether the template keeps spaces.
const MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

fn wrong(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Conversation, format!("`continue_final_message`: {}", what.into()))
}

/// Marks the end of a field of the last message; gives what is to be continued.
pub(super) fn mark(
    messages: &mut [Map<String, Value>],
    field: &str,
    source: &str,
    options: &RenderOptions,
) -> Result<String> {
    if options.add_generation_prompt {
        return Err(wrong("it excludes `add_generation_prompt`, which begins a new message"));
    }
    let last = messages.last_mut();
    let Some((last, text)) = last.and_then(|it| it.get(field).cloned().map(|text| (it, text)))
    else {
        return Err(wrong(format!("the last message has no `{field}` to continue")));
    };
    // Reasoning is given under several names, and a template reads one of them.
    let mut fields = vec![field];
    if REASONING.contains(&field) {
        fields = REASONING.into_iter().filter(|it| last.get(*it) == Some(&text)).collect();
    }
    if !fields.iter().any(|it| source.contains(it)) {
        return Err(wrong(format!("the chat template does not use `{field}`")));
    }
    match text {
        Value::String(text) => {
            for field in fields {
                last.insert(field.to_owned(), format!("{text}{MARK}").into());
            }
            Ok(text)
        }
        Value::Array(mut parts) => {
            let part = parts.iter_mut().rev().find_map(|it| it.get_mut("text"));
            let Some(text) = part.as_ref().and_then(|it| it.as_str()).map(str::to_owned) else {
                return Err(wrong("the last message has no text to continue"));
            };
            if let Some(part) = part {
                *part = format!("{text}{MARK}").into();
            }
            last.insert(field.to_owned(), parts.into());
            Ok(text)
        }
        _ => Err(wrong(format!("the last message's `{field}` is not a text"))),
    }
}

/// The rendered text up to the mark.
pub(super) fn cut(rendered: &str, text: &str) -> Result<String> {
    let at = rendered.rfind(MARK.trim_end());
    let Some(at) = at.filter(|_| rendered.contains(strip(text))) else {
        return Err(wrong("the chat template does not write the last message as it is"));
    };
    let before = &rendered[..at];
    // Where the mark's space is gone, so are the text's last ones.
    let kept = rendered[at..].starts_with(MARK);
    Ok(if kept { before } else { before.trim_end_matches(super::methods::is_space) }.to_owned())
}

fn strip(text: &str) -> &str {
    text.trim_matches(super::methods::is_space)
}
