//! MLX's quantizations, to the bit: what `mx.quantize` and `mx.dequantize` give on a CPU (MLX 0.32).
//!
//! A group is quantized by itself, so any run of whole groups can be. MLX computes the affine mode in
//! fp32 whatever the weight's dtype, and the others in the weight's own dtype, step by step; so these
//! round after each step too.

use super::{
    float::Float,
    settings::{Mode, Scheme},
};

/// The e2m1 numbers by their four bits.
pub(super) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// What a run of groups is packed into, in the order of the file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Packed {
    pub(super) words: Vec<u8>,
    pub(super) scales: Vec<u8>,
    /// Only in the affine mode.
    pub(super) biases: Vec<u8>,
}

/// Packs whole groups of `dtype` numbers; `None` where one is not finite.
pub(super) fn quantize(numbers: &[f32], dtype: Float, scheme: Scheme) -> Option<Packed> {
    let mut packed = Packed::default();
    if !numbers.iter().all(|it| it.is_finite()) {
        return None;
    }
    packed.words.reserve(numbers.len() * scheme.bits() / 8);
    for group in numbers.chunks_exact(scheme.group_size()) {
        match scheme.mode() {
            Mode::Affine => affine(group, dtype, scheme.bits(), &mut packed),
            mode => scaled(group, dtype, mode, &mut packed),
        }
    }
    Some(packed)
}

/// One group of the affine mode. The end of the range that is further from zero is met exactly, and
/// zero is as well.
fn affine(group: &[f32], dtype: Float, bits: usize, packed: &mut Packed) {
    let bins = ((1 << bits) - 1) as f32;
    let max = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let min = group.iter().copied().fold(f32::INFINITY, f32::min);
    let from_min = min.abs() > max.abs();
    let mut scale = ((max - min) / bins).max(1e-7);
    if !from_min {
        scale = -scale;
    }
    let edge = if from_min { min } else { max };
    let steps = (edge / scale).round_ties_even();
    let mut bias = 0.0;
    if steps != 0.0 {
        scale = edge / steps;
        bias = edge;
    }
    // Eight numbers fill whole bytes at any width.
    for eight in group.chunks_exact(8) {
        let mut word = 0_u64;
        for (index, x) in eight.iter().enumerate() {
            let q = ((x - bias) / scale).round_ties_even().clamp(0.0, bins);
            word |= (q as u64) << (index * bits);
        }
        packed.words.extend(&word.to_le_bytes()[..bits]);
    }
    dtype.write(scale, &mut packed.scales);
    dtype.write(bias, &mut packed.biases);
}

/// One group of the other modes: the scale brings the largest number to the largest that the elements
/// have.
fn scaled(group: &[f32], dtype: Float, mode: Mode, packed: &mut Packed) {
    let largest = group.iter().fold(0.0, |max: f32, it| max.max(it.abs()));
    let range = if mode == Mode::Mxfp8 { 448.0 } else { 6.0 };
    let wanted = dtype.round(largest / range);
    let scale = if mode == Mode::Nvfp4 {
        let bits = to_e4m3(wanted);
        packed.scales.push(bits);
        e4m3(bits)
    } else {
        let exponent = exponent(wanted, dtype);
        packed.scales.push((exponent + 127) as u8);
        dtype.round(power_of_two(exponent))
    };
    let scaled = group.iter().map(|it| dtype.round(it / scale));
    if mode == Mode::Mxfp8 {
        packed.words.extend(scaled.map(to_e4m3));
    } else {
        let mut bits = scaled.map(|it| to_e2m1(it, dtype));
        while let (Some(low), Some(high)) = (bits.next(), bits.next()) {
            packed.words.push(low | high << 4);
        }
    }
}

/// The exponent of the smallest power of two that is not below `x`, as far as a scale's byte goes; 0
/// for 0. (Below 2^-127 MLX's byte wraps around, and tiny numbers come back as huge ones.)
fn exponent(x: f32, dtype: Float) -> i32 {
    if x == 0.0 {
        return 0;
    }
    let nearest = dtype.round(x.log2()).round_ties_even() as i32;
    let above = i32::from(dtype.round(power_of_two(nearest)) < x);
    (nearest + above).clamp(-127, 127)
}

/// 2 to this power, which is exact, subnormals included.
fn power_of_two(exponent: i32) -> f32 {
    match exponent {
        ..-149 => 0.0,
        -149..-126 => f32::from_bits(1 << (exponent + 149)),
        -126..128 => f32::from_bits(((exponent + 127) as u32) << 23),
        _ => f32::INFINITY,
    }
}

/// The nearest e2m1 number: by its distance in the weight's own dtype, of several as near the first.
fn to_e2m1(x: f32, dtype: Float) -> u8 {
    // Those of the same sign; plain zero stands for both of its kind, and comes first.
    let sign = if x < 0.0 { 8 } else { 0 };
    let (mut best, mut nearest) = (0, dtype.round(x).abs());
    for index in sign + 1..sign + 8 {
        let distance = dtype.round(x - E2M1[usize::from(index)]).abs();
        if distance < nearest {
            (best, nearest) = (index, distance);
        } else if distance > nearest {
            break;
        }
    }
    best
}

/// The nearest e4m3 number (`float8_e4m3fn`), ties to even; what is beyond 448 becomes 448.
fn to_e4m3(x: f32) -> u8 {
    const SMALLEST_NORMAL: u32 = 121 << 23;
    /// 2^14: what is added to it is rounded to multiples of 2^-9, the smallest subnormal.
    const SUBNORMAL: u32 = 141 << 23;
    const BEYOND: u32 = 543 << 21;
    let sign = x.to_bits() & 0x8000_0000;
    let bits = x.to_bits() ^ sign;
    let magnitude = if bits >= BEYOND {
        0x7E
    } else if bits < SMALLEST_NORMAL {
        let shifted = f32::from_bits(bits) + f32::from_bits(SUBNORMAL);
        (shifted.to_bits() - SUBNORMAL) as u8
    } else {
        let is_odd = (bits >> 20) & 1;
        (bits.wrapping_sub(120 << 23).wrapping_add(0x7_FFFF + is_odd) >> 20) as u8
    };
    magnitude | (sign >> 24) as u8
}

/// The number of an e4m3 byte. As in MLX, ±480 where the format has NaN, which is never written.
pub(super) fn e4m3(bits: u8) -> f32 {
    let exponent = i32::from(bits >> 3 & 15);
    let fraction = f32::from(bits & 7);
    let magnitude = match exponent {
        0 => fraction / 512.0,
        _ => (8.0 + fraction) * power_of_two(exponent - 10),
    };
    if bits & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The number that a byte of scales stands for, in the modes that have bytes.
pub(super) fn scale(byte: u8, mode: Mode) -> f32 {
    match mode {
        Mode::Nvfp4 => e4m3(byte),
        _ => power_of_two(i32::from(byte) - 127),
    }
}

/// The numbers that whole groups stand for, given a scale per group, and in the affine mode a bias,
/// which are `dtype` numbers then.
///
/// As in MLX, product and sum of the affine mode are each rounded to `dtype`. The other modes give
/// bfloat16 numbers, which hold their products exactly.
pub(super) fn dequantize(
    words: &[u8],
    scales: &[f32],
    biases: &[f32],
    dtype: Float,
    scheme: Scheme,
) -> Vec<f32> {
    let bits = scheme.bits();
    let groups = words.chunks_exact(scheme.group_size() * bits / 8);
    let mut numbers = Vec::with_capacity(words.len() * 8 / bits);
    for (index, (group, scale)) in groups.zip(scales).enumerate() {
        let product = |it: f32| Float::Bfloat16.round(it * scale);
        match scheme.mode() {
            Mode::Affine => {
                for eight in group.chunks_exact(bits) {
                    let mut word = [0; 8];
                    word[..bits].copy_from_slice(eight);
                    let word = u64::from_le_bytes(word);
                    numbers.extend((0..8).map(|it| {
                        let q = word >> (it * bits) & ((1 << bits) - 1);
                        dtype.round(dtype.round(q as f32 * scale) + biases[index])
                    }));
                }
            }
            Mode::Mxfp8 => numbers.extend(group.iter().map(|&it| product(e4m3(it)))),
            Mode::Mxfp4 | Mode::Nvfp4 => {
                let halves = group.iter().flat_map(|it| [it & 15, it >> 4]);
                numbers.extend(halves.map(|it| product(E2M1[usize::from(it)])));
            }
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use serde_json::Value;
    use sha2::{Digest, Sha256};

    use super::*;

    fn bytes(hex: &Value) -> Vec<u8> {
        let digits = hex.as_str().unwrap().as_bytes().chunks_exact(2);
        digits.map(|it| u8::from_str_radix(str::from_utf8(it).unwrap(), 16).unwrap()).collect()
    }

    fn numbers(bytes: &[u8], dtype: Float) -> Vec<f32> {
        let mut numbers = Vec::new();
        dtype.read(bytes, &mut numbers);
        numbers
    }

    /// What a case of a fixture asks for.
    fn scheme(case: &Value) -> Scheme {
        let size = |key: &str| case[key].as_u64().map(|it| it as usize);
        let mode = case["mode"].as_str().unwrap().parse().unwrap();
        Scheme::new(mode, size("bits"), size("group_size")).unwrap()
    }

    /// Every recorded matrix, quantized in every way.
    fn recorded(mut check: impl FnMut(&[f32], Float, &Value)) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/quantize");
        for dtype in [Float::Float32, Float::Float16, Float::Bfloat16] {
            let text = fs::read_to_string(folder.join(format!("{dtype}.json"))).unwrap();
            let fixture: Value = serde_json::from_str(&text).unwrap();
            let input = numbers(&bytes(&fixture["input"]), dtype);
            let cases = fixture["cases"].as_array().unwrap();
            assert_eq!(cases.len(), 21);
            cases.iter().for_each(|case| check(&input, dtype, case));
        }
    }

    /// The numbers that packed bytes stand for.
    fn unpacked(packed: &Packed, dtype: Float, scheme: Scheme) -> Vec<f32> {
        let scales = match scheme.mode() {
            Mode::Affine => numbers(&packed.scales, dtype),
            mode => packed.scales.iter().map(|it| scale(*it, mode)).collect(),
        };
        dequantize(&packed.words, &scales, &numbers(&packed.biases, dtype), dtype, scheme)
    }

    #[test]
    fn every_mode_gives_the_bytes_that_mlx_gives() {
        recorded(|input, dtype, case| {
            let scheme = scheme(case);
            let packed = quantize(input, dtype, scheme).unwrap();
            let about = format!("{dtype}, {scheme}");
            assert!(packed.scales == bytes(&case["scales"]), "{about}: scales");
            assert!(packed.biases == bytes(&case["biases"]), "{about}: biases");
            assert!(packed.words == bytes(&case["words"]), "{about}: words");
        });
    }

    #[test]
    fn every_mode_is_undone_as_mlx_does() {
        recorded(|_, dtype, case| {
            let scheme = scheme(case);
            let [words, scales, biases] = ["words", "scales", "biases"].map(|it| bytes(&case[it]));
            let numbers = unpacked(&Packed { words, scales, biases }, dtype, scheme);
            let dtype: Float = case["dequantized"].as_str().unwrap().parse().unwrap();
            let mut back = Vec::new();
            numbers.iter().for_each(|it| dtype.write(*it, &mut back));
            let digest: String =
                Sha256::digest(&back).iter().map(|it| format!("{it:02x}")).collect();
            assert_eq!(digest, case["dequantized_sha256"], "{dtype}, {scheme}");
        });
    }

    /// A quantized weight stays what it is when it is dequantized and quantized again. The modes with
    /// float elements do so at once. MLX's affine mode shifts the steps so that zero is one of them,
    /// and may do so once more; then it stays, unless the dtype is too narrow for its 8 bits.
    #[test]
    fn quantizing_again_changes_nothing() {
        recorded(|input, dtype, case| {
            let scheme = scheme(case);
            let again = |numbers: &[f32]| {
                unpacked(&quantize(numbers, dtype, scheme).unwrap(), dtype, scheme)
            };
            let first = again(input);
            let second = again(&first);
            if scheme.mode() != Mode::Affine {
                assert_eq!(first, second, "{dtype}, {scheme}");
            } else if scheme.bits() < 8 || dtype != Float::Bfloat16 {
                assert_eq!(second, again(&second), "{dtype}, {scheme}");
            }
        });
    }

    #[test]
    fn tiny_numbers_stay_tiny() {
        let mut numbers = vec![0.0; 32];
        numbers[3] = f32::from_bits(1 << 12);
        for mode in [Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4] {
            let scheme = Scheme::new(mode, None, None).unwrap();
            let packed = quantize(&numbers, Float::Float32, scheme).unwrap();
            let back = unpacked(&packed, Float::Float32, scheme);
            assert!(back.iter().all(|it| it.abs() < 1e-37), "{mode}");
        }
    }

    #[test]
    fn no_e4m3_byte_that_is_written_is_nan() {
        for x in [447.9, 463.9, 464.0, 480.0, f32::MAX, f32::INFINITY, f32::NAN] {
            assert_eq!([to_e4m3(x) & 0x7F, to_e4m3(-x) & 0x7F], [0x7E; 2], "{x}");
        }
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut numbers = vec![0.5; 64];
            numbers[40] = bad;
            let scheme = Scheme::new(Mode::Affine, Some(4), Some(64)).unwrap();
            assert_eq!(quantize(&numbers, Float::Float32, scheme), None);
        }
    }
}
