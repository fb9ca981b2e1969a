//! What is not implemented yet, in one table, so that it is refused and never ignored.
//!
//! When a feature is implemented, its line is deleted. Fields without a line work, or change nothing outside their
//! mode (`num_assistant_tokens` without an assistant, `length_penalty` without beams): those HF
//! ignores too.

use serde_json::Value;

use crate::{Error, ErrorKind, GenerationConfig, Result};

/// A field, when its value asks for nothing that is missing, and what is missing.
type Refusal = (&'static str, fn(&GenerationConfig) -> bool, &'static str);

const NOT_YET: &[Refusal] = &[
    ("constraints", |it| it.constraints.is_none(), "a constraint other than `force_words_ids`"),
    ("is_assistant", |it| off(it.is_assistant), "assisted generation"),
    ("speculation_type", |it| it.speculation_type.is_none(), "assisted generation"),
    (
        "cache_implementation",
        |it| match it.cache_implementation.as_deref() {
            None | Some("dynamic" | "quantized") => true,
            Some(_) => it.has_static_cache(),
        },
        "this kind of cache",
    ),
    ("compile_config", |it| it.compile_config.is_none(), "compilation"),
    (
        "continuous_batching_config",
        |it| it.continuous_batching_config.is_none(),
        "continuous batching",
    ),
];

impl GenerationConfig {
    /// Refuses what is not implemented yet; [`Merged::resolve`](crate::Merged::resolve) does so by
    /// itself.
    ///
    /// A field at a value that asks for nothing, such as `num_beams: 1`, passes.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`], naming the first such field and its value.
    ///
    /// ```
    /// use mlxgk_generation_config::GenerationConfig;
    ///
    /// let config = GenerationConfig { is_assistant: Some(true), ..Default::default() };
    /// assert_eq!(
    ///     config.refuse_unsupported().unwrap_err().to_string(),
    ///     "`is_assistant` is true, but assisted generation is not implemented yet",
    /// );
    /// ```
    pub fn refuse_unsupported(&self) -> Result<()> {
        match NOT_YET.iter().find(|(_, passes, _)| !passes(self)) {
            Some((field, _, what)) => {
                let value = self.get(field).unwrap_or(Value::Null);
                let message = format!("`{field}` is {value}, but {what} is not implemented yet");
                Err(Error::of(ErrorKind::Unsupported, field, message))
            }
            None => Ok(()),
        }
    }
}

fn off(switch: Option<bool>) -> bool {
    switch != Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_names_a_field() {
        for (field, _, _) in NOT_YET {
            assert!(GenerationConfig::FIELDS.contains(field), "{field}");
        }
    }

    #[test]
    fn the_front_page_lists_what_is_refused() {
        let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md");
        let readme = std::fs::read_to_string(readme).unwrap();
        let (_, list) = readme.split_once("refused by name: ").unwrap();
        let (list, _) = list.split_once("\n\n").unwrap();
        let listed: Vec<&str> = list.split('`').skip(1).step_by(2).collect();
        assert_eq!(listed, NOT_YET.iter().map(|it| it.0).collect::<Vec<_>>());
    }

    #[test]
    fn the_defaults_pass() {
        crate::default_generation_params().refuse_unsupported().unwrap();
    }
}
