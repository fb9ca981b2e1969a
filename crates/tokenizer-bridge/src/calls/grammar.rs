//! The grammar of texts that are nothing but calls.

use serde_json::{Value, json};

use super::{
    ARGS, CLOSE, CallFormat, KEY, KEY_END, MISTRAL, OPEN, THINK, THOUGHT, Tool, VALUE, VALUE_END,
    functions::{resolved, types},
    harmony, tools,
};

/// A grammar that leaves a model nothing to write but calls, in llguidance's dialect of Lark.
///
/// ```
/// use mlxgk_tokenizer_bridge::{CallFormat, CallGrammar};
/// use serde_json::json;
///
/// let tools = [json!({"type": "function", "function": {"name": "tide"}})];
/// let grammar = CallGrammar::new(CallFormat::Llama, &tools).to_lark(|_| None);
/// assert!(grammar.contains(r#"c0: "{\"name\": \"tide\", \"parameters\": " a0 "}""#), "{grammar}");
/// ```
#[derive(Debug, Clone)]
pub struct CallGrammar {
    format: CallFormat,
    tools: Vec<Tool>,
    only_one: bool,
    is_thinking: bool,
}

impl CallGrammar {
    /// Calls of these tools, given in OpenAI's form, with arguments that fit their schemas.
    pub fn new(format: CallFormat, given: &[Value]) -> Self {
        Self { format, tools: tools(given), only_one: false, is_thinking: false }
    }

    /// The grammar of what follows this prompt: where it has begun with the thinking, that comes first.
    #[must_use]
    pub fn after(self, prompt: &str) -> Self {
        Self { is_thinking: prompt.trim_end().ends_with(THINK), ..self }
    }

    /// One call and no more.
    #[must_use]
    pub fn only_one(self, only_one: bool) -> Self {
        Self { only_one, ..self }
    }

    /// The grammar. `special` gives the ids of those of the format's [marks](CallFormat::marks) that are
    /// special tokens, and so no text.
    pub fn to_lark(&self, special: impl Fn(&str) -> Option<u32>) -> String {
        let mark = |word: &str| match special(word) {
            Some(id) => format!("<[{id}]>"),
            None => literal(word),
        };
        let each = (0..self.tools.len()).map(|it| format!("c{it}")).collect::<Vec<_>>().join(" | ");
        let mut rules = vec![format!("call: {each}")];
        for (at, tool) in self.tools.iter().enumerate() {
            self.call(at, tool, &mark, &mut rules);
        }
        let calls = match (self.format, self.only_one) {
            (CallFormat::Mistral, true) => format!("{} \" \"? \"[\" call \"]\"", mark(MISTRAL)),
            (CallFormat::Mistral, false) => {
                format!("{} \" \"? \"[\" call (\", \" call)* \"]\"", mark(MISTRAL))
            }
            (CallFormat::MistralArgs, false) => "call+".to_owned(),
            (CallFormat::Hermes | CallFormat::Functions | CallFormat::Glm, false) => {
                format!("call ({} call)*", literal("\n"))
            }
            // Llama's are single.
            _ => "call".to_owned(),
        };
        let thought = if self.is_thinking {
            rules.push("thought: thinking (/\\s{1,4}/)?".to_owned());
            rules.push(format!("thinking[lazy]: /(?s:.*){}/", THOUGHT.replace('/', "\\/")));
            "thought "
        } else if self.format == CallFormat::Harmony {
            // The next message begins like a prompt ends.
            let [channel, message, start] =
                [harmony::CHANNEL, harmony::MESSAGE, harmony::START].map(&mark);
            let end = until("thinking", (harmony::END, &mark(harmony::END)));
            rules.push(format!(
                "thought: {channel} \"analysis\" {message} thinking {start} \"assistant\"\n{end}"
            ));
            "thought? "
        } else {
            ""
        };
        format!("start: {thought}{calls}\n{}\n", rules.join("\n"))
    }

    /// The rules of a tool's calls, the first of which is `c` and its number.
    fn call(&self, at: usize, tool: &Tool, mark: &dyn Fn(&str) -> String, rules: &mut Vec<String>) {
        let schema = object_schema(&tool.parameters);
        let name = Value::from(tool.name.as_str());
        let object = |key: &str| {
            let begin = literal(&format!("{{\"name\": {name}, \"{key}\": "));
            format!("{begin} a{at} \"}}\"")
        };
        let call = match self.format {
            CallFormat::Hermes => {
                let (open, close) = (mark(OPEN), mark(CLOSE));
                let newline = literal("\n");
                format!("{open} {newline} {} {newline} {close}", object("arguments"))
            }
            CallFormat::Functions | CallFormat::Glm => {
                return self.tagged(at, tool, mark, rules);
            }
            CallFormat::Mistral => object("arguments"),
            CallFormat::MistralArgs => {
                format!("{} {} {} a{at}", mark(MISTRAL), literal(&tool.name), mark(ARGS))
            }
            CallFormat::Harmony => {
                let name = literal(&format!("commentary to=functions.{} ", tool.name));
                let [channel, constrain, message] =
                    [harmony::CHANNEL, harmony::CONSTRAIN, harmony::MESSAGE].map(mark);
                format!("{channel} {name} {constrain} \"json\" {message} a{at}")
            }
            CallFormat::Llama => object("parameters"),
        };
        rules.push(format!("c{at}: {call}"));
        rules.push(format!("a{at}: %json {schema}"));
    }

    /// The rules of a call whose arguments stand between tags, in the schema's order.
    fn tagged(
        &self,
        at: usize,
        tool: &Tool,
        mark: &dyn Fn(&str) -> String,
        rules: &mut Vec<String>,
    ) {
        let schema = object_schema(&tool.parameters);
        let required: Vec<&str> = match schema.get("required") {
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let tags = Tags::of(self.format, &tool.name, mark);
        let mut parts = vec![tags.begin];
        let properties = schema.get("properties").and_then(Value::as_object);
        for (number, (name, property)) in properties.into_iter().flatten().enumerate() {
            let (rule, value) = (format!("p{at}x{number}"), format!("v{at}x{number}"));
            let end = if required.contains(&name.as_str()) { "" } else { "?" };
            parts.push(format!("{rule}{end}"));
            let ([before, after], name) = (&tags.name, literal(name));
            rules.push(format!("{rule}: {before} {name} {after} {value} {}", tags.between));
            rules.push(value_rule(&value, property, &schema, (tags.close.0, &tags.close.1)));
        }
        parts.push(tags.end);
        rules.push(format!("c{at}: {}", parts.join(" ")));
    }
}

/// How a form of calls writes arguments between tags, as Lark spells it.
struct Tags {
    /// Before the first argument.
    begin: String,
    /// Before and after an argument's name.
    name: [String; 2],
    /// What ends a value: as a text, and as Lark spells it.
    close: (&'static str, String),
    /// After each argument.
    between: String,
    /// After the last one.
    end: String,
}

impl Tags {
    fn of(format: CallFormat, tool: &str, mark: &dyn Fn(&str) -> String) -> Self {
        const END: &str = "\n</parameter>\n";
        let (open, close) = (mark(OPEN), mark(CLOSE));
        if format == CallFormat::Glm {
            // GLM 4.5 writes line ends between tags, and 4.7 does not.
            let line_end = format!("{}?", literal("\n"));
            return Self {
                begin: format!("{open} {} {line_end}", literal(tool)),
                name: [mark(KEY), format!("{} {line_end} {}", mark(KEY_END), mark(VALUE))],
                close: (VALUE_END, mark(VALUE_END)),
                between: line_end,
                end: close,
            };
        }
        Self {
            begin: format!("{open} {}", literal(&format!("\n<function={tool}>\n"))),
            name: [literal("<parameter="), literal(">\n")],
            close: (END, literal(END)),
            between: String::new(),
            end: format!("{} {close}", literal("</function>\n")),
        }
    }
}

/// The rule of an argument's value with its closing tag, `close`: as a text, and as Lark spells it. `schema` is
/// that of all arguments.
fn value_rule(rule: &str, property: &Value, schema: &Value, close: (&str, &str)) -> String {
    let (text, close) = close;
    let property = resolved(property, schema).unwrap_or(property);
    let choices = property.get("enum").and_then(Value::as_array);
    let texts = choices.map(|it| it.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
    let types = types(Some(property), schema);
    match texts {
        Some(Some(texts)) if !texts.is_empty() => {
            let texts: Vec<String> = texts.into_iter().map(literal).collect();
            format!("{rule}: ({}) {close}", texts.join(" | "))
        }
        _ if types.is_empty() || types.contains("string") => until(rule, (text, close)),
        _ => {
            let mut property = property.clone();
            // What it refers to is beside it.
            for name in ["$defs", "definitions"] {
                if let (Some(found), Some(property)) = (schema.get(name), property.as_object_mut())
                {
                    property.insert(name.to_owned(), found.clone());
                }
            }
            format!("{rule}: {rule}json {close}\n{rule}json: %json {property}")
        }
    }
}

/// The rule of a text up to a word and with it: the word as a text, and as Lark spells it.
fn until(rule: &str, (text, word): (&str, &str)) -> String {
    if word != literal(text) {
        // A special token, which no text holds.
        return format!("{rule}: {rule}text {word}\n{rule}text: /(?s:.*)/");
    }
    let text = text.replace('\n', "\\n").replace('/', "\\/").replace('|', "\\|");
    format!("{rule}[lazy]: /(?s:.*){text}/")
}

/// The schema of a tool's arguments: an object; one without members where nothing is said.
fn object_schema(parameters: &Value) -> Value {
    match parameters {
        Value::Object(schema) if !schema.is_empty() => {
            let mut schema = schema.clone();
            schema.entry("type").or_insert_with(|| "object".into());
            schema.into()
        }
        _ => json!({"type": "object", "properties": {}, "additionalProperties": false}),
    }
}

/// A text as Lark spells it.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}
