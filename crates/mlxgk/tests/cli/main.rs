//! The built binary, run as other programs run it.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

mod bad_input;
mod cache;
mod chat;
mod commands;
mod contract;
mod convert;
mod endless;
mod flags;
mod help;
mod isolate;
mod killed;
mod models;
mod named_files;
mod output;
mod serve;
mod shared;
mod steering;
mod terminal;
mod training;
