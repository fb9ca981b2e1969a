//! As much of GGUF as a control vector needs: fp32 tensors (llama.cpp reads no others), metadata
//! skipped.

use std::collections::BTreeMap;

use super::refuse;
use crate::{Result, file::floats};

/// Without `general.alignment`, tensors begin at multiples of this.
const ALIGNMENT: usize = 32;
const F32: u32 = 0;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const U32: u32 = 4;

/// Every tensor as fp32, by name; all of them are flat.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<(String, Vec<f32>)>> {
    let mut at = Reader { bytes, at: 0 };
    if at.take(4)? != b"GGUF" {
        return refuse("it is not a GGUF file");
    }
    let version = at.u32()?;
    if !(2..=3).contains(&version) {
        return refuse(format!("it is GGUF version {version}; expected 2 or 3"));
    }
    let (tensors, entries) = (at.u64()?, at.u64()?);
    let mut alignment = ALIGNMENT;
    for _ in 0..entries {
        let key = at.string()?;
        let kind = at.u32()?;
        match (key.as_str(), kind) {
            ("general.alignment", U32) => alignment = at.u32()?.max(1) as usize,
            ("general.architecture", STRING) => {
                let architecture = at.string()?;
                if architecture != "controlvector" {
                    let what = format!(
                        "it is a GGUF file of {architecture:?}; expected \"controlvector\""
                    );
                    return refuse(what);
                }
            }
            _ => at.skip(kind, 0)?,
        }
    }
    let mut infos = Vec::new();
    for _ in 0..tensors {
        let name = at.string()?;
        let mut len = 1_usize;
        for _ in 0..at.u32()? {
            let dimension = usize::try_from(at.u64()?).unwrap_or(usize::MAX);
            len = len.saturating_mul(dimension);
        }
        let kind = at.u32()?;
        if kind != F32 {
            return refuse(format!("{name:?} is of GGUF type {kind}; expected 0 (F32)"));
        }
        infos.push((name, len, usize::try_from(at.u64()?).unwrap_or(usize::MAX)));
    }
    let data = at.at.next_multiple_of(alignment);
    let read = |(name, len, offset): (String, usize, usize)| {
        let begin = data.saturating_add(offset);
        match bytes.get(begin..begin.saturating_add(len.saturating_mul(4))) {
            Some(values) => Ok((name, floats(values))),
            None => refuse(format!("{name:?} reaches beyond the end of the file")),
        }
    };
    infos.into_iter().map(read).collect()
}

/// A control vector file: `direction.{layer}` per layer.
pub(super) fn write(layers: &BTreeMap<usize, &[f32]>, model: &str) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3_u32.to_le_bytes());
    out.extend((layers.len() as u64).to_le_bytes());
    out.extend(3_u64.to_le_bytes());
    let string = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    for (key, value) in
        [("general.architecture", "controlvector"), ("controlvector.model_hint", model)]
    {
        string(&mut out, key);
        out.extend(STRING.to_le_bytes());
        string(&mut out, value);
    }
    string(&mut out, "controlvector.layer_count");
    out.extend(U32.to_le_bytes());
    out.extend((layers.len() as u32).to_le_bytes());
    let mut offset = 0_u64;
    for (layer, vector) in layers {
        string(&mut out, &format!("direction.{layer}"));
        out.extend(1_u32.to_le_bytes());
        out.extend((vector.len() as u64).to_le_bytes());
        out.extend(F32.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += ((vector.len() * 4).next_multiple_of(ALIGNMENT)) as u64;
    }
    for vector in layers.values() {
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out.extend(vector.iter().flat_map(|it| it.to_le_bytes()));
    }
    out
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        match self.bytes.get(self.at..self.at.saturating_add(count)) {
            Some(bytes) => {
                self.at += count;
                Ok(bytes)
            }
            None => refuse("it is truncated"),
        }
    }

    fn u32(&mut self) -> Result<u32> {
        let it = self.take(4)?;
        Ok(u32::from_le_bytes([it[0], it[1], it[2], it[3]]))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from(self.u32()?) | u64::from(self.u32()?) << 32)
    }

    fn string(&mut self) -> Result<String> {
        let len = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
        let bytes = self.take(len)?.to_vec();
        String::from_utf8(bytes).or_else(|_| refuse("one of its names is not UTF-8"))
    }

    /// Steps over a value of the given type.
    fn skip(&mut self, kind: u32, depth: usize) -> Result<()> {
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            STRING => return self.string().map(|_| ()),
            ARRAY if depth < 4 => {
                let (kind, count) = (self.u32()?, self.u64()?);
                return (0..count).try_for_each(|_| self.skip(kind, depth + 1));
            }
            _ => return refuse(format!("its metadata has a value of unknown type {kind}")),
        };
        self.take(size).map(|_| ())
    }
}
