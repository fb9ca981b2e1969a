//! From flags and `--generation-config` to the generation config, and back to flags in messages.

use mlx_genkit::{
    GenerationConfig, Model,
    generation_config::{Kwargs, RequestFields, Sources},
};
use serde_json::{Map, Value};

use crate::{
    failure::{Failure, Result},
    files,
    flags::{ConfigArgs, Given, Input, flag_of},
};

/// New tokens where no length is set anywhere. The library keeps HF's 20, too few to read.
const DEFAULT_NEW_TOKENS: usize = 256;

/// What the command line says about the generation config.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The flags, as HF's keyword arguments.
    pub(crate) flags: Kwargs,
    /// What `--generation-config` holds.
    pub(crate) file: GenerationConfig,
    /// What the file or `--set` says about the request besides.
    pub(crate) asked: RequestFields,
    /// What such fields were read as, to be told.
    pub(crate) notes: Vec<String>,
    /// Fields and the flags that set them, as they were typed.
    typed: Vec<(&'static str, String)>,
    /// The fields of `--set`, which are spelled as they were typed.
    set: Vec<String>,
    /// The name of `--generation-config`.
    file_name: Option<String>,
    /// The fields that the flags set, by flags of their own or through another.
    given: Vec<String>,
    /// Whether the length is this program's default.
    has_default_length: bool,
}

/// Where a field's value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A flag, as it was typed.
    Flag(String),
    /// `--generation-config`.
    File(String),
    /// The model's own generation config.
    Model,
    /// A default of this program, where the library's is another.
    Program,
    /// A default of transformers.
    Default,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Flag(name) | Self::File(name) => name,
            Self::Model => "the model",
            Self::Program => "mlxgk's default",
            Self::Default => "default",
        })
    }
}

impl Settings {
    /// Reads what does not depend on the model.
    pub(crate) fn read(args: &ConfigArgs) -> Result<Self> {
        let mut file = match &args.generation_config {
            None => GenerationConfig::default(),
            Some(path) => GenerationConfig::from_file(path).map_err(Failure::usage)?,
        };
        let mut typed = Vec::new();
        let mut fields = Map::new();
        for Given { field, flag, value } in &args.fields.given {
            let value = match value {
                Input::Value(value) => value.clone(),
                Input::TextFile(path) => files::read_text(path)?.into(),
                Input::JsonFile(path) => schema(path)?,
            };
            match (fields.get_mut(*field), value) {
                // `--stop` and `--stop-strings` are one list.
                (Some(Value::Array(texts)), Value::Array(more)) if *field == "stop_strings" => {
                    texts.extend(more);
                }
                (Some(_), _) => return Err(twice(field, &typed, flag)),
                (None, value) => {
                    fields.insert((*field).to_owned(), value);
                    typed.push((*field, flag.clone()));
                }
            }
        }
        for (field, value) in &args.set {
            if fields.insert(field.clone(), value.clone()).is_some() {
                return Err(twice(field, &typed, "--set"));
            }
        }
        temperature(&mut fields, &typed)?;
        let set = args.set.iter().map(|(field, _)| field.clone()).collect();
        let is_asked = |name: &&String| RequestFields::meaning(name).is_some();
        let names: Vec<String> = fields.keys().filter(is_asked).cloned().collect();
        for name in names {
            file.unknown.extend(fields.remove_entry(&name));
        }
        let note =
            |name: &String| Some(format!("`{name}` is read as {}", RequestFields::meaning(name)?));
        let notes = file.unknown.keys().filter_map(note).collect();
        let asked = file.take_request_fields().map_err(Failure::usage)?;
        let mut settings = Self {
            flags: Kwargs::default(),
            file,
            asked,
            notes,
            typed,
            set,
            file_name: args.generation_config.as_ref().map(|it| it.display().to_string()),
            given: fields.keys().cloned().collect(),
            has_default_length: false,
        };
        settings.flags = Kwargs::from_json(&Value::Object(fields))
            .map_err(|e| Failure::usage(settings.spelled(&e.to_string(), None)))?;
        Ok(settings)
    }

    /// All sources merged, with a length that is long enough to read where none sets one.
    pub(crate) fn merge(&mut self, model: &Model) -> Result<GenerationConfig> {
        let merged = self.merged(model)?;
        if merged.config.max_new_tokens.is_some() || !merged.has_default_max_length {
            return Ok(merged.config);
        }
        let length =
            GenerationConfig { max_new_tokens: Some(DEFAULT_NEW_TOKENS), ..Default::default() };
        self.flags = std::mem::take(&mut self.flags).or(length);
        self.has_default_length = true;
        Ok(self.merged(model)?.config)
    }

    /// Where the value of a merged field comes from.
    pub(crate) fn source(&self, field: &str, model: &Model) -> Source {
        let typed = |field: &str| {
            self.typed.iter().find(|(it, _)| *it == field).map(|(_, flag)| flag.clone())
        };
        if self.given.iter().any(|it| it == field) {
            // What no flag of its own set came with the temperature.
            let with = || if field == "do_sample" { typed("temperature") } else { None };
            let is_set = self.set.iter().any(|it| it == field);
            let set = is_set.then(|| "--set".to_owned());
            return Source::Flag(typed(field).or(set).or_else(with).unwrap_or_default());
        }
        match &self.file_name {
            Some(name) if self.file.get(field).is_some() => Source::File(name.clone()),
            _ if model.generation_config().get(field).is_some() => Source::Model,
            _ if field == "max_new_tokens" && self.has_default_length => Source::Program,
            _ => Source::Default,
        }
    }

    fn merged(&self, model: &Model) -> Result<mlx_genkit::generation_config::Merged> {
        let sources =
            Sources { kwargs: &self.flags, passed: &self.file, model: model.generation_config() };
        sources.merge().map_err(|e| Failure::usage(self.spelled(&e.to_string(), Some(model))))
    }

    /// A message in which fields are spelled as a user of the command line knows them: one that was
    /// given as a flag by that flag and its name, and one that is set nowhere, and so is advice (`set
    /// num_beams`), by its flag.
    pub(crate) fn spelled(&self, message: &str, model: Option<&Model>) -> String {
        let mut message = message.to_owned();
        let own = model.map(Model::generation_config);
        let files = [Some(&self.file), own].into_iter().flatten();
        let mut written: Vec<&str> = files.flat_map(|it| it.set_fields()).collect();
        written.extend(self.set.iter().map(String::as_str));
        for &field in GenerationConfig::FIELDS {
            let name = format!("`{field}`");
            if !message.contains(&name) {
                continue;
            }
            let typed = self.typed.iter().find(|(it, _)| *it == field);
            let spelling = match typed {
                Some((_, flag)) => format!("{flag} ({name})"),
                None if written.contains(&field) => continue,
                None => flag_of(field),
            };
            message = message.replace(&name, &spelling);
        }
        message
    }

    /// The same for a failure of the request.
    pub(crate) fn explain(&self, failure: Failure, model: &Model) -> Failure {
        match failure {
            Failure::Usage(message) => Failure::Usage(self.spelled(&message, Some(model))),
            Failure::Other(message) => Failure::Other(self.spelled(&message, Some(model))),
            other => other,
        }
    }
}

/// `--temp` decides between greedy and sampled: in HF's fields that is a switch beside the number.
fn temperature(fields: &mut Map<String, Value>, typed: &[(&str, String)]) -> Result<()> {
    let Some((_, flag)) = typed.iter().find(|(field, _)| *field == "temperature") else {
        return Ok(());
    };
    let Some(value) = fields.get("temperature").and_then(Value::as_f64) else { return Ok(()) };
    if value < 0.0 {
        return Err(Failure::usage(format_args!("{flag} must be 0 or more, but is {value}")));
    }
    let samples = value > 0.0;
    if !samples {
        fields.remove("temperature");
    }
    match fields.insert("do_sample".to_owned(), Value::Bool(samples)) {
        Some(Value::Bool(given)) if given != samples => {
            let (means, but) = if samples { ("samples", "off") } else { ("is greedy", "on") };
            let what =
                format!("{flag} {value} {means}, but sampling (`do_sample`) is switched {but}");
            Err(Failure::usage(what))
        }
        _ => Ok(()),
    }
}

fn twice(field: &str, typed: &[(&str, String)], second: &str) -> Failure {
    let first = typed.iter().find(|(it, _)| *it == field).map_or("--set", |(_, flag)| flag);
    Failure::usage(format_args!("`{field}` is given twice, by {first} and by {second}"))
}

fn schema(path: &std::path::Path) -> Result<Value> {
    let name = path.display();
    match files::read_json(path)? {
        // In a config, null would mean that no schema is asked for.
        Value::Null => Err(Failure::usage(format_args!(
            "{name} holds null, but a JSON schema must be an object"
        ))),
        schema => Ok(schema),
    }
}
