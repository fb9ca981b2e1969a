#![doc = include_str!("../README.md")]

mod check;
mod native;
mod packed;

pub use self::{
    native::Native,
    packed::{Mode, Packed, Quantization},
};
