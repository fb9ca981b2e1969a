//! Calls of the operations, where the linked library brings them.

use std::ffi::{CStr, c_char};

use mlx_rs::{
    Array, Stream,
    error::{Exception, Result},
};
use mlx_sys::{mlx_array, mlx_stream};

use super::EMPTY;

/// The functions of `cpp/mlxgk.h`, as setup declares them.
mod operations {
    #![allow(unreachable_pub, reason = "the text is generated")]

    use mlx_sys::{mlx_array, mlx_stream};

    include!(env!("MLXGK_NATIVE_OPS"));
}
pub(super) use self::operations::*;

pub(super) type Linked = ();

pub(super) fn linked() -> Option<Linked> {
    Some(())
}

/// Calls an operation; its first and last arguments are supplied here.
macro_rules! call {
    ($native:ident, $operation:ident($($argument:expr),*)) => {{
        let Native(()) = $native;
        // SAFETY: the caller has checked what the header asks for, and its arrays live on.
        unsafe {
            linked::run(|result, stream| {
                linked::$operation(result, $($argument,)* stream)
            })
        }
    }};
}
pub(super) use call;

/// The same for an operation of several results, as many as the caller takes.
macro_rules! call_all {
    ($native:ident, $operation:ident($($argument:expr),*)) => {{
        let Native(()) = $native;
        // SAFETY: as for `call`, and the caller has as many results as its arguments ask for.
        unsafe {
            linked::run_all(|results, stream| {
                linked::$operation(results, $($argument,)* stream)
            })
        }
    }};
}
pub(super) use call_all;

/// Runs an operation on the current stream and takes what it returns.
///
/// # Safety
/// `operation` must hand its two arguments to a function of the header as `result` and `stream`,
/// with the others as the header asks for.
pub(super) unsafe fn run(
    operation: impl FnOnce(*mut mlx_array, mlx_stream) -> *const c_char,
) -> Result<Array> {
    // SAFETY: as the caller says, for one result.
    let [result] = unsafe { run_all(operation) }?;
    Ok(result)
}

/// The same for an operation of several results.
///
/// # Safety
/// As [`run`], and the function must put `N` arrays behind `result`, which are so many empty handles.
pub(super) unsafe fn run_all<const N: usize>(
    operation: impl FnOnce(*mut mlx_array, mlx_stream) -> *const c_char,
) -> Result<[Array; N]> {
    let stream = Stream::thread_local_or_default();
    let mut results = [EMPTY; N];
    let message = operation(results.as_mut_ptr(), stream.as_ptr());
    if message.is_null() {
        // SAFETY: without a message the function has put new arrays there, which are ours.
        return Ok(results.map(|it| unsafe { Array::from_ptr(it) }));
    }
    // SAFETY: a message is a text of this thread's that stays until its next call.
    let message = unsafe { CStr::from_ptr(message) };
    Err(Exception::custom(message.to_string_lossy()))
}
