//! From the prompt flags to prompts.

use std::{ffi::OsStr, io::Read, path::Path};

use mlx_genkit::{Message, Model, Prompt};
use serde_json::{Value, json};

use crate::{
    args::{ChatArgs, PromptArgs, TextArgs},
    failure::{Failure, Result},
};

/// The prompts to generate from.
pub(crate) fn prompts(args: &PromptArgs, chat: &ChatArgs, model: &Model) -> Result<Vec<Prompt>> {
    if let Some(text) = &args.prompt {
        return Ok(vec![plain(&text_of("--prompt", text)?, chat, model)?]);
    }
    if let Some(ids) = &args.prompt_ids {
        return Ok(vec![Prompt::Ids(parse_ids(ids)?)]);
    }
    if let Some(json) = &args.messages_json {
        return Ok(vec![Prompt::Messages(parse_messages(json, chat)?)]);
    }
    match &args.prompts_file {
        Some(path) => from_file(path, chat, model),
        None => Err(Failure::usage("there is no prompt")),
    }
}

/// The text to score, taken as it stands.
pub(crate) fn text(args: &TextArgs) -> Result<Prompt> {
    match (&args.text, &args.prompt_ids) {
        (Some(text), _) => Ok(Prompt::Text(text_of("--text", text)?)),
        (None, Some(ids)) => Ok(Prompt::Ids(parse_ids(ids)?)),
        (None, None) => Err(Failure::usage("there is no text")),
    }
}

/// A plain prompt: a user's message where the model can chat, unless told otherwise.
fn plain(text: &str, chat: &ChatArgs, model: &Model) -> Result<Prompt> {
    if text.is_empty() {
        return Err(Failure::usage("the prompt is empty; a model needs at least one token"));
    }
    let wrap = chat.auto_chat || (model.has_chat_template() && !chat.no_auto_chat);
    if !wrap {
        if chat.system.is_some() {
            let why = "--system needs a chat template, and plain prompts are continued as they stand";
            return Err(Failure::usage(why));
        }
        return Ok(Prompt::Text(text.to_owned()));
    }
    let user = json!({"role": "user", "content": text});
    Ok(Prompt::Messages(with_system(vec![user], chat)?))
}

fn with_system(mut messages: Vec<Value>, chat: &ChatArgs) -> Result<Vec<Message>> {
    if let Some(system) = &chat.system {
        messages.insert(0, json!({"role": "system", "content": system}));
    }
    let messages: Result<Vec<Message>, _> =
        messages.into_iter().map(serde_json::from_value).collect();
    messages.map_err(|e| Failure::usage(format_args!("a chat message is malformed: {e}")))
}

fn parse_messages(json: &str, chat: &ChatArgs) -> Result<Vec<Message>> {
    let wrong = |what: &dyn std::fmt::Display| {
        Failure::usage(format_args!("--messages-json is not a JSON array of messages: {what}"))
    };
    let messages: Vec<Value> = serde_json::from_str(json).map_err(|e| wrong(&e))?;
    if messages.is_empty() {
        return Err(wrong(&"it is empty"));
    }
    if let Some(it) = messages.iter().find(|it| !it.get("role").is_some_and(Value::is_string)) {
        return Err(wrong(&format_args!("{it} has no \"role\"")));
    }
    with_system(messages, chat)
}

fn from_file(path: &Path, chat: &ChatArgs, model: &Model) -> Result<Vec<Prompt>> {
    let name = path.display();
    let bytes = std::fs::read(path)
        .map_err(|e| Failure::usage(format_args!("cannot read {name}: {e}")))?;
    let entries: Vec<Value> = serde_json::from_slice(&bytes)
        .map_err(|e| Failure::usage(format_args!("{name} is not a JSON array of prompts: {e}")))?;
    if entries.is_empty() {
        return Err(Failure::usage(format_args!("{name} holds no prompt")));
    }
    let id = |value: &Value| value.as_u64().and_then(|it| u32::try_from(it).ok());
    entries
        .iter()
        .enumerate()
        .map(|(index, entry)| match entry {
            Value::String(text) => plain(text, chat, model),
            Value::Array(ids) => ids.iter().map(id).collect::<Option<_>>().map(Prompt::Ids).ok_or(
                Failure::usage(format_args!("{name}: prompt {index} is not a list of token ids")),
            ),
            _ => Err(Failure::usage(format_args!(
                "{name}: prompt {index} is neither a string nor a list of token ids"
            ))),
        })
        .collect()
}

fn parse_ids(text: &str) -> Result<Vec<u32>> {
    text.split(',')
        .map(|it| {
            it.trim().parse().map_err(|_| {
                Failure::usage(format_args!("--prompt-ids: {:?} is not a token id", it.trim()))
            })
        })
        .collect()
}

fn text_of(flag: &str, text: &OsStr) -> Result<String> {
    if text == "-" {
        let mut bytes = Vec::new();
        std::io::stdin()
            .read_to_end(&mut bytes)
            .map_err(|e| Failure::other(format_args!("cannot read stdin: {e}")))?;
        return String::from_utf8(bytes).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            Failure::usage(format_args!("stdin is not valid UTF-8 at byte {at}"))
        });
    }
    let text = text.to_str();
    text.map(str::to_owned)
        .ok_or_else(|| Failure::usage(format_args!("{flag} is not valid UTF-8")))
}
