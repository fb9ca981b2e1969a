//! The server over real sockets, with the bundled model.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

mod access;
mod answers;
mod client;
mod company;
mod demands;
mod hostile;
mod refusals;
mod steering;
mod stopping;
mod streams;
mod tools;
