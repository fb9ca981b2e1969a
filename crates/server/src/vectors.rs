//! Steering vectors that requests can name: `/v1/vectors`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    body::{Body, Bytes},
    extract::{Path, State, rejection::PathRejection},
    http::{Request, Response, StatusCode, header},
    response::IntoResponse,
};
use mlx_genkit::steering::SteeringVectors;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{app::App, body, refusal::Refusal, reply::json_response};

/// Bytes of one file, and of all.
const MOST_BYTES: usize = 16 << 20;
const MOST_BYTES_IN_ALL: usize = 256 << 20;
/// Names, however small their files.
const MOST_NAMES: usize = 1000;

/// The vectors by name.
#[derive(Debug, Default)]
pub(crate) struct Vectors(Mutex<BTreeMap<String, Arc<Registered>>>);

/// Vectors and their file.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) vectors: SteeringVectors,
    /// The file, always in the same form.
    bytes: Bytes,
    /// `sha256:` and the file's hash.
    pub(crate) hash: String,
}

impl Registered {
    fn new(vectors: SteeringVectors) -> Self {
        let bytes = vectors.to_bytes();
        let hash = Sha256::digest(&bytes)
            .iter()
            .fold("sha256:".to_owned(), |hash, byte| hash + &format!("{byte:02x}"));
        Self { vectors, bytes: bytes.into(), hash }
    }

    fn document(&self, name: &str) -> Value {
        json!({
            "name": name,
            "object": "vector",
            "hash": self.hash,
            "layers": self.vectors.layers(),
            "width": self.vectors.width(),
            "bytes": self.bytes.len(),
        })
    }
}

impl Vectors {
    /// The vectors of a name, or of a hash.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Registered>> {
        let all = self.all();
        all.get(name).or_else(|| all.values().find(|it| it.hash == name)).cloned()
    }

    /// Registers vectors under a name, in place of what had it. Returns whether nothing had.
    ///
    /// # Errors
    /// When the name is none, or there are too many.
    pub(crate) fn put(
        &self,
        name: &str,
        vectors: SteeringVectors,
    ) -> Result<(Arc<Registered>, bool), Refusal> {
        let is_word = |it: char| it.is_ascii_alphanumeric() || "._-".contains(it);
        if name.is_empty() || name.len() > 64 || !name.chars().all(is_word) {
            let what = format!(
                "a vector cannot be named {name:?}: use 1 to 64 letters a to z, digits, `.`, `_` and `-`"
            );
            return Err(Refusal::field("name", what));
        }
        let registered = Arc::new(Registered::new(vectors));
        let mut all = self.all();
        let others = all.iter().filter(|it| it.0 != name).map(|it| it.1.bytes.len());
        let (count, held) = (others.clone().count(), others.sum::<usize>());
        if count >= MOST_NAMES || held + registered.bytes.len() > MOST_BYTES_IN_ALL {
            let what = "there is no room for further vectors: DELETE some first";
            return Err(Refusal::status(StatusCode::INSUFFICIENT_STORAGE, what));
        }
        let is_new = all.insert(name.to_owned(), Arc::clone(&registered)).is_none();
        Ok((registered, is_new))
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Registered>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Shared = State<Arc<App>>;

/// `GET /v1/vectors`.
pub(crate) async fn list(State(app): Shared) -> Response<Body> {
    let all = app.vectors.all();
    let documents: Vec<Value> = all.iter().map(|(name, it)| it.document(name)).collect();
    json_response(&json!({"object": "list", "data": documents}))
}

/// `GET /v1/vectors/{name}`: the file.
pub(crate) async fn get(
    State(app): Shared,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response<Body>, Refusal> {
    let Path(name) = name?;
    let found = app.vectors.all().get(&name).cloned().ok_or_else(|| missing(&name))?;
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::ETAG, format!("\"{}\"", found.hash)),
    ];
    Ok((headers, found.bytes.clone()).into_response())
}

/// `PUT /v1/vectors/{name}`: a steering file as the body.
pub(crate) async fn put(
    State(app): Shared,
    name: Result<Path<String>, PathRejection>,
    request: Request<Body>,
) -> Result<Response<Body>, Refusal> {
    let Path(name) = name?;
    // Few at a time, since a file is held while it is read.
    let _place = app.uploads.acquire().await;
    let bytes = body::read(request, MOST_BYTES).await?;
    let reading = Arc::clone(&app);
    let put = move || {
        let app = reading;
        let vectors = SteeringVectors::from_bytes(&bytes)
            .and_then(|it| it.check_shape(app.about.width, app.about.layers).map(|()| it))
            .map_err(|e| {
                Refusal::request(format!("the body is not a steering file for this model: {e}"))
            })?;
        let (registered, is_new) = app.vectors.put(&name, vectors)?;
        let mut response = json_response(&registered.document(&name));
        if is_new {
            *response.status_mut() = StatusCode::CREATED;
        }
        Ok(response)
    };
    body::off_thread(put).await
}

/// `DELETE /v1/vectors/{name}`. Requests that run under it are not affected.
pub(crate) async fn delete(
    State(app): Shared,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response<Body>, Refusal> {
    let Path(name) = name?;
    match app.vectors.all().remove(&name) {
        Some(_) => {
            Ok(json_response(&json!({"name": name, "object": "vector.deleted", "deleted": true})))
        }
        None => Err(missing(&name)),
    }
}

fn missing(name: &str) -> Refusal {
    Refusal::status(StatusCode::NOT_FOUND, format!("there is no vector {name:?}"))
}
