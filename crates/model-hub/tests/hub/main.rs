//! A hub on this machine that behaves, and one that does not; and what conversions make of models.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

mod conversions;
mod downloads;
mod interrupted;
mod names;
mod server;
