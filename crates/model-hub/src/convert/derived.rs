//! Numbers that no file holds as they are, but that follow from tensors that the files hold: computed
//! as they are read, so that nothing is held whole.

use std::ops::Range;

use super::{
    checkpoint::{Element, Stored},
    float::Float,
    quantize::{E2M1, e4m3},
    stream::{Reader, in_parallel},
};
use crate::Result;

/// Codes that share a scale in Model Optimizer's NVFP4.
pub(super) const E2M1_GROUP: usize = 16;

/// Where a tensor's numbers come from.
#[derive(Debug, PartialEq)]
pub(super) enum Derived {
    /// Each number changed, and rounded to its dtype.
    Changed { of: Stored, change: Change },
    /// Each number several times.
    Repeated { of: Stored, times: usize },
    /// bfloat16 numbers: e4m3 codes of `[rows, columns]`, each times the factor of its block, where
    /// `factors` has a row for each row of blocks.
    Fp8 { codes: Stored, factors: Stored, block: [usize; 2] },
    /// bfloat16 numbers: e2m1 codes, two to a byte, the first in the lower half, times the e4m3 scale of
    /// their group and the scale of all.
    E2m1 { codes: Stored, scales: Stored, whole: Stored },
    /// MLX's words of 4 bits, `[outputs, inputs / 8]`, from AutoAWQ's, `[inputs, outputs / 8]`.
    AwqWords { codes: Stored },
    /// MLX's biases, `-scale · zero`, for scales of `[outputs, groups]` and zeros of
    /// `[groups, outputs · bits / 32]`.
    Biases { scales: Stored, zeros: Stored, packing: Packing },
}

/// What happens to a number.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    Plus(f32),
    /// Times a factor: one for all, or one per row.
    Times(Vec<f32>),
    /// Over a factor, likewise.
    Over(Vec<f32>),
}

/// How the neighbours of a row share words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packing {
    pub(super) bits: usize,
    /// AutoAWQ's order of the codes in a word, 0, 2, 4, 6, 1, 3, 5, 7, instead of their own.
    pub(super) evens_first: bool,
    /// What has to be added to the codes.
    pub(super) plus: u32,
}

impl Packing {
    /// The code at a place of a row, given the row's words.
    fn code(self, words: &[u8], place: usize) -> u32 {
        const EVENS_FIRST: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
        let per_word = 32 / self.bits;
        let within = place % per_word;
        let within = if self.evens_first { EVENS_FIRST[within] } else { within };
        word(words, place / per_word) >> (within * self.bits) & ((1 << self.bits) - 1)
    }
}

fn word(words: &[u8], index: usize) -> u32 {
    let bytes = &words[index * 4..index * 4 + 4];
    bytes.iter().rev().fold(0, |sum, it| sum << 8 | u32::from(*it))
}

impl Change {
    fn apply(&self, x: f32, row: usize) -> f32 {
        let of = |factors: &[f32]| factors[if factors.len() == 1 { 0 } else { row }];
        match self {
            Self::Plus(it) => x + it,
            Self::Times(factors) => x * of(factors),
            Self::Over(factors) => x / of(factors),
        }
    }
}

impl Reader<'_> {
    /// The bytes of some elements of a tensor that is derived.
    pub(super) fn derive(&mut self, derived: &Derived, range: Range<usize>) -> Result<Vec<u8>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        match derived {
            Derived::Changed { of, change } => self.changed(of, change, range),
            Derived::Repeated { of, times } => {
                let first = range.start / times;
                let bytes = self.read(of, first..(range.end - 1) / times + 1)?;
                let size = of.element.size();
                let at = |place: usize| (place / times - first) * size;
                Ok(range.flat_map(|it| &bytes[at(it)..at(it) + size]).copied().collect())
            }
            Derived::Fp8 { codes, factors, block } => self.fp8(codes, factors, *block, range),
            Derived::E2m1 { codes, scales, whole } => self.e2m1(codes, scales, whole, range),
            Derived::AwqWords { codes } => {
                let all = self.whole(codes)?;
                let (inputs, words) = (codes.shape[0], codes.shape[1]);
                let packing = Packing { bits: 4, evens_first: true, plus: 0 };
                Ok(computed(&range, |it| {
                    let (output, at) = (it / (inputs / 8), it % (inputs / 8));
                    let code = |place: usize| {
                        packing.code(&all[(at * 8 + place) * words * 4..][..words * 4], output)
                    };
                    (0..8).fold(0, |sum, place| sum | code(place) << (4 * place)).to_le_bytes()
                }))
            }
            Derived::Biases { scales, zeros, packing } => {
                let factors = self.numbers(scales, range.clone())?;
                let all = self.whole(zeros)?;
                let (groups, words) = (scales.shape[1], zeros.shape[1]);
                let numbers = range.zip(factors).map(|(it, factor)| {
                    let (output, group) = (it / groups, it % groups);
                    let zero = packing.code(&all[group * words * 4..][..words * 4], output);
                    -((zero + packing.plus) as f32) * factor
                });
                let mut bytes = Vec::new();
                if let Element::Float(dtype) = scales.element {
                    numbers.for_each(|it| dtype.write(it, &mut bytes));
                }
                Ok(bytes)
            }
        }
    }

    fn changed(&mut self, of: &Stored, change: &Change, range: Range<usize>) -> Result<Vec<u8>> {
        let numbers = self.numbers(of, range.clone())?;
        let Element::Float(dtype) = of.element else { return self.read(of, range) };
        let columns = of.shape.last().copied().unwrap_or(1);
        let pieces = in_parallel(numbers.len(), |piece| {
            let mut bytes = Vec::with_capacity(piece.len() * dtype.size());
            for place in piece {
                let row = (range.start + place) / columns;
                dtype.write(change.apply(numbers[place], row), &mut bytes);
            }
            bytes
        });
        Ok(pieces.concat())
    }

    fn fp8(
        &mut self,
        codes: &Stored,
        factors: &Stored,
        [high, wide]: [usize; 2],
        range: Range<usize>,
    ) -> Result<Vec<u8>> {
        let columns = codes.shape[1];
        let across = columns.div_ceil(wide);
        let above = range.start / columns / high;
        let below = (range.end - 1) / columns / high + 1;
        let bytes = self.read(codes, range.clone())?;
        let factors = self.numbers(factors, above * across..below * across)?;
        Ok(computed(&range, |it| {
            let (row, column) = (it / columns, it % columns);
            let factor = factors[(row / high - above) * across + column / wide];
            bfloat16(e4m3fn(bytes[it - range.start]) * factor)
        }))
    }

    fn e2m1(
        &mut self,
        codes: &Stored,
        scales: &Stored,
        whole: &Stored,
        range: Range<usize>,
    ) -> Result<Vec<u8>> {
        let (byte, group) = (range.start / 2, range.start / E2M1_GROUP);
        let bytes = self.read(codes, byte..range.end.div_ceil(2))?;
        let scales = self.read(scales, group..range.end.div_ceil(E2M1_GROUP))?;
        let whole = self.numbers(whole, 0..1)?[0];
        Ok(computed(&range, |it| {
            let code = bytes[it / 2 - byte] >> (it % 2 * 4) & 15;
            let scale = e4m3fn(scales[it / E2M1_GROUP - group]) * whole;
            bfloat16(E2M1[usize::from(code)] * scale)
        }))
    }

    /// Some elements of a tensor of floats.
    fn numbers(&mut self, stored: &Stored, range: Range<usize>) -> Result<Vec<f32>> {
        let bytes = self.read(stored, range)?;
        let mut numbers = Vec::new();
        if let Element::Float(dtype) = stored.element {
            dtype.read(&bytes, &mut numbers);
        }
        Ok(numbers)
    }
}

/// The number of an e4m3 byte that another program wrote: unlike in MLX, NaN where the format has it.
fn e4m3fn(bits: u8) -> f32 {
    if bits & 0x7F == 0x7F { f32::NAN } else { e4m3(bits) }
}

fn bfloat16(x: f32) -> [u8; 2] {
    half::bf16::from_f32(x).to_le_bytes()
}

/// The bytes of some elements, each computed from its place, on all processors.
fn computed<const N: usize>(
    range: &Range<usize>,
    element: impl Fn(usize) -> [u8; N] + Sync,
) -> Vec<u8> {
    let pieces = in_parallel(range.len(), |piece| {
        let places = range.start + piece.start..range.start + piece.end;
        places.flat_map(&element).collect::<Vec<u8>>()
    });
    pieces.concat()
}

impl Stored {
    /// What is derived, under the name and in the file of `self`.
    pub(super) fn derived(&self, element: Element, shape: Vec<usize>, derived: Derived) -> Self {
        Self {
            name: self.name.clone(),
            file: self.file,
            at: 0,
            element,
            shape,
            steps: None,
            derived: Some(derived.into()),
        }
    }

    /// The numbers changed.
    pub(super) fn changed(&self, change: Change) -> Self {
        let of = self.clone();
        self.derived(self.element, self.shape.clone(), Derived::Changed { of, change })
    }

    /// Each number several times, along the last axis.
    pub(super) fn repeated(&self, times: usize) -> Self {
        if times == 1 {
            return self.clone();
        }
        let mut shape = self.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last *= times;
        }
        self.derived(self.element, shape, Derived::Repeated { of: self.clone(), times })
    }

    /// A matrix with its axes exchanged.
    pub(super) fn turned(&self) -> Self {
        let (rows, columns) = (self.shape[0], self.shape[1]);
        Self { shape: vec![columns, rows], steps: Some([1, columns]), ..self.clone() }
    }
}

/// The dtype of what [`Derived::Fp8`] and [`Derived::E2m1`] give.
pub(super) const UNDONE: Element = Element::Float(Float::Bfloat16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_has_nan_beside_its_largest_numbers() {
        assert_eq!([e4m3fn(0x7E), e4m3fn(0xFE), e4m3fn(0x38)], [448.0, -448.0, 1.0]);
        for bits in [0x7F, 0xFF] {
            assert!(e4m3fn(bits).is_nan());
            assert!(half::bf16::from_le_bytes(bfloat16(e4m3fn(bits) * 0.0)).is_nan());
        }
    }
}
