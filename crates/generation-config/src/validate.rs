//! HF's checks: what cannot work is an error, what does nothing is a warning.

use serde_json::Value;

use crate::value::EarlyStopping;
use crate::{Error, ErrorKind, GenerationConfig, Result, Warning, WarningKind};

const STATIC_CACHES: [&str; 7] = [
    "static",
    "offloaded_static",
    "sliding_window",
    "hybrid",
    "hybrid_chunked",
    "offloaded_hybrid",
    "offloaded_hybrid_chunked",
];
const OTHER_CACHES: [&str; 4] = ["dynamic", "offloaded", "quantized", "paged"];

/// Arguments of `generate()` that people put among the fields.
const GENERATE_ARGUMENTS: [&str; 8] = [
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "synced_gpus",
    "assistant_model",
    "streamer",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
];

/// The fields that the caller gave, as opposed to inherited.
///
/// A model's file may well hold a `temperature` while the caller chooses greedy decoding; that is
/// worth a warning only where the caller set the `temperature` too.
pub(crate) enum UserSet<'a> {
    /// Every field that is set.
    All,
    /// These only.
    Only(&'a [&'a str]),
}

impl UserSet<'_> {
    /// Whether `field`, idle because of `switch`, is worth a word (HF's `_should_warn`).
    fn should_warn(&self, switch: &str, field: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(fields) => fields.contains(&field) || !fields.contains(&switch),
        }
    }
}

impl GenerationConfig {
    /// Checks what can be checked without a model, as HF's `validate` does.
    ///
    /// Returns the warnings about fields that will do nothing. Lengths are checked against the
    /// prompt later, by [`Merged::resolve`](crate::Merged::resolve), and a processor's own
    /// parameters where it is made.
    ///
    /// # Errors
    /// [`ErrorKind::Value`], naming the field and its value, where HF raises `ValueError`.
    pub fn validate(&self) -> Result<Vec<Warning>> {
        self.validate_for(&UserSet::All)
    }

    pub(crate) fn validate_for(&self, user_set: &UserSet<'_>) -> Result<Vec<Warning>> {
        self.check_values()?;
        self.check_return_sequences()?;
        self.check_forced_tokens()?;
        self.check_generate_arguments()?;
        self.check_grammars()?;
        let mut warnings = Vec::new();
        self.warn_of_pad_token(&mut warnings);
        self.warn_of_idle_sampling(user_set, &mut warnings);
        self.warn_of_idle_beams(user_set, &mut warnings);
        self.warn_of_idle_cache(&mut warnings);
        self.warn_of_idle_outputs(&mut warnings);
        Ok(warnings)
    }

    fn check_values(&self) -> Result<()> {
        if self.max_new_tokens == Some(0) {
            return Err(wrong("max_new_tokens", "must be at least 1, but is 0"));
        }
        if let Some(weight) = self.assistant_ensemble_weight
            && !(weight > 0.0 && weight < 1.0)
        {
            let what = format!("must be between 0 and 1, both excluded, but is {weight}");
            return Err(wrong("assistant_ensemble_weight", &what));
        }
        if let Some(name) = self.cache_implementation.as_deref()
            && !STATIC_CACHES.contains(&name)
            && !OTHER_CACHES.contains(&name)
        {
            let known = [&STATIC_CACHES[..], &OTHER_CACHES].concat().join(", ");
            let what = format!("must be one of {known}, but is {name:?}");
            return Err(wrong("cache_implementation", &what));
        }
        match &self.watermarking_config {
            Some(it) => it.check(),
            None => Ok(()),
        }
    }

    fn check_return_sequences(&self) -> Result<()> {
        let Some(sequences) = self.num_return_sequences else { return Ok(()) };
        let what = match self.num_beams {
            _ if sequences == 0 => "must be at least 1, but is 0".to_owned(),
            _ if sequences == 1 => return Ok(()),
            None | Some(1) if self.do_sample != Some(true) => {
                format!("is {sequences}, but greedy search has a single answer: set `do_sample`")
            }
            Some(beams) if beams != 1 && sequences > beams => {
                format!("is {sequences}, but must be at most `num_beams`, which is {beams}")
            }
            _ => return Ok(()),
        };
        Err(wrong("num_return_sequences", &what))
    }

    /// A token that is forced and suppressed at once leaves nothing to choose from.
    fn check_forced_tokens(&self) -> Result<()> {
        let suppressed = self.suppress_tokens.as_deref().unwrap_or_default();
        let bos = self.forced_bos_token_id.as_slice();
        let eos = self.forced_eos_token_id.as_ref().map_or(&[][..], |it| it.as_slice());
        for (field, forced) in [("forced_bos_token_id", bos), ("forced_eos_token_id", eos)] {
            if !forced.is_empty() && forced.iter().all(|it| suppressed.contains(it)) {
                let what = format!("is {forced:?}, all of it also in `suppress_tokens`");
                return Err(wrong(field, &what));
            }
        }
        Ok(())
    }

    fn check_generate_arguments(&self) -> Result<()> {
        match GENERATE_ARGUMENTS.into_iter().find(|it| self.unknown.contains_key(*it)) {
            Some(name) => Err(wrong(name, "is an argument of `generate`, not a field")),
            None => Ok(()),
        }
    }

    fn check_grammars(&self) -> Result<()> {
        let given = |field: &&str| self.get(field).is_some();
        let mut grammars = ["json_schema", "regex", "grammar"].into_iter().filter(given);
        match (grammars.next(), grammars.next()) {
            (Some(first), Some(second)) => Err(wrong(
                second,
                &format!("cannot be combined with `{first}`: a text follows only one of them"),
            )),
            _ => Ok(()),
        }
    }

    fn warn_of_pad_token(&self, warnings: &mut Vec<Warning>) {
        if let Some(pad @ ..0) = self.pad_token_id {
            let message =
                format!("`pad_token_id` is {pad}, which is not a token id; it counts as unset");
            warnings.push(Warning::new(WarningKind::TokenId, "pad_token_id", message));
        }
    }

    fn warn_of_idle_sampling(&self, user_set: &UserSet<'_>, warnings: &mut Vec<Warning>) {
        if self.do_sample == Some(true) {
            return;
        }
        let fields = [
            ("temperature", self.temperature.is_some_and(|it| it != 1.0)),
            ("top_p", self.top_p.is_some_and(|it| it != 1.0)),
            ("min_p", self.min_p.is_some()),
            ("top_h", self.top_h.is_some()),
            ("typical_p", self.typical_p.is_some_and(|it| it != 1.0)),
            ("top_k", self.top_k.is_some_and(|it| it != 50)),
            ("epsilon_cutoff", self.epsilon_cutoff.is_some_and(|it| it != 0.0)),
            ("eta_cutoff", self.eta_cutoff.is_some_and(|it| it != 0.0)),
            ("top_n_sigma", self.top_n_sigma.is_some_and(|it| it > 0.0)),
            ("dynatemp_range", self.dynatemp_range.is_some_and(|it| it != 0.0)),
            ("xtc_probability", self.xtc_probability.is_some_and(|it| it != 0.0)),
            ("mirostat", self.mirostat.is_some_and(|it| it != 0)),
        ];
        for (field, in_use) in fields {
            if in_use && user_set.should_warn("do_sample", field) {
                warnings.push(self.idle(field, "only sampling reads it: set `do_sample`"));
            }
        }
    }

    fn warn_of_idle_beams(&self, user_set: &UserSet<'_>, warnings: &mut Vec<Warning>) {
        if self.num_beams.is_some_and(|it| it != 1) {
            return;
        }
        let stopping = self.early_stopping.is_some_and(|it| it != EarlyStopping::Heuristic);
        let fields = [
            ("early_stopping", stopping),
            ("length_penalty", self.length_penalty.is_some_and(|it| it != 1.0)),
        ];
        for (field, in_use) in fields {
            if in_use && user_set.should_warn("num_beams", field) {
                warnings.push(self.idle(field, "only beam search reads it: set `num_beams`"));
            }
        }
    }

    /// Whether HF would make room for the whole text at once, in one place.
    pub(crate) fn has_static_cache(&self) -> bool {
        let name = self.cache_implementation.as_deref();
        name.is_some_and(|it| STATIC_CACHES.contains(&it) && !it.starts_with("offloaded"))
    }

    fn warn_of_idle_cache(&self, warnings: &mut Vec<Warning>) {
        warnings.extend(self.idle_cache_fields());
        let is_static =
            self.cache_implementation.as_deref().is_some_and(|it| STATIC_CACHES.contains(&it));
        if self.max_cache_len.is_some() && !is_static {
            warnings.push(self.idle("max_cache_len", "only a static cache reads it"));
        }
        if self.use_cache == Some(false) {
            for field in ["cache_implementation", "cache_config"] {
                if self.get(field).is_some() {
                    warnings.push(self.idle(field, "`use_cache` is false"));
                }
            }
        }
    }

    fn warn_of_idle_outputs(&self, warnings: &mut Vec<Warning>) {
        if self.return_dict_in_generate == Some(true) {
            return;
        }
        for field in ["output_attentions", "output_hidden_states", "output_scores", "output_logits"]
        {
            if self.get(field) == Some(Value::Bool(true)) {
                warnings.push(self.idle(field, "`return_dict_in_generate` is not true"));
            }
        }
    }

    fn idle(&self, field: &str, why: &str) -> Warning {
        let value = self.get(field).unwrap_or(Value::Null);
        let message = format!("`{field}` is {value}, but {why}");
        Warning::new(WarningKind::Idle, field, message)
    }
}

fn wrong(field: &str, what: &str) -> Error {
    Error::of(ErrorKind::Value, field, format!("`{field}` {what}"))
}
