//! From what the engine says to an answer: what chats and completions have in common.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderValue, Response, header},
};
use mlx_genkit::{FinishReason, Generation, Seed, Sequence};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::{
    app::{self, App},
    asked::{Answering, Asked},
    chat, completions,
    engine::{Event, Started},
    event_stream,
    queue::Job,
    refusal::{Refusal, spelled},
};

/// Which of OpenAI's two forms an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Chat,
    Completion,
}

/// What every document of an answer begins with.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) form: Form,
    id: String,
    created: u64,
    model: String,
}

impl Head {
    fn new(form: Form, app: &App) -> Self {
        let begin = match form {
            Form::Chat => "chatcmpl",
            Form::Completion => "cmpl",
        };
        Self {
            form,
            id: format!("{begin}-{}", random_hex()),
            created: app::now(),
            model: app.about.id.clone(),
        }
    }

    /// A document with these choices.
    pub(crate) fn document(&self, is_chunk: bool, choices: Vec<Value>) -> Map<String, Value> {
        let object = match (self.form, is_chunk) {
            (Form::Chat, true) => "chat.completion.chunk",
            (Form::Chat, false) => "chat.completion",
            (Form::Completion, _) => "text_completion",
        };
        Map::from_iter([
            ("id".to_owned(), self.id.as_str().into()),
            ("object".to_owned(), object.into()),
            ("created".to_owned(), self.created.into()),
            ("model".to_owned(), self.model.as_str().into()),
            ("choices".to_owned(), choices.into()),
        ])
    }
}

/// Lets a request run, and answers with what becomes of it.
pub(crate) async fn answer(
    form: Form,
    (asked, answering): (Asked, Answering),
    app: Arc<App>,
) -> Result<Response<Body>, Refusal> {
    let (sender, mut events) = unbounded_channel();
    let sequences = asked.rows;
    app.queue.push(Job { asked, events: sender })?;
    let spell = |refusal: Refusal| refusal.spelled(&answering.spelled);
    let head = Head::new(form, &app);
    let started = match events.recv().await {
        Some(Event::Started(started)) => started,
        Some(Event::Failed(refusal)) => return Err(spell(refusal)),
        _ => return Err(Refusal::stopping()),
    };
    let more = more(&started, &answering);
    if answering.stream {
        return Ok(event_stream::response(head, more, events, sequences, &answering, app));
    }
    let generation = finished(&mut events).await.map_err(spell)?;
    let choice = |(index, sequence)| choice(form, index, sequence, &answering, &app);
    let choices = generation.sequences.iter().enumerate().map(choice).collect();
    let mut document = head.document(false, choices);
    document.insert("usage".to_owned(), usage(&generation));
    document.extend(more);
    Ok(json_response(&Value::Object(document)))
}

/// Waits for a request's end.
async fn finished(events: &mut UnboundedReceiver<Event>) -> Result<Box<Generation>, Refusal> {
    loop {
        match events.recv().await {
            Some(Event::Finished(generation)) => return Ok(generation),
            Some(Event::Failed(refusal)) => return Err(refusal),
            Some(Event::Started(_) | Event::Piece(_)) => {}
            None => return Err(Refusal::stopping()),
        }
    }
}

/// What this server says beyond OpenAI's fields.
fn more(started: &Started, answering: &Answering) -> Map<String, Value> {
    let mut more = Map::new();
    if let Some(seed) = answering.seed {
        more.insert("seed".to_owned(), seed.into());
    }
    if let Some(steered) = &answering.steered {
        more.insert("steering".to_owned(), steered.document(started.fingerprint.as_deref()));
    }
    let warnings = started.warnings.iter().map(|it| spelled(it, &answering.spelled));
    let warnings: Vec<Value> =
        warnings.chain(answering.warnings.iter().cloned()).map(Value::from).collect();
    if !warnings.is_empty() {
        more.insert("warnings".to_owned(), warnings.into());
    }
    more
}

fn choice(
    form: Form,
    index: usize,
    sequence: &Sequence,
    answering: &Answering,
    app: &App,
) -> Value {
    let mut choice = match form {
        Form::Chat => chat::choice(index, sequence, answering.calls.clone(), app),
        Form::Completion => completions::choice(index, sequence, app),
    };
    if answering.return_token_ids {
        choice["token_ids"] = sequence.tokens.clone().into();
    }
    choice
}

/// How many tokens a request has taken.
pub(crate) fn usage(generation: &Generation) -> Value {
    let (prompt, new) =
        (generation.prompt_tokens.iter().sum::<usize>(), generation.generated_tokens());
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": generation.cached_tokens},
    })
}

/// OpenAI's word for why a text has ended; it has none for the time.
pub(crate) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Eos | FinishReason::StopString => "stop",
        _ => "length",
    }
}

/// A document as a response.
pub(crate) fn json_response(document: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(document.to_string()));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// Sixteen digits that no other answer has.
pub(crate) fn random_hex() -> String {
    let (Seed::Fast(number) | Seed::Torch(number)) = Seed::random();
    format!("{number:016x}")
}
