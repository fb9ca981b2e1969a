//! Any generator of the `rand` crates as a source of draws.

use std::fmt;

use rand_core::Rng;

use crate::distribution::Distribution;
use crate::generator::Generator;
use crate::inversion::invert;

/// A [`Generator`] over any generator that implements `rand_core::Rng`, such as those of `rand`.
///
/// Its draws invert the cumulative distribution, with one 53-bit number per token.
///
/// ```
/// use std::convert::Infallible;
/// use mlxgk_samplers::{FromRand, SamplerState, WarperConfig};
///
/// /// In place of `rand::rng()` or `StdRng::seed_from_u64(7)`.
/// struct Counter(u64);
///
/// impl rand_core::TryRng for Counter {
///     type Error = Infallible;
///
///     fn try_next_u32(&mut self) -> Result<u32, Infallible> {
///         self.try_next_u64().map(|it| it as u32)
///     }
///
///     fn try_next_u64(&mut self) -> Result<u64, Infallible> {
///         self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
///         Ok(self.0)
///     }
///
///     fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
///         bytes.fill(self.0 as u8);
///         Ok(())
///     }
/// }
///
/// let mut rng = FromRand(Counter(0));
/// let mut sampler = WarperConfig { top_k: Some(2), ..Default::default() }.chain()?.sampler();
/// let token = sampler.sample(&[0.0, 2.0, 1.0], &mut SamplerState::default(), &mut rng)?;
/// assert_ne!(token, 0);
/// # Ok::<(), mlxgk_samplers::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct FromRand<R>(pub R);

impl<R: Rng> Generator for FromRand<R> {
    fn uniform(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1 << 24) as f32
    }

    fn draw(&mut self, distribution: &Distribution<'_>, count: usize, drawn: &mut Vec<u32>) {
        invert(distribution, count, drawn, || {
            (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
        });
    }

    /// Nothing: a draw uses one number, whatever the vocabulary, and a finished row needs none.
    fn skip(&mut self, _: usize) {}
}

/// A generator's state is not useful in a message, and need not be printable.
impl<R> fmt::Debug for FromRand<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FromRand").finish_non_exhaustive()
    }
}
