//! What a text must look like.

use llguidance::api::TopLevelGrammar;
use mlxgk_logits_processors::{Error, ErrorKind, Result};
use serde_json::{Value, json};

/// A grammar in one of three notations. It is compiled against a vocabulary by
/// [`GrammarProcessor::new`](crate::GrammarProcessor::new).
#[derive(Debug, Clone)]
pub struct Grammar {
    /// What errors call it.
    pub(crate) kind: &'static str,
    pub(crate) source: TopLevelGrammar,
}

impl Grammar {
    /// Texts that are JSON and fit a schema.
    ///
    /// Between its parts the text has the separators `", "` and `": "` and no other white space: a
    /// model that may add white space anywhere can add it for ever. A schema that brings
    /// llguidance's own `x-guidance` settings is taken as it is.
    ///
    /// ```
    /// use mlxgk_grammars::Grammar;
    ///
    /// assert!(Grammar::json_schema(&serde_json::json!({"type": "integer"})).is_ok());
    /// assert!(Grammar::json_schema(&serde_json::json!("integer")).is_err());
    /// ```
    ///
    /// # Errors
    /// When the value is neither an object nor a boolean, and so no schema.
    pub fn json_schema(schema: &Value) -> Result<Self> {
        let mut schema = match schema {
            Value::Object(_) => schema.clone(),
            // The two trivial schemas: everything, and nothing.
            Value::Bool(true) => json!({}),
            Value::Bool(false) => json!({"not": {}}),
            other => {
                let what = format!("a JSON schema must be an object, found {other}");
                return Err(Error::new(ErrorKind::Parameter, what));
            }
        };
        if let Value::Object(fields) = &mut schema {
            let spaced = || json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
            fields.entry("x-guidance").or_insert_with(spaced);
        }
        Ok(Self { kind: "JSON schema", source: TopLevelGrammar::from_json_schema(schema) })
    }

    /// Texts that match a regular expression from beginning to end, in the syntax of Rust's `regex`.
    ///
    /// # Errors
    /// When the expression is empty; its syntax is checked when it is compiled.
    pub fn regex(expression: &str) -> Result<Self> {
        if expression.is_empty() {
            return Err(Error::new(ErrorKind::Parameter, "the regular expression is empty"));
        }
        Ok(Self { kind: "regular expression", source: TopLevelGrammar::from_regex(expression) })
    }

    /// Texts of a context-free grammar in llguidance's dialect of Lark, beginning with rule `start`.
    ///
    /// # Errors
    /// When the grammar is empty; its syntax is checked when it is compiled.
    pub fn lark(grammar: &str) -> Result<Self> {
        if grammar.trim().is_empty() {
            return Err(Error::new(ErrorKind::Parameter, "the grammar is empty"));
        }
        Ok(Self { kind: "grammar", source: TopLevelGrammar::from_lark(grammar.to_owned()) })
    }
}
