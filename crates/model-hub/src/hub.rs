//! The way to a model: local folder, cache, network.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    Error, ErrorKind, ModelId, Progress, Result,
    cache::{Cache, CachedModel, is_complete},
    client::{Client, RemoteFile},
    download::Download,
    files::needed,
};

const ENDPOINT: &str = "https://huggingface.co";

/// A model folder that can be loaded.
///
/// ```
/// use mlxgk_model_hub::{Hub, NoProgress};
///
/// let folder = tempfile::tempdir().unwrap();
/// // A folder is a model without an id; nothing is downloaded.
/// let found = Hub::from_env()?.find(folder.path().to_str().unwrap(), &mut NoProgress)?;
/// assert_eq!(found.folder, folder.path());
/// assert_eq!((found.id, found.commit), (None, None));
/// # Ok::<(), mlxgk_model_hub::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FoundModel {
    /// The folder.
    pub folder: PathBuf,
    /// The hub id; `None` for a local folder.
    pub id: Option<ModelId>,
    /// The commit that the folder holds; `None` for a local folder.
    pub commit: Option<String>,
}

/// A hub, its cache on disk, and whether the network may be used.
///
/// ```
/// use mlxgk_model_hub::{Hub, ModelId};
///
/// let cache = tempfile::tempdir().unwrap();
/// let hub = Hub::builder()?.cache(cache.path()).offline(true).build();
/// let id: ModelId = "Qwen/Qwen3-0.6B".parse()?;
/// assert!(hub.cached(&id).is_none() && hub.models()?.is_empty());
/// assert!(hub.remove(&id).is_err()); // it is not there
/// # Ok::<(), mlxgk_model_hub::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Hub {
    cache: Cache,
    client: Client,
    offline: bool,
}

/// Settings of a [`Hub`]; [`Hub::builder`] makes one from the environment.
///
/// ```
/// use std::{path::Path, time::Duration};
///
/// use mlxgk_model_hub::Hub;
///
/// let hub = Hub::builder()?
///     .endpoint("https://models.example.org")
///     .cache("/srv/models")
///     .timeout(Duration::from_secs(10))
///     .build();
/// assert_eq!(hub.cache_folder(), Path::new("/srv/models"));
/// # Ok::<(), mlxgk_model_hub::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct HubBuilder {
    cache: PathBuf,
    endpoint: String,
    token: Option<String>,
    offline: bool,
    retry_pause: Duration,
    timeout: Duration,
}

impl Hub {
    /// The hub that the environment names, as `huggingface_hub` reads it: `HF_ENDPOINT`, `HF_HOME`,
    /// `HF_HUB_CACHE`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// When there is no home folder to keep a cache in.
    pub fn from_env() -> Result<Self> {
        Ok(Self::builder()?.build())
    }

    /// The settings of the environment, to be changed.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    pub fn builder() -> Result<HubBuilder> {
        HubBuilder::from_env(&|name| env::var(name).ok().filter(|it| !it.is_empty()))
    }

    /// Finds a model: a local folder, else a model in the cache, else one that is downloaded.
    ///
    /// A model that the cache holds whole is used as it is, without asking the hub whether a branch
    /// has moved on.
    ///
    /// # Errors
    /// When `model` is neither a folder nor a hub id, the model is not in the cache and `offline` was
    /// asked for, the hub refuses it or cannot be reached, or what arrives is damaged.
    pub fn find(&self, model: &str, progress: &mut dyn Progress) -> Result<FoundModel> {
        let folder = Path::new(model);
        if folder.is_dir() {
            return Ok(FoundModel { folder: folder.to_owned(), id: None, commit: None });
        }
        if let Ok(kind) = fs::metadata(folder) {
            let kind = if kind.is_file() { "a file" } else { "not a folder" };
            let what = format!("{model} is {kind}; a model is a folder with config.json");
            return Err(Error::new(ErrorKind::Name, what));
        }
        if model.starts_with(['.', '/', '~']) || model.ends_with('/') {
            return Err(Error::new(ErrorKind::Name, format!("there is no folder {model}")));
        }
        let id: ModelId = model.parse()?;
        if let Some(found) = self.cached(&id) {
            return Ok(found);
        }
        if self.offline {
            let what = format!(
                "{id} is not complete in the cache {}, and the network is not used \
                 (HF_HUB_OFFLINE or --offline)",
                self.cache.root().display()
            );
            return Err(Error::new(ErrorKind::Offline, what));
        }
        self.download(&id, progress)
    }

    /// The model as the cache holds it; `None` where something is missing.
    pub fn cached(&self, id: &ModelId) -> Option<FoundModel> {
        let commit = self.cache.commit(id)?;
        let folder = self.cache.snapshot(id, &commit);
        is_complete(&folder).then(|| FoundModel {
            folder,
            id: Some(id.clone()),
            commit: Some(commit),
        })
    }

    /// Asks the hub which commit the revision stands at, and fetches what the cache lacks of it.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn download(&self, id: &ModelId, progress: &mut dyn Progress) -> Result<FoundModel> {
        let revision = self.client.revision(id, progress)?;
        let names: Vec<&str> = revision.files.iter().map(|it| it.name.as_str()).collect();
        let needed = needed(id.repo(), &names)?;
        let files: Vec<&RemoteFile> =
            revision.files.iter().filter(|it| needed.contains(&it.name)).collect();
        let commit = revision.commit.as_str();
        let announced: Vec<(String, u64)> =
            files.iter().map(|it| (it.name.clone(), it.size)).collect();
        progress.start(commit, &announced);
        let download = Download { client: &self.client, cache: &self.cache, id, commit };
        for (index, file) in files.into_iter().enumerate() {
            download.file(file, index, progress)?;
        }
        self.cache.set_commit(id, commit)?;
        let folder = self.cache.snapshot(id, commit);
        Ok(FoundModel { folder, id: Some(id.clone()), commit: Some(commit.to_owned()) })
    }

    /// The models in the cache, by name and commit.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub fn models(&self) -> Result<Vec<CachedModel>> {
        self.cache.models()
    }

    /// Removes a model from the cache with all its revisions. Returns the bytes that were freed.
    ///
    /// # Errors
    /// When the cache does not have it, or a file cannot be removed.
    pub fn remove(&self, id: &ModelId) -> Result<u64> {
        self.cache.remove(id)
    }

    /// The cache's folder.
    pub fn cache_folder(&self) -> &Path {
        self.cache.root()
    }
}

impl HubBuilder {
    /// Reads the settings through `variable`, which gives an environment variable that is set.
    fn from_env(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let path = |name: &str| variable(name).map(PathBuf::from);
        let home = || {
            let folder = path("HF_HOME").or_else(|| {
                let caches = path("XDG_CACHE_HOME")
                    .or_else(|| env::home_dir().map(|it| it.join(".cache")))?;
                Some(caches.join("huggingface"))
            });
            folder.ok_or_else(|| {
                let what = "there is no home folder to keep models in: set HF_HOME";
                Error::new(ErrorKind::File, what)
            })
        };
        let cache = match path("HF_HUB_CACHE") {
            Some(cache) => cache,
            None => home()?.join("hub"),
        };
        let token_file = path("HF_TOKEN_PATH").or_else(|| home().ok().map(|it| it.join("token")));
        let token = variable("HF_TOKEN").or_else(|| fs::read_to_string(token_file?).ok());
        let is_true =
            |it: String| matches!(it.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true");
        Ok(Self {
            cache,
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()),
            token: token.map(|it| it.trim().to_owned()).filter(|it| !it.is_empty()),
            offline: variable("HF_HUB_OFFLINE").is_some_and(is_true),
            retry_pause: Duration::from_secs(1),
            timeout: Duration::from_secs(60),
        })
    }

    /// The folder of the cache (`HF_HUB_CACHE`).
    #[must_use]
    pub fn cache(self, folder: impl Into<PathBuf>) -> Self {
        Self { cache: folder.into(), ..self }
    }

    /// The hub's address (`HF_ENDPOINT`).
    #[must_use]
    pub fn endpoint(self, endpoint: impl Into<String>) -> Self {
        Self { endpoint: endpoint.into(), ..self }
    }

    /// The token that is sent to the hub (`HF_TOKEN`), and to no other host.
    #[must_use]
    pub fn token(self, token: Option<String>) -> Self {
        Self { token, ..self }
    }

    /// Uses what is on disk and nothing else (`HF_HUB_OFFLINE`).
    #[must_use]
    pub fn offline(self, offline: bool) -> Self {
        Self { offline, ..self }
    }

    /// What the first retry waits, 1 second by default; each further one waits twice as long.
    #[must_use]
    pub fn retry_pause(self, pause: Duration) -> Self {
        Self { retry_pause: pause, ..self }
    }

    /// How long one request may take, 60 seconds by default. A file that takes longer is continued by
    /// the next request.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The hub.
    #[must_use]
    pub fn build(self) -> Hub {
        let endpoint = self.endpoint.trim_end_matches('/').to_owned();
        Hub {
            cache: Cache::new(self.cache),
            client: Client::new(endpoint, self.token, self.retry_pause, self.timeout),
            offline: self.offline,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> HubBuilder {
        let find = |name: &str| {
            variables.iter().find(|(it, _)| *it == name).map(|(_, value)| (*value).to_owned())
        };
        HubBuilder::from_env(&find).unwrap()
    }

    #[test]
    fn the_environment_is_read_as_huggingface_hub_reads_it() {
        let cache = |variables: &[(&str, &str)]| settings(variables).cache;
        assert_eq!(cache(&[("HF_HOME", "/h")]), Path::new("/h/hub"));
        assert_eq!(cache(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        let token = |variables: &[(&str, &str)]| settings(variables).token;
        assert_eq!(token(&[("HF_HOME", "/h"), ("HF_TOKEN", " hf_a\n")]).as_deref(), Some("hf_a"));
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "hf_b\n").unwrap();
        let home = folder.path().to_str().unwrap();
        assert_eq!(token(&[("HF_HOME", home)]).as_deref(), Some("hf_b"));
        for (value, offline) in
            [("1", true), ("TRUE", true), ("on", true), ("0", false), ("x", false)]
        {
            let read = settings(&[("HF_HOME", "/h"), ("HF_HUB_OFFLINE", value)]);
            assert_eq!(read.offline, offline, "{value}");
        }
    }
}
