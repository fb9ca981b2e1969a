#![doc = include_str!("../README.md")]

mod check;
mod native;

pub use self::native::Native;
