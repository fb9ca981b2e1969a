//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    http::{Request, Response},
};
use mlx_genkit::Sequence;
use serde_json::{Value, json};

use crate::{
    app::App,
    asked::{self, Answering, Asked},
    body,
    fields::Fields,
    logprobs, messages,
    refusal::Refusal,
    reply::{self, Form},
};

/// The route.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response<Body>, Refusal> {
    let reading = Arc::clone(&app);
    let asked = body::fields(request, move |fields| read(fields, &reading)).await?;
    reply::answer(Form::Chat, asked, app).await
}

fn read(mut fields: Fields, app: &App) -> Result<(Asked, Answering), Refusal> {
    asked::check_model(&mut fields, app)?;
    let prompt = messages::read(&mut fields, app)?;
    let logprobs = match (fields.switch("logprobs")?, asked::top(&mut fields, "top_logprobs")?) {
        (true, top) => Some(top.unwrap_or(0)),
        (false, Some(1..)) => {
            let what = "`top_logprobs` needs `logprobs`: true";
            return Err(Refusal::field("top_logprobs", what));
        }
        (false, _) => None,
    };
    asked::read(fields, vec![prompt], logprobs, app)
}

/// A sequence as an element of `choices`.
pub(crate) fn choice(index: usize, sequence: &Sequence, app: &App) -> Value {
    json!({
        "index": index,
        "message": {"role": "assistant", "content": sequence.text},
        "logprobs": logprobs::of_chat(&sequence.recorded.logprobs, app),
        "finish_reason": reply::finish_reason(sequence.finish_reason),
    })
}

/// An element of a chunk's `choices`.
pub(crate) fn chunk(index: usize, delta: &Value, finish_reason: Option<&str>) -> Value {
    json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": finish_reason})
}
