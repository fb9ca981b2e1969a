//! A part of an array in place of what was there, in one node of the graph: mlx-rs's indexing reshapes what
//! is put there twice before.

#![allow(unsafe_code, reason = "a C function that mlx-rs does not offer")]

use mlx_rs::{
    Array, Device, Stream,
    error::{Exception, Result},
};
use mlx_sys::mlx_array;

use crate::check;

/// `array` with `part` in place of what stands along `axis` from place `from` on; `part` has the shape of
/// `array` but along that axis, and its dtype. Where nobody else holds `array` when this is computed, its memory
/// is written to and nothing is copied.
///
/// ```
/// use mlx_rs::Array;
///
/// let array = Array::from_slice(&[1, 2, 3, 4], &[1, 4]);
/// let part = Array::from_slice(&[8, 9], &[1, 2]);
/// assert_eq!(mlxgk_native::updated(&array, 1, 1, &part)?.to_vec_exact::<i32>()?, [1, 8, 9, 4]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// When shapes or types do not fit.
pub fn updated(array: &Array, axis: usize, from: i32, part: &Array) -> Result<Array> {
    check::updated(array, axis, from, part)?;
    // It puts mlx-rs's handler in place, without which an error in C ends the process.
    Device::try_default()?;
    let stream = Stream::thread_local_or_default();
    let (mut start, mut stop) = (vec![0; array.ndim()], array.shape().to_vec());
    let strides = vec![1; array.ndim()];
    (start[axis], stop[axis]) = (from, from + part.dim(axis as i32));
    let mut result = mlx_array { ctx: std::ptr::null_mut() };
    // SAFETY: the arrays, the stream and the three lists of one entry per axis live until it returns.
    let failed = unsafe {
        mlx_sys::mlx_slice_update(
            &raw mut result,
            array.as_ptr(),
            part.as_ptr(),
            start.as_ptr(),
            start.len(),
            stop.as_ptr(),
            stop.len(),
            strides.as_ptr(),
            strides.len(),
            stream.as_ptr(),
        )
    };
    if failed == 0 {
        // SAFETY: the function has put a new array there, which is ours.
        return Ok(unsafe { Array::from_ptr(result) });
    }
    let (shape, part) = (array.shape(), part.shape());
    Err(Exception::custom(format!("slice_update failed for {part:?} in {shape:?}")))
}
