//! `mlxgk score`.

use clap::Args;
use mlx_genkit::Request;

use crate::{
    document::{self, ScoredText},
    failure::{Failure, Result},
    flags::{Format, ModelArgs, OutputArgs, SteerArgs, TextArgs},
    load, prompts, terminal,
};

/// The flags.
#[derive(Debug, Args)]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    steering: SteerArgs,
    /// Add to the JSON the N most likely tokens at each position
    #[arg(long, value_name = "N", help_heading = "Output")]
    logprobs: Option<usize>,
    #[command(flatten)]
    output: OutputArgs,
}

/// The subcommand.
pub(crate) fn run(args: &ScoreArgs) -> Result<()> {
    if args.logprobs.is_some() && args.output.format == Format::Text {
        return Err(Failure::usage("--logprobs are part of the JSON output: add `--format json`"));
    }
    let text = prompts::read_text(&args.text)?;
    let (model, _) = load::load(&args.model)?;
    let mut request = Request::new(text);
    if let Some(hook) = args.steering.hook(&model)? {
        request = request.hook(hook);
    }
    if let Some(top) = args.logprobs {
        request = request.logprobs(top);
    }
    let scored = model.score(request)?;
    if args.output.format == Format::Json {
        return document::print(&ScoredText::new(&scored));
    }
    terminal::line(format_args!("{:>8}  {:>9}  token", "id", "log p"))?;
    for (index, id) in scored.tokens.iter().enumerate() {
        let logprob = match index.checked_sub(1) {
            None => String::new(),
            Some(before) => format!("{:.4}", scored.logprobs[before]),
        };
        let token = model.tokenizer().ok().and_then(|it| it.id_to_token(*id)).unwrap_or_default();
        let row = format!("{id:>8}  {logprob:>9}  {token}");
        terminal::line(row.trim_end())?;
    }
    let perplexity =
        scored.perplexity().map_or_else(|| "undefined".to_owned(), |it| format!("{it:.4}"));
    Ok(terminal::line(format_args!("sum {:.4}, perplexity {perplexity}", scored.sum()))?)
}
