//! What fp32 makes of a long sum, without adding it up.
//!
//! torch adds the sorted row in 16 lanes. While a lane's running sum lies between two powers of
//! two, each term that joins it is rounded to the same grid, whatever the order: to multiples of
//! the running sum's last bit. So it is enough to know which terms meet which grid, and that
//! follows from the running mass. In doubt are the terms about where the grid changes.

use mlxgk_torch::vector::{self, room, sum};

use crate::histogram::Histogram;

/// Lanes of torch's sum.
const LANES: f64 = 16.0;

/// Grids that are distinguished; where the lanes' sums were lower still, rounding hardly counts.
const GRIDS: usize = 12;

/// The share of the mass from which on a bucket may hold many equal terms, which round alike.
const CLUSTER: f64 = 1.0 / 128.0;

/// How fp32 rounds the sum of a row in the order of a histogram's buckets.
pub(crate) struct Rounding {
    /// From which bucket on which number, added and taken away again, rounds a term to its grid.
    grids: [(u16, f32); GRIDS],
    unknown: Doubt,
    remaining: Doubt,
}

impl Rounding {
    /// The rounding of a sum of `total`, whose terms rise or do not.
    pub(crate) fn new(histogram: &Histogram, total: f64, rising: bool) -> Self {
        let highest = exponent(total / LANES);
        let (mut unknown, mut remaining) = (Doubt::default(), Doubt::default());
        let mut grids = [(u16::MAX, 0.0); GRIDS];
        let (mut running, mut squares) = (0.0, 0.0);
        for (bucket, (mass, count)) in histogram.contents().enumerate() {
            let (before, mean) = (running, mass / count.max(1.0));
            running += mass;
            squares += mass * mean;
            // How far apart the lanes are: dealt out in rising order, by the largest term so far;
            // in any other, by chance, and six deviations are allowed for.
            let apart = if rising { 1.02 * mean } else { 1.0 + 6.0 * (squares / LANES).sqrt() };
            let (low, high) = (before / LANES - apart, running / LANES + apart);
            let ulp = ulp(high);
            // Terms that are alike or as small as the last bit round alike, or are lost.
            let alike = mass > total * CLUSTER || mean < 16.0 * ulp;
            unknown.add(mass, count, ulp / 2.0, alike);

            let grid = exponent(running / LANES);
            let number = (grid - highest + GRIDS as i32 - 1).max(0) as usize;
            if number == 0 || low <= 0.0 || exponent(low) != exponent(high) {
                remaining.add(mass, count, ulp, alike);
            }
            if number > 0 && grids[number].0 == u16::MAX {
                // 1.5 * 2^23 units of the grid.
                let shift = f32::from_bits(((grid + 127) << 23) as u32) * 1.5;
                grids[number] = (bucket as u16, shift);
            }
        }
        Self { grids, unknown, remaining }
    }

    /// By how much the rounded sum may differ from the true one.
    pub(crate) fn unknown(&self) -> f64 {
        self.unknown.bound()
    }

    /// By how much it may differ from the true one and [`of`](Self::of) it.
    pub(crate) fn remaining(&self) -> f64 {
        self.remaining.bound()
    }

    /// What rounding adds to the sum; `space` is working space.
    pub(crate) fn of(&self, histogram: &Histogram, weights: &[f32], space: &mut Vec<f32>) -> f64 {
        let grids = self.grids;
        let roundings = room(space, weights.len());
        vector::zip_map(histogram.buckets(), weights, roundings, move |&bucket, &weight| {
            let mut shift = 0.0;
            for (first, of_grid) in grids {
                shift = if bucket >= first { of_grid } else { shift };
            }
            ((weight + shift) - shift) - weight
        });
        roundings.chunks(256).map(|it| f64::from(sum(it))).sum()
    }
}

/// How far off a sum may be: by so much at most, and by a random part of that variance.
#[derive(Debug, Clone, Copy, Default)]
struct Doubt {
    most: f64,
    variance: f64,
}

impl Doubt {
    /// Adds the doubt about `count` terms of a total `mass`, each rounded by up to `step`.
    fn add(&mut self, mass: f64, count: f64, step: f64, alike: bool) {
        if alike {
            self.most += (count * step).min(mass);
        } else {
            self.variance += count * step * step / 3.0;
        }
    }

    /// Six deviations of the random part are allowed for.
    fn bound(self) -> f64 {
        self.most + 6.0 * self.variance.sqrt()
    }
}

/// The exponent of a number as fp32 has it.
fn exponent(x: f64) -> i32 {
    ((x as f32).to_bits() >> 23) as i32 - 127
}

/// The last bit of a number as fp32 has it.
fn ulp(x: f64) -> f64 {
    f64::from(exponent(x) - 23).exp2()
}
