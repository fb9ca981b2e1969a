//! Scores that the device may still be computing.

use mlx_rs::{Array, ArrayElement};

use crate::{Error, ErrorKind, Result};

/// An array that the device may still be at work on; waits for it when dropped.
///
/// A session can be dropped at any token. A process that ends while MLX's thread is at work runs
/// into the destructors of MLX and of the BLAS below it, and now and then hangs or crashes there.
#[derive(Debug)]
pub(crate) struct Pending(pub(crate) Array);

impl Pending {
    /// The values, once they are there.
    pub(crate) fn read<T: ArrayElement>(&self) -> Result<&[T]> {
        self.0
            .try_as_slice()
            .map_err(|e| Error::new(ErrorKind::Model, format!("the scores cannot be read: {e}")))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Nobody is left to tell of a failure.
        let _ = self.0.eval();
    }
}
