//! torch's CPU generator, bit for bit.
//!
//! It repeats how torch 2.15 turns the outputs of the Mersenne Twister (Matsumoto and Nishimura,
//! 1998) into numbers. CUDA and MPS have other generators and give other numbers.

use rand_mt::Mt;

use crate::random_seed;

/// From this size on, torch's `randperm` takes 64-bit draws, to keep the modulo bias small.
const WIDE_PERMUTATION: u32 = u32::MAX / 20;

/// From this range on, torch's `randint` takes 64-bit draws.
const WIDE_RANGE: u64 = 1 << 28;

/// torch's default CPU generator (`torch.Generator(device="cpu")`).
///
/// ```
/// use mlxgk_torch::TorchRng;
///
/// // torch.manual_seed(0); torch.rand(2)
/// let mut rng = TorchRng::new(0);
/// assert_eq!([rng.uniform_f32(), rng.uniform_f32()], [0.49625659, 0.76822180]);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TorchRng(Mt);

impl TorchRng {
    /// The generator after `torch.manual_seed(seed)`; a negative seed is its two's complement.
    pub fn new(seed: u64) -> Self {
        // torch keeps the 64 bits for `initial_seed()` and seeds the twister with the low half.
        Self(Mt::new(seed as u32))
    }

    /// A generator with a [random seed](random_seed).
    pub fn unseeded() -> Self {
        Self::new(random_seed())
    }

    /// The twister's next output (torch's `random()`).
    pub fn next_u32(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// Two outputs, the first in the upper half (torch's `random64()`).
    pub fn next_u64(&mut self) -> u64 {
        let high = u64::from(self.next_u32());
        high << 32 | u64::from(self.next_u32())
    }

    /// One value of `torch.rand` in fp32: 24 bits, in `[0, 1)`.
    pub fn uniform_f32(&mut self) -> f32 {
        (self.next_u32() & 0x00ff_ffff) as f32 / (1 << 24) as f32
    }

    /// One value of `torch.rand` in fp64: 53 bits, in `[0, 1)`.
    pub fn uniform_f64(&mut self) -> f64 {
        (self.next_u64() & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    /// One value of `Tensor.exponential_()` in fp32, which torch computes in fp64 and rounds.
    pub fn exponential_f32(&mut self) -> f32 {
        -(-self.uniform_f64()).ln_1p() as f32
    }

    /// One value of `torch.randint(high, ...)`, in `0..high`; 0 for an empty range, where torch
    /// raises.
    pub fn randint(&mut self, high: u64) -> u64 {
        match high {
            0 => 0,
            1..WIDE_RANGE => u64::from(self.next_u32()) % high,
            _ => self.next_u64() % high,
        }
    }

    /// `torch.randperm(n)`: a Fisher-Yates shuffle of `0..n` from the left.
    pub fn randperm(&mut self, n: u32) -> Vec<u32> {
        let mut items: Vec<u32> = (0..n).collect();
        self.shuffle_head(&mut items, n.saturating_sub(1));
        items
    }

    /// The first `count` steps of the shuffle that [`randperm`](Self::randperm) makes of `items`,
    /// after which the first `count` items are final.
    pub fn shuffle_head(&mut self, items: &mut [u32], count: u32) {
        let n = items.len() as u32;
        for at in 0..count.min(n) {
            items.swap(at as usize, (at + self.swap_distance(n, at)) as usize);
        }
    }

    /// How far to the right of `at` the shuffle of `n` items finds the one to put there: for
    /// following one item through a shuffle without making it. 0 where `at` is not below `n`.
    pub fn swap_distance(&mut self, n: u32, at: u32) -> u32 {
        let left = n.saturating_sub(at).max(1);
        if n < WIDE_PERMUTATION {
            self.next_u32() % left
        } else {
            (self.next_u64() % u64::from(left)) as u32
        }
    }
}
