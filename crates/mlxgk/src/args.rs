//! The command line: its subcommands, and what is wrong with one as a sentence.

use clap::{
    Arg, Command, CommandFactory, FromArgMatches, Parser,
    error::{ContextKind, ContextValue, Error, ErrorKind},
};

use crate::{
    adapter::AdapterCommand,
    cache::CacheCommand,
    chat::ChatCommand,
    convert::ConvertArgs,
    failure::{Failure, Result},
    generate::GenerateArgs,
    info::InfoArgs,
    models::ModelsArgs,
    score::ScoreArgs,
    steer::SteerCommand,
    train::TrainArgs,
    validate::ValidateArgs,
};

/// Hugging Face generate() for Apple's MLX.
#[derive(Debug, Parser)]
#[command(name = "mlxgk", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "`mlxgk help generate` explains a subcommand and shows examples.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) subcommand: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Subcommand {
    /// Text from a prompt, several prompts, or chat messages
    #[command(after_help = "\
Examples:
  mlxgk generate \"Tell me a story about a fox.\"
  mlxgk generate -p \"How is the weather?\" --system \"You are a pirate.\" -t 0.8 -s 7
  mlxgk generate -m Qwen/Qwen3-0.6B \"What is a fjord?\"
  mlxgk generate -m ./qwen3 --prompt-ids 5,17,300 -n 40 --format json
  mlxgk generate -m ./qwen3 \"What is 2 + 2?\" --no-thinking --do-sample --top-p 0.9
  mlxgk generate \"When do we sail?\" --regex \"(Today|Tomorrow) at [0-9]+ o'clock\\.\"
  mlxgk generate \"Tell me about rain.\" --steer joy.safetensors:1.5 --steer-positions generation
  mlxgk generate \"Tell me a story.\" --stop \". \" --stop \"! \" --trim-stop
  mlxgk generate -m ./qwen3-8b --assistant ./qwen3-0.6b \"Why is the sky blue?\"
  echo \"Hello\" | mlxgk generate -

Fields of the generation config are merged as in transformers: flags, then --generation-config,
then the model's generation_config.json, then the defaults. Every field is also a flag under its
own name: --penalty-alpha 0.6.")]
    Generate(Box<GenerateArgs>),
    /// A conversation in the terminal that keeps its cache between turns
    #[command(after_help = "\
Examples:
  mlxgk chat
  mlxgk chat -m ./qwen3 --system \"You are brief.\" -t 0.7
  mlxgk chat --steer joy.safetensors:1.5 --steer-layers 1-3
  mlxgk chat --prompt-cache talk.safetensors --save-prompt-cache

Within the conversation:
  /reset                 forget the conversation
  /save FILE             write the messages as JSON, as `generate --messages` takes them
  /steer                 show the steering
  /steer FILE [ALPHA]    steer by this file alone from now on, as the other --steer flags say
  /steer off             turn steering off
  /help                  list these commands
Ctrl-C stops an answer, Ctrl-D ends the conversation.")]
    Chat(Box<ChatCommand>),
    /// Log-probability of each token of a given text
    #[command(after_help = "\
Examples:
  mlxgk score \"The harbour is quiet today.\"
  mlxgk score \"The harbour is quiet today.\" --steer joy.safetensors:1.5
  mlxgk score -m ./qwen3 --prompt-ids 5,17,300 --format json")]
    Score(ScoreArgs),
    /// Prompt caches as files: build, show
    Cache {
        #[command(subcommand)]
        command: CacheCommand,
    },
    /// Steering vectors: extract, show, import, export
    Steer {
        #[command(subcommand)]
        command: SteerCommand,
    },
    /// Whether a steering set-up works, and whether it does harm
    #[command(after_help = "\
Examples:
  mlxgk validate --steer joy.safetensors
  mlxgk validate --steer joy.safetensors --alphas 1,2,4 --seeds 1,2,3 --html report.html
  mlxgk validate --steer joy.safetensors --prompts-file questions.jsonl --words voices.json --voice cheerful")]
    Validate(Box<ValidateArgs>),
    /// Train an adapter, a soft prompt, steering vectors or the weights themselves
    #[command(after_help = "\
A row of data is a line of JSON: {\"text\": TEXT}, {\"prompt\": TEXT, \"completion\": TEXT}, {\"messages\": [...]}, or
{\"prompt\": ..., \"chosen\": ..., \"rejected\": ...}. Completions and the assistant's answers alone are learned;
of two answers, to prefer the chosen one (DPO).

Examples:
  mlxgk train --data pirate.jsonl --out pirate --steps 200 --lr 1e-3
  mlxgk train -m ./qwen3 --data data --out adapter --epochs 2 --warmup 20 --patience 3
  mlxgk train --data pirate.jsonl --out prompt --method soft-prompt --lr 0.05
  mlxgk train -m ./qwen3 --data data --out tuned --method full --freeze embed_tokens --lr 1e-5
  mlxgk train --data pirate.jsonl --out pirate --steps 200 --lr 1e-3 --resume
  mlxgk generate --adapter pirate \"How is the weather?\"")]
    Train(Box<TrainArgs>),
    /// Adapters: merge
    Adapter {
        #[command(subcommand)]
        command: AdapterCommand,
    },
    /// What a model is: parts, parameters, dtype, bytes, chat template
    #[command(after_help = "\
Examples:
  mlxgk info
  mlxgk info -m ./qwen3 --format json")]
    Info(InfoArgs),
    /// The downloaded models on this machine, with their sizes
    #[command(after_help = "\
Examples:
  mlxgk models
  mlxgk models --format json
  mlxgk models --supported
  mlxgk models remove Qwen/Qwen3-0.6B

Models are kept in the cache that Hugging Face programs share: HF_HUB_CACHE, else hub in HF_HOME,
else ~/.cache/huggingface/hub.")]
    Models(ModelsArgs),
    /// Convert a model to MLX's layout and back, to another dtype, or to fewer bits
    #[command(after_help = "\
Examples:
  mlxgk convert Qwen/Qwen3-0.6B --out qwen3-4bit --bits 4
  mlxgk convert ./qwen3 --out qwen3-mxfp4 --mode mxfp4
  mlxgk convert ./qwen3 --out qwen3-mixed --recipe mixed_3_6 --evaluate text.txt
  mlxgk convert ./qwen3 --out qwen3-mine --bits 4 --rule '*.v_proj=8,32' --rule 'lm_head=dense'
  mlxgk convert ./qwen3-4bit --out qwen3-hf --dequantize --to hf

The result is what mlx_lm.convert writes, to the bit. It appears when it is complete: a run that was
broken off is started again with the same command.")]
    Convert(Box<ConvertArgs>),
}

impl Cli {
    /// Reads the command line; `None` where it asked for help or the version, now printed.
    pub(crate) fn read() -> Result<Option<Self>> {
        let command = with_negative_numbers(Self::command());
        let parsed = command.try_get_matches().and_then(|it| Self::from_arg_matches(&it));
        match parsed {
            Ok(cli) => Ok(Some(cli)),
            Err(e) if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
                e.print()?;
                Ok(None)
            }
            Err(e) if e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                e.print()?;
                Err(Failure::NothingAsked)
            }
            Err(e) => Err(Failure::usage(sentence(&e))),
        }
    }
}

/// The command line in which `-1` after a flag is its value: one that is wrong, perhaps, but not an
/// unknown flag.
fn with_negative_numbers(command: Command) -> Command {
    let with_negative = |arg: Arg| match arg.get_action().takes_values() {
        true if !arg.is_positional() => arg.allow_negative_numbers(true),
        _ => arg,
    };
    command.mut_args(with_negative).mut_subcommands(with_negative_numbers)
}

/// clap's error as one sentence, with its suggestions.
fn sentence(error: &Error) -> String {
    let of = |kind| error.get(kind).map(text).unwrap_or_default();
    let (arg, value) = (of(ContextKind::InvalidArg), of(ContextKind::InvalidValue));
    let mut sentence = match error.kind() {
        ErrorKind::InvalidValue if value.is_empty() => format!("a value is required for '{arg}'"),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let why = std::error::Error::source(error).map(|it| format!(": {it}"));
            format!("invalid value '{value}' for '{arg}'{}", why.unwrap_or_default())
        }
        ErrorKind::UnknownArgument => format!("unexpected argument '{arg}' found"),
        ErrorKind::InvalidSubcommand => {
            format!("unrecognized subcommand '{}'", of(ContextKind::InvalidSubcommand))
        }
        ErrorKind::MissingRequiredArgument => format!("required is {arg}"),
        ErrorKind::ArgumentConflict => match of(ContextKind::PriorArg) {
            prior if prior == arg => format!("the argument '{arg}' cannot be used multiple times"),
            prior => format!("the argument '{arg}' cannot be used with '{prior}'"),
        },
        ErrorKind::InvalidUtf8 => "an argument is not valid UTF-8".to_owned(),
        ErrorKind::MissingSubcommand => {
            format!("'{arg}' needs one of the subcommands {}", of(ContextKind::ValidSubcommand))
        }
        kind => format!("{}: {arg}", kind.as_str().unwrap_or("the command line is wrong")),
    };
    let valid = of(ContextKind::ValidValue);
    if !valid.is_empty() {
        sentence += &format!(" [possible values: {valid}]");
    }
    for (kind, what) in [
        (ContextKind::SuggestedArg, "argument"),
        (ContextKind::SuggestedValue, "value"),
        (ContextKind::SuggestedSubcommand, "subcommand"),
    ] {
        let suggested = of(kind);
        if !suggested.is_empty() {
            sentence += &format!("; a similar {what} exists: '{suggested}'");
        }
    }
    sentence
}

fn text(value: &ContextValue) -> String {
    match value {
        ContextValue::Strings(values) => values.join(", "),
        ContextValue::StyledStrs(values) => {
            values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        }
        ContextValue::None => String::new(),
        other => other.to_string(),
    }
}
