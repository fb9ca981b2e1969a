//! The bodies of requests: read within limits of size and time, and parsed.

use std::{future::poll_fn, pin::Pin, time::Duration};

use axum::{
    body::{Body, HttpBody},
    http::{Request, StatusCode, header},
};
use serde_json::Value;

use crate::{fields::Fields, refusal::Refusal};

/// Bytes of a body in JSON.
const MOST_JSON: usize = 4 << 20;
/// How long a client may take to send a body.
const TIME: Duration = Duration::from_secs(30);
/// How much of a body that is too large is read and dropped, so that a client that writes first gets to
/// read why it is refused.
const DROPPED: usize = 64 << 20;

/// What is read from the fields of a body in JSON. It is parsed where it is read, so that no more bodies are
/// held as trees of values than there are threads for that.
pub(crate) async fn fields<T: Send + 'static>(
    request: Request<Body>,
    read_fields: impl FnOnce(Fields) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok());
    let kind = kind.and_then(|it| it.split(';').next()).unwrap_or_default().trim();
    // Asking for it also keeps pages of other origins from sending requests without being allowed to.
    let is_json = kind.eq_ignore_ascii_case("application/json");
    let bytes = read(request, MOST_JSON).await?;
    if !is_json {
        let what =
            "the body must be JSON: send it with the header `content-type: application/json`";
        return Err(Refusal::status(StatusCode::UNSUPPORTED_MEDIA_TYPE, what));
    }
    let parse = move || {
        let value: Result<Value, _> = serde_json::from_slice(&bytes);
        let value =
            value.map_err(|e| Refusal::request(format!("the body is not valid JSON: {e}")))?;
        read_fields(Fields::of(value)?)
    };
    off_thread(parse).await
}

/// The bytes of a body.
pub(crate) async fn read(request: Request<Body>, most: usize) -> Result<Vec<u8>, Refusal> {
    let read = tokio::time::timeout(TIME, read_all(request.into_body(), most)).await;
    read.unwrap_or_else(|_| {
        let what = format!("the body did not arrive within {} seconds", TIME.as_secs());
        Err(Refusal::status(StatusCode::REQUEST_TIMEOUT, what))
    })
}

async fn read_all(mut body: Body, most: usize) -> Result<Vec<u8>, Refusal> {
    let (mut bytes, mut length) = (Vec::new(), 0);
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame.map_err(|e| Refusal::request(format!("the body cannot be read: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length <= most {
            bytes.extend_from_slice(&data);
        } else if length > DROPPED {
            break;
        }
    }
    if length > most {
        let what = format!("the body has more than the {most} bytes that are allowed");
        return Err(Refusal::status(StatusCode::PAYLOAD_TOO_LARGE, what));
    }
    Ok(bytes)
}

/// Does work that takes its time away from the threads that talk to clients.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Refusal::failed(format!("the server is at fault: {e}"))))
}
