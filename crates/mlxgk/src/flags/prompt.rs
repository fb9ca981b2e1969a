//! Where the prompt comes from, and how it becomes a conversation.

use std::{ffi::OsString, path::PathBuf};

use clap::Args;
use serde_json::Value;

use super::config::assignment;

/// Where the prompt comes from: exactly one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct PromptArgs {
    /// The prompt, as --prompt
    #[arg(value_name = "PROMPT")]
    pub(crate) text: Option<OsString>,
    /// The prompt; `-` reads it from stdin, without the line break at its end
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt: Option<OsString>,
    /// The prompt as token ids, e.g. 5,17,300
    #[arg(long, value_name = "IDS")]
    pub(crate) prompt_ids: Option<String>,
    /// Prompts to run as one batch: a JSON array of texts or of id arrays, or one prompt per line (a
    /// JSON text, ids, {"prompt": TEXT}, {"messages": [...]}, or plain text)
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts_file: Option<PathBuf>,
    /// Chat messages, e.g. '[{"role": "user", "content": "hi"}]'
    #[arg(long, value_name = "JSON")]
    pub(crate) messages_json: Option<String>,
    /// Chat messages from a file, `-` for stdin: a JSON array, or a message per line
    #[arg(long, value_name = "FILE")]
    pub(crate) messages: Option<PathBuf>,
}

/// The text to score: exactly one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct TextArgs {
    /// The text, as --text
    #[arg(value_name = "TEXT")]
    pub(crate) given: Option<OsString>,
    /// Text to score as it stands; `-` reads it from stdin, without the line break at its end
    #[arg(
        short = 'p',
        long,
        visible_alias = "prompt",
        value_name = "TEXT",
        allow_hyphen_values = true
    )]
    pub(crate) text: Option<OsString>,
    /// The text as token ids, e.g. 5,17,300
    #[arg(long, value_name = "IDS")]
    pub(crate) prompt_ids: Option<String>,
}

/// How a plain prompt becomes a conversation, and a conversation text.
#[derive(Debug, Args)]
#[command(next_help_heading = "Chat")]
pub(crate) struct ChatArgs {
    /// System prompt put before the user's message
    #[arg(long, visible_alias = "system-prompt", value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) system: Option<String>,
    /// Wrap a plain prompt in the model's chat template (the default where it has one)
    #[arg(long, visible_alias = "assume-user-chat", conflicts_with = "no_auto_chat")]
    pub(crate) auto_chat: bool,
    /// Continue a plain prompt as it stands
    #[arg(long, visible_alias = "ignore-chat-template", conflicts_with = "system")]
    pub(crate) no_auto_chat: bool,
    #[command(flatten)]
    pub(crate) template: TemplateArgs,
}

/// What a chat template is rendered with, besides the messages.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Chat")]
pub(crate) struct TemplateArgs {
    /// Variable of the chat template, its value as JSON, e.g. enable_thinking=false; repeatable
    #[arg(long, value_name = "NAME=JSON", value_parser = assignment)]
    pub(crate) template_var: Vec<(String, Value)>,
    /// Let the model think before it answers (sets `enable_thinking` and `thinking` to true)
    #[arg(long, conflicts_with = "no_thinking")]
    pub(crate) thinking: bool,
    /// Let the model answer without thinking (sets `enable_thinking` and `thinking` to false)
    #[arg(long)]
    pub(crate) no_thinking: bool,
    /// Tools the model may call: a JSON array of JSON schemas
    #[arg(long, value_name = "FILE")]
    pub(crate) tools: Option<PathBuf>,
    /// Show the text that the model is given: on stderr, with --format json in the document
    #[arg(long)]
    pub(crate) show_prompt: bool,
}
