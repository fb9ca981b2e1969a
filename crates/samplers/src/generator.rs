//! Where the dice come from: torch's generator, or a fast one with a stream per row.
//!
//! torch draws by a race: it gives every token of the vocabulary an exponential variate `q` and
//! takes the highest `p / q`, so one draw costs two outputs of the twister per token, banned or
//! not, and every row of a batch moves the one stream on. That is what seeded parity takes. The
//! fast generator needs a single number per draw, and its rows have streams of their own, so a
//! row's tokens do not depend on which rows it is batched with.

use mlxgk_logits_processors::TorchRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, SeedableRng};

/// What a token is drawn from: probabilities of some tokens of a vocabulary.
#[derive(Debug, Clone, Copy)]
pub struct Distribution<'a> {
    ids: Option<&'a [u32]>,
    probs: &'a [f32],
    vocab: usize,
}

impl<'a> Distribution<'a> {
    /// A distribution over the whole vocabulary, `probs[id]` being the probability of `id`.
    pub fn new(probs: &'a [f32]) -> Self {
        Self { ids: None, probs, vocab: probs.len() }
    }

    /// A distribution over the tokens `ids`, in ascending order, of a vocabulary of `vocab`.
    pub(crate) fn sparse(ids: Option<&'a [u32]>, probs: &'a [f32], vocab: usize) -> Self {
        Self { ids, probs, vocab }
    }

    /// The tokens with their probabilities, in the order of their ids; those left out have none.
    pub fn iter(&self) -> impl Iterator<Item = (u32, f32)> + use<'a> {
        let (ids, probs) = (self.ids, self.probs);
        probs
            .iter()
            .enumerate()
            .map(move |(at, &prob)| (ids.map_or(at as u32, |ids| ids[at]), prob))
    }

    /// The size of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// The probability of a token.
    pub fn probability(&self, id: u32) -> f32 {
        let at = match self.ids {
            Some(ids) => ids.binary_search(&id).ok(),
            None => Some(id as usize),
        };
        at.and_then(|at| self.probs.get(at)).copied().unwrap_or(0.0)
    }
}

/// A source of randomness for one row.
pub trait Generator {
    /// A number in `[0, 1)`.
    fn uniform(&mut self) -> f32;

    /// Draws up to `count` different tokens, in the order drawn, into `drawn`, which is cleared.
    ///
    /// Fewer come out where fewer have a probability above 0.
    fn draw(&mut self, distribution: &Distribution<'_>, count: usize, drawn: &mut Vec<u32>);

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
        let mut finishers: Vec<(f32, u32)> = Vec::new();
        let mut next = 0;
        for (id, prob) in distribution.iter() {
            self.skip(id as usize - next);
            next = id as usize + 1;
            let ratio = prob / self.exponential_f32();
            if prob > 0.0 {
                let at = finishers.partition_point(|&(other, _)| other >= ratio);
                if at < count {
                    finishers.insert(at, (ratio, id));
                    finishers.truncate(count);
                }
            }
        }
        self.skip(distribution.vocab() - next);
        drawn.extend(finishers.iter().map(|&(_, id)| id));
    }

    fn skip(&mut self, vocab: usize) {
        for _ in 0..2 * vocab {
            self.next_u32();
        }
    }
}

/// A fast generator with a stream for every row (xoshiro256++).
///
/// The stream is a function of the seed and the row alone, and the same on every platform.
#[derive(Debug, Clone, PartialEq)]
pub struct FastRng(Xoshiro256PlusPlus);

impl FastRng {
    /// The stream of a row under a seed.
    pub fn new(seed: u64, row: u64) -> Self {
        // Scrambling the seed first keeps row 1 of seed 0 apart from row 0 of seed 1.
        let mut state = scramble(seed).wrapping_add(row);
        let mut bytes = [0; 32];
        for word in bytes.chunks_exact_mut(8) {
            state = state.wrapping_add(GOLDEN_RATIO);
            word.copy_from_slice(&scramble(state).to_le_bytes());
        }
        Self(Xoshiro256PlusPlus::from_seed(bytes))
    }

    /// A number in `[0, 1)` with 53 bits.
    fn uniform_f64(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl Generator for FastRng {
    fn uniform(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1 << 24) as f32
    }

    /// Inverts the cumulative distribution, with one number per token drawn.
    fn draw(&mut self, distribution: &Distribution<'_>, count: usize, drawn: &mut Vec<u32>) {
        drawn.clear();
        let mut total: f64 = distribution.iter().map(|(_, prob)| f64::from(prob)).sum();
        while drawn.len() < count {
            let mut left = self.uniform_f64() * total;
            let mut last = None;
            for (id, prob) in distribution.iter() {
                if prob > 0.0 && !drawn.contains(&id) {
                    last = Some((id, prob));
                    left -= f64::from(prob);
                    if left < 0.0 {
                        break;
                    }
                }
            }
            // Rounding may leave a little beyond the last token, which then is meant.
            let Some((id, prob)) = last else { return };
            drawn.push(id);
            total -= f64::from(prob);
        }
    }

    /// Nothing: the streams of other rows do not depend on this one.
    fn skip(&mut self, _: usize) {}
}

/// 2^64 over the golden ratio, the step of SplitMix64.
const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64 (Steele, Lea and Flood, 2014).
fn scramble(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The generators of a batch.
#[derive(Debug, Clone, PartialEq)]
pub enum Streams {
    /// One stream that the rows share in turn, as in torch; every row must draw or skip, in order.
    Torch(TorchRng),
    /// A stream per row.
    Fast(Vec<FastRng>),
}

impl Streams {
    /// torch's stream under a seed.
    pub fn torch(seed: u64) -> Self {
        Self::Torch(TorchRng::new(seed))
    }

    /// Streams of the rows `0..rows` under a seed.
    pub fn fast(seed: u64, rows: usize) -> Self {
        Self::Fast((0..rows as u64).map(|row| FastRng::new(seed, row)).collect())
    }

    /// The generator of a row.
    ///
    /// # Panics
    /// When a fast stream's row is beyond those asked for.
    pub fn row(&mut self, row: usize) -> &mut dyn Generator {
        match self {
            Self::Torch(rng) => rng,
            Self::Fast(rows) => &mut rows[row],
        }
    }
}
