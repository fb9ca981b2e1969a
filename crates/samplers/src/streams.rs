//! Which generator serves which row of a batch.

use std::fmt;

use mlxgk_torch::{TorchRng, random_seed};

use crate::fast_rng::FastRng;
use crate::generator::Generator;

/// Where the random numbers of a sampled text come from.
///
/// ```
/// use mlxgk_samplers::{Generator, Seed, Streams};
///
/// let uniform = |seed, row| Streams::from(seed).row(row).uniform();
/// // Under torch all rows draw from one generator, one after the other; of the fast
/// // generator each has its own stream.
/// assert_eq!(uniform(Seed::Torch(7), 0), uniform(Seed::Torch(7), 1));
/// assert_ne!(uniform(Seed::Fast(7), 0), uniform(Seed::Fast(7), 1));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seed {
    /// torch's CPU generator: the tokens that HF gives after `torch.manual_seed`.
    Torch(u64),
    /// A fast generator with a stream per row, so that a row does not depend on its neighbours.
    Fast(u64),
}

impl Seed {
    /// A fast stream that differs from run to run.
    pub fn random() -> Self {
        Self::Fast(random_seed())
    }
}

/// The generators of a batch.
///
/// ```
/// use mlxgk_samplers::{SamplerChain, SamplerState, Streams};
///
/// let (mut sampler, scores) = (SamplerChain::default().sampler(), [0.5, 1.5, 1.0]);
/// let mut rows = |streams: &mut Streams, n: usize| -> Vec<u32> {
///     let mut draw = |row| sampler.sample(&scores, &mut SamplerState::default(), streams.row(row));
///     (0..n).map(|row| draw(row).unwrap_or_default()).collect()
/// };
/// // The first rows draw the same, however many others there are.
/// let two = rows(&mut Streams::fast(1), 2);
/// assert_eq!(rows(&mut Streams::fast(1), 5)[..2], two);
/// ```
pub struct Streams(Kind);

enum Kind {
    Shared(Box<dyn Generator + Send>),
    Fast { seed: u64, rows: Vec<FastRng> },
}

impl Streams {
    /// The streams of a seed.
    pub fn new(seed: Seed) -> Self {
        match seed {
            Seed::Torch(seed) => Self::torch(seed),
            Seed::Fast(seed) => Self::fast(seed),
        }
    }

    /// torch's stream after `torch.manual_seed(seed)`. The rows share it: in every step each row
    /// must draw or skip, in order.
    pub fn torch(seed: u64) -> Self {
        Self::shared(TorchRng::new(seed))
    }

    /// A stream per row under a seed.
    pub fn fast(seed: u64) -> Self {
        Self(Kind::Fast { seed, rows: Vec::new() })
    }

    /// One generator for all rows, such as one [from `rand`](crate::FromRand).
    pub fn shared(generator: impl Generator + Send + 'static) -> Self {
        Self(Kind::Shared(Box::new(generator)))
    }

    /// Whether every row's generator has [quantiles](Generator::quantile).
    pub fn has_quantiles(&self) -> bool {
        matches!(self.0, Kind::Fast { .. })
    }

    /// The generator of a row.
    pub fn row(&mut self, row: usize) -> &mut dyn Generator {
        match &mut self.0 {
            Kind::Shared(generator) => generator.as_mut(),
            Kind::Fast { seed, rows } => {
                for new in rows.len()..=row {
                    rows.push(FastRng::new(*seed, new as u64));
                }
                &mut rows[row]
            }
        }
    }
}

impl From<Seed> for Streams {
    fn from(seed: Seed) -> Self {
        Self::new(seed)
    }
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Shared(_) => f.write_str("Streams::shared"),
            Kind::Fast { seed, .. } => f.debug_tuple("Streams::fast").field(seed).finish(),
        }
    }
}
