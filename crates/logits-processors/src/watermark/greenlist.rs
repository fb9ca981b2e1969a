//! Which tokens are green after which.

use std::fmt;

use mlxgk_torch::TorchRng;

use crate::{Error, ErrorKind, Result};

/// The size of the table that the self-hash scheme looks tokens up in.
const TABLE_SIZE: u32 = 1_000_003;

/// How the green list follows from the tokens.
///
/// ```
/// use mlxgk_logits_processors::SeedingScheme;
///
/// assert_eq!(SeedingScheme::from_name("selfhash")?, SeedingScheme::SelfHash);
/// assert_eq!(SeedingScheme::default(), SeedingScheme::LeftHash);
/// assert!(SeedingScheme::from_name("righthash").is_err());
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SeedingScheme {
    /// From the last token (algorithm 2 of the paper).
    #[default]
    LeftHash,
    /// From the candidate and the tokens before it (algorithm 3). Slower, harder to remove.
    SelfHash,
}

impl SeedingScheme {
    /// The scheme of a `seeding_scheme` string.
    ///
    /// # Errors
    /// When it is neither `lefthash` nor `selfhash`.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "lefthash" => Ok(Self::LeftHash),
            "selfhash" => Ok(Self::SelfHash),
            _ => Err(Error::parameter("seeding_scheme", "`lefthash` or `selfhash`", name)),
        }
    }
}

/// The settings of a watermark, with HF's names and defaults; its detector needs the same.
///
/// ```
/// use mlxgk_logits_processors::{Context, LogitsProcessor, Watermark, WatermarkingConfig};
///
/// let config = WatermarkingConfig { greenlist_ratio: 0.5, bias: 3.0, ..Default::default() };
/// let mut scores = [0.0; 20];
/// Watermark::new(&config, 20)?.process(&Context::new(&[10], 1), &mut scores)?;
/// assert_eq!(scores.iter().filter(|it| **it == 3.0).count(), 10);
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct WatermarkingConfig {
    /// The share of the vocabulary that is green, between 0 and 1.
    pub greenlist_ratio: f64,
    /// What is added to the score of a green token.
    pub bias: f64,
    /// The secret.
    pub hashing_key: i64,
    /// How the green list follows from the tokens.
    pub seeding_scheme: SeedingScheme,
    /// How many tokens the seed depends on.
    pub context_width: usize,
}

impl Default for WatermarkingConfig {
    fn default() -> Self {
        Self {
            greenlist_ratio: 0.25,
            bias: 2.0,
            hashing_key: 15_485_863,
            seeding_scheme: SeedingScheme::LeftHash,
            context_width: 1,
        }
    }
}

/// The seeded partition of a vocabulary.
#[derive(Clone)]
pub(super) struct Greenlist {
    pub(super) config: WatermarkingConfig,
    vocab_size: u32,
    /// How many tokens are green.
    size: u32,
    /// A permutation, made for the self-hash scheme only.
    table: Vec<u32>,
}

impl Greenlist {
    pub(super) fn new(config: &WatermarkingConfig, vocab_size: usize) -> Result<Self> {
        let ratio = config.greenlist_ratio;
        if !(ratio > 0.0 && ratio < 1.0) {
            let rule = "above 0 and below 1";
            return Err(Error::parameter("greenlist_ratio", rule, ratio));
        }
        if config.context_width == 0 {
            return Err(Error::parameter("context_width", "above 0", 0));
        }
        let vocab_size = u32::try_from(vocab_size)
            .map_err(|_| Error::parameter("vocab_size", "below 2^32", vocab_size))?;
        let table = match config.seeding_scheme {
            SeedingScheme::LeftHash => Vec::new(),
            SeedingScheme::SelfHash => {
                TorchRng::new(config.hashing_key as u64).randperm(TABLE_SIZE)
            }
        };
        let size = (f64::from(vocab_size) * ratio) as u32;
        Ok(Self { config: config.clone(), vocab_size, size, table })
    }

    /// The seed after `tokens`, of which the last `context_width` count. In the self-hash scheme
    /// the last one is the candidate itself. HF computes the seed from Python's unbounded integers
    /// in one scheme, and from wrapping 64-bit ones in the other.
    pub(super) fn seed(&self, tokens: &[u32]) -> Result<u64> {
        let Some(&last) = tokens.last() else {
            let message = "a watermark's seed needs at least one token";
            return Err(Error::new(ErrorKind::Parameter, message));
        };
        let key = self.config.hashing_key;
        let hash = match self.config.seeding_scheme {
            SeedingScheme::LeftHash => i128::from(key) * i128::from(last),
            SeedingScheme::SelfHash => {
                let look_up = |token| i64::from(self.table[(token % TABLE_SIZE) as usize]) + 1;
                let window = &tokens[tokens.len().saturating_sub(self.config.context_width)..];
                let hash = |&token| key.wrapping_mul(look_up(token)).wrapping_mul(look_up(last));
                window.iter().map(hash).min().unwrap_or(0).into()
            }
        };
        Ok(hash.rem_euclid(i128::from(u64::MAX)) as u64)
    }

    /// All green tokens under a seed, left in `tokens`: the head of torch's permutation.
    pub(super) fn green(&self, seed: u64, tokens: &mut Vec<u32>) {
        tokens.clear();
        tokens.extend(0..self.vocab_size);
        TorchRng::new(seed).shuffle_head(tokens, self.size);
        tokens.truncate(self.size as usize);
    }

    /// Whether one token is green under a seed. It follows that token through the shuffle, without
    /// making the permutation.
    pub(super) fn is_green(&self, seed: u64, token: u32) -> bool {
        let mut rng = TorchRng::new(seed);
        let mut place = token;
        for at in 0..self.size {
            let other = at + rng.swap_distance(self.vocab_size, at);
            if other == place {
                // It moves to `at`, where the shuffle does not return.
                return true;
            }
            if at == place {
                place = other;
            }
        }
        false
    }
}

impl fmt::Debug for Greenlist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt(f)
    }
}
