//! An answer as it is made: server-sent events as OpenAI's clients expect them.
//!
//! A chat's choices begin with their role, once. Each ends with a chunk that says why. Then, where it is
//! asked for, one more has the number of tokens, and `[DONE]` ends the stream. What goes wrong after the first
//! byte is an event with `error`, after which nothing comes.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    http::{HeaderValue, Response, header},
};
use http_body::Frame;
use mlx_genkit::Piece;
use serde_json::{Map, Value, json};
use tokio::{
    sync::mpsc::UnboundedReceiver,
    time::{Instant, Interval, interval_at},
};

use crate::{
    app::App,
    asked::Answering,
    chat, completions,
    engine::Event,
    logprobs,
    refusal::Refusal,
    reply::{Form, Head, finish_reason, usage},
    tools::Calls,
};

/// How long nothing is said at most. A comment after that tells proxies that there is life, and us whether
/// the client is still there.
const SILENCE: Duration = Duration::from_secs(15);

/// The response; `more` stands in the first chunk.
pub(crate) fn response(
    head: Head,
    more: Map<String, Value>,
    events: UnboundedReceiver<Event>,
    sequences: usize,
    answering: &Answering,
    app: Arc<App>,
) -> Response<Body> {
    let mut stream = EventStream {
        events,
        pending: VecDeque::new(),
        ended: false,
        ping: interval_at(Instant::now() + SILENCE, SILENCE),
        head,
        more,
        include_usage: answering.include_usage,
        return_token_ids: answering.return_token_ids,
        spelled: answering.spelled.clone(),
        calls: answering.calls.iter().cycle().take(sequences).cloned().collect(),
        offsets: vec![0; sequences],
        app,
    };
    if stream.head.form == Form::Chat {
        let role = json!({"role": "assistant", "content": ""});
        (0..sequences).for_each(|it| stream.chunk(chat::chunk(it, &role, None)));
    }
    let mut response = Response::new(Body::new(stream));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// The body. When it is dropped, because the client has left or all is said, nobody reads its events any
/// longer, by which the engine knows.
struct EventStream {
    events: UnboundedReceiver<Event>,
    /// What is to be sent.
    pending: VecDeque<Bytes>,
    ended: bool,
    ping: Interval,
    head: Head,
    more: Map<String, Value>,
    include_usage: bool,
    return_token_ids: bool,
    /// HF's fields and how the request spells them.
    spelled: Vec<(&'static str, &'static str)>,
    /// What reads the calls of each sequence; empty where there are none to read.
    calls: Vec<Calls>,
    /// Where in each sequence's text the next token begins, in characters.
    offsets: Vec<usize>,
    app: Arc<App>,
}

impl EventStream {
    fn say(&mut self, event: Option<Event>) {
        match event {
            Some(Event::Piece(piece)) => self.piece(&piece),
            Some(Event::Finished(generation)) => {
                if self.include_usage {
                    let mut last = self.head.document(true, Vec::new());
                    last.insert("usage".to_owned(), usage(&generation));
                    self.send(&Value::Object(last).to_string());
                }
                self.send("[DONE]");
                self.ended = true;
            }
            Some(Event::Started(_)) => {}
            Some(Event::Failed(refusal)) => self.fail(refusal),
            None => self.fail(Refusal::stopping()),
        }
    }

    fn piece(&mut self, piece: &Piece) {
        let (index, text, reason) = (piece.sequence, piece.text.as_str(), piece.finish_reason);
        let text_alone = || match text {
            "" => Vec::new(),
            text => vec![json!({ "content": text })],
        };
        let calls = self.calls.get_mut(index);
        let mut deltas = calls.map_or_else(text_alone, |it| it.deltas(text, reason.is_some()));
        if deltas.is_empty() && (self.return_token_ids || piece.logprobs.is_some()) {
            deltas.push(json!({"content": ""}));
        }
        // What is told of the token, once.
        let mut token = Some(piece.token).filter(|_| self.return_token_ids);
        let mut logprobs = piece.logprobs.as_ref();
        for delta in deltas {
            let mut choice = match self.head.form {
                Form::Chat => chat::chunk(index, &delta, None),
                Form::Completion => completions::chunk(index, text, None),
            };
            if let Some(token) = token.take() {
                choice["token_ids"] = json!([token]);
            }
            if let Some(logprobs) = logprobs.take() {
                let (recorded, app) = (std::slice::from_ref(logprobs), &self.app);
                choice["logprobs"] = match self.head.form {
                    Form::Chat => logprobs::of_chat(recorded, app),
                    Form::Completion => {
                        logprobs::of_completion(recorded, &mut self.offsets[index], app)
                    }
                };
            }
            self.chunk(choice);
        }
        if let Some(reason) = reason {
            let reason = Some(match self.calls.get(index) {
                Some(calls) => calls.reason(reason),
                None => finish_reason(reason),
            });
            self.chunk(match self.head.form {
                Form::Chat => chat::chunk(index, &json!({}), reason),
                Form::Completion => completions::chunk(index, "", reason),
            });
        }
    }

    fn chunk(&mut self, choice: Value) {
        let mut chunk = self.head.document(true, vec![choice]);
        if self.include_usage {
            chunk.insert("usage".to_owned(), Value::Null);
        }
        chunk.append(&mut self.more);
        self.send(&Value::Object(chunk).to_string());
    }

    fn fail(&mut self, refusal: Refusal) {
        self.send(&refusal.spelled(&self.spelled).document().to_string());
        self.ended = true;
    }

    fn send(&mut self, data: &str) {
        self.pending.push_back(format!("data: {data}\n\n").into());
    }
}

impl HttpBody for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(bytes) = self.pending.pop_front() {
                self.ping.reset();
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match self.events.poll_recv(context) {
                Poll::Ready(event) => self.say(event),
                Poll::Pending if self.ping.poll_tick(context).is_ready() => {
                    self.pending.push_back(Bytes::from_static(b": ping\n\n"));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
