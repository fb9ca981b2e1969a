//! The routes.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    http::{Method, Response, StatusCode, Uri, header},
    middleware,
    response::IntoResponse,
    routing::{get, post},
};
use serde_json::{Value, json};

use crate::{
    access, app::App, chat, completions, refusal::Refusal, reply::json_response, tokens, vectors,
};

/// All of them, with what stands before each.
pub(crate) fn router(app: Arc<App>) -> Router {
    let vector = get(vectors::get).put(vectors::put).delete(vectors::delete);
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/vectors", get(vectors::list))
        .route("/v1/vectors/{name}", vector)
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), access::control))
        .with_state(app)
}

/// Whether requests are taken.
async fn health(State(app): State<Arc<App>>) -> Result<Response<Body>, Refusal> {
    if app.queue.is_closed() {
        return Err(Refusal::stopping());
    }
    let (running, waiting) = (app.metrics.requests_running(), app.queue.len());
    Ok(json_response(&json!({"status": "ok", "running": running, "waiting": waiting})))
}

async fn metrics(State(app): State<Arc<App>>) -> Response<Body> {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, app.metrics.text(app.queue.len())).into_response()
}

async fn models(State(app): State<Arc<App>>) -> Response<Body> {
    json_response(&json!({"object": "list", "data": [about_model(&app)]}))
}

async fn model(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response<Body>, Refusal> {
    let Path(id) = id?;
    if id != app.about.id {
        return Err(Refusal::unknown_model(&id, &app.about.id));
    }
    Ok(json_response(&about_model(&app)))
}

fn about_model(app: &App) -> Value {
    json!({
        "id": app.about.id,
        "object": "model",
        "created": app.about.created,
        "owned_by": "mlxgk",
        "max_model_len": app.about.context,
    })
}

async fn no_route(method: Method, uri: Uri) -> Refusal {
    let what = format!("there is no route {method} {}", uri.path());
    Refusal::status(StatusCode::NOT_FOUND, what)
}

async fn no_method(method: Method, uri: Uri) -> Refusal {
    let what = format!("{} does not take {method}", uri.path());
    Refusal::status(StatusCode::METHOD_NOT_ALLOWED, what)
}
