//! From the prompt flags to prompts, for `generate`, `score` and `validate`.
//!
//! In two steps, because loading a model can take long: what is wrong with the flags alone is reported
//! before, and what depends on the model's tokenizer and chat template after.

use std::{ffi::OsStr, fmt::Display, path::Path};

use mlx_genkit::{
    Message, Model, Prompt, Request,
    generation_config::{Chat, RequestFields},
};
use serde_json::Value;

use crate::{
    failure::{Failure, Result},
    files,
    flags::{ChatArgs, PromptArgs, TextArgs},
};

const EMPTY: &str = "the prompt is empty; a model needs at least one token";

/// The prompts to generate from, as they were given.
pub(crate) fn read(args: &PromptArgs) -> Result<Vec<Prompt>> {
    if let Some(text) = args.text.as_ref().or(args.prompt.as_ref()) {
        return Ok(vec![Prompt::Text(text_of("--prompt", text)?)]);
    }
    if let Some(ids) = &args.prompt_ids {
        return Ok(vec![Prompt::Ids(parse_ids(ids)?)]);
    }
    if let Some(json) = &args.messages_json {
        return Ok(vec![Prompt::Messages(parse_messages("--messages-json", json)?)]);
    }
    if let Some(path) = &args.messages {
        let text =
            if path.as_os_str() == "-" { files::read_stdin()? } else { files::read_text(path)? };
        return Ok(vec![Prompt::Messages(parse_messages(&path.display().to_string(), &text)?)]);
    }
    match &args.prompts_file {
        Some(path) => {
            let prompts = read_file(path)?;
            // Before so many are rendered and encoded.
            match (prompts.len(), Request::MAX_SEQUENCES) {
                (count, most) if count > most => Err(Failure::usage(format_args!(
                    "{} has {count} prompts; at most {most} run at once",
                    path.display()
                ))),
                _ => Ok(prompts),
            }
        }
        None => Err(Failure::usage("there is no prompt")),
    }
}

/// The text to score, taken as it stands.
pub(crate) fn read_text(args: &TextArgs) -> Result<Prompt> {
    match (args.given.as_ref().or(args.text.as_ref()), &args.prompt_ids) {
        (Some(text), _) => Ok(Prompt::Text(text_of("--text", text)?)),
        (None, Some(ids)) => Ok(Prompt::Ids(parse_ids(ids)?)),
        (None, None) => Err(Failure::usage("there is no text")),
    }
}

/// The prompts of a file: a JSON array of them, or one per line.
pub(crate) fn read_file(path: &Path) -> Result<Vec<Prompt>> {
    let name = path.display();
    let text = files::read_text(path)?;
    let wrong = |what: &dyn Display| Failure::usage(format_args!("{name}: {what}"));
    let entries = match serde_json::from_str(&text) {
        Ok(Value::Array(entries)) if !one_prompt_of_ids(&text, &entries) => {
            let at = |index| format!("prompt {index}");
            entries.into_iter().enumerate().map(|(index, it)| (at(index), it)).collect()
        }
        Err(e) if text.trim_start().starts_with('[') && !lines(&text).all(is_json) => {
            return Err(wrong(&format_args!("is not a JSON array of prompts: {e}")));
        }
        _ => lines_of(&text).map_err(|what| wrong(&what))?,
    };
    if entries.is_empty() {
        return Err(Failure::usage(format_args!("{name} holds no prompt")));
    }
    let prompt =
        |(at, entry)| parse_entry(entry).map_err(|what| wrong(&format_args!("{at} {what}")));
    entries.into_iter().map(prompt).collect()
}

/// Whether a file is a single line of token ids rather than an array of prompts.
fn one_prompt_of_ids(text: &str, entries: &[Value]) -> bool {
    lines(text).count() == 1 && !entries.is_empty() && entries.iter().all(Value::is_number)
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|it| !it.trim().is_empty())
}

fn is_json(line: &str) -> bool {
    serde_json::from_str::<Value>(line).is_ok()
}

/// One prompt per line, each with where it stands. A line that does not begin as JSON is a text.
fn lines_of(text: &str) -> Result<Vec<(String, Value)>, String> {
    let mut entries = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, it)| !it.trim().is_empty()) {
        let at = format!("line {}", index + 1);
        let entry = if line.trim_start().starts_with(['{', '[', '"']) {
            serde_json::from_str(line).map_err(|e| format!("{at} is not valid JSON: {e}"))?
        } else {
            Value::from(line)
        };
        entries.push((at, entry));
    }
    Ok(entries)
}

fn parse_entry(entry: Value) -> Result<Prompt, String> {
    let id = |value: &Value| value.as_u64().and_then(|it| u32::try_from(it).ok());
    match entry {
        Value::String(text) if text.is_empty() => Err("is empty".to_owned()),
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(ids) if ids.is_empty() => Err("is empty".to_owned()),
        Value::Array(ids) => {
            let ids: Option<_> = ids.iter().map(id).collect();
            ids.map(Prompt::Ids).ok_or_else(|| "is not a list of token ids".to_owned())
        }
        Value::Object(mut fields) => match (fields.remove("prompt"), fields.remove("messages")) {
            (Some(prompt @ (Value::String(_) | Value::Array(_))), None) => parse_entry(prompt),
            (None, Some(messages)) => check_messages(messages).map(Prompt::Messages),
            _ => Err("has neither a \"prompt\" that is a text nor \"messages\"".to_owned()),
        },
        _ => Err("is neither a text, a list of token ids, nor an object with one".to_owned()),
    }
}

fn parse_ids(text: &str) -> Result<Vec<u32>> {
    if text.trim().is_empty() {
        return Err(Failure::usage(EMPTY));
    }
    let id = |it: &str| {
        it.parse()
            .map_err(|_| Failure::usage(format_args!("--prompt-ids: {it:?} is not a token id")))
    };
    text.split(',').map(|it| id(it.trim())).collect()
}

/// Chat messages: a JSON array, or one message per line.
pub(crate) fn parse_messages(source: &str, json: &str) -> Result<Vec<Message>> {
    let wrong = |what: &dyn Display| {
        Failure::usage(format_args!("{source} is not a JSON array of messages: {what}"))
    };
    let messages = match serde_json::from_str(json) {
        Ok(messages @ Value::Array(_)) => messages,
        Ok(Value::Object(message)) if message.contains_key("role") => {
            Value::Array(vec![Value::Object(message)])
        }
        Ok(_) => return Err(wrong(&"it holds something else")),
        Err(e) => {
            let lines: Result<Vec<Value>, _> = lines(json).map(serde_json::from_str).collect();
            match lines {
                Ok(lines) if !lines.is_empty() => Value::Array(lines),
                _ => return Err(wrong(&e)),
            }
        }
    };
    check_messages(messages).map_err(|what| wrong(&what))
}

/// Checks what every template takes for granted, and fails over in words about Jinja.
fn check_messages(messages: Value) -> Result<Vec<Message>, String> {
    let Value::Array(messages) = messages else {
        return Err("\"messages\" is not an array".to_owned());
    };
    if messages.is_empty() {
        return Err("it is empty".to_owned());
    }
    let message = |message: Value| {
        let what = match message.get("content") {
            _ if !message.get("role").is_some_and(Value::is_string) => "has no \"role\"",
            Some(Value::String(_) | Value::Array(_)) => "",
            None | Some(Value::Null) if message.get("tool_calls").is_some() => "",
            None | Some(Value::Null) => "has no \"content\"",
            Some(_) => "has a \"content\" that is neither a text nor a list of parts",
        };
        if what.is_empty() {
            serde_json::from_value(message).map_err(|e| e.to_string())
        } else {
            Err(format!("{message} {what}"))
        }
    };
    messages.into_iter().map(message).collect()
}

/// Makes plain prompts a user's message where the model can chat, unless the flags say otherwise, and puts the
/// system prompt before it.
pub(crate) fn with_chat(
    prompts: Vec<Prompt>,
    chat: &ChatArgs,
    asked: &RequestFields,
    model: &Model,
) -> Result<Vec<Prompt>> {
    let wrap = match asked.chat {
        _ if chat.auto_chat || chat.no_auto_chat => chat.auto_chat,
        Some(Chat::Always) => true,
        Some(Chat::Never) => false,
        _ => model.has_chat_template(),
    };
    let system = chat.system.as_ref().or(asked.system_prompt.as_ref());
    let flag = if chat.system.is_some() { "--system" } else { "`system_prompt`" };
    let has_text = prompts.iter().any(|it| matches!(it, Prompt::Text(_)));
    if has_text && !wrap && system.is_some() {
        // Without a tokenizer the missing chat template is not worth mentioning.
        model.tokenizer()?;
        let name = model.name();
        return Err(Failure::usage(if model.has_chat_template() {
            format!("{flag} needs the chat template, which is left out")
        } else {
            format!("{flag} needs a chat template; {name} has none")
        }));
    }
    let system = system.map(|text| (flag, text.as_str()));
    let converse = |prompt| match prompt {
        Prompt::Text(text) if wrap => with_system(vec![Message::new("user", text)], system),
        Prompt::Messages(messages) => with_system(messages, system),
        Prompt::Ids(_) if system.is_some() => {
            Err(Failure::usage(format_args!("{flag} cannot be used with a prompt of token ids")))
        }
        other => Ok(other),
    };
    prompts.into_iter().map(converse).collect()
}

fn with_system(mut messages: Vec<Message>, system: Option<(&str, &str)>) -> Result<Prompt> {
    if let Some((flag, system)) = system {
        if messages.iter().any(|it| it.role() == Some("system")) {
            let what = format_args!("{flag}: the messages have a system prompt already");
            return Err(Failure::usage(what));
        }
        messages.insert(0, Message::new("system", system));
    }
    Ok(Prompt::Messages(messages))
}

/// The value of a flag that takes a text, or stdin's content in place of `-`.
fn text_of(flag: &str, value: &OsStr) -> Result<String> {
    let text = if value == "-" {
        files::read_stdin()?
    } else {
        let text = value.to_str().map(str::to_owned);
        text.ok_or_else(|| Failure::usage(format_args!("{flag} is not valid UTF-8")))?
    };
    if text.is_empty() { Err(Failure::usage(EMPTY)) } else { Ok(text) }
}
