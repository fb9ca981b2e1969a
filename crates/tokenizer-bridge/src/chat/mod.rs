//! Chat templates: a conversation to the text the model was trained on.
//!
//! A chat template is a Jinja program that came with the model, written for Python's jinja2 as
//! transformers sets it up. It is run by minijinja, with the differences between the two closed in
//! the modules below: Python's way of writing values, its methods of strings, lists and dicts, its
//! JSON, and transformers' own additions (`raise_exception`, `strftime_now`, `{% generation %}`).
//! `fixtures/templates` records what transformers makes of templates of all the published shapes; the
//! few constructs that still differ are listed in the crate's README.

mod arguments;
mod budget;
mod continued;
mod environment;
mod filters;
mod generation;
mod json;
mod message;
mod methods;
mod python;
mod rewrite;
mod strftime;

use std::time::SystemTime;

use minijinja::value::Serde;
use serde_json::{Map, Value};

pub use self::message::Message;
use crate::calls::CallFormat;
use crate::config::{SpecialTokens, TokenizerConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::files::{ADDITIONAL_TEMPLATES, CHAT_TEMPLATE, Files, TOKENIZER_CONFIG};
use crate::panics::catching;

/// The name of the template that is used when none is asked for.
const DEFAULT: &str = "default";
/// The name of the template that is used when there are tools.
const TOOL_USE: &str = "tool_use";
/// The names templates know a message's reasoning by.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A model's chat template, or its several named ones.
///
/// ```
/// use mlxgk_tokenizer_bridge::{ChatTemplate, Message, RenderOptions};
///
/// let template = ChatTemplate::new(
///     "{% for message in messages %}\
///      <|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n\
///      {% endfor %}\
///      {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
/// )?;
/// let options = RenderOptions::default().add_generation_prompt(true);
/// let text = template.render(&[Message::new("user", "Ahoy!")], &options)?;
/// assert_eq!(text, "<|im_start|>user\nAhoy!<|im_end|>\n<|im_start|>assistant\n");
/// # Ok::<(), mlxgk_tokenizer_bridge::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: minijinja::Environment<'static>,
    templates: Vec<Source>,
    special: SpecialTokens,
}

/// One of a model's templates.
#[derive(Debug, Clone)]
struct Source {
    name: String,
    /// Where it was found, for messages.
    place: String,
    text: String,
}

/// What a conversation is rendered with, besides its messages.
///
/// ```
/// use mlxgk_tokenizer_bridge::RenderOptions;
/// use serde_json::json;
///
/// let options = RenderOptions::default()
///     .add_generation_prompt(true)
///     .variable("enable_thinking", false);
/// assert_eq!(options.extra["enable_thinking"], json!(false));
/// ```
#[derive(Debug, Clone, Default)]
pub struct RenderOptions {
    /// End with the words that begin the model's answer.
    pub add_generation_prompt: bool,
    /// The tools the model may call, each as a JSON schema. Passing any, even an empty list, selects
    /// the template named `tool_use` where a model has one.
    pub tools: Option<Vec<Value>>,
    /// Documents to answer from, as objects with `title` and `text`.
    pub documents: Option<Vec<Value>>,
    /// The field of the last message (usually `content`) that the model is to continue: the text ends
    /// where that field does.
    pub continue_final_message: Option<String>,
    /// The named template to use; without it `tool_use` or `default`.
    pub template: Option<String>,
    /// The moment `strftime_now` tells, in the local time zone; without it, the present one. Some
    /// templates print the date, and so give another prompt every day.
    pub now: Option<SystemTime>,
    /// Further variables for the template (`enable_thinking`, `date_string`, ...). They go before
    /// the special tokens' texts, so `bos_token` can be replaced here.
    pub extra: Map<String, Value>,
}

impl RenderOptions {
    /// Whether to end with the words that begin the model's answer.
    #[must_use]
    pub fn add_generation_prompt(self, add_generation_prompt: bool) -> Self {
        Self { add_generation_prompt, ..self }
    }

    /// The tools the model may call, each as a JSON schema.
    #[must_use]
    pub fn tools(self, tools: impl IntoIterator<Item = Value>) -> Self {
        Self { tools: Some(tools.into_iter().collect()), ..self }
    }

    /// Documents to answer from, as objects with `title` and `text`.
    #[must_use]
    pub fn documents(self, documents: impl IntoIterator<Item = Value>) -> Self {
        Self { documents: Some(documents.into_iter().collect()), ..self }
    }

    /// The field of the last message that the model is to continue, usually `content`.
    #[must_use]
    pub fn continue_final_message(self, field: impl Into<String>) -> Self {
        Self { continue_final_message: Some(field.into()), ..self }
    }

    /// The named template to use.
    #[must_use]
    pub fn template(self, name: impl Into<String>) -> Self {
        Self { template: Some(name.into()), ..self }
    }

    /// The moment `strftime_now` tells.
    #[must_use]
    pub fn now(self, now: SystemTime) -> Self {
        Self { now: Some(now), ..self }
    }

    /// A further variable for the template.
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.extra.insert(name.into(), value.into());
        self
    }

    /// The size of what the template is given.
    fn bytes(&self) -> usize {
        let lists = self.tools.iter().chain(&self.documents).flatten();
        lists.map(value_bytes).sum::<usize>() + bytes(&self.extra)
    }
}

impl ChatTemplate {
    /// A chat template from its source.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Template`] for a syntax error, with its line.
    pub fn new(source: &str) -> Result<Self> {
        let templates = vec![(DEFAULT.to_owned(), "chat template".to_owned(), source.to_owned())];
        Self::build(templates, SpecialTokens::default())
    }

    /// A model's chat template: `chat_template.jinja` and `additional_chat_templates`, else the
    /// template or the list of named templates in `tokenizer_config.json`. The special tokens named
    /// there become the template's variables `bos_token`, `eos_token` and so on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::MissingTemplate`] where the model has none (a base model usually has none);
    /// [`ErrorKind::File`] or [`ErrorKind::Template`] for one that cannot be used.
    pub fn from_files(files: &Files<'_>) -> Result<Self> {
        let config = TokenizerConfig::from_files(files)?;
        let mut templates = Vec::new();
        if let Some(content) = files.chat_template.as_deref() {
            let source = files.text(CHAT_TEMPLATE, content)?;
            templates.push((DEFAULT.to_owned(), files.name(CHAT_TEMPLATE), source.to_owned()));
        }
        for (name, content) in &files.additional_chat_templates {
            let file = format!("{ADDITIONAL_TEMPLATES}/{name}.jinja");
            let source = files.text(&file, content)?;
            templates.push((name.clone(), files.name(&file), source.to_owned()));
        }
        if templates.is_empty() {
            let file = files.name(TOKENIZER_CONFIG);
            match &config.chat_template {
                Some(found) => templates = templates_in_config(found, &file)?,
                None => {
                    let what = "the model has no chat template, neither in";
                    let message = format!("{what} {} nor in {file}", files.name(CHAT_TEMPLATE));
                    return Err(Error::new(ErrorKind::MissingTemplate, message));
                }
            }
        }
        Self::build(templates, config.special)
    }

    /// Templates as name, place and source.
    fn build(templates: Vec<(String, String, String)>, special: SpecialTokens) -> Result<Self> {
        let environment = environment::environment();
        let mut environment =
            environment.map_err(|error| environment::failure("chat template", &error))?;
        let mut names = Vec::with_capacity(templates.len());
        let syntax = environment::syntax();
        let syntax = syntax.map_err(|error| environment::failure("chat template", &error))?;
        for (name, place, source) in templates {
            let text = unix_newlines(&source);
            let source = generation::rewrite(&text);
            let source = rewrite::rewrite(&source, &syntax).map_err(|what| {
                Error::new(ErrorKind::Template, format!("{place} cannot be used: {what}"))
            })?;
            let added = environment.add_template_owned(name.clone(), source);
            added.map_err(|error| environment::failure(&place, &error))?;
            names.push(Source { name, place, text });
        }
        Ok(Self { environment, templates: names, special })
    }

    /// The names of the templates; one called `default` for most models.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.templates.iter().map(|it| it.name.as_str())
    }

    /// The form in which the model writes calls of tools, as the template for tools shows it; `None` where
    /// it is not one of those that are known.
    pub fn call_format(&self) -> Option<CallFormat> {
        let options = RenderOptions { tools: Some(Vec::new()), ..RenderOptions::default() };
        CallFormat::of_source(&self.select(&options).ok()?.text)
    }

    /// The conversation as text, ready to be encoded without further special tokens.
    ///
    /// Works as transformers' `apply_chat_template(tokenize=False)`: fields that are `null` are
    /// dropped from each message, and a message's reasoning is given under all the names templates
    /// know it by (`reasoning_content`, `thinking`).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Refused`] when the template calls `raise_exception` (roles that do not alternate,
    /// a system prompt it has no place for); [`ErrorKind::Template`] when it fails otherwise;
    /// [`ErrorKind::MissingTemplate`] when none has the name asked for;
    /// [`ErrorKind::Conversation`] for no messages, or an extra variable under a name that is taken.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String> {
        if messages.is_empty() {
            let message = "a chat template needs at least one message";
            return Err(Error::new(ErrorKind::Conversation, message));
        }
        let source = self.select(options)?;
        let place = &source.place;
        let given = messages.iter().map(|it| bytes(&it.0)).sum::<usize>() + options.bytes();
        let mut messages: Vec<_> = messages.iter().map(with_reasoning).collect();
        let field = options.continue_final_message.as_deref();
        let text = &source.text;
        let continued = field.map(|it| continued::mark(&mut messages, it, text, options));
        let continued = continued.transpose()?;
        let variables = self.variables(&messages, options)?;
        let template = self.environment.get_template(&source.name);
        let render = || template.and_then(|template| template.render(variables));
        let rendered = catching(|| budget::within(given, render)).map_err(|panic| {
            Error::new(ErrorKind::Template, format!("{place}: the template fails: {panic}"))
        })?;
        let rendered = rendered.map_err(|error| environment::failure(place, &error))?;
        match continued {
            Some(text) => continued::cut(&rendered, &text),
            None => Ok(rendered),
        }
    }

    fn select(&self, options: &RenderOptions) -> Result<&Source> {
        let find = |name: &str| self.templates.iter().find(|it| it.name == name);
        let found = match &options.template {
            Some(name) => find(name),
            None => options.tools.as_ref().and_then(|_| find(TOOL_USE)).or_else(|| find(DEFAULT)),
        };
        found.ok_or_else(|| {
            let wanted = options.template.as_deref().unwrap_or(DEFAULT);
            let names: Vec<&str> = self.names().collect();
            let message =
                format!("there is no chat template `{wanted}`, only `{}`", names.join("`, `"));
            Error::new(ErrorKind::MissingTemplate, message)
        })
    }

    fn variables(
        &self,
        messages: &[Map<String, Value>],
        options: &RenderOptions,
    ) -> Result<minijinja::Value> {
        let own = [
            ("messages", minijinja::Value::from(Serde(messages))),
            ("tools", minijinja::Value::from(Serde(&options.tools))),
            ("documents", minijinja::Value::from(Serde(&options.documents))),
            ("add_generation_prompt", options.add_generation_prompt.into()),
        ];
        if let Some((name, _)) = own.iter().find(|(name, _)| options.extra.contains_key(*name)) {
            let message = format!("the extra variable `{name}` is an option of its own");
            return Err(Error::new(ErrorKind::Conversation, message));
        }
        let special = self.special.iter().map(|(name, text)| (name, text.into()));
        let strftime_now = ("strftime_now", strftime::function(options.now));
        let extra = options.extra.iter().map(|(name, it)| (name.as_str(), Serde(it).into()));
        // Of two variables with one name the later counts.
        let all = own.into_iter().chain(special).chain([strftime_now]).chain(extra);
        Ok(minijinja::Value::from_pairs(all))
    }
}

/// The templates of `tokenizer_config.json`: one text, a list of named ones, or a map of them.
fn templates_in_config(found: &Value, file: &str) -> Result<Vec<(String, String, String)>> {
    let template = |name: &str, source: &Value| {
        let place = format!("{file}, chat template `{name}`");
        source.as_str().map(|source| (name.to_owned(), place, source.to_owned()))
    };
    let templates: Option<Vec<_>> = match found {
        Value::String(_) => template(DEFAULT, found).map(|it| vec![it]),
        Value::Array(list) => {
            let item = |it: &Value| template(it.get("name")?.as_str()?, it.get("template")?);
            list.iter().map(item).collect()
        }
        Value::Object(map) => map.iter().map(|(name, source)| template(name, source)).collect(),
        _ => None,
    };
    let what = "`chat_template` is neither a text nor a list of `name` and `template`";
    templates.filter(|it| !it.is_empty()).ok_or_else(|| Error::file(file, what))
}

fn bytes(fields: &Map<String, Value>) -> usize {
    fields.iter().map(|(name, value)| name.len() + value_bytes(value)).sum()
}

fn value_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(value_bytes).sum(),
        Value::Object(fields) => bytes(fields),
        _ => 8,
    }
}

/// What transformers does to a message before the template sees it.
fn with_reasoning(message: &Message) -> Map<String, Value> {
    let fields = message.0.iter().filter(|(_, value)| !value.is_null());
    let fields = fields.map(|(name, value)| (name.clone(), value.clone()));
    let reasoning =
        REASONING.iter().filter_map(|name| message.0.get(*name)).find(|it| !it.is_null());
    match reasoning {
        None => fields.collect(),
        Some(reasoning) => {
            let mut all = Map::new();
            all.insert("thinking".to_owned(), reasoning.clone());
            all.extend(fields);
            all.insert("reasoning_content".to_owned(), reasoning.clone());
            all
        }
    }
}

/// jinja2 reads every kind of newline as `\n`; minijinja keeps them.
fn unix_newlines(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
}
