//! What a text must look like.

use llguidance::api::TopLevelGrammar;
use mlxgk_logits_processors::{Error, ErrorKind, Result};
use serde_json::Value;

use crate::schema::{self, Prepared};
use crate::vocabulary::{Characters, Tokens};
use crate::{engine::shortened, lark};

/// The longest grammar, in bytes; the largest published schemas have a few megabytes.
const LONGEST: usize = 4 << 20;
/// The longest regular expression, in bytes.
const LONGEST_EXPRESSION: usize = 64 << 10;
/// `*`, `+`, `?` and `{..}` of a regular expression; what one adds grows with the number of others.
const MOST_QUANTIFIERS: usize = 2000;

/// A grammar in one of three notations. It is compiled against a vocabulary by
/// [`GrammarProcessor::new`](crate::GrammarProcessor::new).
///
/// ```
/// use mlxgk_grammars::{Grammar, GrammarProcessor, Vocabulary};
/// use mlxgk_logits_processors::Context;
///
/// // A token for each byte, behind the end token.
/// let tokens = std::iter::once(b"\xff</s>".to_vec()).chain((0..255).map(|it| vec![it]));
/// let vocabulary = Vocabulary::new(&tokens.collect::<Vec<_>>(), &[0])?;
/// let ids = |text: &str| text.bytes().map(|it| u32::from(it) + 1).collect::<Vec<_>>();
/// let list = serde_json::json!({"type": "array", "items": {"type": "integer"}});
/// let grammars = [
///     Grammar::json_schema(&list)?,
///     Grammar::regex(r"\[[0-9]*\]")?,
///     Grammar::lark(r#"start: "[" /[0-9]+/ "]""#)?,
/// ];
/// for grammar in &grammars {
///     let processor = GrammarProcessor::new(&vocabulary, grammar)?;
///     assert!(processor.is_complete(&Context::new(&ids("[12]"), 0))?);
///     assert!(!processor.is_complete(&Context::new(&ids("[1"), 0))?);
/// }
/// # Ok::<(), mlxgk_logits_processors::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Grammar {
    source: Source,
    warnings: Vec<String>,
}

#[derive(Debug, Clone)]
enum Source {
    Schema { schema: Value, grammar: TopLevelGrammar },
    Regex(String),
    Lark(String),
}

impl Grammar {
    /// Texts that are JSON and fit a schema.
    ///
    /// Between its parts the text has the separators `", "` and `": "` and no other white space: a
    /// model that may add white space anywhere can add it for ever. A schema that brings
    /// llguidance's own `x-guidance` settings is taken as it is.
    ///
    /// Integers are exact, also beyond 2<sup>53</sup>. A `format` that is not one of `date-time`,
    /// `time`, `date`, `duration`, `email`, `hostname`, `ipv4`, `ipv6`, `uuid` and `uri` is an
    /// annotation, as the standard has it, and is named by [`warnings`](Self::warnings).
    ///
    /// ```
    /// use mlxgk_grammars::Grammar;
    ///
    /// assert!(Grammar::json_schema(&serde_json::json!({"type": "integer"})).is_ok());
    /// assert!(Grammar::json_schema(&serde_json::json!("integer")).is_err());
    /// ```
    ///
    /// # Errors
    /// When the value is neither an object nor a boolean, and so no schema; when a `$ref` leads back
    /// to itself, or a number cannot be kept exactly. The message has the JSON pointer of the place.
    pub fn json_schema(schema: &Value) -> Result<Self> {
        let prepared = schema::prepare(schema).map_err(|what| {
            Error::new(ErrorKind::Parameter, format!("the JSON schema cannot be used: {what}"))
        })?;
        let (schema, warnings) = (prepared.schema, prepared.warnings);
        let grammar = match prepared.lark {
            Some(lark) => TopLevelGrammar::from_lark(lark),
            None => TopLevelGrammar::from_json_schema(schema.clone()),
        };
        Ok(Self { source: Source::Schema { schema, grammar }, warnings })
    }

    /// Texts that match a regular expression from beginning to end, in the syntax of Rust's `regex`.
    ///
    /// # Errors
    /// When the expression is empty or longer than 64 KiB; its syntax is checked when it is compiled.
    pub fn regex(expression: &str) -> Result<Self> {
        check_length("regular expression", expression, LONGEST_EXPRESSION)?;
        if expression.bytes().filter(|it| b"*+?{".contains(it)).count() > MOST_QUANTIFIERS {
            let what =
                format!("the regular expression has more than {MOST_QUANTIFIERS} quantifiers");
            return Err(Error::new(ErrorKind::Parameter, what));
        }
        Ok(Self { source: Source::Regex(expression.to_owned()), warnings: Vec::new() })
    }

    /// Texts of a context-free grammar in llguidance's dialect of Lark, beginning with rule `start`.
    /// Where it embeds `%json`, that has the white space of [`json_schema`](Self::json_schema).
    ///
    /// # Errors
    /// When the grammar is empty or longer than 4 MiB, or a `%json` in it cannot be used; its syntax
    /// is checked when it is compiled.
    pub fn lark(grammar: &str) -> Result<Self> {
        check_length("grammar", grammar, LONGEST)?;
        let embed = |embedded: &Value| {
            let Prepared { schema, lark, warnings } = schema::prepare(embedded)?;
            match lark {
                None => Ok((schema, warnings)),
                Some(_) => Err("integers beyond 2^53 and counted properties are not supported \
                                within Lark"
                    .to_owned()),
            }
        };
        let (text, warnings) = lark::embed_schemas(grammar, embed).map_err(|what| {
            Error::new(ErrorKind::Parameter, format!("the grammar cannot be used: {what}"))
        })?;
        Ok(Self { source: Source::Lark(text), warnings })
    }

    /// What in the grammar is not enforced, such as an unknown `format`, each with its place.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What errors call it.
    pub(crate) fn kind(&self) -> &'static str {
        match self.source {
            Source::Schema { .. } => "JSON schema",
            Source::Regex(_) => "regular expression",
            Source::Lark(_) => "grammar",
        }
    }

    /// The grammar for these tokens.
    ///
    /// # Errors
    /// When the tokens cannot spell all that the grammar may demand.
    pub(crate) fn over(&self, tokens: &Tokens) -> Result<TopLevelGrammar, String> {
        if let Some(characters) = &tokens.characters {
            return self.over_characters(characters);
        }
        Ok(match &self.source {
            Source::Schema { grammar, .. } => grammar.clone(),
            Source::Regex(expression) => TopLevelGrammar::from_regex(expression),
            Source::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
        })
    }

    /// The grammar for a vocabulary that has these characters, and not every byte, as tokens.
    fn over_characters(&self, characters: &Characters) -> Result<TopLevelGrammar, String> {
        let missing = |text: &str| {
            let all = (' '..='~').chain(text.chars().filter(|it| !it.is_control()));
            match all.into_iter().find(|it| !characters.alone.contains(it)) {
                Some(it) => Err(format!(
                    "the tokenizer has no token for {it:?} within a text, nor for every byte, so \
                     it cannot spell whatever a grammar demands"
                )),
                None => Ok(()),
            }
        };
        Ok(match &self.source {
            Source::Schema { schema, grammar } => {
                missing(&schema.to_string())?;
                grammar.clone()
            }
            Source::Lark(text) => {
                missing(text)?;
                TopLevelGrammar::from_lark(text.clone())
            }
            Source::Regex(expression) if !characters.all => TopLevelGrammar::from_regex(expression),
            // A regular expression can be restricted to what the tokens can spell.
            Source::Regex(expression) => {
                let expression = llguidance::regex_to_lark(expression, "");
                let class: String = characters
                    .alone
                    .iter()
                    .map(|it| format!("\\u{{{:x}}}", u32::from(*it)))
                    .collect();
                TopLevelGrammar::from_lark(format!(
                    "start: TEXT\nTEXT: /{expression}/ & /[{class}]*/"
                ))
            }
        })
    }

    /// A message about the whole grammar with the place it is about, where that can be found.
    pub(crate) fn locate(
        &self,
        what: &str,
        compile: impl Fn(TopLevelGrammar) -> Option<String>,
    ) -> String {
        let Source::Schema { schema, .. } = &self.source else { return shortened(what) };
        let fails = |schema: &Value| {
            compile(TopLevelGrammar::from_json_schema(schema.clone())).is_some_and(|it| it == what)
        };
        match schema::place_of(schema, fails) {
            Some(place) => format!("`{place}`: {what}"),
            None => what.to_owned(),
        }
    }
}

fn check_length(kind: &str, text: &str, longest: usize) -> Result<()> {
    let what = match text.len() {
        _ if text.trim().is_empty() && kind != "regular expression" || text.is_empty() => {
            "is empty"
        }
        len if len > longest => "is too long",
        _ => return Ok(()),
    };
    let limit =
        if what == "is too long" { format!(" (limit: {longest} bytes)") } else { String::new() };
    Err(Error::new(ErrorKind::Parameter, format!("the {kind} {what}{limit}")))
}
