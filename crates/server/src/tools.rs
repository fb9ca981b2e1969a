//! The tools of a chat: which the model is given, whether it has to call one, and how its calls are told.

use mlx_genkit::{
    FinishReason,
    tokenizer_bridge::{CallFormat, CallGrammar, CallReader, ToolCall, Written},
};
use serde_json::{Value, json};

use crate::{
    app::App,
    fields::{Fields, wrong},
    refusal::Refusal,
    reply::{finish_reason, random_hex},
};

/// Letters and digits of an id that Mistral's templates take.
const SHORT_ID: usize = 9;

/// The field that servers and their clients have for what a model thought.
const THOUGHTS: &str = "reasoning_content";

/// What a request says of tools.
#[derive(Debug)]
pub(crate) struct Tools {
    list: Option<Vec<Value>>,
    choice: Choice,
    only_one: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Choice {
    None,
    Auto,
    Required,
    /// The place in the list of the one that is to be called.
    One(usize),
}

impl Tools {
    /// Takes the fields.
    pub(crate) fn read(fields: &mut Fields) -> Result<Self, Refusal> {
        let list = fields.objects("tools")?;
        let tools = list.as_deref().unwrap_or_default();
        for (at, tool) in tools.iter().enumerate() {
            check(at, tool)?;
        }
        let choice = match fields.take("tool_choice") {
            None => Choice::Auto,
            Some(choice) => read_choice(&choice, tools)?,
        };
        if tools.is_empty() && choice == Choice::Required {
            return Err(Refusal::field("tool_choice", "`tool_choice` needs `tools`"));
        }
        let only_one = fields.optional_switch("parallel_tool_calls")? == Some(false);
        Ok(Self { list, choice, only_one })
    }

    /// What the template is given: nothing where the model is not to call any.
    pub(crate) fn told(&self) -> Option<Vec<Value>> {
        self.list.clone().filter(|_| self.choice != Choice::None)
    }

    /// The grammar of the answer, where that has to be a call.
    pub(crate) fn grammar(&self, prompt: &str, app: &App) -> Result<Option<String>, Refusal> {
        let all = self.list.as_deref().unwrap_or_default();
        let tools = match self.choice {
            Choice::None | Choice::Auto => return Ok(None),
            Choice::Required => all,
            Choice::One(at) => &all[at..=at],
        };
        let format = app.about.call_format.ok_or_else(|| {
            let what = "`tool_choice` can be \"none\" or \"auto\" only: in what form this model calls tools is \
                        not known";
            Refusal::field("tool_choice", what)
        })?;
        let only_one = self.only_one || self.choice != Choice::Required;
        let grammar = CallGrammar::new(format, tools).after(prompt).only_one(only_one);
        Ok(Some(grammar.to_lark(|mark| app.about.mark(mark))))
    }

    /// What reads the calls of an answer to this prompt; `None` where there is nothing to call, or the model's
    /// form is not known. The form of gpt-oss is also that of its answers.
    pub(crate) fn calls(&self, prompt: &str, app: &App) -> Option<Calls> {
        let format = app.about.call_format?;
        let tools = self.told().unwrap_or_default();
        if tools.is_empty() && format != CallFormat::Harmony {
            return None;
        }
        let reader = CallReader::new(format, &tools).after(prompt).only_one(self.only_one);
        Some(Calls { format, reader, told: 0 })
    }

    /// What a client should know of an answer whose calls are not read.
    pub(crate) fn warning(&self, app: &App) -> Option<String> {
        let tools = self.told().filter(|it| !it.is_empty());
        let is_unread = tools.is_some() && app.about.call_format.is_none();
        let what = "`tools`: in what form this model calls tools is not known, so that calls stay in `content`";
        is_unread.then(|| what.to_owned())
    }
}

/// A tool has a name, and a schema of its arguments or none.
fn check(at: usize, tool: &Value) -> Result<(), Refusal> {
    let refuse = |what: &str| Err(Refusal::field("tools", format!("`tools[{at}]` {what}")));
    if tool.get("type").is_some_and(|it| it != "function") {
        return refuse("has another `type` than \"function\"");
    }
    let function = tool.get("function");
    let name = function.and_then(|it| it.get("name")).and_then(Value::as_str);
    if name.is_none_or(str::is_empty) {
        return refuse("has no `function` with a `name`");
    }
    match function.and_then(|it| it.get("parameters")) {
        None | Some(Value::Null | Value::Object(_)) => Ok(()),
        Some(_) => refuse("has `parameters` that are not a JSON schema"),
    }
}

fn read_choice(choice: &Value, tools: &[Value]) -> Result<Choice, Refusal> {
    const NAME: &str = "tool_choice";
    let function = choice.get("function").and_then(|it| it.get("name")).and_then(Value::as_str);
    match (choice.as_str(), function) {
        (Some("none"), _) => Ok(Choice::None),
        (Some("auto"), _) => Ok(Choice::Auto),
        (Some("required"), _) => Ok(Choice::Required),
        (_, Some(name)) if choice.get("type").is_some_and(|it| it == "function") => {
            let at = tools.iter().position(|it| it["function"]["name"] == name);
            let what =
                || Refusal::field(NAME, format!("`{NAME}` is {name:?}, which no tool is called"));
            at.map(Choice::One).ok_or_else(what)
        }
        _ => Err(wrong(NAME, "\"none\", \"auto\", \"required\" or the name of a function", choice)),
    }
}

/// The calls of a text: read out of it, and told in OpenAI's form.
#[derive(Debug, Clone)]
pub(crate) struct Calls {
    format: CallFormat,
    reader: CallReader,
    /// How many were told.
    told: usize,
}

impl Calls {
    /// The message of a whole text, and why it ends.
    pub(crate) fn message(mut self, text: &str, reason: FinishReason) -> (Value, &'static str) {
        let (mut content, mut thoughts, mut calls) = (String::new(), String::new(), Vec::new());
        for written in self.read(text, true) {
            match written {
                Written::Text(text) => content += &text,
                Written::Thought(thought) => thoughts += &thought,
                Written::Call(call) => calls.push(self.call(&call)),
            }
        }
        let mut message = json!({"role": "assistant", "content": content});
        if !thoughts.is_empty() {
            message[THOUGHTS] = thoughts.into();
        }
        if !calls.is_empty() {
            if content.is_empty() {
                message["content"] = Value::Null;
            }
            message["tool_calls"] = calls.into();
        }
        (message, self.reason(reason))
    }

    /// The deltas that the next piece of a text comes to; `ends` with the last one.
    pub(crate) fn deltas(&mut self, piece: &str, ends: bool) -> Vec<Value> {
        let written = self.read(piece, ends);
        let delta = |written| match written {
            Written::Text(text) => json!({ "content": text }),
            Written::Thought(thought) => json!({ THOUGHTS: thought }),
            Written::Call(call) => {
                let index = self.told;
                let mut call = self.call(&call);
                call["index"] = index.into();
                json!({ "tool_calls": [call] })
            }
        };
        written.into_iter().map(delta).collect()
    }

    /// Why a text ends that has been told.
    pub(crate) fn reason(&self, reason: FinishReason) -> &'static str {
        match finish_reason(reason) {
            "stop" if self.told > 0 => "tool_calls",
            other => other,
        }
    }

    fn read(&mut self, piece: &str, ends: bool) -> Vec<Written> {
        let mut written = self.reader.push(piece);
        if ends {
            written.extend(self.reader.finish());
        }
        written
    }

    fn call(&mut self, call: &ToolCall) -> Value {
        self.told += 1;
        let hex = random_hex();
        let id = match self.format {
            CallFormat::Mistral | CallFormat::MistralArgs => hex[..SHORT_ID].to_owned(),
            _ => format!("call_{hex}"),
        };
        let function = json!({"name": call.name, "arguments": call.arguments});
        json!({"id": id, "type": "function", "function": function})
    }
}
