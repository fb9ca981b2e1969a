//! As much of NumPy's `.npy` and `.npz` as an array of floats needs.

use super::refuse;
use crate::{Result, file::floats};

type ArrayOf = (Vec<usize>, Vec<f32>);

/// The one array in an archive that `numpy.savez` wrote.
pub(super) fn read_npz(bytes: &[u8]) -> Result<ArrayOf> {
    const END: &[u8] = b"PK\x05\x06";
    let damaged = || refuse("the npz file is damaged");
    // The end record has 22 bytes.
    let end = bytes.windows(4).rposition(|it| it == END).filter(|it| it + 22 <= bytes.len());
    let Some(end) = end else { return damaged() };
    let number = |at: usize, size: usize| -> Option<usize> {
        let bytes = bytes.get(at..at.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |sum, &it| sum << 8 | usize::from(it)))
    };
    let Some((count, directory)) = number(end + 10, 2).zip(number(end + 16, 4)) else {
        return damaged();
    };
    if count != 1 {
        return refuse(format!("it holds {count} arrays; a file of persona vectors holds one"));
    }
    // One entry of the central directory: method, sizes, and where its local header is.
    let entry = || {
        let method = number(directory + 10, 2)?;
        let size = number(directory + 20, 4)?;
        let header = number(directory + 42, 4)?;
        let begin = header + 30 + number(header + 26, 2)? + number(header + 28, 2)?;
        Some((method, bytes.get(begin..begin.checked_add(size)?)))
    };
    match entry() {
        Some((0, Some(array))) => read_npy(array),
        Some((0, None)) | None => damaged(),
        Some(_) => refuse("it is compressed; write it with numpy.savez, not savez_compressed"),
    }
}

/// A little-endian array of 4- or 8-byte floats in C order.
pub(super) fn read_npy(bytes: &[u8]) -> Result<ArrayOf> {
    let wrong = || refuse("it does not hold a NumPy array");
    let (len, begin) = match bytes {
        [0x93, b'N', b'U', b'M', b'P', b'Y', 1, _, a, b, ..] => {
            (usize::from(u16::from_le_bytes([*a, *b])), 10)
        }
        [0x93, b'N', b'U', b'M', b'P', b'Y', 2 | 3, _, a, b, c, d, ..] => {
            (u32::from_le_bytes([*a, *b, *c, *d]) as usize, 12)
        }
        _ => return wrong(),
    };
    let Some(header) = bytes.get(begin..begin + len).and_then(|it| std::str::from_utf8(it).ok())
    else {
        return wrong();
    };
    let field = |name: &str| Some(header.split_once(name)?.1.trim_start_matches(['\'', ':', ' ']));
    let shape = field("shape").and_then(|it| it.strip_prefix('(')?.split_once(')'));
    let (Some(kind), Some((shape, _)), Some(order)) =
        (field("descr"), shape, field("fortran_order"))
    else {
        return wrong();
    };
    let shape: Option<Vec<usize>> = shape
        .split(',')
        .map(str::trim)
        .filter(|it| !it.is_empty())
        .map(|it| it.parse().ok())
        .collect();
    let Some(shape) = shape else { return wrong() };
    let data = &bytes[begin + len..];
    let values = match (kind.get(..3), order.starts_with("False")) {
        (Some("<f4"), true) => floats(data),
        (Some("<f8"), true) => {
            let wide = |it: &[u8]| {
                f64::from_le_bytes([it[0], it[1], it[2], it[3], it[4], it[5], it[6], it[7]]) as f32
            };
            data.chunks_exact(8).map(wide).collect()
        }
        _ => return refuse("its array is not of little-endian 4- or 8-byte floats in C order"),
    };
    let expected = shape.iter().fold(1_usize, |all, &it| all.saturating_mul(it));
    if values.len() != expected {
        return refuse(format!(
            "its array has {} values but its shape needs {expected}",
            values.len()
        ));
    }
    Ok((shape, values))
}
