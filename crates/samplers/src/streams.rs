//! Which generator serves which row of a batch.

use mlxgk_torch::TorchRng;

use crate::fast_rng::FastRng;
use crate::generator::Generator;

/// The generators of a batch.
///
/// ```
/// use mlxgk_samplers::{SamplerChain, Streams};
///
/// let (mut chain, scores) = (SamplerChain::default(), [0.5, 1.5, 1.0]);
/// let mut rows = |streams: &mut Streams, n: usize| -> Vec<u32> {
///     (0..n).map(|row| chain.sample(&scores, streams.row(row)).unwrap_or_default()).collect()
/// };
/// // The first rows draw the same, however many others there are.
/// let two = rows(&mut Streams::fast(1, 2), 2);
/// assert_eq!(rows(&mut Streams::fast(1, 5), 5)[..2], two);
/// ```
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
