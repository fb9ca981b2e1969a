//! How much memory this process has taken.

use nix::sys::resource::{UsageWho, getrusage};

use crate::Result;

/// The most memory that was resident at any time since the process began, in bytes.
///
/// # Errors
/// When the system does not say.
pub fn peak_bytes() -> Result<u64> {
    // macOS counts bytes here, Linux kibibytes.
    let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
    Ok(u64::try_from(getrusage(UsageWho::RUSAGE_SELF)?.max_rss())? * unit)
}
