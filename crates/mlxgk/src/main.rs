#![doc = include_str!("../README.md")]

mod adapter;
mod answer;
mod args;
mod bench;
mod cache;
mod chat;
mod chat_input;
mod conversation;
mod convert;
mod document;
mod evaluate;
mod explain;
mod failure;
mod fields;
mod files;
mod flags;
mod generate;
mod info;
mod isolate;
mod load;
mod models;
mod perplexity;
mod progress;
mod prompts;
mod score;
mod serve;
mod settings;
mod shell;
mod steer;
mod terminal;
mod train;
mod validate;

use std::process::ExitCode;

use crate::{
    args::{Cli, Subcommand},
    failure::Result,
};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run() -> Result<()> {
    let Some(cli) = Cli::read()? else { return Ok(()) };
    match &cli.subcommand {
        Subcommand::Generate(args) => generate::run(args),
        Subcommand::Chat(args) => chat::run(args),
        Subcommand::Score(args) => score::run(args),
        Subcommand::Perplexity(args) => perplexity::run(args),
        Subcommand::Serve(args) => serve::run(args),
        Subcommand::Explain(args) => explain::run(args),
        Subcommand::Fields(args) => fields::run(args),
        Subcommand::Bench(args) => bench::run(args),
        Subcommand::Cache { command } => cache::run(command),
        Subcommand::Steer { command } => steer::run(command),
        Subcommand::Validate(args) => validate::run(args),
        Subcommand::Isolate(args) => isolate::run(args),
        Subcommand::Train(args) => train::run(args),
        Subcommand::Adapter { command } => adapter::run(command),
        Subcommand::Info(args) => info::run(args),
        Subcommand::Models(args) => models::run(args),
        Subcommand::Convert(args) => convert::run(args),
        Subcommand::Completions(args) => shell::completions(args, Cli::grammar()),
        Subcommand::Man(args) => shell::man(args, Cli::grammar()),
    }
}
