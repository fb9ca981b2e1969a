//! One flag for each field of HF's GenerationConfig.
//!
//! [`FLAGS`] lists those that help shows, under the name people know and under HF's in kebab-case.
//! Every other field is a hidden flag under HF's name, so that users of transformers need
//! not look anything up. What a flag does is taken from the field's own documentation.

use std::{path::PathBuf, sync::LazyLock};

use clap::{
    Arg, ArgAction, ArgGroup, ArgMatches, Args, Command, Error, FromArgMatches,
    builder::{StyledStr, ValueParser},
};
use mlx_genkit::{GenerationConfig, generation_config::Kwargs};
use serde_json::{Value, json};

use super::config::json_or_text;

const LENGTH: &str = "Length and stopping";
const SAMPLING: &str = "Sampling";
const PENALTIES: &str = "Penalties";
const BEAMS: &str = "Beams";
const HELPERS: &str = "Helpers";
const CACHE: &str = "Cache";
const STRUCTURE: &str = "Structured output";

/// Fields whose flags are declared beside `--assistant`, because they are the assistant's.
const ELSEWHERE: [&str; 2] = ["num_assistant_tokens", "assistant_confidence_threshold"];

/// A field with a flag that help shows.
struct Flag {
    field: &'static str,
    /// What it is called; the first is shown as the flag, the others beside it.
    names: &'static [&'static str],
    short: Option<char>,
    /// The value's name in the help.
    value: &'static str,
    kind: Kind,
    heading: &'static str,
    /// Help that goes beyond the field's documentation, or (with a leading `=`) stands in its place.
    help: &'static str,
    /// Whether `-h` shows it, too.
    is_common: bool,
}

/// How a flag's value is written.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A whole number.
    Count,
    /// A finite number.
    Number,
    /// `true`, `false` or nothing, which is `true`; one field has a third value.
    Switch,
    /// Token ids with commas between.
    Ids,
    /// A text; the flag may be repeated.
    Texts,
    /// A text.
    Text,
    /// A file with JSON.
    JsonFile,
    /// A file with text.
    TextFile,
    /// JSON, or a text without quotes.
    Json,
}

const fn flag(
    field: &'static str,
    names: &'static [&'static str],
    value: &'static str,
    kind: Kind,
    heading: &'static str,
) -> Flag {
    Flag { field, names, short: None, value, kind, heading, help: "", is_common: false }
}

impl Flag {
    const fn short(self, short: char) -> Self {
        Self { short: Some(short), ..self }
    }

    const fn common(self) -> Self {
        Self { is_common: true, ..self }
    }

    const fn help(self, help: &'static str) -> Self {
        Self { help, ..self }
    }
}

#[rustfmt::skip]
const FLAGS: &[Flag] = &[
    flag("max_new_tokens", &["max-tokens", "max-new-tokens"], "N", Kind::Count, LENGTH)
        .short('n').help("256 where no length is set anywhere.").common(),
    flag("min_new_tokens", &["min-new-tokens"], "N", Kind::Count, LENGTH),
    flag("stop_strings", &["stop", "stop-strings"], "TEXT", Kind::Texts, LENGTH).help("Repeatable.").common(),
    flag("max_time", &["max-time"], "SECONDS", Kind::Number, LENGTH),
    flag("do_sample", &["do-sample"], "BOOL", Kind::Switch, SAMPLING).common(),
    flag("temperature", &["temp", "temperature"], "T", Kind::Number, SAMPLING).short('t')
        .help("=0 is greedy; above 0 samples, with scores divided by this temperature.").common(),
    flag("top_k", &["top-k"], "K", Kind::Count, SAMPLING).common(),
    flag("top_p", &["top-p"], "P", Kind::Number, SAMPLING).common(),
    flag("min_p", &["min-p"], "P", Kind::Number, SAMPLING).common(),
    flag("top_h", &["top-h"], "H", Kind::Number, SAMPLING),
    flag("typical_p", &["typical-p"], "P", Kind::Number, SAMPLING),
    flag("epsilon_cutoff", &["epsilon-cutoff"], "E", Kind::Number, SAMPLING),
    flag("eta_cutoff", &["eta-cutoff"], "E", Kind::Number, SAMPLING),
    flag("top_n_sigma", &["top-n-sigma"], "X", Kind::Number, SAMPLING),
    flag("xtc_probability", &["xtc-probability"], "P", Kind::Number, SAMPLING),
    flag("xtc_threshold", &["xtc-threshold"], "P", Kind::Number, SAMPLING),
    flag("mirostat", &["mirostat"], "VERSION", Kind::Count, SAMPLING),
    flag("num_return_sequences", &["num-return-sequences"], "N", Kind::Count, SAMPLING).common(),
    flag("repetition_penalty", &["repetition-penalty"], "R", Kind::Number, PENALTIES).common(),
    flag("frequency_penalty", &["frequency-penalty"], "X", Kind::Number, PENALTIES),
    flag("presence_penalty", &["presence-penalty"], "X", Kind::Number, PENALTIES),
    flag("dry_multiplier", &["dry-multiplier"], "X", Kind::Number, PENALTIES),
    flag("no_repeat_ngram_size", &["no-repeat-ngram-size"], "N", Kind::Count, PENALTIES),
    flag("suppress_tokens", &["suppress-tokens"], "IDS", Kind::Ids, PENALTIES).help("E.g. 3,14."),
    flag("begin_suppress_tokens", &["begin-suppress-tokens"], "IDS", Kind::Ids, PENALTIES),
    flag("num_beams", &["num-beams"], "N", Kind::Count, BEAMS).common(),
    flag("length_penalty", &["length-penalty"], "X", Kind::Number, BEAMS),
    flag("early_stopping", &["early-stopping"], "WHEN", Kind::Switch, BEAMS)
        .help("=Stops as soon as enough beams are finished; `never` waits until none can do better."),
    flag("guidance_scale", &["guidance-scale"], "X", Kind::Number, HELPERS),
    flag("prompt_lookup_num_tokens", &["prompt-lookup", "prompt-lookup-num-tokens"], "N", Kind::Count,
        HELPERS),
    flag("max_kv_size", &["max-kv-size"], "N", Kind::Count, CACHE).common(),
    flag("kv_keep", &["kv-keep"], "N", Kind::Count, CACHE),
    flag("kv_bits", &["kv-bits"], "N", Kind::Count, CACHE),
    flag("kv_group_size", &["kv-group-size"], "N", Kind::Count, CACHE),
    flag("quantized_kv_start", &["quantized-kv-start"], "N", Kind::Count, CACHE),
    flag("json_schema", &["json-schema"], "FILE", Kind::JsonFile, STRUCTURE).common(),
    flag("regex", &["regex"], "REGEX", Kind::Text, STRUCTURE).common(),
    flag("grammar", &["grammar"], "FILE", Kind::TextFile, STRUCTURE),
];

/// The fields that were given as flags, in the order of [`FLAGS`].
#[derive(Debug, Default)]
pub(crate) struct FieldArgs {
    pub(crate) given: Vec<Given>,
}

/// A field that was given as a flag.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    pub(crate) field: &'static str,
    /// The flag as it was typed.
    pub(crate) flag: String,
    pub(crate) value: Input,
}

/// A value, or where it is to be read.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    Value(Value),
    JsonFile(PathBuf),
    TextFile(PathBuf),
}

/// The flag for a field: the one that help shows, or HF's name in kebab-case.
pub(crate) fn flag_of(field: &str) -> String {
    match FLAGS.iter().find(|it| it.field == field) {
        Some(flag) => format!("--{}", flag.names[0]),
        None => format!("--{}", kebab(field)),
    }
}

/// All flags of a field, the one that help shows first; none where only a file can hold it.
pub(crate) fn flags_of(field: &str) -> Vec<String> {
    match FLAGS.iter().find(|it| it.field == field) {
        Some(flag) => {
            let short = flag.short.map(|it| format!("-{it}"));
            flag.names.iter().map(|it| format!("--{it}")).chain(short).collect()
        }
        None if field.starts_with('_') => Vec::new(),
        None => vec![format!("--{}", kebab(field))],
    }
}

/// A field's documentation as a line, without its markup for rustdoc.
pub(crate) fn description(field: &str) -> String {
    let documented = GenerationConfig::describe(field).unwrap_or_default();
    let words: Vec<&str> = documented.split_whitespace().collect();
    words.join(" ").replace("[`", "`").replace("`]", "`")
}

/// Whether a flag, by its name, sets a field.
pub(crate) fn is_field_flag(name: &str) -> bool {
    FLAGS.iter().any(|it| it.names.contains(&name)) || HIDDEN.iter().any(|it| it.name == name)
}

fn kebab(field: &str) -> String {
    field.replace('_', "-")
}

/// A field that only a hidden flag sets.
struct Hidden {
    field: &'static str,
    /// The flag's name.
    name: String,
    kind: Kind,
}

/// All of these.
static HIDDEN: LazyLock<Vec<Hidden>> = LazyLock::new(|| {
    let flag = |field| Hidden { field, name: kebab(field), kind: kind_of(field) };
    hidden().map(flag).collect()
});

/// The arguments of all fields' flags. Made once and not for each subcommand that has them: to read the
/// documentation of all fields took an eighth of the program's start.
static ARGUMENTS: LazyLock<Vec<Arg>> = LazyLock::new(|| {
    let shown = FLAGS.iter().flat_map(|flag| {
        let (first, others) = (flag.names[0], &flag.names[1..]);
        let mut shown = with_kind(Arg::new(first).long(first), flag.kind)
            .value_name(flag.value)
            .help_heading(flag.heading);
        if let Some(short) = flag.short {
            shown = shown.short(short);
        }
        let shown = shown
            .help(StyledStr::from(short_help(flag)))
            .long_help(StyledStr::from(long_help(flag)))
            .hide_short_help(!flag.is_common);
        let other = |&other| {
            let arg = with_kind(Arg::new(other).long(other), flag.kind);
            arg.value_name(flag.value).hide(true)
        };
        std::iter::once(shown).chain(others.iter().map(other))
    });
    let hidden = HIDDEN.iter().map(|it| {
        let arg = with_kind(Arg::new(it.name.clone()).long(it.name.clone()), it.kind);
        arg.value_name("JSON").hide(true)
    });
    shown.chain(hidden).collect()
});

/// The names of the fields that only hidden flags set.
fn hidden() -> impl Iterator<Item = &'static str> {
    let shown = |field: &str| FLAGS.iter().any(|it| it.field == field);
    let own =
        move |field: &&str| !shown(field) && !field.starts_with('_') && !ELSEWHERE.contains(field);
    GenerationConfig::FIELDS.iter().copied().filter(own)
}

/// How the value of a field without a shown flag is written.
fn kind_of(field: &str) -> Kind {
    let takes = |value: Value| Kwargs::from_json(&json!({ field: value })).is_ok();
    if takes(Value::Bool(true)) && !takes(json!("text")) { Kind::Switch } else { Kind::Json }
}

impl Args for FieldArgs {
    fn augment_args(command: Command) -> Command {
        let command = command.args(ARGUMENTS.iter());
        let structures = FLAGS.iter().filter(|it| it.heading == STRUCTURE);
        let structures = structures.flat_map(|it| it.names.iter().copied());
        command.group(ArgGroup::new("structure").args(structures).multiple(false))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for FieldArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut given = Vec::new();
        for flag in FLAGS {
            for name in flag.names {
                given.extend(read(matches, name, flag.field, flag.kind));
            }
        }
        for it in HIDDEN.iter() {
            given.extend(read(matches, &it.name, it.field, it.kind));
        }
        Ok(Self { given })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn read(matches: &ArgMatches, name: &str, field: &'static str, kind: Kind) -> Option<Given> {
    let value = match kind {
        Kind::JsonFile => Input::JsonFile(matches.get_one::<PathBuf>(name)?.clone()),
        Kind::TextFile => Input::TextFile(matches.get_one::<PathBuf>(name)?.clone()),
        Kind::Texts => {
            let texts = matches.get_many::<Value>(name)?;
            Input::Value(Value::Array(texts.cloned().collect()))
        }
        _ => Input::Value(matches.get_one::<Value>(name)?.clone()),
    };
    Some(Given { field, flag: format!("--{name}"), value })
}

/// What a flag does: the field's documentation, and what the command line adds to it.
fn help(flag: &Flag) -> String {
    if let Some(help) = flag.help.strip_prefix('=') {
        return help.to_owned();
    }
    let plain = description(flag.field);
    if flag.help.is_empty() { plain } else { format!("{plain} {}", flag.help) }
}

/// The first sentence of a flag's help.
fn short_help(flag: &Flag) -> String {
    let help = help(flag);
    let first = help.split_once(". ").map_or(&*help, |it| it.0);
    first.trim_end_matches('.').to_owned()
}

/// All that is known of a flag: its help, the values it takes, its field and its other names.
fn long_help(flag: &Flag) -> String {
    let range = GenerationConfig::range_of(flag.field).filter(|_| !flag.help.starts_with('='));
    let range = range.map(|it| format!("Range: {it}."));
    let others = match &flag.names[1..] {
        [] => None,
        others => Some(format!("[also: --{}]", others.join(", --"))),
    };
    let parts = [Some(help(flag)), range, others];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

fn with_kind(arg: Arg, kind: Kind) -> Arg {
    let arg = arg.value_parser(match kind {
        Kind::Count => ValueParser::from(count),
        Kind::Number => ValueParser::from(number),
        Kind::Switch => ValueParser::from(switch),
        Kind::Ids => ValueParser::from(ids),
        Kind::Text | Kind::Texts => ValueParser::from(text),
        Kind::JsonFile | Kind::TextFile => ValueParser::path_buf(),
        Kind::Json => ValueParser::from(json),
    });
    match kind {
        Kind::Switch => arg.num_args(0..=1).default_missing_value("true"),
        Kind::Texts => arg.action(ArgAction::Append).allow_hyphen_values(true),
        Kind::Text => arg.allow_hyphen_values(true),
        _ => arg.allow_negative_numbers(true),
    }
}

fn count(text: &str) -> Result<Value, String> {
    let number: Result<usize, _> = text.parse();
    number.map(Value::from).map_err(|_| "must be a whole number of 0 or more".to_owned())
}

fn number(text: &str) -> Result<Value, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(Value::from(number)),
        _ => Err("must be a finite number".to_owned()),
    }
}

fn switch(text: &str) -> Result<Value, String> {
    match text {
        "true" => Ok(Value::Bool(true)),
        "false" => Ok(Value::Bool(false)),
        // The third value of `early_stopping`; any other field refuses it.
        "never" => Ok(Value::from("never")),
        _ => Err("must be true or false; put a prompt before the flag".to_owned()),
    }
}

fn ids(text: &str) -> Result<Value, String> {
    let ids: Result<Vec<u32>, _> = text.split(',').map(|it| it.trim().parse()).collect();
    ids.map(Value::from).map_err(|_| "must be token ids such as 3,14".to_owned())
}

fn text(text: &str) -> Result<Value, String> {
    Ok(Value::from(text))
}

fn json(text: &str) -> Result<Value, String> {
    Ok(json_or_text(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_sets_a_field_and_explains_it() {
        for flag in FLAGS {
            assert!(GenerationConfig::FIELDS.contains(&flag.field), "{}", flag.field);
            assert!(help(flag).ends_with('.'), "{}", flag.field);
            assert!(flag.names.contains(&&*kebab(flag.field)), "{} under HF's name", flag.field);
        }
    }

    #[test]
    fn every_field_has_a_flag() {
        let shown = FLAGS.iter().map(|it| it.field);
        let all: Vec<&str> = shown.chain(hidden()).chain(ELSEWHERE).collect();
        for field in GenerationConfig::FIELDS.iter().filter(|it| !it.starts_with('_')) {
            assert_eq!(all.iter().filter(|it| *it == field).count(), 1, "{field}");
        }
    }

    #[test]
    fn flags_without_a_value_are_those_of_booleans() {
        assert!(kind_of("use_cache") == Kind::Switch && kind_of("output_scores") == Kind::Switch);
        for field in ["penalty_alpha", "eos_token_id", "sampler_order", "constraints"] {
            assert!(kind_of(field) == Kind::Json, "{field}");
        }
    }
}
