//! Chat templates, tokenizers and special ids.
//!
//! A fixture carries the model's files themselves (`tokenizer_config.json` with its chat template, and
//! for the tokenizers `tokenizer.json`), so any model folder's files can be put into one. See
//! `xtask/record/templates.py`.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::SystemTime};

use mlxgk_tokenizer_bridge::{
    ChatTemplate, Error, ErrorKind, Files, Message, RenderOptions, SpecialIds, Tokenizer,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{Case, Outcome, files};

/// The cases of every `*.json` of `folder`.
pub(crate) fn cases(folder: &Path) -> Vec<Case> {
    files::suites(folder, |path, suite| match files::read(path)? {
        Fixture::Chat(chat) => chat.cases(suite),
        Fixture::Tokenizer(tokenizer) => tokenizer.cases(suite),
        Fixture::SpecialIds { cases } => {
            let case = |case: Ids| {
                let name = Value::from(case.files.clone()).to_string();
                Case::new(suite, name, move || case.check())
            };
            Ok(cases.into_iter().map(case).collect())
        }
    })
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
    continue_final_message: Option<String>,
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
    fn cases(mut self, suite: &str) -> Result<Vec<Case>, String> {
        let config = self.tokenizer_config.to_string();
        let files =
            Files { tokenizer_config: Some(config.into_bytes().into()), ..Files::default() };
        let template = Arc::new(ChatTemplate::from_files(&files).map_err(|it| it.to_string())?);
        let now = local_time(&self.now)?;
        let cases = std::mem::take(&mut self.cases);
        let chat = Arc::new(self);
        let case = |case: ChatCase| {
            let (template, chat) = (Arc::clone(&template), Arc::clone(&chat));
            Case::new(suite, case.name(), move || case.check(&chat, &template, now).map(|()| 0.0))
        };
        Ok(cases.into_iter().map(case).collect())
    }
}

impl ChatCase {
    fn check(&self, chat: &Chat, template: &ChatTemplate, now: SystemTime) -> Result<(), String> {
        let messages = chat.conversations.get(&self.conversation);
        let messages = messages.ok_or_else(|| format!("no `{}`", self.conversation))?;
        let extra = chat.extra.iter().chain(&self.extra);
        let options = RenderOptions {
            add_generation_prompt: self.add_generation_prompt,
            tools: self.tools.then(|| chat.tools.clone()),
            documents: self.documents.then(|| chat.documents.clone()),
            template: self.template.clone(),
            continue_final_message: self.continue_final_message.clone(),
            now: Some(now),
            extra: extra.map(|(name, value)| (name.clone(), value.clone())).collect(),
        };
        self.expected.compare(template.render(messages, &options))
    }

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
        if let Some(field) = &self.continue_final_message {
            name += &format!(", `{field}` continued");
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
    fn cases(mut self, suite: &str) -> Result<Vec<Case>, String> {
        if self.encoded.is_empty() || self.decoded.is_empty() {
            return Err("the fixture has no cases under `encoded` or `decoded`".to_owned());
        }
        let tokenizer = Arc::new(
            Tokenizer::from_files(&model_files(&self.files)).map_err(|it| it.to_string())?,
        );
        let mut cases = Vec::new();
        for case in std::mem::take(&mut self.encoded) {
            let tokenizer = Arc::clone(&tokenizer);
            cases.push(Case::new(suite, format!("{:?}", case.text), move || {
                encode(&tokenizer, &case, &case.ids, true)?;
                encode(&tokenizer, &case, &case.plain, false)
            }));
        }
        for case in std::mem::take(&mut self.decoded) {
            let tokenizer = Arc::clone(&tokenizer);
            cases.push(Case::new(suite, format!("{:?}", case.ids), move || {
                decode(&tokenizer, &case.ids, &case.text, false)?;
                decode(&tokenizer, &case.ids, &case.skipping, true)
            }));
        }
        cases.push(Case::new(suite, "vocabulary", move || {
            let special = tokenizer.special_tokens().iter();
            let special: BTreeMap<_, _> =
                special.map(|(name, text)| (name.to_owned(), text.to_owned())).collect();
            same(&self.vocab_size, &tokenizer.vocab_size())?;
            same(&self.special_tokens, &special)
        }));
        Ok(cases)
    }
}

fn encode(it: &Tokenizer, case: &Encoded, ids: &Vec<u32>, special: bool) -> Outcome {
    same(ids, &it.encode(&case.text, special).map_err(|error| error.to_string())?)
}

/// Decodes at once and one by one.
fn decode(it: &Tokenizer, ids: &[u32], text: &str, skip: bool) -> Outcome {
    let at_once = it.decode(ids, skip).map_err(|error| error.to_string())?;
    same_text(text, &at_once)?;
    let mut stream = it.stream(skip);
    let mut pieces = String::new();
    for &id in ids {
        pieces.push_str(stream.push(id).map_err(|error| error.to_string())?);
    }
    pieces.push_str(stream.flush().map_err(|error| error.to_string())?);
    same_text(text, &pieces).map(|()| 0.0)
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
    fn check(&self) -> Outcome {
        let got = SpecialIds::from_files(&model_files(&self.files), None);
        let got = got.map_err(|error| error.to_string())?;
        same(&(self.bos, &self.eos, self.pad), &(got.bos, &got.eos, got.pad))
    }
}

fn model_files(contents: &Map<String, Value>) -> Files<'static> {
    let file = |name: &str| contents.get(name).map(|it| it.to_string().into_bytes().into());
    Files {
        tokenizer: file("tokenizer.json"),
        tokenizer_config: file("tokenizer_config.json"),
        special_tokens_map: file("special_tokens_map.json"),
        added_tokens: file("added_tokens.json"),
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

fn same<T: PartialEq + std::fmt::Debug>(expected: &T, got: &T) -> Outcome {
    if expected == got { Ok(0.0) } else { Err(format!("{got:?}, not {expected:?}")) }
}
