#![doc = include_str!("../README.md")]

mod guarded;
mod html;
mod measure;
mod report;
mod suite;
mod words;

use mlx_genkit::Prompt;

pub use mlx_genkit::steering::Reason;

pub use self::guarded::{Guarded, guarded};
pub use self::report::{Cell, Direction, Measure, Report};
pub use self::suite::{Options, Progress, validate};
pub use self::words::WordLists;

/// The bundled prompts: 24 short pieces in the manner of a newspaper, all made up, to be continued.
///
/// ```
/// assert!(mlxgk_validation::news_prompts().len() >= 20);
/// ```
pub fn news_prompts() -> Vec<Prompt> {
    include_str!("news.txt").lines().map(Prompt::from).collect()
}
