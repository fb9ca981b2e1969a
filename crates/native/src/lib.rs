#![doc = include_str!("../README.md")]

mod check;
mod native;
mod packed;
pub mod routing;
mod update;

pub use self::{
    native::Native,
    packed::{Mode, Packed, Quantization},
    update::updated,
};
