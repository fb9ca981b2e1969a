//! `mlxgk fields`: every field of the generation config.

use clap::Args;
use mlx_genkit::{GenerationConfig, generation_config::default_generation_params};
use serde::Serialize;
use serde_json::Value;

use crate::{
    document,
    failure::{Failure, Result},
    flags::{Format, OutputArgs, description, flags_of},
    terminal,
};

/// The flags.
#[derive(Debug, Args)]
pub(crate) struct FieldsArgs {
    /// The field, under its own name or a flag's; all by default
    #[arg(value_name = "NAME", allow_hyphen_values = true)]
    name: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Serialize)]
struct Field {
    name: &'static str,
    #[serde(rename = "type")]
    kind: String,
    /// HF's default; null where unset means something that the description says.
    default: Option<Value>,
    range: Option<&'static str>,
    /// The names of its flags, the one that help shows first.
    flags: Vec<String>,
    description: String,
}

impl Field {
    fn of(name: &'static str) -> Self {
        Self {
            name,
            kind: GenerationConfig::type_of(name).unwrap_or_default(),
            default: default_generation_params().get(name),
            range: GenerationConfig::range_of(name),
            flags: flags_of(name),
            description: description(name),
        }
    }
}

/// The subcommand.
pub(crate) fn run(args: &FieldsArgs) -> Result<()> {
    let Some(name) = &args.name else {
        let fields: Vec<Field> = GenerationConfig::FIELDS.iter().copied().map(Field::of).collect();
        return match args.output.format {
            Format::Json => document::print(&fields),
            Format::Text => table(&fields),
        };
    };
    let field = Field::of(find(name)?);
    match args.output.format {
        Format::Json => document::print(&field),
        Format::Text => print(&field),
    }
}

/// The field under this name, or with this flag.
fn find(name: &str) -> Result<&'static str> {
    let flag = format!("--{}", name.trim_start_matches('-'));
    let mut fields = GenerationConfig::FIELDS.iter().copied();
    let found = fields.find(|it| *it == name || flags_of(it).contains(&flag));
    found.ok_or_else(|| {
        Failure::usage(format_args!("unknown field {name:?}; `mlxgk fields` lists them all"))
    })
}

fn table(fields: &[Field]) -> Result<()> {
    let wide = |text: fn(&Field) -> String| {
        fields.iter().map(|it| text(it).chars().count()).max().unwrap_or(0)
    };
    let (names, kinds) = (wide(|it| it.name.to_owned()), wide(|it| it.kind.clone()));
    let defaults = wide(default);
    for it in fields {
        let (name, kind, default) = (it.name, &it.kind, default(it));
        let first = it.description.split(". ").next().unwrap_or_default().trim_end_matches('.');
        terminal::line(format_args!("{name:names$}  {kind:kinds$}  {default:defaults$}  {first}"))?;
    }
    Ok(())
}

fn print(it: &Field) -> Result<()> {
    let flags = if it.flags.is_empty() { "none".to_owned() } else { it.flags.join(", ") };
    for (name, value) in [
        ("field", it.name.to_owned()),
        ("type", it.kind.clone()),
        ("default", default(it)),
        ("range", it.range.unwrap_or("any value of its type").to_owned()),
        ("flags", flags),
    ] {
        terminal::line(format_args!("{name:<9}{value}"))?;
    }
    Ok(terminal::line(format_args!("\n{}", it.description))?)
}

fn default(it: &Field) -> String {
    it.default.as_ref().map_or_else(|| "unset".to_owned(), Value::to_string)
}
