//! What each mode can do: one table, from which every refusal is made.

use std::fmt;

use mlxgk_generation_config::GenerationMode;

use crate::{Error, ErrorKind, Result};

/// Something that a request can ask for, whatever its mode.
///
/// ```
/// use mlx_genkit::{Abilities, Ability, generation_config::GenerationMode};
///
/// let assisted = Abilities::of(GenerationMode::AssistedGeneration);
/// assert!(assisted.has(Ability::Streaming) && !assisted.has(Ability::SeveralPrompts));
/// assert_eq!(Ability::SeveralPrompts.to_string(), "more than one prompt");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ability {
    /// Tokens are handed out as they are made.
    Streaming,
    /// Several prompts in one request.
    SeveralPrompts,
    /// Several sequences per prompt.
    SeveralSequences,
    /// A cache of an earlier request is resumed, and given back at the end.
    ResumesCache,
    /// `use_cache` is false.
    Uncached,
    /// A cache that keeps a part of the text (`max_kv_size`).
    BoundedCache,
    /// A draft model, prompt lookup or the model's own heads (`use_mtp`).
    Assistant,
    /// `guidance_scale`.
    Guidance,
    /// `dola_layers`.
    DolaLayers,
    /// Processors.
    Processors,
    /// Structured output: `json_schema`, `regex`, `grammar`.
    Grammar,
    /// Stop strings, `max_time` and stopping criteria.
    Criteria,
    /// Scores, logits and log-probabilities are recorded.
    Scores,
    /// Hidden states are recorded.
    HiddenStates,
    /// Attention weights are recorded.
    Attentions,
    /// A hook on the residual stream, such as steering.
    Hook,
    /// A bound on how far steering moves each choice.
    KlBudget,
    /// A soft prompt before the prompts.
    SoftPrompt,
    /// In a [`Batch`](crate::Batch) it shares each pass with other requests; otherwise it runs in a
    /// loop of its own between the others' steps.
    SharedPass,
}

use Ability::*;

/// The columns of the table: modes that differ in what they can do.
const MODES: [&str; 7] = [
    "greedy decoding and sampling",
    "assisted decoding",
    "contrastive search",
    "DoLa",
    "beam search",
    "group beam search",
    "constrained beam search",
];

const TABLE: [(Ability, [u8; MODES.len()]); 19] = [
    //                 sampling, assisted, contrastive, DoLa, beams, groups, words
    (Streaming, [1, 1, 1, 1, 0, 0, 0]),
    (SeveralPrompts, [1, 0, 1, 1, 1, 1, 1]),
    (SeveralSequences, [1, 0, 0, 1, 1, 1, 1]),
    (ResumesCache, [1, 1, 0, 1, 0, 0, 0]),
    (Uncached, [1, 0, 0, 0, 1, 1, 1]),
    (BoundedCache, [1, 1, 1, 1, 1, 1, 1]),
    (Assistant, [0, 1, 0, 0, 0, 0, 0]),
    (Guidance, [1, 1, 0, 0, 1, 0, 0]),
    (DolaLayers, [0, 0, 0, 1, 0, 0, 0]),
    (Processors, [1, 1, 1, 1, 1, 1, 1]),
    // DoLa keeps the few tokens that the last layer finds plausible, and a grammar none of those.
    (Grammar, [1, 1, 1, 0, 1, 1, 1]),
    (Criteria, [1, 1, 1, 1, 1, 0, 0]),
    (Scores, [1, 1, 1, 1, 0, 0, 0]),
    (HiddenStates, [1, 1, 0, 1, 0, 0, 0]),
    (Attentions, [1, 1, 0, 1, 0, 0, 0]),
    (Hook, [1, 1, 1, 1, 1, 1, 1]),
    (KlBudget, [1, 1, 0, 0, 1, 1, 1]),
    (SoftPrompt, [1, 0, 0, 1, 1, 0, 0]),
    (SharedPass, [1, 0, 0, 0, 0, 0, 0]),
];

/// What no mode can do at once.
const EXCLUSIVE: [(Ability, Ability); 13] = [
    (ResumesCache, Uncached),
    (ResumesCache, SeveralPrompts),
    (ResumesCache, SeveralSequences),
    (ResumesCache, Guidance),
    (KlBudget, Guidance),
    (SharedPass, Uncached),
    (SharedPass, SoftPrompt),
    (SoftPrompt, ResumesCache),
    (SoftPrompt, Uncached),
    (SoftPrompt, Guidance),
    (SoftPrompt, HiddenStates),
    (SoftPrompt, Attentions),
    // The columns of a bounded cache are not the positions of the text.
    (BoundedCache, Attentions),
];

/// The subject of a sentence.
impl fmt::Display for Ability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Streaming => "streaming",
            SeveralPrompts => "more than one prompt",
            SeveralSequences => "`num_return_sequences` above 1",
            ResumesCache => "a cache to resume",
            Uncached => "`use_cache` = false",
            BoundedCache => "a cache bounded by `max_kv_size`",
            Assistant => "a draft model, prompt lookup or `use_mtp`",
            Guidance => "`guidance_scale`",
            DolaLayers => "`dola_layers`",
            Processors => "a processor",
            Grammar => "structured output",
            Criteria => "a stop string, `max_time` or stopping criterion",
            Scores => "a record of scores, logits or log-probabilities",
            HiddenStates => "a record of hidden states",
            Attentions => "a record of attention weights",
            Hook => "a hook or steering",
            KlBudget => "a KL budget",
            SoftPrompt => "a soft prompt",
            SharedPass => "a pass shared with other requests of a `Batch`",
        })
    }
}

/// What a mode can do.
///
/// ```
/// use mlx_genkit::{Abilities, Ability, generation_config::GenerationMode};
///
/// let beams = Abilities::of(GenerationMode::BeamSearch);
/// assert!(beams.has(Ability::SeveralSequences) && !beams.has(Ability::Streaming));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    column: usize,
}

impl Abilities {
    /// Those of a mode.
    pub fn of(mode: GenerationMode) -> Self {
        let column = match mode {
            GenerationMode::AssistedGeneration => 1,
            GenerationMode::ContrastiveSearch => 2,
            GenerationMode::DolaGeneration => 3,
            GenerationMode::BeamSearch | GenerationMode::BeamSample => 4,
            GenerationMode::GroupBeamSearch => 5,
            GenerationMode::ConstrainedBeamSearch => 6,
            _ => 0,
        };
        Self { column }
    }

    /// Whether this is among them.
    pub fn has(self, ability: Ability) -> bool {
        TABLE.iter().any(|(it, modes)| *it == ability && modes[self.column] == 1)
    }

    /// Refuses what the mode cannot do, or cannot do at once.
    pub(crate) fn check(self, wanted: &[Ability]) -> Result<()> {
        let refuse = |what: String| Err(Error::new(ErrorKind::Request, what));
        if let Some(ability) = wanted.iter().find(|it| !self.has(**it)) {
            let row = TABLE.iter().find(|(it, _)| it == ability);
            let modes = row.map_or([0; MODES.len()], |(_, modes)| *modes);
            let able =
                MODES.iter().zip(modes).filter(|(_, able)| *able == 1).map(|(mode, _)| *mode);
            let able = able.collect::<Vec<_>>().join(", ");
            let mode = MODES[self.column];
            return refuse(format!("{ability} is not available with {mode}, only with {able}"));
        }
        let both = |(a, b): &&(Ability, Ability)| wanted.contains(a) && wanted.contains(b);
        match EXCLUSIVE.iter().find(both) {
            Some((a, b)) => refuse(format!("{a} is not available together with {b}")),
            None => Ok(()),
        }
    }

    /// The whole table as Markdown, for the documentation.
    pub fn table() -> String {
        let mut text =
            format!("| | {} |\n|---|{}\n", MODES.join(" | "), "---|".repeat(MODES.len()));
        for (ability, modes) in TABLE {
            let cells = modes.map(|it| if it == 1 { "yes" } else { "-" });
            text += &format!("| {ability} | {} |\n", cells.join(" | "));
        }
        text += "\nNot at once: ";
        let pairs = EXCLUSIVE.map(|(a, b)| format!("{a} and {b}"));
        text + &pairs.join("; ") + ".\n"
    }
}
