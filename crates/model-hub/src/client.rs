//! Requests to a hub: what a revision holds, and the bytes of its files.

use std::{io::Read, thread, time::Duration};

use serde_json::Value;
use ureq::{
    Agent, Body,
    config::RedirectAuthHeaders,
    http::{Response, StatusCode},
};

use crate::{Error, ErrorKind, ModelId, Progress, Result, checksum::Checksum};

/// How often in a row an attempt may bring nothing.
const ATTEMPTS: u32 = 5;

/// The longest wait that a hub may ask for (`Retry-After`).
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// What a repository may say about itself, its list of files included.
const LARGEST_LISTING: u64 = 64 << 20;

/// A hub and how it is asked.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    /// What the first retry waits; each further one waits twice as long.
    pause: Duration,
}

/// A revision as the hub describes it.
#[derive(Debug)]
pub(crate) struct Revision {
    pub(crate) commit: String,
    pub(crate) files: Vec<RemoteFile>,
}

/// A file as the hub announces it.
#[derive(Debug, Clone)]
pub(crate) struct RemoteFile {
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) checksum: Checksum,
}

/// Why an attempt brought nothing.
pub(crate) enum Failure {
    /// Another attempt may do better, after this long where the hub named a time.
    Passing { error: Error, wait: Option<Duration> },
    /// No attempt will.
    Final(Error),
}

impl Client {
    pub(crate) fn new(
        endpoint: String,
        token: Option<String>,
        pause: Duration,
        patience: Duration,
    ) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // The token is for the hub, not for the storage that it sends us to.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(patience))
            .timeout_recv_response(Some(patience))
            // A body that takes longer is asked for again from where it stands.
            .timeout_recv_body(Some(patience))
            .user_agent(concat!("mlx-genkit/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.into(), endpoint, token, pause }
    }

    /// Asks what a revision holds.
    pub(crate) fn revision(&self, id: &ModelId, progress: &mut dyn Progress) -> Result<Revision> {
        let revision = id.revision().replace('/', "%2F");
        let url =
            format!("{}/api/models/{}/revision/{revision}?blobs=true", self.endpoint, id.repo());
        let attempt = || -> Result<Value, Failure> {
            let response = self.get(&url, None)?;
            self.check(&response, id, None)?;
            let body = response.into_body().into_reader();
            let mut text = Vec::new();
            body.take(LARGEST_LISTING).read_to_end(&mut text).map_err(|e| {
                let what = format!("the answer of {} broke off: {e}", self.endpoint);
                passing(Error::new(ErrorKind::Network, what).caused_by(e))
            })?;
            serde_json::from_slice(&text).map_err(|e| {
                let what = format!("{} did not answer with JSON: {e}", self.endpoint);
                passing(Error::new(ErrorKind::Network, what).caused_by(e))
            })
        };
        let mut failed = 0;
        let value = loop {
            match attempt() {
                Ok(value) => break value,
                Err(failure) => self.pause_after(failure, &mut failed, progress)?,
            }
        };
        Revision::read(&value).ok_or_else(|| {
            let what = format!(
                "{} does not state the commit, sizes and hashes of {id}, so a download could not \
                 be checked",
                self.endpoint
            );
            Error::new(ErrorKind::Unsupported, what)
        })
    }

    /// Asks for a file from byte `from` on.
    pub(crate) fn file(
        &self,
        id: &ModelId,
        commit: &str,
        name: &str,
        from: u64,
    ) -> Result<Response<Body>, Failure> {
        let url = format!("{}/{}/resolve/{commit}/{}", self.endpoint, id.repo(), escape(name));
        let response = self.get(&url, (from > 0).then_some(from))?;
        self.check(&response, id, Some(name))?;
        Ok(response)
    }

    fn get(&self, url: &str, from: Option<u64>) -> Result<Response<Body>, Failure> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if let Some(from) = from {
            request = request.header("Range", format!("bytes={from}-"));
        }
        request.call().map_err(|e| match e {
            // Which request this is does not change, so neither would the answer.
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                Failure::Final(self.unsendable().caused_by(e))
            }
            e => {
                let what = format!("{} cannot be reached: {e}", self.endpoint);
                passing(Error::new(ErrorKind::Network, what).caused_by(e))
            }
        })
    }

    /// Why no request can be made of address and token.
    fn unsendable(&self) -> Error {
        let is_token = |it: &String| it.bytes().all(|it| it.is_ascii_graphic());
        let what = if self.token.as_ref().is_none_or(is_token) {
            format!(
                "{:?} is not the address of a hub: HF_ENDPOINT begins with https:// or http://",
                self.endpoint
            )
        } else {
            "the token has characters that no token has: check HF_TOKEN, or the token file"
                .to_owned()
        };
        Error::new(ErrorKind::Access, what)
    }

    /// Turns a status that is not a success into a failure.
    fn check(
        &self,
        response: &Response<Body>,
        id: &ModelId,
        file: Option<&str>,
    ) -> Result<(), Failure> {
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(());
        }
        let of = file.map_or(id.to_string(), |name| format!("{name} of {id}"));
        let endpoint = &self.endpoint;
        let header = |name: &str| response.headers().get(name).and_then(|it| it.to_str().ok());
        let repo = id.repo();
        Err(match (status.as_u16(), header("x-error-code")) {
            (_, Some("GatedRepo")) => Failure::Final(Error::new(
                ErrorKind::Access,
                format!(
                    "{repo} is gated: accept its terms at {endpoint}/{repo}, then give a token with \
                     access to it in HF_TOKEN"
                ),
            )),
            (_, Some("RevisionNotFound")) => Failure::Final(Error::new(
                ErrorKind::NotFound,
                format!("{repo} has no revision {:?} at {endpoint}", id.revision()),
            )),
            (401, _) => Failure::Final(Error::new(
                ErrorKind::Access,
                match self.token {
                    // The hub answers so for private models and for those it does not have.
                    None => format!(
                        "{endpoint} does not have {repo}, or it is private: check the name, or \
                         give a token in HF_TOKEN"
                    ),
                    Some(_) => format!(
                        "{endpoint} does not accept the token for {repo}: check HF_TOKEN, or the \
                         token file"
                    ),
                },
            )),
            (403, _) => Failure::Final(Error::new(
                ErrorKind::Access,
                match header("x-error-message") {
                    Some(message) => format!("{endpoint} refuses access to {of} (403): {message}"),
                    None => format!(
                        "{endpoint} refuses access to {of} (403): the token may lack access to it"
                    ),
                },
            )),
            (404 | 410, _) => Failure::Final(Error::new(
                ErrorKind::NotFound,
                format!("{endpoint} does not have {of} ({})", status.as_u16()),
            )),
            (408 | 429 | 500.., _) => {
                let wait = header("retry-after").and_then(|it| it.trim().parse().ok());
                let what = format!("{endpoint} answered {status} for {of}");
                let error = Error::new(ErrorKind::Network, what);
                Failure::Passing { error, wait: wait.map(Duration::from_secs) }
            }
            _ => Failure::Final(Error::new(
                ErrorKind::Network,
                format!("{endpoint} answered {status} for {of}"),
            )),
        })
    }

    /// Waits before the next attempt, or gives up: at a final failure, after too many in a row, and
    /// where the hub asks for too long a wait.
    pub(crate) fn pause_after(
        &self,
        failure: Failure,
        failed: &mut u32,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let (error, wait) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Passing { error, wait } => (error, wait),
        };
        *failed += 1;
        if *failed >= ATTEMPTS {
            let what = format!("{error}; gave up after {ATTEMPTS} attempts");
            return Err(Error::new(error.kind(), what).caused_by(error));
        }
        let wait = wait.unwrap_or_else(|| self.pause * 2_u32.pow(*failed - 1));
        if wait > LONGEST_WAIT {
            let what = format!("{error}, and asks to wait {} s: try again later", wait.as_secs());
            return Err(Error::new(error.kind(), what).caused_by(error));
        }
        progress.note(&format!("{error}; trying again in {:.0} s", wait.as_secs_f32().ceil()));
        thread::sleep(wait);
        Ok(())
    }
}

/// A failure that another attempt may mend.
pub(crate) fn passing(error: Error) -> Failure {
    Failure::Passing { error, wait: None }
}

impl Revision {
    fn read(value: &Value) -> Option<Self> {
        let commit = value["sha"].as_str()?;
        let is_commit = commit.len() == 40 && commit.bytes().all(|it| it.is_ascii_hexdigit());
        let files = value["siblings"].as_array()?.iter().map(RemoteFile::read);
        let files = files.collect::<Option<Vec<_>>>()?;
        is_commit.then(|| Self { commit: commit.to_owned(), files })
    }
}

impl RemoteFile {
    fn read(value: &Value) -> Option<Self> {
        let name = value["rfilename"].as_str()?;
        let is_safe = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\\');
        let hex = |it: &Value, digits: usize| {
            let text = it.as_str()?;
            let is_hex = text.len() == digits && text.bytes().all(|it| it.is_ascii_hexdigit());
            is_hex.then(|| text.to_ascii_lowercase())
        };
        let checksum = match &value["lfs"] {
            Value::Null => Checksum::GitSha1(hex(&value["blobId"], 40)?),
            lfs => Checksum::Sha256(hex(&lfs["sha256"], 64)?),
        };
        let size = value["size"].as_u64().or(value["lfs"]["size"].as_u64())?;
        let is_safe = name.split('/').all(is_safe) && !name.contains(['\0', ':']);
        is_safe.then(|| Self { name: name.to_owned(), size, checksum })
    }
}

/// A file name as a part of a URL.
fn escape(name: &str) -> String {
    name.bytes()
        .map(|it| match it {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                char::from(it).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}
