#![doc = include_str!("../README.md")]

mod condition;
mod example;
mod graph;
mod internals;
mod labels;
mod measure;
pub mod metrics;
mod report;
mod run;
mod statistics;
mod thread;
mod transcript;

pub use self::condition::Condition;
pub use self::example::{Cluster, Example, Turn};
pub use self::internals::{AttentionShare, Internals};
pub use self::labels::Labels;
pub use self::measure::{Measure, Values};
pub use self::report::{Comparison, Report};
pub use self::run::{ConditionResult, ExampleResult, Options, Output, Progress, run};
pub use self::statistics::{Paired, paired};
pub use self::thread::{CacheSize, Said};
pub use self::transcript::TurnFormat;
