//! The grammar of texts that are nothing but calls.

use serde_json::{Value, json};

use super::{
    ARGS, CLOSE, CallFormat, MISTRAL, OPEN, THINK, THOUGHT, Tool,
    functions::{resolved, types},
    tools,
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
            (CallFormat::Hermes | CallFormat::Functions, false) => {
                format!("call ({} call)*", literal("\n"))
            }
            // Llama's are single.
            _ => "call".to_owned(),
        };
        let thought = if self.is_thinking {
            rules.push("thought: thinking (/\\s{1,4}/)?".to_owned());
            rules.push(format!("thinking[lazy]: /(?s:.*){}/", THOUGHT.replace('/', "\\/")));
            "thought "
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
            CallFormat::Functions => {
                return self.function(at, tool, mark, rules);
            }
            CallFormat::Mistral => object("arguments"),
            CallFormat::MistralArgs => {
                format!("{} {} {} a{at}", mark(MISTRAL), literal(&tool.name), mark(ARGS))
            }
            CallFormat::Llama => object("parameters"),
        };
        rules.push(format!("c{at}: {call}"));
        rules.push(format!("a{at}: %json {schema}"));
    }

    /// The rules of a call whose arguments stand between tags, in the schema's order.
    fn function(
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
        let mut parts = vec![mark(OPEN), literal(&format!("\n<function={}>\n", tool.name))];
        let properties = schema.get("properties").and_then(Value::as_object);
        for (number, (name, property)) in properties.into_iter().flatten().enumerate() {
            let rule = format!("p{at}x{number}");
            let end = if required.contains(&name.as_str()) { "" } else { "?" };
            parts.push(format!("{rule}{end}"));
            let begin = literal(&format!("<parameter={name}>\n"));
            let value = format!("v{at}x{number}");
            rules.push(format!("{rule}: {begin} {value}"));
            rules.push(value_rule(&value, property, &schema));
        }
        parts.push(literal("</function>\n"));
        parts.push(mark(CLOSE));
        rules.push(format!("c{at}: {}", parts.join(" ")));
    }
}

/// The rule of a parameter's value with its closing tag. `schema` is that of all arguments.
fn value_rule(rule: &str, property: &Value, schema: &Value) -> String {
    const END: &str = "\n</parameter>\n";
    let property = resolved(property, schema).unwrap_or(property);
    let choices = property.get("enum").and_then(Value::as_array);
    let texts = choices.map(|it| it.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
    let types = types(Some(property), schema);
    match texts {
        Some(Some(texts)) if !texts.is_empty() => {
            let texts: Vec<String> = texts.into_iter().map(literal).collect();
            format!("{rule}: ({}) {}", texts.join(" | "), literal(END))
        }
        _ if types.is_empty() || types.contains("string") => {
            format!("{rule}[lazy]: /(?s:.*)\\n<\\/parameter>\\n/")
        }
        _ => {
            let mut property = property.clone();
            // What it refers to is beside it.
            for name in ["$defs", "definitions"] {
                if let (Some(found), Some(property)) = (schema.get(name), property.as_object_mut())
                {
                    property.insert(name.to_owned(), found.clone());
                }
            }
            format!("{rule}: {rule}json {}\n{rule}json: %json {property}", literal(END))
        }
    }
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
