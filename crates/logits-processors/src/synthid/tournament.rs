//! The keyed coin flips that watermark and detector share.

use mlxgk_torch::TorchRng;

use crate::{Error, Result};

/// Layers of a tournament; HF's examples have 30. Each takes a pass over the tokens.
const MOST_KEYS: usize = 1024;

/// The settings of the watermark, with HF's names; its detectors need the same.
///
/// ```
/// use mlxgk_logits_processors::{SynthIdText, SynthIdTextWatermarkingConfig};
///
/// let config = SynthIdTextWatermarkingConfig::new(5, vec![654, 400, 836]);
/// assert_eq!((config.context_history_size, config.sampling_table_size), (1024, 1 << 16));
/// let wrong = SynthIdTextWatermarkingConfig { ngram_len: 0, ..config };
/// println!("{}", SynthIdText::new(&wrong).unwrap_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SynthIdTextWatermarkingConfig {
    /// How many tokens, the candidate among them, decide about its coin flips. At least 1.
    pub ngram_len: usize,
    /// The secrets, one per layer of the tournament, 1024 at most.
    pub keys: Vec<i64>,
    /// How many earlier contexts are remembered, to leave repeated ones unmarked.
    pub context_history_size: usize,
    /// The seed of the table of coin flips.
    pub sampling_table_seed: u64,
    /// The size of the table, 1 to 2^24.
    pub sampling_table_size: usize,
    /// Whether the first `ngram_len - 1` tokens stay unmarked.
    pub skip_first_ngram_calls: bool,
    /// Whether to replace the scores by equal ones first, to see the watermark alone.
    pub debug_mode: bool,
}

impl SynthIdTextWatermarkingConfig {
    /// HF's defaults with these secrets.
    pub fn new(ngram_len: usize, keys: Vec<i64>) -> Self {
        Self {
            ngram_len,
            keys,
            context_history_size: 1024,
            sampling_table_seed: 0,
            sampling_table_size: 1 << 16,
            skip_first_ngram_calls: false,
            debug_mode: false,
        }
    }
}

/// The hash and the table behind the coin flips ("g-values").
#[derive(Debug, Clone)]
pub(super) struct Tournament {
    pub(super) config: SynthIdTextWatermarkingConfig,
    table: Vec<u8>,
}

impl Tournament {
    pub(super) fn new(config: &SynthIdTextWatermarkingConfig) -> Result<Self> {
        if config.ngram_len == 0 {
            return Err(Error::parameter("ngram_len", "above 0", 0));
        }
        if config.keys.len() > MOST_KEYS {
            let rule = format!("at most {MOST_KEYS} numbers");
            return Err(Error::parameter("keys", &rule, config.keys.len()));
        }
        let size = config.sampling_table_size;
        if size == 0 || size > 1 << 24 {
            return Err(Error::parameter("sampling_table_size", "above 0 and at most 2^24", size));
        }
        let mut rng = TorchRng::new(config.sampling_table_seed);
        let table = (0..size).map(|_| rng.randint(2) as u8).collect();
        Ok(Self { config: config.clone(), table })
    }

    /// The hash of the `ngram_len - 1` tokens before position `end` of `tokens`; where the text is
    /// shorter, zeros stand in for what is missing.
    pub(super) fn context_hash(&self, tokens: &[u32], end: usize) -> u64 {
        let length = self.config.ngram_len - 1;
        let missing = length.saturating_sub(end);
        let so_far = &tokens[end.saturating_sub(length)..end];
        so_far
            .iter()
            .fold(accumulate_zeros(1, missing), |hash, &token| accumulate(hash, token.into()))
    }

    /// Whether the last of `hashes` is among the remembered ones before it. HF's memory starts out
    /// full of zeros, so a hash of zero counts as seen until it has been filled.
    pub(super) fn is_repeated(&self, hashes: &[u64]) -> bool {
        let Some((hash, earlier)) = hashes.split_last() else {
            return false;
        };
        let size = self.config.context_history_size;
        let remembered = &earlier[earlier.len().saturating_sub(size)..];
        remembered.contains(hash) || (*hash == 0 && remembered.len() < size)
    }

    /// The coin flip under `key` of the n-gram with this hash: 0 or 1.
    #[inline]
    pub(super) fn flip(&self, ngram: u64, key: i64) -> u8 {
        let hash = accumulate(ngram, key as u64);
        let size = self.table.len() as u64;
        // HF's index is the signed hash modulo the size, never negative. For a power of two that
        // is the low bits, whatever the sign.
        let index = if size.is_power_of_two() {
            hash & (size - 1)
        } else {
            (hash as i64).rem_euclid(size as i64) as u64
        };
        self.table[index as usize]
    }
}

const FACTOR: u64 = 6_364_136_223_846_793_005;

/// One step of the hash, a linear congruential generator with musl's constants.
#[inline]
pub(super) fn accumulate(hash: u64, data: u64) -> u64 {
    hash.wrapping_add(data).wrapping_mul(FACTOR).wrapping_add(1)
}

/// So many steps with zeros, however many: each is the same affine map, so that powers of it do.
fn accumulate_zeros(mut hash: u64, mut count: usize) -> u64 {
    let (mut factor, mut summand) = (FACTOR, 1_u64);
    while count > 0 {
        if count % 2 == 1 {
            hash = hash.wrapping_mul(factor).wrapping_add(summand);
        }
        summand = summand.wrapping_mul(factor.wrapping_add(1));
        factor = factor.wrapping_mul(factor);
        count /= 2;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_zeros_are_one_after_the_other() {
        for hash in [1, 77, u64::MAX] {
            let mut slow = hash;
            for count in 0..70 {
                assert_eq!(accumulate_zeros(hash, count), slow);
                slow = accumulate(slow, 0);
            }
        }
        // As long as the largest context there is.
        accumulate_zeros(1, usize::MAX);
    }
}
