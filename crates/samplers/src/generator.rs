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
        self.from(0)
    }

    /// The size of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// The probability of a token.
    pub fn probability(&self, id: u32) -> f32 {
        self.place(id).map_or(0.0, |place| self.probs[place])
    }

    fn from(&self, place: usize) -> impl Iterator<Item = (u32, f32)> + use<'a> {
        let (ids, probs) = (self.ids, self.probs);
        (place..probs.len()).map(move |at| (ids.map_or(at as u32, |ids| ids[at]), probs[at]))
    }

    /// Where a token stands in the list.
    fn place(&self, id: u32) -> Option<usize> {
        match self.ids {
            Some(ids) => ids.binary_search(&id).ok(),
            None => Some(id as usize).filter(|&place| place < self.probs.len()),
        }
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
        while drawn.len() < count {
            let total: f64 = block_masses(distribution, drawn).sum();
            let Some(id) = at_mass(distribution, drawn, self.uniform_f64() * total) else { return };
            drawn.push(id);
        }
    }

    /// Nothing: the streams of other rows do not depend on this one.
    fn skip(&mut self, _: usize) {}
}

/// Probabilities that are added up before a draw looks at each of them.
const BLOCK: usize = 256;

/// The masses of the blocks of a distribution, without the tokens drawn before.
fn block_masses(distribution: &Distribution<'_>, drawn: &[u32]) -> impl Iterator<Item = f64> {
    distribution.probs.chunks(BLOCK).enumerate().map(move |(block, probs)| {
        let drawn = drawn.iter().filter_map(|&id| distribution.place(id));
        let drawn = drawn.filter(|place| place / BLOCK == block);
        f64::from(sum(probs)) - drawn.map(|place| f64::from(distribution.probs[place])).sum::<f64>()
    })
}

/// The first token at which the running mass of those not drawn before exceeds `mass`.
fn at_mass(distribution: &Distribution<'_>, drawn: &[u32], mut mass: f64) -> Option<u32> {
    let left = |&(id, prob): &(u32, f32)| prob > 0.0 && !drawn.contains(&id);
    for (block, block_mass) in block_masses(distribution, drawn).enumerate() {
        if mass >= block_mass {
            mass -= block_mass;
            continue;
        }
        let mut found = None;
        for (id, prob) in distribution.from(block * BLOCK).take(BLOCK).filter(left) {
            found = Some(id);
            mass -= f64::from(prob);
            if mass < 0.0 {
                break;
            }
        }
        if found.is_some() {
            return found;
        }
    }
    // Rounding may leave a little beyond the last token, which then is meant.
    distribution.iter().filter(left).last().map(|(id, _)| id)
}

/// A sum in lanes, which compilers vectorise.
fn sum(terms: &[f32]) -> f32 {
    let (chunks, rest) = terms.as_chunks::<16>();
    let mut lanes = [0.0; 16];
    for chunk in chunks {
        for (lane, term) in lanes.iter_mut().zip(chunk) {
            *lane += term;
        }
    }
    lanes.iter().chain(rest).sum()
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
pub struct Streams(Kind);

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Torch(Box<TorchRng>),
    Fast { seed: u64, rows: Vec<FastRng> },
}

impl Streams {
    /// torch's stream after `torch.manual_seed(seed)`. The rows share it: in every step each row
    /// must draw or skip, in order.
    pub fn torch(seed: u64) -> Self {
        Self(Kind::Torch(Box::new(TorchRng::new(seed))))
    }

    /// A stream per row under a seed, of which those of the first `rows` are made at once.
    pub fn fast(seed: u64, rows: usize) -> Self {
        let rows = (0..rows as u64).map(|row| FastRng::new(seed, row)).collect();
        Self(Kind::Fast { seed, rows })
    }

    /// The generator of a row.
    pub fn row(&mut self, row: usize) -> &mut dyn Generator {
        match &mut self.0 {
            Kind::Torch(rng) => rng.as_mut(),
            Kind::Fast { seed, rows } => {
                for new in rows.len()..=row {
                    rows.push(FastRng::new(*seed, new as u64));
                }
                &mut rows[row]
            }
        }
    }
}
