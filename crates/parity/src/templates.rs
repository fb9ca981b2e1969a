//! Chat templates, tokenizers and special ids.
//!
//! A fixture carries the model's files themselves (`tokenizer_config.json` with its chat template, and
//! for the tokenizers `tokenizer.json`), so any model folder's files can be put into one. See
//! `xtask/record/templates.py`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use mlxgk_tokenizer_bridge::{
    ChatTemplate, Error, ErrorKind, Files, Message, RenderOptions, SpecialIds, Tokenizer,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::Report;
use crate::files::{json_files, read};

/// Compares with every file of `folder`.
///
/// # Errors
/// When a file cannot be read or is not what the recorder writes.
pub fn check(folder: &Path) -> Result<Report, String> {
    let mut report = Report::default();
    for path in json_files(folder)? {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let suite = format!("templates/{name}");
        match read::<Fixture>(&path)? {
            Fixture::Chat(chat) => chat.check(&suite, &mut report)?,
            Fixture::Tokenizer(tokenizer) => tokenizer.check(&suite, &mut report)?,
            Fixture::SpecialIds { cases } => {
                for case in cases {
                    report.book(
                        &suite,
                        &Value::from(case.files.clone()).to_string(),
                        0.0,
                        case.check(),
                    );
                }
            }
        }
    }
    Ok(report)
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Fixture {
    Chat(Chat),
    Tokenizer(TokenizerFixture),
    SpecialIds { cases: Vec<Ids> },
}

/// Conversations and what a chat template makes of them.
#[derive(Deserialize)]
struct Chat {
    tokenizer_config: Value,
    /// The local time at which the templates were rendered.
    now: String,
    conversations: BTreeMap<String, Vec<Message>>,
    #[serde(default)]
    tools: Vec<Value>,
    #[serde(default)]
    documents: Vec<Value>,
    /// Variables of all cases.
    #[serde(default)]
    extra: Map<String, Value>,
    cases: Vec<ChatCase>,
}

#[derive(Deserialize)]
struct ChatCase {
    conversation: String,
    add_generation_prompt: bool,
    #[serde(default)]
    tools: bool,
    #[serde(default)]
    documents: bool,
    template: Option<String>,
    #[serde(default)]
    extra: Map<String, Value>,
    #[serde(flatten)]
    expected: Expected,
}

/// What the reference did.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Expected {
    Text(String),
    /// The template called `raise_exception` with this.
    Refused(String),
    /// It failed otherwise; that we fail too is all that is compared.
    Fails(String),
}

impl Chat {
    fn check(&self, suite: &str, report: &mut Report) -> Result<(), String> {
        let config = self.tokenizer_config.to_string();
        let config = Some(config.into_bytes().into());
        let files = Files { tokenizer_config: config, ..Files::default() };
        let template =
            ChatTemplate::from_files(&files).map_err(|error| format!("{suite}: {error}"))?;
        let now = local_time(&self.now)?;
        for case in &self.cases {
            let messages = self.conversations.get(&case.conversation);
            let messages =
                messages.ok_or_else(|| format!("{suite}: no `{}`", case.conversation))?;
            let extra = self.extra.iter().chain(&case.extra);
            let options = RenderOptions {
                add_generation_prompt: case.add_generation_prompt,
                tools: case.tools.then(|| self.tools.clone()),
                documents: case.documents.then(|| self.documents.clone()),
                template: case.template.clone(),
                now: Some(now),
                extra: extra.map(|(name, value)| (name.clone(), value.clone())).collect(),
            };
            let outcome = case.expected.compare(template.render(messages, &options));
            report.book(suite, &case.name(), 0.0, outcome);
        }
        Ok(())
    }
}

impl ChatCase {
    fn name(&self) -> String {
        let mut name = self.conversation.clone();
        for (given, what) in [
            (self.add_generation_prompt, "prompt"),
            (self.tools, "tools"),
            (self.documents, "documents"),
        ] {
            name += &if given { format!(", {what}") } else { String::new() };
        }
        if let Some(template) = &self.template {
            name += &format!(", template `{template}`");
        }
        if !self.extra.is_empty() {
            name += &format!(", {}", Value::from(self.extra.clone()));
        }
        name
    }
}

impl Expected {
    fn compare(&self, got: Result<String, Error>) -> Result<(), String> {
        match (self, got) {
            (Self::Text(text), Ok(got)) => same_text(text, &got),
            (Self::Text(_), Err(error)) => Err(format!("{error}")),
            (Self::Refused(why), Err(error)) if error.kind() == ErrorKind::Refused => {
                let got = error.to_string();
                if got.ends_with(why) {
                    Ok(())
                } else {
                    Err(format!("refused with {got:?}, not {why:?}"))
                }
            }
            (Self::Fails(_), Err(_)) => Ok(()),
            (Self::Refused(why), got) => Err(format!("{got:?}, not refused: {why}")),
            (Self::Fails(why), Ok(got)) => Err(format!("{got:?}, but the reference fails: {why}")),
        }
    }
}

/// A local time as a moment; which one depends on this machine's time zone, its date does not.
fn local_time(text: &str) -> Result<SystemTime, String> {
    let time: jiff::civil::DateTime = text.parse().map_err(|error| format!("{text}: {error}"))?;
    let zoned = time.to_zoned(jiff::tz::TimeZone::system()).map_err(|error| error.to_string())?;
    Ok(zoned.timestamp().into())
}

/// A tokenizer's files, and what it encodes and decodes.
#[derive(Deserialize)]
struct TokenizerFixture {
    files: Map<String, Value>,
    vocab_size: usize,
    special_tokens: BTreeMap<String, String>,
    encoded: Vec<Encoded>,
    decoded: Vec<Decoded>,
}

#[derive(Deserialize)]
struct Encoded {
    text: String,
    /// With the special tokens the tokenizer puts around a text.
    ids: Vec<u32>,
    /// Without them.
    plain: Vec<u32>,
}

#[derive(Deserialize)]
struct Decoded {
    ids: Vec<u32>,
    text: String,
    /// The text without special tokens.
    skipping: String,
}

impl TokenizerFixture {
    fn check(&self, suite: &str, report: &mut Report) -> Result<(), String> {
        let tokenizer = Tokenizer::from_files(&files(&self.files));
        let tokenizer = tokenizer.map_err(|error| format!("{suite}: {error}"))?;

        let special = tokenizer.special_tokens().iter();
        let special: BTreeMap<_, _> =
            special.map(|(name, text)| (name.to_owned(), text.to_owned())).collect();
        let vocabulary = same(&self.vocab_size, &tokenizer.vocab_size())
            .and_then(|()| same(&self.special_tokens, &special));
        report.book(suite, "vocabulary", 0.0, vocabulary);

        for case in &self.encoded {
            let outcome = encode(&tokenizer, case, &case.ids, true)
                .and_then(|()| encode(&tokenizer, case, &case.plain, false));
            report.book(suite, &format!("{:?}", case.text), 0.0, outcome);
        }
        for case in &self.decoded {
            let outcome = decode(&tokenizer, &case.ids, &case.text, false)
                .and_then(|()| decode(&tokenizer, &case.ids, &case.skipping, true));
            report.book(suite, &format!("{:?}", case.ids), 0.0, outcome);
        }
        Ok(())
    }
}

fn encode(it: &Tokenizer, case: &Encoded, ids: &Vec<u32>, special: bool) -> Result<(), String> {
    same(ids, &it.encode(&case.text, special).map_err(|error| error.to_string())?)
}

/// Decodes at once and one by one.
fn decode(it: &Tokenizer, ids: &[u32], text: &str, skip: bool) -> Result<(), String> {
    let at_once = it.decode(ids, skip).map_err(|error| error.to_string())?;
    same_text(text, &at_once)?;
    let mut stream = it.stream(skip);
    let mut pieces = String::new();
    for &id in ids {
        pieces.push_str(stream.push(id).map_err(|error| error.to_string())?);
    }
    pieces.push_str(stream.flush().map_err(|error| error.to_string())?);
    same_text(text, &pieces)
}

/// Configs, and the ids `generate()` takes from them.
#[derive(Deserialize)]
struct Ids {
    files: Map<String, Value>,
    bos: Option<u32>,
    eos: Vec<u32>,
    pad: Option<u32>,
}

impl Ids {
    fn check(&self) -> Result<(), String> {
        let got = SpecialIds::from_files(&files(&self.files), None);
        let got = got.map_err(|error| error.to_string())?;
        same(&(self.bos, &self.eos, self.pad), &(got.bos, &got.eos, got.pad))
    }
}

fn files(contents: &Map<String, Value>) -> Files<'static> {
    let file = |name: &str| contents.get(name).map(|it| it.to_string().into_bytes().into());
    Files {
        tokenizer: file("tokenizer.json"),
        tokenizer_config: file("tokenizer_config.json"),
        special_tokens_map: file("special_tokens_map.json"),
        config: file("config.json"),
        generation_config: file("generation_config.json"),
        ..Files::default()
    }
}

/// Compares texts and shows where they part.
fn same_text(expected: &str, got: &str) -> Result<(), String> {
    if expected == got {
        return Ok(());
    }
    let same = expected.chars().zip(got.chars()).take_while(|(a, b)| a == b).count();
    let from = |text: &str| text.chars().skip(same.saturating_sub(20)).take(60).collect::<String>();
    Err(format!("at character {same}: {:?}, not {:?}", from(got), from(expected)))
}

fn same<T: PartialEq + std::fmt::Debug>(expected: &T, got: &T) -> Result<(), String> {
    if expected == got { Ok(()) } else { Err(format!("{got:?}, not {expected:?}")) }
}
