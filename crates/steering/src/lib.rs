#![doc = include_str!("../README.md")]

mod amount;
mod effect;
mod error;
pub mod extract;
mod file;
mod fingerprint;
mod formats;
mod guard;
mod hook;
mod layers;
mod logit_bias;
mod names;
mod operation;
mod positions;
mod schedule;
mod seed;
mod steering;
mod suspect;
mod vectors;
mod whole_file;

pub use mlxgk_mlx_models::HookPoint;

pub use self::error::{Error, ErrorKind, Result};
pub use self::formats::Format;
pub use self::guard::{Guard, Guarded, Reason, Verdict};
pub use self::hook::SteeringHook;
pub use self::layers::{LayerRange, Layers};
pub use self::logit_bias::LogitBias;
pub use self::operation::Operation;
pub use self::positions::{Clause, Positions};
pub use self::schedule::Schedule;
pub use self::seed::derive_seed;
pub use self::steering::{Conflict, Injection, Steering};
pub use self::suspect::{Suspicion, suspicions};
pub use self::vectors::SteeringVectors;
pub use self::whole_file::{open_file, read_file, write_file};
