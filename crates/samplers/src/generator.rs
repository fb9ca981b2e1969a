//! Random generators, and torch's multinomial draw.
//!
//! torch draws by a race: it gives every token of the vocabulary an exponential variate `q` and
//! takes the highest `p / q`, so one draw costs two outputs of the twister per token, banned or
//! not, and every row of a batch moves the one stream on. That is what seeded parity takes.

use mlxgk_torch::TorchRng;

use crate::distribution::Distribution;

/// A source of randomness for one row: [`TorchRng`], [`FastRng`](crate::FastRng), or any of `rand`'s
/// by [`FromRand`](crate::FromRand).
///
/// ```
/// use mlxgk_samplers::{Distribution, FastRng, Generator, TorchRng};
///
/// let probs = [0.1, 0.0, 0.6, 0.3];
/// let mut drawn = Vec::new();
/// // torch.manual_seed(0); torch.multinomial(torch.tensor([0.1, 0.0, 0.6, 0.3]), 3)
/// TorchRng::new(0).draw(&Distribution::new(&probs), 3, &mut drawn);
/// assert_eq!(drawn, [2, 3, 0]);
/// FastRng::new(0, 0).draw(&Distribution::new(&probs), 3, &mut drawn);
/// assert!(!drawn.contains(&1));
/// ```
pub trait Generator {
    /// A number in `[0, 1)`.
    fn uniform(&mut self) -> f32;

    /// Draws up to `count` different tokens, in the order drawn, into `drawn`, which is cleared.
    ///
    /// Fewer come out where fewer have a probability above 0.
    fn draw(&mut self, distribution: &Distribution<'_>, count: usize, drawn: &mut Vec<u32>);

    /// The number in `[0, 1)` at which a draw of one token inverts the cumulative distribution, over the
    /// tokens in the order of their ids; moves on as that draw does. `None` for a generator that draws in
    /// another way. With it a draw can be made elsewhere, such as on a GPU.
    ///
    /// ```
    /// use mlxgk_samplers::{Distribution, FastRng, Generator, TorchRng};
    ///
    /// let mut drawn = Vec::new();
    /// FastRng::new(0, 0).draw(&Distribution::new(&[0.5, 0.5]), 1, &mut drawn);
    /// let quantile = FastRng::new(0, 0).quantile().unwrap_or_default();
    /// assert_eq!(drawn, [u32::from(quantile >= 0.5)]);
    /// assert_eq!(TorchRng::new(0).quantile(), None);
    /// ```
    fn quantile(&mut self) -> Option<f64> {
        None
    }

    /// Moves on as a draw from a vocabulary of this size would: what a finished row of a batch
    /// does in HF.
    fn skip(&mut self, vocab: usize);
}

impl Generator for TorchRng {
    fn uniform(&mut self) -> f32 {
        self.uniform_f32()
    }

    /// `torch.multinomial(probs, count)` without replacement.
    fn draw(&mut self, distribution: &Distribution<'_>, count: usize, drawn: &mut Vec<u32>) {
        drawn.clear();
        if count == 0 {
            return self.skip(distribution.vocab());
        }
        if count == 1 {
            let (mut best, mut winner) = (0.0, None);
            race(self, distribution, |id, prob, u| {
                if let Some(ratio) = ratio_above(best, prob, u) {
                    (best, winner) = (ratio, Some(id));
                }
            });
            drawn.extend(winner);
            return;
        }
        let mut finishers: Vec<(f32, u32)> = Vec::with_capacity(count + 1);
        race(self, distribution, |id, prob, u| {
            let least = if finishers.len() < count { 0.0 } else { finishers[count - 1].0 };
            if let Some(ratio) = ratio_above(least, prob, u) {
                let place = finishers.partition_point(|finisher| finisher.0 >= ratio);
                finishers.insert(place, (ratio, id));
                finishers.truncate(count);
            }
        });
        drawn.extend(finishers.iter().map(|finisher| finisher.1));
    }

    fn skip(&mut self, vocab: usize) {
        for _ in 0..2 * vocab {
            self.next_u32();
        }
    }
}

/// Gives every token of the vocabulary a uniform number, and calls `visit` with those of the
/// distribution: the token, its probability, its number.
fn race(rng: &mut TorchRng, distribution: &Distribution<'_>, mut visit: impl FnMut(u32, f32, f64)) {
    let mut next = 0;
    for (id, prob) in distribution.iter() {
        rng.skip(id as usize - next);
        next = id as usize + 1;
        visit(id, prob, rng.uniform_f64());
    }
    rng.skip(distribution.vocab() - next);
}

/// `p / q` for the exponential variate `q = -ln(1 - u)`, if it is above `least`.
///
/// `q` is never below `u`, which spares nearly all tokens the logarithm.
fn ratio_above(least: f32, prob: f32, u: f64) -> Option<f32> {
    const ROUNDING: f64 = 1.0 - 1e-6;
    if f64::from(prob) <= f64::from(least) * u * ROUNDING {
        return None;
    }
    let ratio = prob / -(-u).ln_1p() as f32;
    (ratio > least).then_some(ratio)
}
