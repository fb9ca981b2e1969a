//! Fields of HF's GenerationConfig from the command line.

use std::path::PathBuf;

use clap::Args;
use mlx_genkit::GenerationConfig;
use serde_json::Value;

use super::fields::FieldArgs;

/// Fields of HF's GenerationConfig; a flag wins over the file, the file over the model's own.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(flatten)]
    pub(crate) fields: FieldArgs,
    /// Leave the stop string out of the text; its tokens stay
    #[arg(long, help_heading = "Length and stopping")]
    pub(crate) trim_stop: bool,
    /// JSON file with any GenerationConfig fields under their HF names
    #[arg(long, value_name = "FILE", help_heading = "Generation config")]
    pub(crate) generation_config: Option<PathBuf>,
    /// Any field, its value as JSON, e.g. forced_eos_token_id=2; repeatable. Each field is also a flag
    /// of its own: --forced-eos-token-id 2
    #[arg(
        long,
        value_name = "FIELD=JSON",
        value_parser = assignment,
        help_heading = "Generation config"
    )]
    pub(crate) set: Vec<(String, Value)>,
}

/// A smaller model that guesses ahead; the text is the model's own.
#[derive(Debug, Args)]
#[command(next_help_heading = "Helpers")]
pub(crate) struct AssistantArgs {
    /// Draft model for speculative decoding: a smaller one, a folder or hub id; its tokenizer may be another
    #[arg(long, visible_alias = "assistant-model", value_name = "MODEL")]
    pub(crate) assistant: Option<String>,
    /// Tokens drafted before each check; 20 by default
    #[arg(long, value_name = "N", requires = "assistant")]
    pub(crate) num_assistant_tokens: Option<usize>,
    /// Confidence below which a draft ends; 0.4 by default
    #[arg(long, value_name = "P", requires = "assistant")]
    pub(crate) assistant_confidence_threshold: Option<f64>,
}

impl AssistantArgs {
    /// The assistant's own generation config.
    pub(crate) fn config(&self) -> GenerationConfig {
        GenerationConfig {
            num_assistant_tokens: self.num_assistant_tokens,
            assistant_confidence_threshold: self.assistant_confidence_threshold,
            ..GenerationConfig::default()
        }
    }
}

/// `NAME=JSON`; what is not JSON is a string, so that few values need quotes.
pub(super) fn assignment(text: &str) -> Result<(String, Value), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_owned(), json_or_text(value)))
        }
        _ => Err("must be a name, `=` and a value".to_owned()),
    }
}

pub(super) fn json_or_text(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::from(text))
}
