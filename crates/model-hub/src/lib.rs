//! Finds a model folder on disk, or downloads it from a Hugging Face hub.
//!
//! A model is named by a folder, a hub id (`Qwen/Qwen3-0.6B`), or an id with a revision
//! (`Qwen/Qwen3-0.6B@main`). [`Hub::find`] looks at the local folder first, then at the cache that
//! all Hugging Face programs share (`HF_HUB_CACHE`), and only then at the network. What it downloads
//! is laid out as `huggingface_hub` does, so that each program finds what the other fetched.
//!
//! ```no_run
//! use mlxgk_model_hub::{Hub, NoProgress};
//!
//! let hub = Hub::from_env()?;
//! let model = hub.find("Qwen/Qwen3-0.6B", &mut NoProgress)?;
//! println!("{} ({})", model.folder.display(), model.commit.as_deref().unwrap_or("local"));
//! # Ok::<(), mlxgk_model_hub::Error>(())
//! ```
//!
//! Every file is checked by its size and its hash (SHA-256 for large files, git's SHA-1 for the
//! others) before it gets its name, so a file in the cache is a whole one. A download that broke off
//! is resumed; two programs that want the same file wait for each other.

mod cache;
mod checksum;
mod client;
mod convert;
mod download;
mod error;
mod files;
mod hub;
mod id;
mod progress;

pub use self::{
    cache::CachedModel,
    convert::{Conversion, Converted, Float, Layout, Mode, Recipe, Rule, Scheme, convert},
    error::{Error, ErrorKind, Result},
    hub::{FoundModel, Hub, HubBuilder},
    id::ModelId,
    progress::{NoProgress, Progress},
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
