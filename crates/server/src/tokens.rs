//! `POST /tokenize` and `POST /detokenize`.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    http::{Request, Response},
};
use serde_json::{Value, json};

use crate::{
    app::App,
    asked::check_model,
    body,
    fields::{Fields, wrong},
    messages,
    refusal::Refusal,
    reply::json_response,
    tools::Tools,
};

/// `POST /tokenize`: the tokens of `prompt`, or of `messages` as the chat template renders them.
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response<Body>, Refusal> {
    body::fields(request, move |fields| encode(fields, &app)).await
}

/// `POST /detokenize`: the text of `tokens`.
pub(crate) async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response<Body>, Refusal> {
    body::fields(request, move |fields| decode(fields, &app)).await
}

fn encode(mut fields: Fields, app: &App) -> Result<Response<Body>, Refusal> {
    check_model(&mut fields, app)?;
    let tokens = match fields.text("prompt")? {
        Some(text) => {
            let special = fields.optional_switch("add_special_tokens")?.unwrap_or(true);
            let tokens = app.about.tokenizer()?.encode(&text, special);
            tokens.map_err(|e| Refusal::field("prompt", e.to_string()))?
        }
        None => {
            let tools = Tools::read(&mut fields)?;
            messages::read(&mut fields, tools.told(), app)?.tokens
        }
    };
    fields.end()?;
    let context = app.about.context;
    Ok(json_response(&json!({"count": tokens.len(), "max_model_len": context, "tokens": tokens})))
}

fn decode(mut fields: Fields, app: &App) -> Result<Response<Body>, Refusal> {
    check_model(&mut fields, app)?;
    let tokens = fields.take("tokens").unwrap_or(Value::Null);
    let id = |it: &Value| it.as_u64().and_then(|it| u32::try_from(it).ok());
    let ids: Option<Vec<u32>> = tokens.as_array().and_then(|it| it.iter().map(id).collect());
    let ids = ids.ok_or_else(|| wrong("tokens", "a list of token ids", &tokens))?;
    let skip_special = fields.switch("skip_special_tokens")?;
    fields.end()?;
    let text = app.about.tokenizer()?.decode(&ids, skip_special);
    let text = text.map_err(|e| Refusal::field("tokens", e.to_string()))?;
    Ok(json_response(&json!({ "prompt": text })))
}
