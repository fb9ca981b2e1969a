//! The fields of a request's body, each of which is taken by what it is for; what nobody takes is a field of
//! HF's `GenerationConfig`, or refused.

use mlx_genkit::{GenerationConfig, generation_config::Kwargs};
use serde_json::{Map, Value, json};

use crate::refusal::Refusal;

/// Fields that say who asks, and cannot change an answer.
const IGNORED: [&str; 4] = ["user", "metadata", "safety_identifier", "prompt_cache_key"];

/// Fields of other servers that ask for nothing at these values, as JSON spells them, and are refused at
/// others.
const NEUTRAL: [(&str, &[&str]); 7] = [
    ("store", &["false"]),
    ("service_tier", &["\"auto\"", "\"default\""]),
    ("parallel_tool_calls", &["true"]),
    ("echo", &["false"]),
    ("best_of", &["1"]),
    ("suffix", &["\"\""]),
    ("modalities", &["[\"text\"]"]),
];

/// Fields of HF's config that ask for more than an answer has room for.
const WITHOUT_ROOM: [&str; 5] = [
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    "return_dict_in_generate",
];

/// HF's fields about what the answer has to fit, of which there is one at most.
const STRUCTURES: [&str; 3] = ["json_schema", "regex", "grammar"];

/// OpenAI's names of HF's fields.
const RENAMED: [(&str, &str); 4] = [
    ("max_tokens", "max_new_tokens"),
    ("max_completion_tokens", "max_new_tokens"),
    ("stop", "stop_strings"),
    ("n", "num_return_sequences"),
];

/// The fields of a body that are not taken yet.
#[derive(Debug)]
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// HF's fields and how the request spells them, so far.
    spelled: Vec<(&'static str, &'static str)>,
}

/// What a request says about how its text is generated.
#[derive(Debug)]
pub(crate) struct Generating {
    pub(crate) kwargs: Kwargs,
    /// The field that bounds the length, as it is spelled, where one does.
    pub(crate) length: Option<&'static str>,
    /// HF's fields and how the request spells them.
    pub(crate) spelled: Vec<(&'static str, &'static str)>,
}

impl Fields {
    /// The fields of a JSON object. One that is null is one that is not there.
    pub(crate) fn of(body: Value) -> Result<Self, Refusal> {
        match body {
            Value::Object(mut fields) => {
                fields.retain(|_, value| !value.is_null());
                Ok(Self { map: fields, spelled: Vec::new() })
            }
            _ => Err(Refusal::request("the body must be a JSON object")),
        }
    }

    /// Takes a field out.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name)
    }

    /// Takes a field that is true or false; false where it is not there.
    pub(crate) fn switch(&mut self, name: &str) -> Result<bool, Refusal> {
        Ok(self.optional_switch(name)?.unwrap_or(false))
    }

    /// Takes a field that is true or false.
    pub(crate) fn optional_switch(&mut self, name: &str) -> Result<Option<bool>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(found) => Err(wrong(name, "true or false", &found)),
        }
    }

    /// Takes a field that is a whole number.
    pub(crate) fn count(&mut self, name: &str) -> Result<Option<u64>, Refusal> {
        let read =
            |it: Value| it.as_u64().ok_or_else(|| wrong(name, "a whole number of 0 or more", &it));
        self.take(name).map(read).transpose()
    }

    /// Takes a field that is a text.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(found) => Err(wrong(name, "a text", &found)),
        }
    }

    /// Takes a field that is an object.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object)),
            Some(found) => Err(wrong(name, "an object", &found)),
        }
    }

    /// Takes a field that is a list of objects.
    pub(crate) fn objects(&mut self, name: &str) -> Result<Option<Vec<Value>>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(list)) if list.iter().all(Value::is_object) => Ok(Some(list)),
            Some(found) => Err(wrong(name, "a list of objects", &found)),
        }
    }

    /// Refuses what is left.
    pub(crate) fn end(self) -> Result<(), Refusal> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(name) => Err(unknown(name)),
        }
    }

    /// Refuses what is left of an object that is itself the field `outer`.
    fn end_of(self, outer: &str) -> Result<(), Refusal> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(name) => {
                let field = outer.split('.').next().unwrap_or(outer);
                Err(Refusal::field(field, format!("unknown field `{outer}.{name}`")))
            }
        }
    }

    /// Reads what is left as fields of HF's config.
    pub(crate) fn generating(mut self) -> Result<Generating, Refusal> {
        IGNORED.iter().for_each(|it| _ = self.map.remove(*it));
        for (name, neutral) in NEUTRAL {
            if let Some(value) = self.take(name)
                && !neutral.contains(&value.to_string().as_str())
            {
                return Err(Refusal::field(
                    name,
                    format!("`{name}` is {value}, which is not supported"),
                ));
            }
        }
        for name in WITHOUT_ROOM {
            if self.switch(name)? {
                let what =
                    format!("`{name}` asks for what an answer of this server has no room for");
                return Err(Refusal::field(name, what));
            }
        }
        self.structure()?;
        self.rename()?;
        self.temperature()?;
        let is_field = |it: &str| GenerationConfig::FIELDS.contains(&it) && !it.starts_with('_');
        if let Some(name) = self.map.keys().find(|it| !is_field(it)) {
            return Err(unknown(name));
        }
        let Self { map, spelled } = self;
        let length = ["max_new_tokens", "max_length"].into_iter().find(|it| map.contains_key(*it));
        let spelling = |field| spelled.iter().find(|it| it.0 == field).map_or(field, |it| it.1);
        let length = length.map(spelling);
        let kwargs = Kwargs::from_json(&Value::Object(map));
        let kwargs = kwargs.map_err(|e| Refusal::from(e).spelled(&spelled))?;
        Ok(Generating { kwargs, length, spelled })
    }

    /// Gives OpenAI's fields HF's names.
    fn rename(&mut self) -> Result<(), Refusal> {
        for (name, field) in RENAMED {
            let Some(value) = self.take(name) else { continue };
            if self.map.insert(field.to_owned(), value).is_some() {
                let other = self.spelled.iter().find(|it| it.0 == field).map_or(field, |it| it.1);
                let what = format!("`{name}` and `{other}` are one field; give one of them");
                return Err(Refusal::field(name, what));
            }
            self.spelled.push((field, name));
        }
        Ok(())
    }

    /// As on the command line, 0 is greedy and what is above samples: in HF's fields that is a switch
    /// beside the number.
    fn temperature(&mut self) -> Result<(), Refusal> {
        let name = "temperature";
        let Some(value) = self.map.get(name) else { return Ok(()) };
        let Some(value) = value.as_f64() else { return Err(wrong(name, "a number", value)) };
        if value < 0.0 {
            let what = format!("`{name}` must be 0 or more, but is {value}");
            return Err(Refusal::field(name, what));
        }
        let samples = value > 0.0;
        if !samples {
            self.map.remove(name);
        }
        match self.map.insert("do_sample".to_owned(), Value::Bool(samples)) {
            Some(Value::Bool(given)) if given != samples => {
                let means = if samples { "samples" } else { "is greedy" };
                let what = format!("`{name}` {value} {means}, but `do_sample` is {given}");
                Err(Refusal::field("do_sample", what))
            }
            _ => Ok(()),
        }
    }

    /// Makes a JSON schema of OpenAI's `response_format`.
    fn structure(&mut self) -> Result<(), Refusal> {
        const NAME: &str = "response_format";
        let Some(format) = self.object(NAME)? else { return Ok(()) };
        let refuse = |what: &str| Refusal::field(NAME, what);
        let mut format = Self::of(format.into())?;
        let schema = match format.text("type")?.as_deref() {
            Some("text") => None,
            Some("json_object") => Some(json!({"type": "object"})),
            Some("json_schema") => {
                let expected = "`response_format.json_schema.schema` must be a JSON schema";
                let given = format.object("json_schema")?.ok_or_else(|| refuse(expected))?;
                let mut given = Self::of(given.into())?;
                // Every answer fits the schema, strict or not; its name and description change nothing.
                for name in ["name", "description", "strict"] {
                    given.take(name);
                }
                let schema = given.take("schema").ok_or_else(|| refuse(expected))?;
                given.end_of("response_format.json_schema")?;
                Some(schema)
            }
            _ => {
                let what =
                    "`response_format.type` must be \"text\", \"json_object\" or \"json_schema\"";
                return Err(refuse(what));
            }
        };
        format.end_of(NAME)?;
        let Some(schema) = schema else { return Ok(()) };
        self.structured_by(NAME, "json_schema", schema)
    }

    /// Has the answer be calls, which `name` asks for, by their grammar.
    pub(crate) fn constrain(&mut self, name: &'static str, grammar: String) -> Result<(), Refusal> {
        let is_text = |it: &Value| it.get("type").is_some_and(|it| it == "text");
        if self.map.get("response_format").is_some_and(|it| !is_text(it)) {
            return Err(not_together(name, "response_format"));
        }
        self.structured_by(name, "grammar", grammar.into())
    }

    /// Sets one of HF's fields about what the answer has to fit, for another one.
    fn structured_by(
        &mut self,
        name: &'static str,
        field: &'static str,
        value: Value,
    ) -> Result<(), Refusal> {
        if let Some(own) = STRUCTURES.into_iter().find(|it| self.map.contains_key(*it)) {
            return Err(not_together(name, own));
        }
        self.map.insert(field.to_owned(), value);
        self.spelled.push((field, name));
        Ok(())
    }
}

fn not_together(name: &str, other: &str) -> Refusal {
    Refusal::field(name, format!("`{name}` and `{other}` are not available together"))
}

fn unknown(name: &str) -> Refusal {
    Refusal::field(name, format!("unknown field `{name}`"))
}

/// A field of another type. What was found is shown as far as it is short.
pub(crate) fn wrong(name: &str, expected: &str, found: &Value) -> Refusal {
    let found = found.to_string();
    let shown = match found.char_indices().nth(60) {
        None => found,
        Some((at, _)) => format!("{}…", &found[..at]),
    };
    Refusal::field(name, format!("`{name}` must be {expected}, found {shown}"))
}
