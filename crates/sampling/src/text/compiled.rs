//! Grammars that are compiled, once for all that ask for the same one at a time.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use mlxgk_generation_config::Resolved;
use mlxgk_grammars::{Grammar, GrammarProcessor, Vocabulary};
use mlxgk_logits_processors::Result;

use crate::Text;

/// A compiled grammar; see [`Text::compile`]. Clones share it, and two are equal if they are one.
#[derive(Debug, Clone)]
pub struct CompiledGrammar(Arc<Compiled>);

impl PartialEq for CompiledGrammar {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

#[derive(Debug)]
struct Compiled {
    source: Source,
    processor: GrammarProcessor,
}

/// What a grammar is compiled from.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    /// The field, and what it says. Of a JSON schema the order of its members counts, too.
    field: &'static str,
    text: String,
    eos: Vec<u32>,
}

/// What the grammars of a tokenizer share.
#[derive(Debug, Clone, Default)]
pub(super) struct Grammars {
    vocabulary: Arc<OnceLock<Vocabulary>>,
    /// Those that somebody holds.
    compiled: Arc<Mutex<Vec<Weak<Compiled>>>>,
}

impl Text {
    /// Compiles the grammar that the fields ask for, where they do, and refuses one that cannot be used.
    ///
    /// That can take seconds. As long as what it returns is held, [`Rules`](crate::Rules) for the same grammar
    /// take it from there, on whatever thread they are made.
    ///
    /// ```
    /// use mlxgk_generation_config::GenerationConfig;
    /// use mlxgk_sampling::{Rules, Seed, Text};
    /// use mlxgk_tokenizer_bridge::{Files, Tokenizer};
    ///
    /// # let json = r#"{
    /// #     "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
    /// #                 "use_regex": false},
    /// #     "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "!": 2}, "merges": []}
    /// # }"#;
    /// # let files = Files { tokenizer: Some(json.as_bytes().into()), ..Files::default() };
    /// let text = Text::from(Tokenizer::from_files(&files)?);
    /// let (eos_token_id, regex) = (Some(2.into()), Some("[ab]+".to_owned()));
    /// let config = GenerationConfig { eos_token_id, regex, ..Default::default() };
    /// let resolved = config.resolve(&GenerationConfig::default(), 1, None)?;
    /// let compiled = std::thread::spawn({
    ///     let (text, resolved) = (text.clone(), resolved.clone());
    ///     move || text.compile(&resolved)
    /// });
    /// let held = compiled.join().unwrap()?;
    /// assert!(held.is_some());
    /// let rules = Rules::new(&resolved, 3, Some(&text), Seed::Torch(0))?;
    /// assert_eq!(rules.processors.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// When the grammar's syntax is wrong, it uses what is not supported, or it is too large; the message says
    /// where.
    pub fn compile(&self, resolved: &Resolved) -> Result<Option<CompiledGrammar>> {
        let config = &resolved.config;
        // A valid config has one of them at most.
        let (field, text) = match (&config.json_schema, &config.regex, &config.grammar) {
            (Some(schema), _, _) => ("json_schema", schema.to_string()),
            (_, Some(regex), _) => ("regex", regex.clone()),
            (_, _, Some(lark)) => ("grammar", lark.clone()),
            (None, None, None) => return Ok(None),
        };
        let source = Source { field, text, eos: resolved.special_tokens.eos.clone() };
        if let Some(found) = self.grammars.find(&source) {
            return Ok(Some(found));
        }
        let grammar = match (&config.json_schema, field) {
            (Some(schema), _) => Grammar::json_schema(schema)?,
            (None, "regex") => Grammar::regex(&source.text)?,
            (None, _) => Grammar::lark(&source.text)?,
        };
        let eos = &source.eos;
        let shared = &self.grammars.vocabulary;
        let vocabulary = match shared.get() {
            Some(vocabulary) => vocabulary.with_eos(eos)?,
            None => {
                let vocabulary = Vocabulary::from_tokenizer(self.tokenizer(), eos)?;
                shared.get_or_init(|| vocabulary).with_eos(eos)?
            }
        };
        let processor = GrammarProcessor::new(&vocabulary, &grammar)?;
        let compiled = Arc::new(Compiled { source, processor });
        self.grammars.compiled().push(Arc::downgrade(&compiled));
        Ok(Some(CompiledGrammar(compiled)))
    }
}

impl CompiledGrammar {
    /// The field that it is of.
    pub(super) fn field(&self) -> &'static str {
        self.0.source.field
    }

    /// A processor of its own for a request.
    pub(super) fn processor(&self) -> GrammarProcessor {
        self.0.processor.clone()
    }
}

impl Grammars {
    /// A grammar of this source that somebody holds.
    fn find(&self, source: &Source) -> Option<CompiledGrammar> {
        let mut compiled = self.compiled();
        compiled.retain(|it| it.strong_count() > 0);
        let mut held = compiled.iter().filter_map(Weak::upgrade);
        held.find(|it| it.source == *source).map(CompiledGrammar)
    }

    fn compiled(&self) -> MutexGuard<'_, Vec<Weak<Compiled>>> {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
