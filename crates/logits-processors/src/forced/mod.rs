//! Forced tokens.

mod bos;
mod decoder_ids;
mod eos;

pub use self::bos::ForcedBos;
pub use self::decoder_ids::ForcedDecoderIds;
pub use self::eos::ForcedEos;
