//! What a caller sees of a download while it runs.

/// Called as a download or a conversion proceeds; a command line draws bars with it.
///
/// All methods do nothing by default, so that an implementation takes only what it shows.
///
/// ```
/// use std::path::Path;
///
/// use mlxgk_model_hub::{Conversion, Float, Progress, convert};
///
/// /// Adds up the bytes of the files to be written.
/// #[derive(Default)]
/// struct Total(u64);
///
/// impl Progress for Total {
///     fn start(&mut self, _commit: &str, files: &[(String, u64)]) {
///         self.0 = files.iter().map(|(_, bytes)| bytes).sum();
///     }
/// }
///
/// # let model = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama"));
/// # let folder = tempfile::tempdir().unwrap();
/// # let out = folder.path().join("llama-half");
/// let mut total = Total::default();
/// let made = convert(model, &out, &Conversion::new().dtype(Float::Float16), &mut total)?;
/// assert!(total.0 >= made.bytes); // the weights, and the headers of their files
/// # Ok::<(), mlxgk_model_hub::Error>(())
/// ```
pub trait Progress {
    /// The model's commit and the files that are missing, with their sizes in bytes, before the first
    /// byte is fetched. Of a conversion, the files of weights that will be written, and no commit.
    fn start(&mut self, _commit: &str, _files: &[(String, u64)]) {}

    /// `bytes` of the file with this index are there; at first those that an earlier download left.
    /// The number falls where a damaged beginning has to be fetched again.
    fn advance(&mut self, _file: usize, _bytes: u64) {}

    /// The file with this index is complete and checked.
    fn finish(&mut self, _file: usize) {}

    /// Something worth a line: a retry, a wait that the hub asked for.
    fn note(&mut self, _message: &str) {}
}

/// Shows nothing.
///
/// See the example of [`Converted`](crate::Converted).
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {}
