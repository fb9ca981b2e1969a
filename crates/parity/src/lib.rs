//! Goldens are data: this crate reads them, runs the project on them and compares.
//!
//! Each area is one module with one `cases(folder) -> Vec<Case>`; the crates' own tests
//! ([`run_tests`]) and `cargo xtask parity` run the same cases, so there is one reading of every
//! fixture. The fixture format is described in `fixtures/README.md`.

mod areas;
#[cfg(feature = "generate")]
mod asked;
#[cfg(feature = "generate")]
mod assisted;
#[cfg(feature = "generate")]
mod attentions;
#[cfg(feature = "generate")]
mod caches;
mod case;
#[cfg(feature = "config")]
mod config;
#[cfg(any(feature = "generate", feature = "models", feature = "steering"))]
mod device;
#[cfg(any(
    feature = "config",
    feature = "generate",
    feature = "models",
    feature = "processors",
    feature = "samplers",
    feature = "steering",
    feature = "templates"
))]
mod files;
#[cfg(feature = "generate")]
mod generate;
mod harness;
#[cfg(feature = "generate")]
mod healing;
#[cfg(feature = "models")]
mod models;
#[cfg(feature = "generate")]
mod outputs;
#[cfg(feature = "processors")]
mod processors;
#[cfg(any(feature = "generate", feature = "models", feature = "steering"))]
mod recent;
mod report;
#[cfg(feature = "samplers")]
mod samplers;
#[cfg(feature = "steering")]
mod steering;
#[cfg(feature = "generate")]
mod stopping;
#[cfg(feature = "templates")]
mod templates;

pub use self::areas::{AREAS, Area};
pub use self::case::{Case, Outcome};
#[cfg(any(feature = "generate", feature = "models", feature = "steering"))]
pub use self::device::choose_device;
pub use self::harness::run_tests;
pub use self::report::{Report, Tally};
