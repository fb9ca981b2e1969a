//! `POST /v1/completions`.

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
    fields::{Fields, wrong},
    logprobs,
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
    reply::answer(Form::Completion, asked, app).await
}

fn read(mut fields: Fields, app: &App) -> Result<(Asked, Answering), Refusal> {
    asked::check_model(&mut fields, app)?;
    let prompt = fields.take("prompt");
    let prompt = prompt.ok_or_else(|| Refusal::field("prompt", "`prompt` is missing"))?;
    let prompts = prompts(&prompt, app)?;
    let logprobs = asked::top(&mut fields, "logprobs")?;
    asked::read(fields, prompts, logprobs, app)
}

/// The tokens of a prompt in any of OpenAI's forms: a text, a list of them, token ids, a list of such lists.
fn prompts(prompt: &Value, app: &App) -> Result<Vec<Vec<u32>>, Refusal> {
    match prompt {
        Value::Array(list) if !list.iter().all(Value::is_number) => {
            // More could not run, and reading them would take its time.
            if list.len() > app.max_rows {
                let what = format!(
                    "`prompt` lists {} prompts; at most {} run at once",
                    list.len(),
                    app.max_rows
                );
                return Err(Refusal::field("prompt", what));
            }
            list.iter().map(|it| one(it, app)).collect()
        }
        other => Ok(vec![one(other, app)?]),
    }
}

fn one(prompt: &Value, app: &App) -> Result<Vec<u32>, Refusal> {
    let id = |it: &Value| it.as_u64().and_then(|it| u32::try_from(it).ok());
    let ids = prompt.as_array().and_then(|it| it.iter().map(id).collect());
    match (prompt, ids) {
        (Value::String(text), _) => {
            let ids = app.about.tokenizer()?.encode(text, true);
            ids.map_err(|e| Refusal::field("prompt", e.to_string()))
        }
        (_, Some(ids)) => Ok(ids),
        _ => Err(wrong("prompt", "a text, token ids, or a list of either", prompt)),
    }
}

/// A sequence as an element of `choices`.
pub(crate) fn choice(index: usize, sequence: &Sequence, app: &App) -> Value {
    json!({
        "index": index,
        "text": sequence.text,
        "logprobs": logprobs::of_completion(&sequence.recorded.logprobs, &mut 0, app),
        "finish_reason": reply::finish_reason(sequence.finish_reason),
    })
}

/// An element of a chunk's `choices`.
pub(crate) fn chunk(index: usize, text: &str, finish_reason: Option<&str>) -> Value {
    json!({"index": index, "text": text, "logprobs": null, "finish_reason": finish_reason})
}
