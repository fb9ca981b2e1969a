//! Which strategy a configuration asks for.

use std::fmt;

use crate::GenerationConfig;

/// HF's `GenerationMode`.
///
/// ```
/// use mlxgk_generation_config::{GenerationConfig, GenerationMode};
///
/// let config =
///     GenerationConfig { num_beams: Some(4), do_sample: Some(true), ..Default::default() };
/// let mode = config.generation_mode(false);
/// assert_eq!((mode, mode.as_str()), (GenerationMode::BeamSample, "beam_sample"));
/// assert!(!mode.streams());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GenerationMode {
    /// The likeliest token, each time.
    GreedySearch,
    /// A drawn token, each time.
    Sample,
    /// A draft that the model checks (or no draft model, but one of its stand-ins).
    AssistedGeneration,
    /// Candidates weighed against what they repeat.
    ContrastiveSearch,
    /// The last layer contrasted with earlier ones.
    DolaGeneration,
    /// Several sequences at a time, the likeliest kept.
    BeamSearch,
    /// The same, with draws.
    BeamSample,
    /// The same, with words that have to occur.
    ConstrainedBeamSearch,
    /// The same, in groups that avoid one another.
    GroupBeamSearch,
}

impl GenerationMode {
    /// HF's name, as in `greedy_search`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GreedySearch => "greedy_search",
            Self::Sample => "sample",
            Self::AssistedGeneration => "assisted_generation",
            Self::ContrastiveSearch => "contrastive_search",
            Self::DolaGeneration => "dola_generation",
            Self::BeamSearch => "beam_search",
            Self::BeamSample => "beam_sample",
            Self::ConstrainedBeamSearch => "constrained_beam_search",
            Self::GroupBeamSearch => "group_beam_search",
        }
    }

    /// Whether tokens can be handed out as they are made. Beams are ranked at the end only, so HF
    /// takes no streamer beside them.
    pub fn streams(self) -> bool {
        !matches!(
            self,
            Self::BeamSearch
                | Self::BeamSample
                | Self::ConstrainedBeamSearch
                | Self::GroupBeamSearch
        )
    }
}

impl fmt::Display for GenerationMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl GenerationConfig {
    /// The strategy that these fields ask for: HF's `get_generation_mode`.
    ///
    /// `has_assistant` says whether a draft model stands ready. Fields count as they stand, so ask
    /// the merged configuration: `penalty_alpha` alone means contrastive search only once `top_k`
    /// has its default of 50.
    pub fn generation_mode(&self, has_assistant: bool) -> GenerationMode {
        use GenerationMode as Mode;
        let sample = self.do_sample == Some(true);
        let base = if self.constraints.is_some() || self.force_words_ids.is_some() {
            Mode::ConstrainedBeamSearch
        } else if self.num_beams.is_none_or(|it| it == 1) {
            let contrastive = self.top_k.is_some_and(|it| it > 1)
                && self.penalty_alpha.is_some_and(|it| it > 0.0);
            match (sample, contrastive) {
                (true, _) => Mode::Sample,
                (false, true) => Mode::ContrastiveSearch,
                (false, false) => Mode::GreedySearch,
            }
        } else if self.num_beam_groups.is_some_and(|it| it > 1) {
            Mode::GroupBeamSearch
        } else if sample {
            Mode::BeamSample
        } else {
            Mode::BeamSearch
        };
        let assisted = has_assistant
            || self.use_mtp == Some(true)
            || self.prompt_lookup_num_tokens.is_some()
            || self.assistant_early_exit.is_some();
        // Only the two plain loops can be sped up by a draft or sharpened by DoLa.
        match base {
            Mode::GreedySearch | Mode::Sample if assisted => Mode::AssistedGeneration,
            Mode::GreedySearch | Mode::Sample if self.dola_layers.is_some() => Mode::DolaGeneration,
            base => base,
        }
    }
}
