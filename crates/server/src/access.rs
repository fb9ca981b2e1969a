//! What stands before every route: the request's id, the API key, the names the server goes by, the origins
//! that may read answers, and the count of answers.

use std::{net::IpAddr, sync::Arc};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header},
    middleware::Next,
    response::IntoResponse,
};
use sha2::{Digest, Sha256};

use crate::{app::App, refusal::Refusal, reply::random_hex};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The middleware.
pub(crate) async fn control(
    State(app): State<Arc<App>>,
    request: Request<Body>,
    next: Next,
) -> Response<Body> {
    let id = request_id(request.headers());
    let mut response = if is_preflight(&request) && app.cors_origin.is_some() {
        preflight()
    } else {
        match check(&request, &app) {
            Ok(()) => next.run(request).await,
            Err(refusal) => refusal.into_response(),
        }
    };
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    if let Some(origin) = app.cors_origin.as_deref().and_then(|it| HeaderValue::from_str(it).ok()) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("x-request-id"),
        );
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
    app.metrics.answered(response.status().as_u16());
    response
}

/// The client's own id where it is short and plain, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(REQUEST_ID);
    let is_plain = |it: &&HeaderValue| {
        let bytes = it.as_bytes();
        (1..=128).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    };
    let made = || HeaderValue::from_str(&format!("req_{}", random_hex())).ok();
    let id = given.filter(is_plain).cloned().or_else(made);
    id.unwrap_or(HeaderValue::from_static("req"))
}

/// Refuses a request without the key, where there is one. Where there is none and the server listens on a
/// loopback address, `host` has to be a name of this machine: otherwise a web page whose DNS name is pointed
/// at this machine (DNS rebinding) could use the server.
fn check(request: &Request<Body>, app: &App) -> Result<(), Refusal> {
    if !has_key(request, app) {
        return Err(Refusal::unauthorized());
    }
    let host = request.headers().get(header::HOST).and_then(|it| it.to_str().ok());
    match host {
        Some(host) if app.api_key.is_none() && app.is_local && !is_local(host) => {
            let what = format!(
                "{host:?} is not a name of this machine: use localhost or 127.0.0.1, or give the server an API key"
            );
            Err(Refusal::status(StatusCode::FORBIDDEN, what))
        }
        _ => Ok(()),
    }
}

/// Whether a host, with or without its port, is this machine.
fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|it| it.is_ascii_digit()) => name,
        _ => host,
    };
    let address: Option<IpAddr> = name.trim_matches(['[', ']']).parse().ok();
    name.eq_ignore_ascii_case("localhost") || address.is_some_and(|it| it.is_loopback())
}

/// Whether a request brings the key, or needs none.
fn has_key(request: &Request<Body>, app: &App) -> bool {
    let Some(key) = &app.api_key else { return true };
    if request.uri().path() == "/health" {
        return true;
    }
    let given = request.headers().get(header::AUTHORIZATION).and_then(|it| it.to_str().ok());
    let given = given.and_then(|it| it.split_once(' '));
    // Hashes take the same time to compare however much of the key is right.
    given.is_some_and(|(scheme, given)| {
        scheme.eq_ignore_ascii_case("bearer") && Sha256::digest(given.trim()) == Sha256::digest(key)
    })
}

/// A browser's question whether a page of another origin may send a request.
fn is_preflight(request: &Request<Body>) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn preflight() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, PUT, DELETE"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type, x-request-id"),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
