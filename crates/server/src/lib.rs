#![doc = include_str!("../README.md")]

mod access;
mod app;
mod asked;
mod body;
mod chat;
mod completions;
mod connections;
mod engine;
mod error;
mod event_stream;
mod fields;
mod logprobs;
mod messages;
mod metrics;
mod options;
mod queue;
mod refusal;
mod reply;
mod routes;
mod server;
mod steering;
mod tokens;
mod tools;
mod vectors;
mod write_timeout;

pub use mlx_genkit;

pub use self::error::{Error, ErrorKind, Result};
pub use self::options::Options;
pub use self::server::{Server, Stop};
