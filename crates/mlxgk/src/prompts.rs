//! From the prompt flags to prompts.
//!
//! In two steps, because loading a model can take long: what is wrong with the flags alone is said
//! before, and what depends on the model's tokenizer and chat template after.

use std::{
    ffi::OsStr,
    fmt::Display,
    io::{Read, stdin},
    path::Path,
};

use mlx_genkit::{Message, Model, Prompt};
use serde_json::{Value, json};

use crate::{
    args::{ChatArgs, PromptArgs, TextArgs},
    failure::{Failure, Result},
};

const EMPTY: &str = "the prompt is empty; a model needs at least one token";

/// The prompts to generate from, as they were given.
pub(crate) fn read(args: &PromptArgs, chat: &ChatArgs) -> Result<Vec<Prompt>> {
    if let Some(text) = &args.prompt {
        return Ok(vec![Prompt::Text(text_of("--prompt", text)?)]);
    }
    if let Some(ids) = &args.prompt_ids {
        return Ok(vec![Prompt::Ids(parse_ids(ids)?)]);
    }
    if let Some(json) = &args.messages_json {
        return Ok(vec![Prompt::Messages(parse_messages(json, chat)?)]);
    }
    match &args.prompts_file {
        Some(path) => read_file(path, chat),
        None => Err(Failure::usage("there is no prompt")),
    }
}

/// The text to score, taken as it stands.
pub(crate) fn read_text(args: &TextArgs) -> Result<Prompt> {
    match (&args.text, &args.prompt_ids) {
        (Some(text), _) => Ok(Prompt::Text(text_of("--text", text)?)),
        (None, Some(ids)) => Ok(Prompt::Ids(parse_ids(ids)?)),
        (None, None) => Err(Failure::usage("there is no text")),
    }
}

/// Makes plain prompts a user's message where the model can chat, unless told otherwise.
pub(crate) fn with_chat(
    prompts: Vec<Prompt>,
    chat: &ChatArgs,
    model: &Model,
) -> Result<Vec<Prompt>> {
    let wrap = chat.auto_chat || (model.has_chat_template() && !chat.no_auto_chat);
    let has_text = prompts.iter().any(|it| matches!(it, Prompt::Text(_)));
    if has_text && !wrap && chat.system.is_some() {
        // Without a tokenizer the missing chat template is not worth mentioning.
        model.tokenizer()?;
        let name = model.name();
        return Err(Failure::usage(format_args!(
            "--system needs a chat template; {name} has none"
        )));
    }
    let dress = |prompt| match prompt {
        Prompt::Text(text) if wrap => {
            let user = json!({"role": "user", "content": text});
            Ok(Prompt::Messages(with_system(vec![user], chat)?))
        }
        other => Ok(other),
    };
    prompts.into_iter().map(dress).collect()
}

fn with_system(mut messages: Vec<Value>, chat: &ChatArgs) -> Result<Vec<Message>> {
    if let Some(system) = &chat.system {
        if messages.iter().any(|it| it["role"] == "system") {
            return Err(Failure::usage("--system: the messages have a system prompt already"));
        }
        messages.insert(0, json!({"role": "system", "content": system}));
    }
    let messages: Result<Vec<Message>, _> =
        messages.into_iter().map(serde_json::from_value).collect();
    messages.map_err(|e| Failure::usage(format_args!("a chat message is malformed: {e}")))
}

fn parse_messages(json: &str, chat: &ChatArgs) -> Result<Vec<Message>> {
    let wrong = |what: &dyn Display| {
        Failure::usage(format_args!("--messages-json is not a JSON array of messages: {what}"))
    };
    let messages: Vec<Value> = serde_json::from_str(json).map_err(|e| wrong(&e))?;
    if messages.is_empty() {
        return Err(wrong(&"it is empty"));
    }
    for message in &messages {
        check_message(message).map_err(|what| wrong(&format_args!("{message} {what}")))?;
    }
    with_system(messages, chat)
}

/// What every template takes for granted, and fails over in words about Jinja.
fn check_message(message: &Value) -> Result<(), &'static str> {
    if !message.get("role").is_some_and(Value::is_string) {
        return Err("has no \"role\"");
    }
    match message.get("content") {
        Some(Value::String(_) | Value::Array(_)) => Ok(()),
        None | Some(Value::Null) if message.get("tool_calls").is_some() => Ok(()),
        None | Some(Value::Null) => Err("has no \"content\""),
        Some(_) => Err("has a \"content\" that is neither a text nor a list of parts"),
    }
}

fn read_file(path: &Path, chat: &ChatArgs) -> Result<Vec<Prompt>> {
    let name = path.display();
    let bytes =
        std::fs::read(path).map_err(|e| Failure::usage(format_args!("cannot read {name}: {e}")))?;
    let entries: Vec<Value> = serde_json::from_slice(&bytes)
        .map_err(|e| Failure::usage(format_args!("{name} is not a JSON array of prompts: {e}")))?;
    if entries.is_empty() {
        return Err(Failure::usage(format_args!("{name} holds no prompt")));
    }
    let prompt = |(index, entry)| {
        parse_entry(entry, chat)
            .map_err(|what| Failure::usage(format_args!("{name}: prompt {index} {what}")))
    };
    entries.into_iter().enumerate().map(prompt).collect()
}

fn parse_entry(entry: Value, chat: &ChatArgs) -> Result<Prompt, &'static str> {
    let id = |value: &Value| value.as_u64().and_then(|it| u32::try_from(it).ok());
    match entry {
        Value::String(text) if text.is_empty() => Err("is empty"),
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(ids) if ids.is_empty() => Err("is empty"),
        Value::Array(_) if chat.system.is_some() => {
            Err("is a list of token ids, which --system cannot be put before")
        }
        Value::Array(ids) => {
            let ids: Option<_> = ids.iter().map(id).collect();
            ids.map(Prompt::Ids).ok_or("is not a list of token ids")
        }
        _ => Err("is neither a string nor a list of token ids"),
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

/// The value of a flag that takes a text, or stdin's content in place of `-`.
fn text_of(flag: &str, value: &OsStr) -> Result<String> {
    let text = if value == "-" { from_stdin()? } else { from_flag(flag, value)? };
    if text.is_empty() { Err(Failure::usage(EMPTY)) } else { Ok(text) }
}

fn from_flag(flag: &str, value: &OsStr) -> Result<String> {
    let text = value.to_str().map(str::to_owned);
    text.ok_or_else(|| Failure::usage(format_args!("{flag} is not valid UTF-8")))
}

fn from_stdin() -> Result<String> {
    let mut bytes = Vec::new();
    stdin()
        .read_to_end(&mut bytes)
        .map_err(|e| Failure::other(format_args!("cannot read stdin: {e}")))?;
    let mut text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Failure::usage(format_args!("stdin is not valid UTF-8 at byte {at}"))
    })?;
    // `echo Hello |` means the prompt that `--prompt Hello` means.
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}
