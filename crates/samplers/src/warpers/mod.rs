//! The warpers, one to a file: each cuts or reshapes a distribution.

mod custom;
mod dynamic_temperature;
mod epsilon;
mod eta;
mod min_p;
mod mirostat;
mod temperature;
mod top_h;
mod top_k;
mod top_n_sigma;
mod top_p;
mod typical;
mod xtc;

use mlxgk_logits_processors::{Error, Result};

pub use self::custom::{Custom, CustomWarper, Remaining, RemainingToken};
pub use self::dynamic_temperature::DynamicTemperature;
pub use self::epsilon::EpsilonCutoff;
pub use self::eta::EtaCutoff;
pub use self::min_p::MinP;
pub use self::mirostat::Mirostat;
pub use self::temperature::Temperature;
pub use self::top_h::TopH;
pub use self::top_k::TopK;
pub use self::top_n_sigma::TopNSigma;
pub use self::top_p::TopP;
pub use self::typical::Typical;
pub use self::xtc::Xtc;

use crate::candidates::Candidates;

/// What a warper does to the candidates, once written for a whole row and a short list alike.
pub(crate) trait Warp {
    fn warp(&self, candidates: &mut Candidates);
}

/// Runs a warper alone on a row; the row is left as it is when every token is banned, as in HF.
fn warp_row(warper: &impl Warp, row: &mut [f32]) -> Result<()> {
    if row.iter().all(|&score| score == f32::NEG_INFINITY) {
        return Ok(());
    }
    let mut candidates = Candidates::default();
    candidates.load(row, 1.0)?;
    warper.warp(&mut candidates);
    candidates.write(row);
    Ok(())
}

/// Implements `LogitsProcessor` for a warper that needs nothing but the scores.
macro_rules! processor {
    ($warper:ty, $name:literal, $stage:ident) => {
        impl mlxgk_logits_processors::LogitsProcessor for $warper {
            fn name(&self) -> &'static str {
                $name
            }

            fn stage(&self) -> mlxgk_logits_processors::Stage {
                mlxgk_logits_processors::Stage::$stage
            }

            fn process(
                &self,
                _: &mlxgk_logits_processors::Context<'_>,
                scores: &mut [f32],
            ) -> mlxgk_logits_processors::Result<()> {
                $crate::warpers::warp_row(self, scores)
            }
        }
    };
}
pub(crate) use processor;

/// `min_tokens_to_keep`, if it is at least 1.
fn at_least_one(min_tokens_to_keep: usize) -> Result<usize> {
    match min_tokens_to_keep {
        0 => Err(Error::parameter("min_tokens_to_keep", "at least 1", 0)),
        n => Ok(n),
    }
}
