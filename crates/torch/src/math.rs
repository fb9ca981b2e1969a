//! fp32 arithmetic in torch's order, for results that agree to the last digits.
//!
//! Over 150,000 tokens the order of a sum moves its last digits: two correct implementations of
//! log-softmax differ by 2e-6. So this module repeats what torch 2.15 does on x86-64 with AVX-512:
//! the exponential of its vector library (Sleef, within 1 ulp), the softmax's sum in 16 lanes that
//! are folded in halves, and the cascade of `torch.sum`. Every step is an IEEE operation, so the
//! bits are the same on every platform.

use crate::vector;

/// `e^x` for `x <= 0`, as Sleef's `expf` within 1 ulp.
///
/// The argument is split as `q ln 2 + s` with `ln 2` in two parts, `e^s` is a polynomial, and `2^q`
/// is applied in two halves so that denormal results come out right. There is no branch and no
/// call, so a loop over it is vectorised where fused multiply-add is available (see
/// [`exp_each`]).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let q = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let whole = shifted - ROUND;
    let s = whole.mul_add(-0.693_145_75, x);
    let s = whole.mul_add(-1.428_606_8e-6, s);
    let mut u: f32 = 0.000_198_527_62;
    for c in [0.001_393_043_6, 0.008_333_361, 0.041_666_485, 0.166_666_67, 0.5] {
        u = u.mul_add(s, c);
    }
    let u = 1.0 + (s * s).mul_add(u, s);
    let half = q >> 1;
    let result = u * power_of_two(half) * power_of_two(q.wrapping_sub(half));
    if x < -104.0 { 0.0 } else { result }
}

/// `2^q`, by writing the exponent's bits.
#[inline(always)]
fn power_of_two(q: i32) -> f32 {
    f32::from_bits((q.wrapping_add(127) << 23) as u32)
}

/// The natural logarithm, correctly rounded in all but a few cases in a billion.
#[inline]
pub fn ln(x: f32) -> f32 {
    f64::from(x).ln() as f32
}

/// `e^(score - max)` of every score, as torch's softmax computes it; `out` is as long as `scores`.
pub fn exp_each(scores: &[f32], max: f32, out: &mut [f32]) {
    vector::map(scores, out, move |score| exp(score - max));
}

/// The highest score; NaN is passed over, and of nothing it is minus infinity.
pub fn max(scores: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let higher = |a: f32, b: f32| if b > a { b } else { a };
    let (whole, rest) = scores.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, &score) in lanes.iter_mut().zip(chunk) {
            *lane = higher(*lane, score);
        }
    }
    rest.iter().chain(&lanes).copied().fold(f32::NEG_INFINITY, higher)
}

/// The sum of `e^(score - max)` as torch's softmax and log-softmax take it.
pub fn sum_of_exp(scores: &[f32], max: f32) -> f32 {
    if scores.len() < LANES {
        return scores.iter().map(|score| exp(score - max)).sum();
    }
    fold(vector::dispatch(LanesOfExp { scores, max }))
}

/// A closure would do, were it sure to be inlined where the wide vectors are.
struct LanesOfExp<'a> {
    scores: &'a [f32],
    max: f32,
}

impl pulp::NullaryFnOnce for LanesOfExp<'_> {
    type Output = [f32; LANES];

    #[inline(always)]
    fn call(self) -> Self::Output {
        let mut lanes = [0.0; LANES];
        let (whole, rest) = self.scores.as_chunks::<LANES>();
        for chunk in whole {
            for lane in 0..LANES {
                lanes[lane] += exp(chunk[lane] - self.max);
            }
        }
        for (lane, score) in lanes.iter_mut().zip(rest) {
            *lane += exp(score - self.max);
        }
        lanes
    }
}

/// `torch.softmax` of a row, left in `out`, which takes its length.
pub fn softmax(scores: &[f32], out: &mut Vec<f32>) {
    let max = max(scores);
    let scale = 1.0 / sum_of_exp(scores, max);
    out.resize(scores.len(), 0.0);
    exp_each(scores, max, out);
    out.iter_mut().for_each(|it| *it *= scale);
}

/// Lanes of the sum in torch's softmax: term *i* is added to lane *i* mod 16.
pub const LANES: usize = 16;

/// The sum of the lanes in torch's softmax: the upper half is added to the lower, until one is left.
#[inline]
pub fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Lanes of `torch.sum`, also where the processor has wider vectors.
const SUM_LANES: usize = 8;
/// Terms that `torch.sum` adds up side by side: four vectors.
pub const GROUP: usize = 4 * SUM_LANES;
/// Levels of `torch.sum`'s cascade.
const LEVELS: usize = 4;

/// `torch.sum` of one row, fed term by term.
///
/// It is a cascade: blocks of terms are summed by themselves, then blocks of sums, so that no sum
/// grows large beside its terms. A term that is zero may be left out.
///
/// ```
/// use mlxgk_torch::RowSum;
///
/// let mut sum = RowSum::new(1000);
/// (0..1000).for_each(|place| sum.add(place, 0.1));
/// // torch.full((1000,), 0.1).sum()
/// assert_eq!(sum.finish(), 100.00001);
/// ```
#[derive(Debug, Clone)]
pub struct RowSum {
    levels: [[f32; GROUP]; LEVELS],
    /// The terms after the last whole vector.
    tail: f32,
    len: usize,
    /// log2 of how many groups make a block.
    power: usize,
    /// Groups whose sums have moved up a level.
    moved: usize,
}

impl RowSum {
    /// The empty sum of a row of `len` terms.
    pub fn new(len: usize) -> Self {
        let groups = (len / GROUP).max(1);
        let power = (groups.next_power_of_two().ilog2() as usize / LEVELS).max(4);
        Self { levels: [[0.0; GROUP]; LEVELS], tail: 0.0, len, power, moved: 0 }
    }

    /// Adds the term that stands at `place` in the row; places come in ascending order.
    #[inline]
    pub fn add(&mut self, place: usize, term: f32) {
        let group = place / GROUP;
        self.move_up_to(group);
        if group < self.len / GROUP {
            self.levels[0][place % GROUP] += term;
        } else if place < self.len / SUM_LANES * SUM_LANES {
            self.merge();
            self.levels[0][place % SUM_LANES] += term;
        } else {
            self.tail += term;
        }
    }

    /// Adds the terms from place `group * GROUP` on, all of them at once.
    #[inline]
    pub fn add_group(&mut self, group: usize, terms: &[f32; GROUP]) {
        self.move_up_to(group);
        for (sum, term) in self.levels[0].iter_mut().zip(terms) {
            *sum += term;
        }
    }

    /// The sum.
    pub fn finish(mut self) -> f32 {
        self.merge();
        let [sums, ..] = self.levels;
        let (first, others) = sums.split_at(SUM_LANES);
        let lane = |lane: usize| {
            others.chunks(SUM_LANES).fold(first[lane], |sum, other| sum + other[lane])
        };
        (0..SUM_LANES).map(lane).fold(self.tail, |sum, lane| sum + lane)
    }

    /// Moves up the sums of all blocks before a group.
    #[inline]
    fn move_up_to(&mut self, group: usize) {
        while self.moved + (1 << self.power) <= group {
            self.move_up();
        }
    }

    /// Moves the sums of one block up, through every level that is full.
    fn move_up(&mut self) {
        self.moved += 1 << self.power;
        for level in 1..LEVELS {
            self.lift(level - 1, level);
            let mask = ((1 << self.power) - 1) << (level * self.power);
            if self.moved & mask != 0 {
                break;
            }
        }
    }

    /// Moves all levels into the lowest. What was moved is zero, so doing it twice changes nothing.
    fn merge(&mut self) {
        self.move_up_to(self.len / GROUP);
        for level in 1..LEVELS {
            self.lift(level, 0);
        }
    }

    /// Adds the sums of level `from` to those of level `to`.
    fn lift(&mut self, from: usize, to: usize) {
        let sums = std::mem::replace(&mut self.levels[from], [0.0; GROUP]);
        for (sum, term) in self.levels[to].iter_mut().zip(sums) {
            *sum += term;
        }
    }
}
