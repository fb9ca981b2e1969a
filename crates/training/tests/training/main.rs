//! Losses, gradients and steps, held against what torch says of the same models and numbers.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

mod adapters;
mod common;
mod data;
mod gradients;
mod losses;
mod steps;
