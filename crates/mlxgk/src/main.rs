#![doc = include_str!("../README.md")]

mod adapter;
mod args;
mod cache;
mod chat;
mod conversation;
mod convert;
mod document;
mod evaluate;
mod failure;
mod files;
mod flags;
mod generate;
mod info;
mod load;
mod models;
mod progress;
mod prompts;
mod score;
mod settings;
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
        Subcommand::Cache { command } => cache::run(command),
        Subcommand::Steer { command } => steer::run(command),
        Subcommand::Validate(args) => validate::run(args),
        Subcommand::Train(args) => train::run(args),
        Subcommand::Adapter { command } => adapter::run(command),
        Subcommand::Info(args) => info::run(args),
        Subcommand::Models(args) => models::run(args),
        Subcommand::Convert(args) => convert::run(args),
    }
}
