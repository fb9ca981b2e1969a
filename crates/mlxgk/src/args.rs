//! The command line's grammar and help texts.

use std::{ffi::OsString, path::PathBuf};

use clap::{
    Arg, Args, Command, CommandFactory, FromArgMatches, Parser, ValueEnum, error::ErrorKind,
};

use serde_json::Value;

use crate::{
    failure::{Failure, Result},
    steer::SteerCommand,
    steering::SteerArgs,
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

impl Cli {
    /// Reads the command line; `None` where it asked for help or the version, now printed.
    pub(crate) fn read() -> Result<Option<Self>> {
        let parsed = grammar().try_get_matches().and_then(|it| Self::from_arg_matches(&it));
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
            Err(e) => Err(Failure::usage(sentence(&e.render().to_string()))),
        }
    }
}

/// The grammar, in which `-1` after a flag is its value: one that is wrong, perhaps, but no unknown
/// flag.
fn grammar() -> Command {
    let with_negative = |arg: Arg| match arg.get_action().takes_values() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    };
    Cli::command().mut_subcommands(|it| it.mut_args(with_negative))
}

/// clap's paragraphs (`error: ...`, tips, the usage) as one sentence: the error and the tips.
fn sentence(rendered: &str) -> String {
    let paragraph = |it: &str| it.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let mut paragraphs = rendered.split("\n\n");
    let error = paragraph(paragraphs.next().unwrap_or_default());
    let error = error.trim_start_matches("error: ").to_owned();
    let tips =
        paragraphs.map(paragraph).filter_map(|it| Some(it.strip_prefix("tip: ")?.to_owned()));
    [error].into_iter().chain(tips).collect::<Vec<_>>().join("; ")
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Subcommand {
    /// Text from a prompt, several prompts, or chat messages
    #[command(after_help = "\
Examples:
  mlxgk generate --prompt \"Tell me a story about a fox.\"
  mlxgk generate --prompt \"How is the weather?\" --system \"You are a pirate.\" --temp 0.8 --seed 7
  mlxgk generate --model ./qwen3 --prompt-ids 5,17,300 --max-tokens 40 --format json
  mlxgk generate --prompt \"When do we sail?\" --regex \"(Today|Tomorrow) at [0-9]+ o'clock\\.\"
  mlxgk generate --prompt \"Tell me about rain.\" --steer joy.safetensors:1.5 --steer-positions generation
  mlxgk generate --prompt \"Tell me a story.\" --stop \". \" --trim-stop
  mlxgk generate --model ./qwen3-8b --assistant ./qwen3-0.6b --prompt \"Why is the sky blue?\"
  echo \"Hello\" | mlxgk generate --prompt -

Fields of the generation config are merged as in transformers: flags, then --generation-config,
then the model's generation_config.json, then the defaults.")]
    Generate(Box<GenerateArgs>),
    /// A conversation in the terminal; what was said is kept in the cache between turns
    #[command(after_help = "\
Examples:
  mlxgk chat
  mlxgk chat --model ./qwen3 --system \"You are brief.\" --temp 0.7
  mlxgk chat --steer joy.safetensors:1.5 --steer-layers 1-3

Within the conversation:
  /reset                 forget what was said
  /save FILE             write the messages as JSON, as `generate --messages-json` takes them
  /steer                 show the steering
  /steer FILE [ALPHA]    steer by this file alone from now on, as the other --steer flags say
  /steer off             steer no more
  /help                  list these commands
Ctrl-C stops an answer, Ctrl-D ends the conversation.")]
    Chat(Box<TalkArgs>),
    /// Log-probability of each token of a given text
    #[command(after_help = "\
Examples:
  mlxgk score --text \"The harbour is quiet today.\"
  mlxgk score --text \"The harbour is quiet today.\" --steer joy.safetensors:1.5
  mlxgk score --model ./qwen3 --prompt-ids 5,17,300 --format json")]
    Score(ScoreArgs),
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
    /// What a model is: parts, parameters, dtype, bytes, chat template
    #[command(after_help = "\
Examples:
  mlxgk info
  mlxgk info --model ./qwen3 --format json")]
    Info(InfoArgs),
}

/// Which model, and where and how it runs.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// Model folder (config.json, safetensors, tokenizer.json); without it, the small model inside
    /// the binary
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// Where to run; without it, the GPU where there is one
    #[arg(long, value_enum)]
    pub(crate) device: Option<DeviceArg>,
    /// Precision of weights and activations; auto is the checkpoint's on a GPU, float32 on the CPU
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) dtype: DtypeArg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceArg {
    Cpu,
    Gpu,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DtypeArg {
    Auto,
    Float32,
    Bfloat16,
    Float16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// One JSON document for programs
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RngArg {
    /// The tokens HF gives after torch.manual_seed(N) on the CPU
    Torch,
    /// A stream per row, and quicker
    Fast,
}

/// Where the prompt comes from: exactly one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct PromptArgs {
    /// The prompt; `-` reads it from stdin, without the newline at its end
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt: Option<OsString>,
    /// The prompt as token ids, e.g. 5,17,300
    #[arg(long, value_name = "IDS")]
    pub(crate) prompt_ids: Option<String>,
    /// A JSON array of strings or of id arrays, run as one batch
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts_file: Option<PathBuf>,
    /// Chat messages, e.g. '[{"role": "user", "content": "hi"}]'
    #[arg(long, value_name = "JSON")]
    pub(crate) messages_json: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) prompt: PromptArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) chat: ChatArgs,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    #[command(flatten)]
    pub(crate) grammar: GrammarArgs,
    #[command(flatten)]
    pub(crate) steering: SteerArgs,
    #[command(flatten)]
    pub(crate) assistant: AssistantArgs,
    /// End the text before the stop string; its tokens stay
    #[arg(long, requires = "stop")]
    pub(crate) trim_stop: bool,
    /// Put into the JSON how likely each token was, and the N likeliest beside it
    #[arg(long, value_name = "N")]
    pub(crate) logprobs: Option<usize>,
    /// Put into the JSON the residual stream that each token was chosen from: `all` layers, or e.g.
    /// 0,4,8; 0 is the embeddings, the last what the final norm makes of it (output_hidden_states)
    #[arg(long, value_name = "LAYERS", value_parser = layers)]
    pub(crate) hidden_states: Option<Layers>,
    /// What --guidance-scale moves away from; without it, the prompt's last token
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) negative_prompt: Option<String>,
    /// Seed of the random numbers; without it, every run differs
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Whose random numbers
    #[arg(long, value_enum, default_value = "fast")]
    pub(crate) rng: RngArg,
    /// What to print
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) format: Format,
}

/// Layers whose hidden states are wanted.
#[derive(Debug, Clone)]
pub(crate) enum Layers {
    All,
    Only(Vec<usize>),
}

fn layers(text: &str) -> Result<Layers, String> {
    if text == "all" {
        return Ok(Layers::All);
    }
    let layer = |it: &str| it.trim().parse();
    text.split(',')
        .map(layer)
        .collect::<Result<_, _>>()
        .map(Layers::Only)
        .map_err(|_| "layers are `all`, or numbers such as 0,4,8".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct TalkArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// System prompt of the conversation
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    #[command(flatten)]
    pub(crate) steering: SteerArgs,
    /// Seed of the random numbers; without it, every run differs
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

/// How a plain prompt becomes a conversation.
#[derive(Debug, Args)]
#[command(next_help_heading = "Chat")]
pub(crate) struct ChatArgs {
    /// System prompt put before the user's message
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "prompt_ids")]
    pub(crate) system: Option<String>,
    /// Wrap a plain prompt in the model's chat template (the default where it has one)
    #[arg(long, alias = "assume-user-chat", conflicts_with_all = ["no_auto_chat", "prompt_ids"])]
    pub(crate) auto_chat: bool,
    /// Continue a plain prompt as it stands
    #[arg(long, conflicts_with = "system")]
    pub(crate) no_auto_chat: bool,
}

/// Fields of HF's GenerationConfig; a flag wins over the file, the file over the model's own.
#[derive(Debug, Args)]
#[command(next_help_heading = "Generation config")]
pub(crate) struct ConfigArgs {
    /// JSON file with any GenerationConfig fields under their HF names
    #[arg(long, value_name = "FILE")]
    pub(crate) generation_config: Option<PathBuf>,
    /// New tokens at most (max_new_tokens); 256 where no length is set anywhere
    #[arg(long, alias = "max-new-tokens", value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// New tokens at least (min_new_tokens)
    #[arg(long, value_name = "N")]
    pub(crate) min_new_tokens: Option<usize>,
    /// 0 is greedy; above 0 samples at this temperature
    #[arg(long, alias = "temperature", value_name = "T", value_parser = temperature)]
    pub(crate) temp: Option<f64>,
    /// Draw from the K likeliest tokens
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Draw from the likeliest tokens that together have this probability
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f64>,
    /// Drop tokens less likely than this share of the likeliest
    #[arg(long, value_name = "P")]
    pub(crate) min_p: Option<f64>,
    /// Entropy-bounded cut
    #[arg(long, value_name = "H")]
    pub(crate) top_h: Option<f64>,
    /// Locally typical sampling
    #[arg(long, value_name = "P")]
    pub(crate) typical_p: Option<f64>,
    /// Drop tokens less likely than this
    #[arg(long, value_name = "E")]
    pub(crate) epsilon_cutoff: Option<f64>,
    /// Entropy-dependent cutoff
    #[arg(long, value_name = "E")]
    pub(crate) eta_cutoff: Option<f64>,
    /// Penalty on tokens already said, prompt included; 1 is none
    #[arg(long, value_name = "R")]
    pub(crate) repetition_penalty: Option<f64>,
    /// Never say any N tokens in a row twice
    #[arg(long, value_name = "N")]
    pub(crate) no_repeat_ngram_size: Option<usize>,
    /// Token ids never to say, e.g. 3,14
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub(crate) suppress_tokens: Option<Vec<u32>>,
    /// Token ids not to begin with
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub(crate) begin_suppress_tokens: Option<Vec<u32>>,
    /// Sequences per prompt
    #[arg(long, value_name = "N")]
    pub(crate) num_return_sequences: Option<usize>,
    /// Beams
    #[arg(long, value_name = "N")]
    pub(crate) num_beams: Option<usize>,
    /// Exponent on the length in a beam's score
    #[arg(long, value_name = "X")]
    pub(crate) length_penalty: Option<f64>,
    /// Stop as soon as enough beams are finished
    #[arg(long)]
    pub(crate) early_stopping: bool,
    /// Taken from a token's score for each time it was generated
    #[arg(long, value_name = "X")]
    pub(crate) frequency_penalty: Option<f64>,
    /// Taken from a token's score once it was generated
    #[arg(long, value_name = "X")]
    pub(crate) presence_penalty: Option<f64>,
    /// Strength of DRY, the penalty on going on with a repetition; 0.8 is usual
    #[arg(long, value_name = "X")]
    pub(crate) dry_multiplier: Option<f64>,
    /// Chance of dropping the likeliest tokens (XTC)
    #[arg(long, value_name = "P")]
    pub(crate) xtc_probability: Option<f64>,
    /// Probability above which XTC counts a token
    #[arg(long, value_name = "P")]
    pub(crate) xtc_threshold: Option<f64>,
    /// Drop tokens more than this many standard deviations below the highest logit
    #[arg(long, value_name = "X")]
    pub(crate) top_n_sigma: Option<f64>,
    /// Mirostat, version 1 or 2, instead of the other warpers
    #[arg(long, value_name = "VERSION")]
    pub(crate) mirostat: Option<usize>,
    /// Any other field, its value as JSON, e.g. forced_eos_token_id=2; may be repeated
    #[arg(long, value_name = "FIELD=JSON", value_parser = field)]
    pub(crate) set: Vec<(String, Value)>,
    /// Seconds after which to stop (max_time)
    #[arg(long, value_name = "SECONDS")]
    pub(crate) max_time: Option<f64>,
    /// Classifier-free guidance: above 1, the prompt is followed more closely
    #[arg(long, value_name = "X")]
    pub(crate) guidance_scale: Option<f64>,
    /// Guess up to N tokens ahead from earlier text (prompt_lookup_num_tokens): same text, sooner
    #[arg(long, value_name = "N")]
    pub(crate) prompt_lookup: Option<usize>,
    /// Strings that end the text (stop_strings)
    #[arg(long, visible_alias = "stop-strings", value_name = "TEXT", value_delimiter = ',')]
    pub(crate) stop: Option<Vec<String>>,
}

/// A smaller model that guesses ahead; the text is the model's own.
#[derive(Debug, Args)]
#[command(next_help_heading = "Assistant")]
pub(crate) struct AssistantArgs {
    /// Folder of a smaller model with the same tokenizer, which guesses ahead
    #[arg(long, value_name = "DIR")]
    pub(crate) assistant: Option<PathBuf>,
    /// Tokens it guesses at a time at most
    #[arg(long, value_name = "N", requires = "assistant")]
    pub(crate) num_assistant_tokens: Option<usize>,
    /// A guess less likely than this is the last of its turn
    #[arg(long, value_name = "P", requires = "assistant")]
    pub(crate) assistant_confidence_threshold: Option<f64>,
}

/// What the text must look like; at most one of these.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Structured output")]
#[group(multiple = false)]
pub(crate) struct GrammarArgs {
    /// A JSON schema that the text fits
    #[arg(long, value_name = "FILE")]
    pub(crate) json_schema: Option<PathBuf>,
    /// A regular expression that the text matches from beginning to end
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true)]
    pub(crate) regex: Option<String>,
    /// A grammar in llguidance's dialect of Lark that the text follows
    #[arg(long, value_name = "FILE")]
    pub(crate) grammar: Option<PathBuf>,
}

/// `FIELD=JSON`; what is no JSON is a string, so that quotes are needed for few values.
fn field(text: &str) -> Result<(String, Value), String> {
    let Some((field, value)) = text.split_once('=') else {
        return Err("must be a field of the generation config, `=` and its value".to_owned());
    };
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    Ok((field.trim().to_owned(), value))
}

/// A negative or infinite temperature is neither greedy nor a distribution.
fn temperature(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if f64::is_finite(value) && value >= 0.0 => Ok(value),
        _ => Err("must be a number of 0 or more".to_owned()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    pub(crate) text: TextArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) steering: SteerArgs,
    /// What to print
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) format: Format,
}

/// The text to score: exactly one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct TextArgs {
    /// Text to score as it stands; `-` reads it from stdin, without the newline at its end
    #[arg(long, alias = "prompt", value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) text: Option<OsString>,
    /// The text as token ids, e.g. 5,17,300
    #[arg(long, value_name = "IDS")]
    pub(crate) prompt_ids: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// What to print
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) format: Format,
}
