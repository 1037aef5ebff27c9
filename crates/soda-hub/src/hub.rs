//! The connection settings of a hub, and the download of a pipeline's snapshot.

use std::path::PathBuf;

use crate::error::HubError;
use crate::repo_id::split_revision;
use crate::snapshot::SnapshotRequest;

/// The server that is used if `HF_ENDPOINT` is not set.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// A hub server, the access token for it, and the local cache.
#[derive(Debug, Clone)]
pub struct Hub {
    /// The URL of the server, without a slash at its end.
    pub endpoint: String,
    /// The access token that private and gated repositories require. Without one, the token that
    /// `huggingface-cli login` stored is used.
    pub token: Option<String>,
    /// The folder of the cache, which holds one `models--owner--name` folder for each repository.
    pub cache_dir: PathBuf,
    /// Whether to answer from the cache alone and open no connection.
    pub offline: bool,
}

impl Hub {
    /// Reads the settings from the environment variables of `huggingface_hub`.
    ///
    /// | variable | field | default |
    /// |---|---|---|
    /// | `HF_ENDPOINT` | `endpoint` | `https://huggingface.co` |
    /// | `HF_TOKEN` | `token` | none |
    /// | `HF_HOME` | `cache_dir`, its folder `hub` | `~/.cache/huggingface` |
    /// | `HF_HUB_OFFLINE` | `offline`, true for `1`, `on`, `yes` or `true` | false |
    ///
    /// # Errors
    ///
    /// - [`HubError::NoCacheDir`] if `HF_HOME` is not set and the user has no home directory.
    /// - [`HubError::Io`] if the cache folder is relative and the current directory cannot be found.
    pub fn from_env() -> Result<Self, HubError> {
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let is_true =
            |value: String| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str());
        let home = match var("HF_HOME") {
            Some(home) => PathBuf::from(home),
            None => std::env::home_dir().ok_or(HubError::NoCacheDir)?.join(".cache/huggingface"),
        };
        let cache_dir = home.join("hub");
        Ok(Self {
            endpoint: var("HF_ENDPOINT")
                .map_or(DEFAULT_ENDPOINT.to_owned(), |url| url.trim_end_matches('/').to_owned()),
            token: var("HF_TOKEN"),
            // The symbolic links of the cache need absolute targets.
            cache_dir: std::path::absolute(&cache_dir)
                .map_err(|source| HubError::Io { path: cache_dir, source })?,
            offline: var("HF_HUB_OFFLINE").is_some_and(is_true),
        })
    }

    /// Returns the local folder of a diffusers pipeline, after downloading the files that the cache lacks.
    ///
    /// `repo_id` is `owner/name` or `owner/name@revision`. `variant` selects weight files such as
    /// `model.fp16.safetensors`; `None` selects the files without a suffix, or the only variant there is.
    /// `progress` is called with a file's path in the repository, the bytes downloaded so far, and its size
    /// in bytes.
    ///
    /// A repository in the cache is still looked up on the server, because its branch may have moved. If the
    /// server cannot be reached, the cached snapshot is returned.
    ///
    /// # Errors
    ///
    /// - [`HubError::InvalidRepoId`] if `repo_id` has another form ([`is_repo_id`](crate::is_repo_id)).
    /// - [`HubError::RepoNotFound`] or [`HubError::AccessDenied`] if the server refuses the repository.
    /// - [`HubError::Unreachable`] if neither the server nor a cached snapshot is available.
    /// - [`HubError::NotCached`] if the hub is offline and the cache lacks the files.
    /// - [`HubError::Download`] if a transfer fails after its retries.
    /// - [`HubError::NotDiffusers`] or [`HubError::InvalidModelIndex`] if the repository is not a pipeline.
    /// - [`HubError::PickleOnly`] or [`HubError::NoWeights`] if it has no safetensors of the variant.
    /// - [`HubError::Io`] if the cache cannot be read or written.
    pub fn snapshot_download(
        &self,
        repo_id: &str,
        variant: Option<&str>,
        progress: &mut dyn FnMut(&str, usize, usize),
    ) -> Result<PathBuf, HubError> {
        let (name, revision) = split_revision(repo_id)?;
        let request = SnapshotRequest {
            endpoint: &self.endpoint,
            token: self.token.as_deref(),
            cache_dir: &self.cache_dir,
            repo_id,
            name,
            revision,
            variant,
        };
        if self.offline {
            return request.cached().ok_or_else(|| HubError::NotCached {
                repo_id: repo_id.to_owned(),
                cache_dir: self.cache_dir.clone(),
            });
        }
        match request.download(progress) {
            Err(error @ HubError::Unreachable { .. }) => request.cached().ok_or(error),
            result => result,
        }
    }
}
