//! fp32 arithmetic in torch's order.
//!
//! Which tokens survive top-p hangs on the last bits of a softmax: over 150,000 tokens, summing in
//! another order moves the sum by up to 400 ulp, and the cut with it. So this module repeats what
//! torch 2.15 does on x86-64 with AVX-512: the exponential of its vector library (Sleef, 1 ulp), a
//! sum in 16 lanes that are folded in halves, a multiplication by the reciprocal. The result is
//! the same bits on every platform, because every step is an IEEE operation (a fused multiply-add
//! among them), and the same as torch's where torch runs on such a processor.

use crate::simd;

/// `e^x` for `x <= 0`: Sleef's `expf` at 1 ulp.
///
/// The argument is split as `q ln 2 + s` with `ln 2` in two parts, `e^s` is a polynomial in Horner
/// form, and `2^q` is applied in two halves so that denormal results come out right.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits, also without SSE 4.1.
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

/// `2^q` by writing the exponent field.
#[inline(always)]
fn power_of_two(q: i32) -> f32 {
    f32::from_bits((q.wrapping_add(127) << 23) as u32)
}

/// The fp32 number nearest to `e^x`, in all but a few cases in a thousand, for `x <= 0`.
///
/// `torch.exp` is another kernel than the softmax's, and comes closer to this one.
#[inline(always)]
fn exp_nearest(x: f32) -> f32 {
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let wide = f64::from(x);
    let shifted = wide * std::f64::consts::LOG2_E + ROUND;
    let s = wide - (shifted - ROUND) * std::f64::consts::LN_2;
    // The Taylor series; the first term left out is below 2^-32.
    let mut u = 1.0 / 40_320.0;
    for c in [1.0 / 5_040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        u = u * s + c;
    }
    let power = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    if x < -104.0 { 0.0 } else { (u * power) as f32 }
}

/// The natural logarithm, correctly rounded in all but a few cases in a billion.
pub(crate) fn ln(x: f32) -> f32 {
    f64::from(x).ln() as f32
}

/// `exp(x - max)` of every score, as torch's softmax computes it.
pub(crate) fn exp_each(scores: &[f32], max: f32, out: &mut [f32]) {
    simd::map(scores, out, move |score| exp(score - max));
}

/// A row of terms of which all that are missing are zero, and so change no sum.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a> {
    /// The length of the whole row.
    pub(crate) len: usize,
    /// Where in it the terms stand.
    pub(crate) places: Places<'a>,
}

/// Where in a row terms stand.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Places<'a> {
    /// One after the other, from this place on.
    From(usize),
    /// At these places, in ascending order.
    At(&'a [u32]),
}

/// Lanes of the sum in torch's softmax.
const LANES: usize = 16;

/// Lanes of `torch.sum`, also where the processor has wider vectors.
const SUM_LANES: usize = 8;
/// Vectors `torch.sum` adds up side by side.
const SIDE_BY_SIDE: usize = 4;
/// Terms of the vectors side by side.
const GROUP: usize = SUM_LANES * SIDE_BY_SIDE;
/// Levels of `torch.sum`'s cascade.
const LEVELS: usize = 4;

/// Partial sums of one level.
type Sums = [[f32; SUM_LANES]; SIDE_BY_SIDE];

impl Row<'_> {
    /// The sum in torch's softmax: 16 running sums, folded in halves; of a shorter row, one.
    pub(crate) fn softmax_sum(self, terms: &[f32]) -> f32 {
        if self.len < LANES {
            return terms.iter().sum();
        }
        let mut lanes = [0.0; LANES];
        match self.places {
            Places::At(places) => {
                for (&place, term) in places.iter().zip(terms) {
                    lanes[place as usize % LANES] += term;
                }
            }
            Places::From(first) => {
                let (head, terms) = terms.split_at((first.wrapping_neg() % LANES).min(terms.len()));
                add(&mut lanes[first % LANES..], head);
                let (chunks, rest) = terms.as_chunks::<LANES>();
                for chunk in chunks {
                    add(&mut lanes, chunk);
                }
                add(&mut lanes, rest);
            }
        }
        fold(lanes)
    }

    /// `torch.sum`: a cascade, in which blocks of sums move up from level to level.
    pub(crate) fn sum(self, terms: &[f32]) -> f32 {
        let mut cascade = Cascade::new(self.len);
        match self.places {
            Places::At(places) => {
                for (&place, &term) in places.iter().zip(terms) {
                    cascade.add(place as usize, term);
                }
            }
            Places::From(first) => {
                let (head, terms) = terms.split_at((first.wrapping_neg() % GROUP).min(terms.len()));
                for (at, &term) in head.iter().enumerate() {
                    cascade.add(first + at, term);
                }
                let first = first + head.len();
                let (groups, rest) = terms.as_chunks::<GROUP>();
                for (group, terms) in groups.iter().enumerate() {
                    cascade.add_group(first / GROUP + group, terms);
                }
                for (at, &term) in rest.iter().enumerate() {
                    cascade.add(first + groups.len() * GROUP + at, term);
                }
            }
        }
        cascade.finish()
    }

    /// `torch.distributions.Categorical(logits=...)`: fills in `probs`, returns the entropy in
    /// nats. `max` is the highest of the logits, `terms` working space.
    pub(crate) fn categorical(
        self,
        logits: &[f32],
        max: f32,
        probs: &mut [f32],
        terms: &mut [f32],
    ) -> f32 {
        simd::map(logits, terms, move |logit| exp_nearest(logit - max));
        let log_sum = ln(self.sum(terms)) + max;
        let max = max - log_sum;
        simd::map(logits, probs, move |logit| exp((logit - log_sum) - max));
        let scale = 1.0 / self.softmax_sum(probs);
        for ((term, logit), prob) in terms.iter_mut().zip(logits).zip(probs) {
            *prob *= scale;
            // torch clamps the logits, so that a banned one times zero is zero.
            *term = (logit - log_sum).max(f32::MIN) * *prob;
        }
        -self.sum(terms)
    }

    /// The entropy in nats of the distribution with these logarithms, as `torch.nansum` of
    /// `log p * exp(log p)` gives it; `terms` is working space.
    pub(crate) fn entropy(
        self,
        scores: &[f32],
        log_prob: impl Fn(f32) -> f32,
        terms: &mut [f32],
    ) -> f32 {
        simd::map(scores, terms, move |&score| {
            let log_prob = log_prob(score);
            // What is banned would give infinity times zero, which `nansum` passes over.
            exp_nearest(log_prob) * log_prob.max(f32::MIN)
        });
        -self.sum(terms)
    }
}

fn add(sums: &mut [f32], terms: &[f32]) {
    for (sum, term) in sums.iter_mut().zip(terms) {
        *sum += term;
    }
}

/// Folds the lanes in halves.
fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// The running sums of [`Row::sum`]; terms come in ascending order of their places.
#[derive(Debug, Clone)]
struct Cascade {
    levels: [Sums; LEVELS],
    tail: f32,
    /// Whole vectors in the row, and how many of them stand in whole groups side by side.
    vectors: usize,
    cascaded: usize,
    /// log2 of how many groups are summed before their sums move up.
    power: usize,
    /// Groups whose sums have moved up.
    moved: usize,
    merged: bool,
}

impl Cascade {
    fn new(len: usize) -> Self {
        let vectors = len / SUM_LANES;
        let groups = vectors / SIDE_BY_SIDE;
        let power = (groups.max(1).next_power_of_two().ilog2() as usize / LEVELS).max(4);
        Self {
            levels: [[[0.0; SUM_LANES]; SIDE_BY_SIDE]; LEVELS],
            tail: 0.0,
            vectors,
            cascaded: groups * SIDE_BY_SIDE,
            power,
            moved: 0,
            merged: false,
        }
    }

    fn add(&mut self, place: usize, term: f32) {
        let (vector, lane) = (place / SUM_LANES, place % SUM_LANES);
        if vector < self.cascaded {
            self.move_up_to(vector / SIDE_BY_SIDE);
            self.levels[0][vector % SIDE_BY_SIDE][lane] += term;
        } else if vector < self.vectors {
            self.merge();
            self.levels[0][0][lane] += term;
        } else {
            self.tail += term;
        }
    }

    /// Adds the terms of a whole group.
    fn add_group(&mut self, group: usize, terms: &[f32; GROUP]) {
        self.move_up_to(group);
        add(self.levels[0].as_flattened_mut(), terms);
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
            let (low, high) = self.levels.split_at_mut(level);
            add(high[0].as_flattened_mut(), low[level - 1].as_flattened());
            low[level - 1] = Sums::default();
            let mask = ((1 << self.power) - 1) << (level * self.power);
            if self.moved & mask != 0 {
                break;
            }
        }
    }

    /// Folds all levels into the lowest, once.
    fn merge(&mut self) {
        if !self.merged {
            self.move_up_to(self.cascaded / SIDE_BY_SIDE);
            let (lowest, higher) = self.levels.split_at_mut(1);
            for level in higher {
                add(lowest[0].as_flattened_mut(), level.as_flattened());
            }
            self.merged = true;
        }
    }

    fn finish(mut self) -> f32 {
        self.merge();
        let [mut sums, others @ ..] = self.levels[0];
        for other in &others {
            add(&mut sums, other);
        }
        sums.iter().fold(self.tail, |sum, lane| sum + lane)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Leaving out the zeros of a row changes no sum.
    #[test]
    fn zeros_may_be_left_out() {
        for len in [1, 7, 15, 16, 17, 63, 64, 65, 1000, 4095, 70_001] {
            let mut state = len as u32;
            let row: Vec<f32> = (0..len)
                .map(|_| {
                    state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
                    if state >> 30 == 0 { (state >> 8) as f32 * 1e-6 } else { 0.0 }
                })
                .collect();
            let places: Vec<u32> = (0..len as u32).filter(|&at| row[at as usize] > 0.0).collect();
            let terms: Vec<f32> = places.iter().map(|&at| row[at as usize]).collect();
            let whole = Row { len, places: Places::From(0) };
            let listed = Row { len, places: Places::At(&places) };
            assert_eq!(whole.softmax_sum(&row), listed.softmax_sum(&terms), "{len}");
            assert_eq!(whole.sum(&row), listed.sum(&terms), "{len}");
            let last = row.iter().take_while(|&&it| it == 0.0).count();
            let late = Row { len, places: Places::From(last) };
            assert_eq!(whole.softmax_sum(&row), late.softmax_sum(&row[last..]), "{len}");
        }
    }

    #[test]
    fn exponentials_are_close() {
        for at in 0..20_000 {
            let x = at as f32 * -0.0055;
            let exact = f64::from(x).exp();
            for y in [exp(x), exp_nearest(x)] {
                let error = (f64::from(y) - exact).abs();
                assert!(error <= exact * 1.2e-7 + 1.5e-45, "e^{x} = {exact}, not {y}");
            }
        }
        assert_eq!((exp(f32::NEG_INFINITY), exp_nearest(f32::NEG_INFINITY)), (0.0, 0.0));
        assert_eq!((exp(0.0), exp_nearest(0.0)), (1.0, 1.0));
    }
}
