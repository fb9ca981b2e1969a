//! As much of NumPy's `.npy` and `.npz` as an array of floats needs.

use std::io::{Cursor, Read};

use zip::ZipArchive;

use super::refuse;
use crate::{Result, file::floats};

type ArrayOf = (Vec<usize>, Vec<f32>);

/// More bytes than any file of vectors unpacks to: some kilobytes may claim to hold terabytes.
const MAX_BYTES: u64 = 1 << 30;

/// The one array in an archive that `numpy.savez` or `numpy.savez_compressed` wrote.
pub(super) fn read_npz(bytes: &[u8]) -> Result<ArrayOf> {
    let damaged = || refuse("the npz file is damaged");
    let Ok(mut archive) = ZipArchive::new(Cursor::new(bytes)) else { return damaged() };
    if archive.len() != 1 {
        let count = archive.len();
        return refuse(format!("it holds {count} arrays; a file of persona vectors holds one"));
    }
    let mut array = Vec::new();
    let Ok(entry) = archive.by_index(0) else { return damaged() };
    if entry.take(MAX_BYTES + 1).read_to_end(&mut array).is_err() {
        return damaged();
    }
    if array.len() as u64 > MAX_BYTES {
        return refuse(format!("its array has more than {MAX_BYTES} bytes"));
    }
    read_npy(&array)
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
