//! Goldens are data: this crate reads them, runs the project on them and compares.
//!
//! Each area is one module with one `check(folder) -> Result<Report, String>`; the crates' own tests
//! and `cargo xtask parity` call the same functions, so there is one reading of every fixture.
//! The fixture format is described in `fixtures/README.md`.

#[cfg(feature = "generate")]
pub mod assisted;
#[cfg(feature = "generate")]
mod cases;
#[cfg(feature = "config")]
pub mod config;
#[cfg(any(
    feature = "config",
    feature = "generate",
    feature = "models",
    feature = "processors",
    feature = "steering",
    feature = "templates"
))]
mod files;
#[cfg(feature = "generate")]
pub mod generate;
#[cfg(feature = "generate")]
pub mod healing;
#[cfg(feature = "models")]
pub mod models;
#[cfg(feature = "generate")]
pub mod outputs;
#[cfg(feature = "processors")]
pub mod processors;
mod report;
#[cfg(feature = "samplers")]
pub mod samplers;
#[cfg(feature = "steering")]
pub mod steering;
#[cfg(feature = "generate")]
pub mod stopping;
#[cfg(feature = "templates")]
pub mod templates;

pub use self::report::{Report, Tally};
