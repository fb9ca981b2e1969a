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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_touched_counts_in_bytes() {
        let before = peak_bytes().unwrap();
        let block = vec![1_u8; 256 << 20];
        let grown = peak_bytes().unwrap() - before;
        assert!(std::hint::black_box(&block).iter().all(|&it| it == 1));
        assert!((200 << 20..400 << 20).contains(&grown), "{grown}");
    }
}
