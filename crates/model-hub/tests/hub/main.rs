//! A hub on this machine that behaves, and one that does not.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

mod downloads;
mod interrupted;
mod names;
mod server;
