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
    tools::{Calls, Tools},
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
    let tools = Tools::read(&mut fields)?;
    let prompt = messages::read(&mut fields, tools.told(), app)?;
    if let Some(grammar) = tools.grammar(&prompt.text, app)? {
        fields.constrain("tool_choice", grammar)?;
    }
    let logprobs = match (fields.switch("logprobs")?, asked::top(&mut fields, "top_logprobs")?) {
        (true, top) => Some(top.unwrap_or(0)),
        (false, Some(1..)) => {
            let what = "`top_logprobs` needs `logprobs`: true";
            return Err(Refusal::field("top_logprobs", what));
        }
        (false, _) => None,
    };
    let (mut asked, mut answering) = asked::read(fields, vec![prompt.tokens], logprobs, app)?;
    answering.calls = tools.calls(&prompt.text, app);
    answering.warnings.extend(tools.warning(app));
    if answering.calls.is_some() {
        asked.shown = app.about.marks.iter().map(|it| it.1).collect();
    }
    Ok((asked, answering))
}

/// A sequence as an element of `choices`.
pub(crate) fn choice(index: usize, sequence: &Sequence, calls: Option<Calls>, app: &App) -> Value {
    let (text, reason) = (sequence.text.as_str(), sequence.finish_reason);
    let (message, reason) = match calls {
        Some(calls) => calls.message(text, reason),
        None => (json!({"role": "assistant", "content": text}), reply::finish_reason(reason)),
    };
    json!({
        "index": index,
        "message": message,
        "logprobs": logprobs::of_chat(&sequence.recorded.logprobs, app),
        "finish_reason": reason,
    })
}

/// An element of a chunk's `choices`.
pub(crate) fn chunk(index: usize, delta: &Value, finish_reason: Option<&str>) -> Value {
    json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": finish_reason})
}
