//! The struct itself: every field of transformers 5.23 and some of other engines, each with what it
//! does.
//!
//! The fields are listed once, in HF's order. From that one list a macro makes the struct, the
//! table of names, their descriptions, the reader, the writer and the merge, so that none of them can forget a field. A
//! field that HF does not have is one more entry, after HF's own.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::value::{
    DolaLayers, EarlyStopping, FieldType, ForcedWord, Mismatch, OneOrMany, TokenId,
};
use crate::watermarking::Watermarking;

macro_rules! key {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $key:literal) => {
        $key
    };
}

macro_rules! generation_config {
    ($($(#[doc = $doc:literal])* $field:ident $(as $key:literal)?: $type:ty $(= $range:literal)?,)*) => {
        /// How to generate, under HF's names; `None` inherits.
        ///
        /// A field that is `None` here is taken from the model's `generation_config.json`, then
        /// from HF's defaults; the text of each field says which default that is. See
        /// [`Sources`](crate::Sources) for the merge.
        ///
        /// ```
        /// use mlxgk_generation_config::GenerationConfig;
        ///
        /// let config = GenerationConfig {
        ///     do_sample: Some(true),
        ///     temperature: Some(0.7),
        ///     eos_token_id: Some(vec![2, 7].into()),
        ///     ..GenerationConfig::default()
        /// };
        /// assert_eq!(config.to_json()["eos_token_id"], serde_json::json!([2, 7]));
        /// ```
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct GenerationConfig {
            $(
                $(#[doc = $doc])*
                $(#[doc = concat!("\n\nRange: ", $range, ".")])?
                pub $field: Option<$type>,
            )*
            /// Entries that transformers 5.23 has no field for.
            ///
            /// They change nothing, but they are kept, merged and written back as HF does.
            pub unknown: Map<String, Value>,
        }

        impl GenerationConfig {
            /// The names of all fields: HF's in its order, then the others.
            pub const FIELDS: &'static [&'static str] = &[$(key!($field $($key)?)),*];

            /// What a field does, as its documentation says it, line breaks included; `None` for an
            /// unknown field. For help texts and tables of fields.
            ///
            /// ```
            /// use mlxgk_generation_config::GenerationConfig;
            ///
            /// assert!(GenerationConfig::describe("top_k").unwrap().contains("50 by default"));
            /// assert_eq!(GenerationConfig::describe("top"), None);
            /// ```
            pub fn describe(field: &str) -> Option<&'static str> {
                match field {
                    $(key!($field $($key)?) => Some(concat!($($doc, "\n"),*)),)*
                    _ => None,
                }
            }

            /// The type of a field's value in JSON: `integer`, `number`, `boolean`, `string`, `object`,
            /// `any`, lists as `[integer]`, alternatives as `integer | [integer]`; `None` for an unknown
            /// field.
            ///
            /// ```
            /// use mlxgk_generation_config::GenerationConfig;
            ///
            /// assert_eq!(GenerationConfig::type_of("eos_token_id").unwrap(), "integer | [integer]");
            /// ```
            pub fn type_of(field: &str) -> Option<String> {
                match field {
                    $(key!($field $($key)?) => Some(<$type as FieldType>::type_name()),)*
                    _ => None,
                }
            }

            /// The values that a field can have, such as `at least 1` or `0 to 1`; `None` where its type
            /// says all, and for an unknown field.
            ///
            /// ```
            /// use mlxgk_generation_config::GenerationConfig;
            ///
            /// assert_eq!(GenerationConfig::range_of("top_p"), Some("0 to 1"));
            /// assert_eq!(GenerationConfig::range_of("eos_token_id"), None);
            /// ```
            pub fn range_of(field: &str) -> Option<&'static str> {
                const RANGES: &[(&str, &[&str])] =
                    &[$((key!($field $($key)?), &[$($range)?])),*];
                RANGES.iter().find(|it| it.0 == field).and_then(|it| it.1.first().copied())
            }

            /// The value of a field as JSON, by name; `None` where it is unset or unknown.
            pub fn get(&self, field: &str) -> Option<Value> {
                match field {
                    $(key!($field $($key)?) => self.$field.as_ref().map(FieldType::write),)*
                    _ => None,
                }
            }

            /// The names of the fields that are set, in HF's order.
            pub fn set_fields(&self) -> impl Iterator<Item = &'static str> {
                let set = [$((key!($field $($key)?), self.$field.is_some())),*];
                set.into_iter().filter_map(|(name, is_set)| is_set.then_some(name))
            }

            /// Sets a field from JSON, where `null` is unset; false for an unknown field.
            pub(crate) fn read(&mut self, field: &str, value: &Value) -> Result<bool, Mismatch> {
                if value.is_null() {
                    self.unset(field);
                    return Ok(Self::FIELDS.contains(&field));
                }
                match field {
                    $(key!($field $($key)?) => self.$field = Some(FieldType::read(value)?),)*
                    _ => return Ok(false),
                }
                Ok(true)
            }

            /// Unsets a field by name.
            pub(crate) fn unset(&mut self, field: &str) {
                match field {
                    $(key!($field $($key)?) => self.$field = None,)*
                    _ => {}
                }
            }

            /// Takes what is unset here from `other`, custom entries included.
            pub(crate) fn inherit(&mut self, other: &Self) {
                $(if self.$field.is_none() {
                    self.$field.clone_from(&other.$field);
                })*
                for (key, value) in &other.unknown {
                    let ours = self.unknown.entry(key.as_str()).or_insert(Value::Null);
                    if ours.is_null() {
                        ours.clone_from(value);
                    }
                }
            }
        }
    };
}

generation_config! {
    // Length

    /// Longest sequence in tokens, the prompt included.
    ///
    /// Unset everywhere, it is 20 *new* tokens, at most up to the model's
    /// `max_position_embeddings`. `max_new_tokens` wins over it.
    max_length: usize,
    /// Maximum number of new tokens, the prompt not counted.
    max_new_tokens: usize = "at least 1",
    /// Shortest sequence in tokens, the prompt included; 0 by default.
    min_length: usize,
    /// Minimum number of new tokens; wins over `min_length`.
    min_new_tokens: usize,
    /// When beam search stops: once enough beams are finished (`true`), once better ones are unlikely
    /// (`false`, the default), or once none can be better (`"never"`).
    early_stopping: EarlyStopping,
    /// Seconds after which no further token is started.
    max_time: f64 = "at least 0",
    /// Strings at which a sequence ends.
    stop_strings: OneOrMany<String>,

    // Strategy

    /// Draws tokens when true, takes the likeliest when false; false by default.
    do_sample: bool,
    /// Beams of beam search; 1, which is none, by default.
    num_beams: usize = "at least 1",
    /// Drafts with the model's own multi-token-prediction layers.
    use_mtp: bool,

    // Cache

    /// Keeps keys and values from token to token; true by default.
    use_cache: bool,
    /// The kind of cache: `dynamic` (the default), `static`, which makes room for the whole text at
    /// once (so do the deprecated `sliding_window`, `hybrid` and `hybrid_chunked`), or `quantized`.
    cache_implementation: String,
    /// How a `quantized` cache packs: `nbits`, 4 by default, and `q_group_size`.
    cache_config: Map<String, Value>,
    /// Length that a static cache is made for.
    max_cache_len: usize,

    // Logits

    /// Divides the scores before a draw; 1.0 by default.
    temperature: f64 = "above 0",
    /// Draws among this many of the likeliest tokens, 0 for all; 50 by default.
    top_k: usize,
    /// Draws among the likeliest tokens that together reach this probability; 1.0, all, by
    /// default (Holtzman et al., arXiv 1904.09751).
    top_p: f64 = "0 to 1",
    /// Draws among tokens at least this fraction as likely as the likeliest.
    min_p: f64 = "0 to 1",
    /// Draws among the likeliest tokens that hold this fraction of the entropy.
    top_h: f64 = "above 0, at most 1",
    /// Draws among the tokens of most typical surprise that together reach this probability; 1.0,
    /// all, by default (Meister et al., arXiv 2202.00666).
    typical_p: f64 = "above 0, at most 1",
    /// Drops tokens below this probability; 0.0, none, by default (Hewitt et al., arXiv
    /// 2210.15191).
    epsilon_cutoff: f64 = "at least 0, below 1",
    /// Drops tokens below a threshold that falls with the entropy; 0.0, none, by default (the
    /// same paper).
    eta_cutoff: f64 = "at least 0, below 1",
    /// Divides positive and multiplies negative scores of tokens already seen; 1.0, nothing, by
    /// default (Keskar et al., arXiv 1909.05858).
    repetition_penalty: f64 = "above 0",
    /// The inverse repetition penalty, over the tokens of the prompt: above 1.0 favours them; 1.0 by
    /// default.
    encoder_repetition_penalty: f64 = "above 0",
    /// Exponent of the length that a beam's score is divided by; 1.0 by default.
    length_penalty: f64,
    /// Length of the n-grams that may occur once only; 0, none, by default.
    no_repeat_ngram_size: usize,
    /// Token sequences that must not be generated.
    bad_words_ids: Vec<Vec<TokenId>>,
    /// Normalises the scores to log-probabilities after everything else.
    renormalize_logits: bool,
    /// The first token, where the prompt is empty but for the start token.
    forced_bos_token_id: TokenId,
    /// The last token, or the tokens it may be, when `max_length` is reached.
    forced_eos_token_id: OneOrMany<TokenId>,
    /// Replaces NaN and infinities of the scores by finite numbers; false by default.
    remove_invalid_values: bool,
    /// `(start, factor)`: raises the end token's score exponentially from `start` new tokens on.
    exponential_decay_length_penalty: (usize, f64),
    /// Tokens that must not be generated.
    suppress_tokens: Vec<TokenId>,
    /// Tokens that must not be generated first.
    begin_suppress_tokens: Vec<TokenId>,
    /// Sequences of tokens, each with what is added to the score of its last token once the rest
    /// precedes it. In JSON: `[[[ids], bias], ...]`.
    sequence_bias: Vec<(Vec<TokenId>, f64)>,
    /// Replaces the prompt's last tokens by what a longer text would have had there.
    token_healing: bool,
    /// Strength of classifier-free guidance; 1.0 is none (Sanchez et al., arXiv 2306.17806).
    guidance_scale: f64,
    /// Marks the text by a keyed preference among tokens.
    watermarking_config: Watermarking,

    // Output

    /// Sequences returned for each prompt; 1 by default.
    num_return_sequences: usize = "at least 1",
    /// Returns the attention weights.
    output_attentions: bool,
    /// Returns the hidden states.
    output_hidden_states: bool,
    /// Returns the processed scores of each step; false by default.
    output_scores: bool,
    /// Returns the raw logits of each step.
    output_logits: bool,
    /// In Python, returns a struct instead of a tensor; here a struct is always returned, and the
    /// field only decides whether the `output_*` fields count.
    return_dict_in_generate: bool,

    // Special tokens

    /// What fills up shorter rows; the first `eos_token_id` by default.
    pad_token_id: TokenId,
    /// The token that begins a text.
    bos_token_id: TokenId,
    /// The token, or the tokens, that end a text.
    eos_token_id: OneOrMany<TokenId>,

    // Encoder-decoder models

    /// Length of the prompt's n-grams that must not be generated; 0, none, by default.
    encoder_no_repeat_ngram_size: usize,
    /// What an encoder-decoder model starts with; unused by decoder-only models.
    decoder_start_token_id: OneOrMany<TokenId>,

    // Assisted generation

    /// Marks the configuration of a draft model.
    is_assistant: bool,
    /// Tokens drafted before a check; 20 by default.
    num_assistant_tokens: usize,
    /// How that number changes: `constant` (the default), `heuristic`, `heuristic_transient`.
    num_assistant_tokens_schedule: String,
    /// Confidence below which a draft ends; 0.4 by default.
    assistant_confidence_threshold: f64,
    /// Tokens drafted by looking the last ones up in the prompt.
    prompt_lookup_num_tokens: usize,
    /// Longest n-gram that prompt lookup matches; 2 where unset.
    max_matching_ngram_size: usize,
    /// The layer whose output drafts.
    assistant_early_exit: usize,
    /// Draft tokens re-encoded to align two tokenizers; 10 by default.
    assistant_lookbehind: usize,
    /// Target tokens re-encoded to align two tokenizers; 10 by default.
    target_lookbehind: usize,
    /// Weight of the target in the mixture that drafts are accepted against.
    assistant_ensemble_weight: f64 = "above 0, below 1",
    /// The kind of speculation; `dflash` is the one there is.
    speculation_type: String,

    // Performance

    /// Arguments of `torch.compile`.
    compile_config: Map<String, Value>,
    /// Forbids `torch.compile`; nothing is compiled here.
    disable_compile: bool,
    /// Arguments of continuous batching; HF deprecates the field.
    continuous_batching_config: Map<String, Value>,

    // Moved to the hub or deprecated by HF, and still fields

    /// Beam search in less memory; HF 5 has removed it.
    low_memory: bool,
    /// Weight of the degeneration penalty in contrastive search (Su et al., arXiv 2202.06417).
    penalty_alpha: f64,
    /// Layers that DoLa contrasts: `low`, `high` or a list (Chuang et al., arXiv 2309.03883).
    dola_layers: DolaLayers,
    /// Penalty on tokens that another group of beams has chosen; 0.0 by default.
    diversity_penalty: f64,
    /// Groups of beams; 1 by default.
    num_beam_groups: usize,
    /// What a sequence has to contain.
    constraints: Value,
    /// Words that a sequence has to contain, which takes beams. In JSON each is a list of token ids,
    /// or a list of such lists of which one is enough.
    force_words_ids: Vec<ForcedWord>,
    /// Tokens of the prompt that go through the model at a time; unset, all of them.
    prefill_chunk_size: usize = "at least 1",

    // Metadata

    /// Whether the file was made from a model's `config.json`.
    from_model_config as "_from_model_config": bool,
    /// The version of transformers that wrote the file.
    transformers_version: String,

    // Structured output, which HF does not have; at most one of the three

    /// The JSON schema that the new text fits.
    json_schema: Value,
    /// The regular expression that the new text matches from beginning to end.
    regex: String,
    /// The grammar, in llguidance's dialect of Lark, that the new text follows.
    grammar: String,

    // Penalties and biases of other engines

    /// Taken from a token's score for each time it was generated (OpenAI); 0.0 is none.
    frequency_penalty: f64,
    /// Taken from a token's score once it was generated (OpenAI); 0.0 is none.
    presence_penalty: f64,
    /// Counts these last tokens, the prompt's among them, for the two penalties (llama.cpp's
    /// `penalty_last_n`); unset, the generated ones, as at OpenAI.
    penalty_last_n: usize,
    /// Added to the scores of tokens (OpenAI). In JSON: `{"50256": -100}`.
    logit_bias: BTreeMap<TokenId, f64>,
    /// `[[position, token], ...]`, counted from the row's beginning; HF had it until 4.46.
    forced_decoder_ids: Vec<(usize, TokenId)>,
    /// Strength of the DRY repetition penalty; 0.0, off, by default, and 0.8 is typical (llama.cpp's
    /// `dry_multiplier`).
    dry_multiplier: f64,
    /// How the penalty of DRY grows with the repetition; 1.75 by default.
    dry_base: f64 = "at least 1",
    /// Length from which on DRY penalises a repetition; 2 by default.
    dry_allowed_length: usize,
    /// Tokens that DRY looks back; unset, all.
    dry_penalty_last_n: usize,
    /// Texts across which DRY sees no repetition; `["\n", ":", "\"", "*"]` by default.
    dry_sequence_breakers: Vec<String>,

    // Warpers of other engines

    /// In which order the warpers run: that of `hf` by default.
    sampler_order: String = "hf, mlx_lm or llama_cpp",
    /// Draws among the tokens whose logit is at most this many standard deviations below the
    /// highest (llama.cpp); 0.0, all, by default.
    top_n_sigma: f64,
    /// Half the range in which the temperature follows the entropy (llama.cpp); 0.0, none, by
    /// default.
    dynatemp_range: f64 = "at least 0",
    /// Exponent of that relation; 1.0 by default.
    dynatemp_exponent: f64 = "at least 0",
    /// Chance of dropping all but the least likely of the tokens above `xtc_threshold`; 0.0, none,
    /// by default.
    xtc_probability: f64 = "0 to 1",
    /// Probability above which XTC counts a token; 0.1 by default.
    xtc_threshold: f64 = "0 to 0.5",
    /// Tokens in whose presence XTC drops nothing (mlx-lm: end tokens and line breaks).
    xtc_special_tokens: Vec<TokenId>,
    /// Mirostat in its version 1 or 2 instead of the other warpers; 0, none, by default
    /// (llama.cpp; Basu et al., arXiv 2007.14966).
    mirostat: usize = "0, 1 or 2",
    /// Surprise that Mirostat aims at, in bits; 5.0 by default.
    mirostat_tau: f64 = "above 0",
    /// How fast Mirostat learns; 0.1 by default.
    mirostat_eta: f64 = "above 0",

    // Caches of other engines

    /// Most tokens of a text that a new one looks at: the first `kv_keep` and the newest; unset, all
    /// (mlx-lm's rotating cache).
    max_kv_size: usize,
    /// Tokens at the beginning of a text that `max_kv_size` keeps; 4 by default (mlx-lm's `keep`).
    kv_keep: usize,
    /// Bits that a number in the cache is packed into; unset, it is not packed (mlx-lm).
    kv_bits: usize = "2, 3, 4, 5, 6 or 8",
    /// Numbers that share a scale there; 64 by default, or 32 where the model's heads are not a
    /// multiple of 64 (mlx-lm).
    kv_group_size: usize = "32, 64 or 128",
    /// Tokens that are held before anything is packed; 0 by default (mlx-lm, whose default is 5000).
    quantized_kv_start: usize,
}
