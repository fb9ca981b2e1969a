//! What a request is told that is not served, in OpenAI's shape.

use std::error::Error as _;

use axum::{
    body::Body,
    extract::rejection::PathRejection,
    http::{HeaderName, HeaderValue, Response, StatusCode, header},
    response::IntoResponse,
};
use mlx_genkit::{
    ErrorKind, GenerationConfig,
    decoding_strategies::{self, ErrorKind as LoopErrorKind},
};
use serde_json::{Value, json};

/// What the `openai` clients read before they send a request again by themselves.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Why a request is not served.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refusal {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    /// The field that is wrong, where it is one.
    param: Option<String>,
    message: String,
    /// After how many seconds the same request may be served.
    retry_after: Option<u32>,
    /// How many tokens the prompt has and how many the context holds, where that is what is wrong.
    lengths: Option<[usize; 2]>,
}

impl Refusal {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            code: None,
            param: None,
            message: message.into(),
            retry_after: None,
            lengths: None,
        }
    }

    /// A request that is wrong.
    pub(crate) fn request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// A request that is wrong in one field.
    pub(crate) fn field(param: &str, message: impl Into<String>) -> Self {
        Self { param: Some(param.to_owned()), ..Self::request(message) }
    }

    /// The same, of this field where it says none.
    pub(crate) fn about(self, param: Option<&str>) -> Self {
        let param = self.param.clone().or_else(|| param.map(str::to_owned));
        Self { param, ..self }
    }

    /// A request that is wrong in a way that has a status of its own.
    pub(crate) fn status(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, ..Self::request(message) }
    }

    /// A prompt that the context does not hold, alone or with what is to follow.
    pub(crate) fn context(prompt: usize, new: Option<(usize, &str)>, context: usize) -> Self {
        let message = match new {
            None => format!(
                "the prompt has {prompt} tokens, which leaves no room in the context of {context}"
            ),
            Some((new, field)) => format!(
                "the prompt has {prompt} tokens and `{field}` allows {new} more, which is together more than \
                 the context of {context}"
            ),
        };
        let mut refusal = Self::request(message);
        refusal.code = Some("context_length_exceeded");
        refusal.param = new.map(|it| it.1.to_owned());
        refusal.lengths = Some([prompt, context]);
        refusal
    }

    pub(crate) fn unauthorized() -> Self {
        let what = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`";
        let refusal = Self::new(StatusCode::UNAUTHORIZED, "authentication_error", what);
        Self { code: Some("invalid_api_key"), ..refusal }
    }

    /// A model that is not the server's.
    pub(crate) fn unknown_model(name: &str, own: &str) -> Self {
        let what = format!("there is no model {name:?}; this server has {own:?}");
        let refusal = Self::status(StatusCode::NOT_FOUND, what);
        Self { code: Some("model_not_found"), param: Some("model".to_owned()), ..refusal }
    }

    /// Too many requests wait.
    pub(crate) fn queue_full(limit: usize) -> Self {
        let what = format!("{limit} requests are waiting already, as many as may; try again later");
        let refusal = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", what);
        Self { code: Some("queue_full"), retry_after: Some(1), ..refusal }
    }

    /// The server is about to end.
    pub(crate) fn stopping() -> Self {
        let what = "the server is stopping and takes no further requests";
        let refusal = Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", what);
        Self { code: Some("stopping"), retry_after: Some(5), ..refusal }
    }

    /// The server's own fault.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// The sentence.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// The same, said of the fields as the request spelled them: pairs of a field and its spelling.
    pub(crate) fn spelled(mut self, names: &[(&str, &str)]) -> Self {
        self.message = spelled(&self.message, names);
        let param = names.iter().find(|it| self.param.as_deref() == Some(it.0));
        self.param = param.map(|it| it.1.to_owned()).or(self.param);
        self
    }

    /// The document: OpenAI's `{"error": {...}}`.
    pub(crate) fn document(&self) -> Value {
        let mut error = json!({
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        });
        if let Some([prompt, context]) = self.lengths {
            error["n_prompt_tokens"] = prompt.into();
            error["n_ctx"] = context.into();
        }
        json!({ "error": error })
    }
}

/// A sentence with fields as the request spelled them: pairs of a field and its spelling.
pub(crate) fn spelled(sentence: &str, names: &[(&str, &str)]) -> String {
    let spell = |sentence: String, (field, spelling): &(&str, &str)| {
        // The field, or a part of it such as `stop_strings[0]`.
        let replace = |sentence: String, end: &str| {
            sentence.replace(&format!("`{field}{end}"), &format!("`{spelling}{end}"))
        };
        ["`", "[", "."].into_iter().fold(sentence, replace)
    };
    names.iter().fold(sentence.to_owned(), spell)
}

/// The field of HF's config that a sentence begins with, where it does.
fn field_at_fault(sentence: &str) -> Option<&str> {
    let name = sentence.strip_prefix('`')?.split('`').next()?;
    GenerationConfig::FIELDS.contains(&name).then_some(name)
}

impl From<mlx_genkit::Error> for Refusal {
    fn from(error: mlx_genkit::Error) -> Self {
        let source = error.source().and_then(|it| it.downcast_ref::<decoding_strategies::Error>());
        // The request's own settings have banned every token.
        let has_no_token = source.is_some_and(|it| it.kind() == LoopErrorKind::NoToken);
        match (error.kind(), error.field()) {
            _ if has_no_token => Self::request(error.to_string()),
            (ErrorKind::Request, Some(field)) => Self::field(field, error.to_string()),
            (ErrorKind::Request, None) => {
                let message = error.to_string();
                Self {
                    param: field_at_fault(&message).map(str::to_owned),
                    ..Self::request(message)
                }
            }
            _ => Self::failed(error.to_string()),
        }
    }
}

impl From<PathRejection> for Refusal {
    fn from(_: PathRejection) -> Self {
        Self::request("the path is not valid UTF-8")
    }
}

impl From<mlx_genkit::generation_config::Error> for Refusal {
    fn from(error: mlx_genkit::generation_config::Error) -> Self {
        mlx_genkit::Error::from(error).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.document().to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match self.retry_after {
            Some(seconds) => headers.insert(header::RETRY_AFTER, seconds.into()),
            // The same request would fail again.
            None => headers.insert(SHOULD_RETRY, HeaderValue::from_static("false")),
        };
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
