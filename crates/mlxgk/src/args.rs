//! The command line: its subcommands, and what is wrong with one as a sentence.

use clap::{
    Arg, Command, CommandFactory, FromArgMatches, Parser,
    error::{ContextKind, ContextValue, Error, ErrorKind},
};

use crate::{
    adapter::AdapterCommand,
    bench::BenchArgs,
    cache::CacheCommand,
    chat::ChatCommand,
    convert::ConvertArgs,
    explain::ExplainArgs,
    failure::{Failure, Result},
    fields::FieldsArgs,
    flags::is_field_flag,
    generate::GenerateArgs,
    info::InfoArgs,
    isolate::IsolateArgs,
    models::ModelsArgs,
    perplexity::PerplexityArgs,
    score::ScoreArgs,
    serve::ServeArgs,
    shell::{CompletionsArgs, ManArgs},
    steer::SteerCommand,
    terminal,
    train::TrainArgs,
    validate::ValidateArgs,
};

/// Hugging Face generate() for Apple's MLX.
#[derive(Debug, Parser)]
#[command(name = "mlxgk", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "`mlxgk help generate` explains a subcommand and shows examples.")]
pub(crate) struct Cli {
    /// No warnings, notes or progress on stderr; an error is still printed
    #[arg(short, long, global = true, help_heading = "Output")]
    quiet: bool,
    #[command(subcommand)]
    pub(crate) subcommand: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Subcommand {
    /// Generate text from a prompt, several prompts, or chat messages
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
    /// Chat with a model in the terminal
    #[command(after_help = "\
Examples:
  mlxgk chat
  mlxgk chat -m ./qwen3 --system \"You are brief.\" -t 0.7
  mlxgk chat --steer joy.safetensors:1.5 --steer-layers 1..4
  mlxgk chat --prompt-cache talk.safetensors --save-prompt-cache

Within the conversation:
  /reset                 forget the conversation
  /save FILE             write the messages as JSON, as `generate --messages` takes them
  /steer                 show the steering
  /steer FILE [ALPHA]    steer by this file alone from now on, as the other --steer flags say
  /steer off             turn steering off
  /help                  list these commands
A message continues in the next line after a backslash at its end, and between two \"\"\"; lines
pasted into a terminal together are one message. The arrow keys find earlier messages.
Ctrl-C stops an answer, Ctrl-D ends the conversation.")]
    Chat(Box<ChatCommand>),
    /// Score a text: the log-probability of each of its tokens
    #[command(after_help = "\
Examples:
  mlxgk score \"The harbour is quiet today.\"
  mlxgk score \"The harbour is quiet today.\" --steer joy.safetensors:1.5
  mlxgk score -m ./qwen3 --prompt-ids 5,17,300 --format json")]
    Score(ScoreArgs),
    /// Measure perplexity and bits per byte on a text file
    #[command(override_usage = "mlxgk perplexity [OPTIONS] [MODEL] <FILE>")]
    #[command(after_help = "\
Examples:
  mlxgk perplexity README.md
  mlxgk perplexity ./qwen3 wiki.txt --window 1024 --stride 512 --format json
  mlxgk perplexity wiki.txt -m ./qwen3 --steer joy.safetensors:1.5

Every token but the first is predicted once, from at most --window tokens before it. Bits per byte
are those of the whole text, so that models with different tokenizers can be compared.")]
    Perplexity(Box<PerplexityArgs>),
    /// Serve a model over HTTP, on OpenAI's routes
    #[command(after_help = "\
Examples:
  mlxgk serve
  mlxgk serve -m Qwen/Qwen3-0.6B --port 8000 --prefix-cache-mb 512
  mlxgk serve --steer-name joy=joy.safetensors
  MLXGK_API_KEY=secret mlxgk serve --host 0.0.0.0

  curl http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"How is the weather?\"}]}'

It prints its address when requests are taken. Ctrl-C lets those that run end, for 30 seconds; a second
one ends them at once.")]
    Serve(Box<ServeArgs>),
    /// Explain what a request would do, without running it
    #[command(after_help = "\
Examples:
  mlxgk explain \"Tell me a story.\" -t 0.8 --top-p 0.9 --repetition-penalty 1.1
  mlxgk explain -m ./qwen3 \"Hello\" --generation-config gen.json --format json
  mlxgk explain \"Hello\" --num-beams 2 --num-return-sequences 3

It takes the flags of `generate`, and shows the merged fields and where each comes from, the
decoding mode, the processors in order, the warnings, and what `generate` would refuse. Weights are
not read where that can be avoided. The exit status is 0 even for a request that would be refused.")]
    Explain(Box<ExplainArgs>),
    /// List the fields of the generation config: type, default, range, flags
    #[command(after_help = "\
Examples:
  mlxgk fields
  mlxgk fields top_p
  mlxgk fields --format json")]
    Fields(FieldsArgs),
    /// Measure tokens per second, time to first token and peak memory
    #[command(after_help = "\
Examples:
  mlxgk bench
  mlxgk bench ./qwen3 --prompt-tokens 1024 -n 256 --runs 9 --format json")]
    Bench(BenchArgs),
    /// Build and show prompt-cache files
    Cache {
        #[command(subcommand)]
        command: CacheCommand,
    },
    /// Extract, show, import and export steering vectors
    Steer {
        #[command(subcommand)]
        command: SteerCommand,
    },
    /// Check whether a steering set-up works, and what harm it does
    #[command(after_help = "\
Examples:
  mlxgk validate --steer joy.safetensors
  mlxgk validate --steer joy.safetensors --alphas 1,2,4 --seeds 1,2,3 --html report.html
  mlxgk validate --steer joy.safetensors --words voices.json --voice cheerful")]
    Validate(Box<ValidateArgs>),
    /// The KV-cache isolation experiment: one cache for all turns, or one per cluster
    #[command(after_help = "\
Examples:
  mlxgk isolate fixtures/isolation/01_web_shop.json
  mlxgk isolate fixtures/isolation --seed 7 --json report.json --html report.html
  mlxgk isolate fixtures/isolation --conditions sequential,semantic --labels keyword

The format of examples is described in crates/isolation.")]
    Isolate(Box<IsolateArgs>),
    /// Train an adapter, a soft prompt, steering vectors or the weights themselves
    #[command(after_help = "\
Each line of the data is JSON: {\"text\": TEXT}, {\"prompt\": TEXT, \"completion\": TEXT},
{\"messages\": [...]}, or {\"prompt\": ..., \"chosen\": ..., \"rejected\": ...}. Only completions and the
assistant's answers are learned; of two answers, the model learns to prefer the chosen one (DPO).

Examples:
  mlxgk train --data pirate.jsonl --out pirate --steps 200 --lr 1e-3
  mlxgk train -m ./qwen3 --data data --out adapter --epochs 2 --warmup 20 --patience 3
  mlxgk train --data pirate.jsonl --out prompt --method soft-prompt --lr 0.05
  mlxgk train -m ./qwen3 --data data --out tuned --method full --freeze embed_tokens --lr 1e-5
  mlxgk train --data pirate.jsonl --out pirate --steps 200 --lr 1e-3 --resume
  mlxgk generate --adapter pirate \"How is the weather?\"")]
    Train(Box<TrainArgs>),
    /// Merge adapters into models
    Adapter {
        #[command(subcommand)]
        command: AdapterCommand,
    },
    /// Show what a model is: parts, parameters, dtype, bytes, chat template
    #[command(after_help = "\
Examples:
  mlxgk info
  mlxgk info -m ./qwen3 --format json")]
    Info(InfoArgs),
    /// List the downloaded models with their sizes, or remove one
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
  mlxgk convert ./qwen3 --out qwen3-mine --bits 4 --rule '*.v_proj=8,32' --rule '*embed_tokens=dense'
  mlxgk convert ./qwen3-4bit --out qwen3-hf --dequantize --to hf

The result is what mlx_lm.convert writes, to the bit. It appears when it is complete: a run that was
broken off is started again with the same command.")]
    Convert(Box<ConvertArgs>),
    /// Print completions for a shell
    #[command(after_help = "\
Examples:
  mlxgk completions bash > ~/.local/share/bash-completion/completions/mlxgk
  mlxgk completions zsh > ~/.zfunc/_mlxgk
  mlxgk completions fish > ~/.config/fish/completions/mlxgk.fish")]
    Completions(CompletionsArgs),
    /// Write manual pages, one per subcommand
    #[command(after_help = "\
Example:
  mlxgk man --out ~/.local/share/man/man1")]
    Man(ManArgs),
}

impl Cli {
    /// The whole command line, as clap parses it and help, completions and manual pages show it.
    pub(crate) fn grammar() -> Command {
        let command = with_negative_numbers(Self::command());
        LONG.iter().fold(command, |command, name| command.mut_subcommand(name, with_short_help))
    }

    /// Reads the command line; `None` where it asked for help or the version, now printed.
    pub(crate) fn read() -> Result<Option<Self>> {
        let command = Self::grammar();
        let parsed = command.try_get_matches().and_then(|it| Self::from_arg_matches(&it));
        match parsed {
            Ok(cli) => {
                if cli.quiet {
                    terminal::silence();
                }
                Ok(Some(cli))
            }
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

/// Commands whose flags are too many to be read in one go: `-h` shows those that people use most.
const LONG: [&str; 3] = ["generate", "chat", "explain"];

/// What `-h` shows of the flags that set no field of the generation config.
const COMMON: [&str; 15] = [
    "text",
    "prompt",
    "prompts_file",
    "messages",
    "model",
    "adapter",
    "system",
    "no_auto_chat",
    "seed",
    "assistant",
    "steer",
    "prompt_cache",
    "save_prompt_cache",
    "format",
    "quiet",
];

/// The command with a short and a long help.
fn with_short_help(command: Command) -> Command {
    let common = |arg: Arg| match arg.get_id().as_str() {
        id if is_field_flag(id) || COMMON.contains(&id) => arg,
        _ => arg.hide_short_help(true),
    };
    let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let hint =
        format!("{examples}\n\n`mlxgk help {}` shows every flag, and more.", command.get_name());
    command.mut_args(common).after_long_help(examples).after_help(hint)
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
        ErrorKind::MissingRequiredArgument => format!("missing required argument: {arg}"),
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
