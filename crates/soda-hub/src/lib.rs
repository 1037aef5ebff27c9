//! Models by their names on a hub: downloaded once, and kept in the cache that Python's
//! `huggingface_hub` uses too.
//!
//! The transfer and the cache are hf-hub's. Here is which files of a repository a pipeline needs
//! ([`files`]): configs, tokenizers, and the weights of one variant, not the four forms that some
//! repositories have. This is the workspace's only crate that opens a connection.

pub mod error;
pub mod files;

use std::path::{Path, PathBuf};

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

pub use error::HubError;
use files::{INDEX, needed};

/// The server without `HF_ENDPOINT`.
const ENDPOINT: &str = "https://huggingface.co";

/// Attempts of a transfer that breaks off, each from where the last one ended.
const RETRIES: usize = 3;

/// Where models are downloaded from, and to.
#[derive(Debug, Clone)]
pub struct Hub {
    /// The server.
    pub endpoint: String,
    /// What private and gated models ask for; without one, that of `huggingface-cli login`.
    pub token: Option<String>,
    /// The cache.
    pub cache: PathBuf,
    /// Whether only the cache is used.
    pub offline: bool,
}

impl Hub {
    /// As `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME` and `HF_HUB_OFFLINE` say.
    ///
    /// # Errors
    ///
    /// Neither `HF_HOME` nor a home directory to keep models in.
    pub fn from_env() -> Result<Self, HubError> {
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let yes =
            |value: String| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str());
        let home = match var("HF_HOME") {
            Some(home) => PathBuf::from(home),
            None => std::env::home_dir().ok_or(HubError::NoHome)?.join(".cache/huggingface"),
        };
        let cache = home.join("hub");
        Ok(Self {
            endpoint: var("HF_ENDPOINT")
                .map_or(ENDPOINT.to_owned(), |url| url.trim_end_matches('/').to_owned()),
            token: var("HF_TOKEN"),
            // The links inside the cache are made from whole paths.
            cache: std::path::absolute(&cache)
                .map_err(|source| HubError::Io { path: cache, source })?,
            offline: var("HF_HUB_OFFLINE").is_some_and(yes),
        })
    }

    /// The directory of the model `name`, in diffusers' layout; downloads what the cache lacks.
    ///
    /// A model that is in the cache is asked after on the server, since it may have a newer state;
    /// where no server can be reached, the cached one is given. `progress` is told
    /// (file, bytes of it done, its bytes) again and again.
    ///
    /// # Errors
    ///
    /// A name that is none, what the server says, a model without safetensors, and a model that is
    /// not in the cache where only the cache can be used.
    pub fn fetch(
        &self,
        name: &str,
        variant: Option<&str>,
        progress: &mut dyn FnMut(&str, usize, usize),
    ) -> Result<PathBuf, HubError> {
        if !is_name(name) {
            return Err(HubError::NotAName(name.to_owned()));
        }
        let (id, revision) = name.split_once('@').unwrap_or((name, "main"));
        let asked = Asked { hub: self, name, id, revision, variant };
        if self.offline {
            let cache = self.cache.clone();
            return asked.cached().ok_or(HubError::NotCached { name: name.to_owned(), cache });
        }
        match asked.download(progress) {
            Err(error @ HubError::Unreachable { .. }) => asked.cached().ok_or(error),
            found => found,
        }
    }
}

/// Whether `text` has the form `owner/name`, with an optional `@revision`.
pub fn is_name(text: &str) -> bool {
    let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
    let plain = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    let parts: Vec<&str> = name.split('/').collect();
    parts.len() == 2 && parts.iter().all(|part| plain(part)) && plain(revision)
}

/// One model of one hub.
struct Asked<'a> {
    hub: &'a Hub,
    /// As it was given, revision included.
    name: &'a str,
    id: &'a str,
    revision: &'a str,
    variant: Option<&'a str>,
}

impl Asked<'_> {
    /// The repository in the state `revision`.
    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.id.to_owned(), RepoType::Model, revision.to_owned())
    }

    /// The model as it is in the cache, if the files of this variant are there.
    fn cached(&self) -> Option<PathBuf> {
        let index = Cache::new(self.hub.cache.clone()).repo(self.repo(self.revision)).get(INDEX)?;
        let directory = index.parent()?;
        let listed = list(directory).ok()?;
        needed(self.name, &std::fs::read(&index).ok()?, &listed, self.variant).ok()?;
        Some(directory.to_owned())
    }

    fn download(&self, progress: &mut dyn FnMut(&str, usize, usize)) -> Result<PathBuf, HubError> {
        let api = self.api()?;
        let info = api.repo(self.repo(self.revision)).info().map_err(|e| self.explain(e))?;
        let listed: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        if !listed.iter().any(|file| file == INDEX) {
            return Err(HubError::NoPipeline(self.name.to_owned()));
        }

        // By the commit, not by the branch: a branch that moves meanwhile would give a model of two
        // states. The branch's mark in the cache is set last, when everything is there.
        let cache = Cache::new(self.hub.cache.clone());
        let snapshot = cache.repo(self.repo(&info.sha)).pointer_path(&info.sha);
        let repo = api.repo(self.repo(&info.sha));
        let mut get = |file: &str| {
            let path = snapshot.join(file);
            if path.is_file() {
                return Ok(path);
            }
            let told = Told { file, done: 0, total: 0, progress: &mut *progress };
            repo.download_with_progress(file, told).map_err(|e| self.explain(e))
        };
        let index = get(INDEX)?;
        let index = std::fs::read(&index).map_err(|source| HubError::Io { path: index, source })?;
        for file in needed(self.name, &index, &listed, self.variant)? {
            get(&file)?;
        }
        cache
            .repo(self.repo(self.revision))
            .create_ref(&info.sha)
            .map_err(|source| HubError::Io { path: self.hub.cache.clone(), source })?;
        Ok(snapshot)
    }

    fn api(&self) -> Result<Api, HubError> {
        let mut api = ApiBuilder::from_cache(Cache::new(self.hub.cache.clone()))
            .with_progress(false)
            .with_retries(RETRIES)
            .with_endpoint(self.hub.endpoint.clone())
            .with_user_agent("soda", env!("CARGO_PKG_VERSION"));
        if let Some(token) = &self.hub.token {
            api = api.with_token(Some(token.clone()));
        }
        api.build().map_err(|e| self.explain(e))
    }

    /// What the failure of a transfer means for someone who wants this model.
    fn explain(&self, error: ApiError) -> HubError {
        let (name, endpoint) = (self.name.to_owned(), self.hub.endpoint.clone());
        let source = match error {
            ApiError::TooManyRetries(last) => return self.explain(*last),
            ApiError::IoError(source) => {
                return HubError::Io { path: self.hub.cache.clone(), source };
            }
            ApiError::RequestError(source) => source,
            other => return HubError::Transfer { name, endpoint, reason: other.to_string() },
        };
        match *source {
            // The hub says 401 of what does not exist as well, so that private names stay private.
            ureq::Error::StatusCode(401 | 403) => HubError::Denied { name, endpoint },
            ureq::Error::StatusCode(404) => HubError::NotFound { name, endpoint },
            ureq::Error::StatusCode(status) => {
                HubError::Transfer { name, endpoint, reason: format!("it answers {status}") }
            }
            other => HubError::Unreachable { name, endpoint, reason: other.to_string() },
        }
    }
}

/// The files of a directory and of its folders, as a hub lists them.
fn list(directory: &Path) -> std::io::Result<Vec<String>> {
    let mut listed = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Through the link: files of a cache are links to its blobs.
        if !entry.path().is_dir() {
            listed.push(name);
            continue;
        }
        for inner in std::fs::read_dir(entry.path())? {
            let inner = inner?.file_name();
            listed.push(format!("{name}/{}", inner.to_string_lossy()));
        }
    }
    Ok(listed)
}

/// Hands hf-hub's progress on.
struct Told<'a> {
    file: &'a str,
    done: usize,
    total: usize,
    progress: &'a mut dyn FnMut(&str, usize, usize),
}

impl Progress for Told<'_> {
    fn init(&mut self, size: usize, _filename: &str) {
        self.total = size;
        (self.progress)(self.file, 0, size);
    }

    fn update(&mut self, size: usize) {
        self.done += size;
        (self.progress)(self.file, self.done, self.total);
    }

    fn finish(&mut self) {
        (self.progress)(self.file, self.total, self.total);
    }
}
