//! How a server runs.

use std::time::Duration;

use mlx_genkit::steering::SteeringVectors;

/// How a server runs. The defaults are those of `mlxgk serve`.
///
/// ```
/// use mlxgk_server::Options;
///
/// let options = Options { port: 0, ..Options::default() };
/// assert_eq!((options.host.as_str(), options.max_rows), ("127.0.0.1", 32));
/// ```
#[derive(Debug, Clone)]
pub struct Options {
    /// The name or address to listen on.
    pub host: String,
    /// The port; with 0 the system chooses one.
    pub port: u16,
    /// What the model is called in requests and answers.
    pub model: String,
    /// What requests have to bring as `Authorization: Bearer KEY`; nothing where it is `None`.
    pub api_key: Option<String>,
    /// The origin whose pages may read answers, or `*`. Without it no page of another origin can.
    pub cors_origin: Option<String>,
    /// How many sequences run at once.
    pub max_rows: usize,
    /// How many requests may wait for a place; the next is refused with status 429.
    pub queue: usize,
    /// New tokens of a request that says nothing about its length, where the model's own
    /// configuration says nothing either. The context's end comes first.
    pub max_tokens: usize,
    /// Megabytes for beginnings that prompts have in common; 0 for none.
    pub prefix_cache_mb: usize,
    /// How long a client may read nothing while there is something to read; its request is then cancelled.
    pub write_timeout: Duration,
    /// How long requests may still run when the server is told to stop.
    pub drain: Duration,
    /// Steering vectors that requests can name from the start.
    pub vectors: Vec<(String, SteeringVectors)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 8080,
            model: "bundled".to_owned(),
            api_key: None,
            cors_origin: None,
            max_rows: 32,
            queue: 64,
            max_tokens: 256,
            prefix_cache_mb: 0,
            write_timeout: Duration::from_secs(30),
            drain: Duration::from_secs(30),
            vectors: Vec::new(),
        }
    }
}
