//! fp32 arithmetic in torch's order.
//!
//! Which tokens survive top-p hangs on the last bits of a softmax: over 150,000 tokens, summing in
//! another order moves the sum by up to 400 ulp, and the cut with it. So this module repeats what
//! torch 2.15 does on x86-64 with AVX-512: the exponential of its vector library (Sleef, 1 ulp), a
//! sum in 16 lanes that are folded in halves, a multiplication by the reciprocal. The result is
//! the same bits on every platform, because every step is an IEEE operation (a fused multiply-add
//! among them), and the same as torch's where torch runs on such a processor.

/// Lanes of the vector unit torch's softmax ran on.
const LANES: usize = 16;

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

/// `e^x`, correctly rounded: closer to `torch.exp`, which is another kernel than the softmax's.
pub(crate) fn exp_rounded(x: f32) -> f32 {
    f64::from(x).exp() as f32
}

/// The natural logarithm, correctly rounded in all but a few cases in a billion.
pub(crate) fn ln(x: f32) -> f32 {
    f64::from(x).ln() as f32
}

/// `exp(x - max)` of every score, with the widest vectors the processor has.
pub(crate) fn exp_each(scores: &[f32], max: f32, out: &mut Vec<f32>) {
    out.clear();
    out.resize(scores.len(), 0.0);
    pulp::Arch::new().dispatch(|| {
        for (out, score) in out.iter_mut().zip(scores) {
            *out = exp(score - max);
        }
    });
}

/// `torch.distributions.Categorical(logits=...)` over a row of `len`, of which the `logits` at the
/// given positions are not banned: fills in `probs` and returns the entropy in nats.
pub(crate) fn categorical(
    logits: &[f32],
    len: usize,
    position: impl Fn(usize) -> usize,
    probs: &mut [f32],
) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = CascadeSum::new(len);
    for (at, &logit) in logits.iter().enumerate() {
        sum.add(position(at), exp_rounded(logit - max));
    }
    let log_sum = ln(sum.finish()) + max;
    let mut sum = LaneSum::new(len);
    for (at, (&logit, prob)) in logits.iter().zip(probs.iter_mut()).enumerate() {
        *prob = exp((logit - log_sum) - (max - log_sum));
        sum.add(position(at), *prob);
    }
    let scale = 1.0 / sum.finish();
    let mut negated = CascadeSum::new(len);
    for (at, (&logit, prob)) in logits.iter().zip(probs).enumerate() {
        *prob *= scale;
        if *prob > 0.0 {
            negated.add(position(at), (logit - log_sum) * *prob);
        }
    }
    -negated.finish()
}

/// torch's sum of a softmax row: 16 running sums, folded in halves; short rows from left to right.
///
/// Fed with the non-zero terms alone it gives the same bits, since adding zero changes nothing.
#[derive(Debug, Clone)]
pub(crate) struct LaneSum {
    lanes: [f32; LANES],
    mask: usize,
}

impl LaneSum {
    /// The empty sum of a row of `len` terms.
    pub(crate) fn new(len: usize) -> Self {
        Self { lanes: [0.0; LANES], mask: if len < LANES { 0 } else { LANES - 1 } }
    }

    /// Adds the term at `position` of the row; positions come in ascending order.
    #[inline]
    pub(crate) fn add(&mut self, position: usize, term: f32) {
        self.lanes[position & self.mask] += term;
    }

    /// Adds a whole row, from position 0 on.
    pub(crate) fn add_row(&mut self, row: &[f32]) {
        let (chunks, rest) = row.as_chunks::<LANES>();
        if self.mask == 0 {
            for term in row {
                self.lanes[0] += term;
            }
            return;
        }
        let mut lanes = self.lanes;
        for chunk in chunks {
            for (lane, term) in lanes.iter_mut().zip(chunk) {
                *lane += term;
            }
        }
        for (lane, term) in lanes.iter_mut().zip(rest) {
            *lane += term;
        }
        self.lanes = lanes;
    }

    /// The sum.
    pub(crate) fn finish(self) -> f32 {
        let mut lanes = self.lanes;
        let mut half = LANES / 2;
        while half > 0 {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
            half /= 2;
        }
        lanes[0]
    }
}

/// Rows of vectors `torch.sum` keeps apart, to overlap their additions.
const ROWS: usize = 4;
/// Lanes of the vectors `torch.sum` uses, also where wider ones exist.
const SUM_LANES: usize = 8;
/// Depth of the cascade.
const LEVELS: usize = 4;

/// `torch.sum` of a row: a cascade of partial sums over four rows of eight lanes.
///
/// Terms that are zero may be left out.
#[derive(Debug, Clone)]
pub(crate) struct CascadeSum {
    sums: [[[f32; SUM_LANES]; ROWS]; LEVELS],
    tail: f32,
    /// Whole vectors in the row.
    vectors: usize,
    /// Vectors that enter the cascade: whole groups of `ROWS`.
    cascaded: usize,
    /// log2 of how many groups are summed before the sums move up a level.
    power: usize,
    /// Groups whose sums have moved up.
    moved: usize,
    merged: bool,
}

impl CascadeSum {
    /// The empty sum of a row of `len` terms.
    pub(crate) fn new(len: usize) -> Self {
        let vectors = len / SUM_LANES;
        let groups = vectors / ROWS;
        let power = (groups.max(1).next_power_of_two().ilog2() as usize / LEVELS).max(4);
        Self {
            sums: [[[0.0; SUM_LANES]; ROWS]; LEVELS],
            tail: 0.0,
            vectors,
            cascaded: groups * ROWS,
            power,
            moved: 0,
            merged: false,
        }
    }

    /// Adds the term at `position` of the row; positions come in ascending order.
    pub(crate) fn add(&mut self, position: usize, term: f32) {
        let (vector, lane) = (position / SUM_LANES, position % SUM_LANES);
        if vector < self.cascaded {
            let group = vector / ROWS;
            while self.moved + (1 << self.power) <= group {
                self.move_up();
            }
            self.sums[0][vector % ROWS][lane] += term;
        } else if vector < self.vectors {
            self.merge();
            self.sums[0][0][lane] += term;
        } else {
            self.tail += term;
        }
    }

    /// The sum.
    pub(crate) fn finish(mut self) -> f32 {
        self.merge();
        let [first, others @ ..] = &mut self.sums[0];
        for row in others {
            for (sum, term) in first.iter_mut().zip(row) {
                *sum += *term;
            }
        }
        first.iter().fold(self.tail, |sum, lane| sum + lane)
    }

    /// Moves the sums of a finished block up, through every level that is full.
    fn move_up(&mut self) {
        self.moved += 1 << self.power;
        for level in 1..LEVELS {
            self.lift(level);
            for row in &mut self.sums[level - 1] {
                *row = [0.0; SUM_LANES];
            }
            let mask = ((1 << self.power) - 1) << (level * self.power);
            if self.moved & mask != 0 {
                break;
            }
        }
    }

    /// Folds all levels into the lowest, once.
    fn merge(&mut self) {
        if self.merged {
            return;
        }
        while self.moved + (1 << self.power) <= self.cascaded / ROWS {
            self.move_up();
        }
        for level in 1..LEVELS {
            let (low, high) = self.sums.split_at_mut(level);
            add_rows(&mut low[0], &high[0]);
        }
        self.merged = true;
    }

    /// Adds the level below onto `level`.
    fn lift(&mut self, level: usize) {
        let (low, high) = self.sums.split_at_mut(level);
        add_rows(&mut high[0], &low[level - 1]);
    }
}

fn add_rows(sums: &mut [[f32; SUM_LANES]; ROWS], terms: &[[f32; SUM_LANES]; ROWS]) {
    for (sum, term) in sums.iter_mut().flatten().zip(terms.iter().flatten()) {
        *sum += term;
    }
}
