//! One snapshot of one repository: found in the cache, or downloaded into it.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use crate::error::HubError;
use crate::pipeline_files::{MODEL_INDEX, required_files};
use crate::progress::FileProgress;

/// How often a broken transfer is resumed before it fails.
const RETRIES: usize = 3;

/// A request for the files of one repository at one revision.
pub(crate) struct SnapshotRequest<'a> {
    pub(crate) endpoint: &'a str,
    pub(crate) token: Option<&'a str>,
    pub(crate) cache_dir: &'a Path,
    /// The repo id as the user gave it, with its revision; error messages show it.
    pub(crate) repo_id: &'a str,
    /// `owner/name`.
    pub(crate) name: &'a str,
    pub(crate) revision: &'a str,
    pub(crate) variant: Option<&'a str>,
}

impl SnapshotRequest<'_> {
    /// The snapshot folder in the cache, if it holds every file that the variant needs.
    pub(crate) fn cached(&self) -> Option<PathBuf> {
        let index = self.cache().repo(self.repo(self.revision)).get(MODEL_INDEX)?;
        let snapshot = index.parent()?;
        let listed = list_files(snapshot).ok()?;
        required_files(self.repo_id, &std::fs::read(&index).ok()?, &listed, self.variant).ok()?;
        Some(snapshot.to_owned())
    }

    /// Downloads the files that the cache lacks, and returns the snapshot folder.
    pub(crate) fn download(
        &self,
        progress: &mut dyn FnMut(&str, usize, usize),
    ) -> Result<PathBuf, HubError> {
        let api = self.api()?;
        let info = api.repo(self.repo(self.revision)).info().map_err(|e| self.hub_error(e))?;
        let listed: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        if !listed.iter().any(|file| file == MODEL_INDEX) {
            return Err(HubError::NotDiffusers(self.repo_id.to_owned()));
        }

        // Files are requested by commit: a branch that moves during the download would mix two versions.
        // The branch's ref in the cache is written last, when all files are present.
        let cache = self.cache();
        let snapshot = cache.repo(self.repo(&info.sha)).pointer_path(&info.sha);
        let repo = api.repo(self.repo(&info.sha));
        let mut get = |file: &str| {
            let path = snapshot.join(file);
            if path.is_file() {
                return Ok(path);
            }
            let progress = FileProgress::new(file, &mut *progress);
            repo.download_with_progress(file, progress).map_err(|e| self.hub_error(e))
        };
        let index = get(MODEL_INDEX)?;
        let index = std::fs::read(&index).map_err(|source| HubError::Io { path: index, source })?;
        for file in required_files(self.repo_id, &index, &listed, self.variant)? {
            get(&file)?;
        }
        cache
            .repo(self.repo(self.revision))
            .create_ref(&info.sha)
            .map_err(|source| HubError::Io { path: self.cache_dir.to_owned(), source })?;
        Ok(snapshot)
    }

    fn cache(&self) -> Cache {
        Cache::new(self.cache_dir.to_owned())
    }

    /// The repository at `revision`, which is a branch, a tag or a commit.
    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.name.to_owned(), RepoType::Model, revision.to_owned())
    }

    fn api(&self) -> Result<Api, HubError> {
        let mut api = ApiBuilder::from_cache(self.cache())
            .with_progress(false)
            .with_retries(RETRIES)
            .with_endpoint(self.endpoint.to_owned())
            .with_user_agent("soda", env!("CARGO_PKG_VERSION"));
        if let Some(token) = self.token {
            api = api.with_token(Some(token.to_owned()));
        }
        api.build().map_err(|e| self.hub_error(e))
    }

    /// Translates a failure of hf-hub into an error that names the repository and the remedy.
    fn hub_error(&self, error: ApiError) -> HubError {
        let (repo_id, endpoint) = (self.repo_id.to_owned(), self.endpoint.to_owned());
        let source = match error {
            ApiError::TooManyRetries(last) => return self.hub_error(*last),
            ApiError::IoError(source) => {
                return HubError::Io { path: self.cache_dir.to_owned(), source };
            }
            ApiError::RequestError(source) => source,
            other => return HubError::Download { repo_id, endpoint, reason: other.to_string() },
        };
        match *source {
            // The Hub also answers 401 for a repository that does not exist, so as not to reveal private
            // names.
            ureq::Error::StatusCode(401 | 403) => HubError::AccessDenied { repo_id, endpoint },
            ureq::Error::StatusCode(404) => HubError::RepoNotFound { repo_id, endpoint },
            ureq::Error::StatusCode(status) => {
                HubError::Download { repo_id, endpoint, reason: format!("the status is {status}") }
            }
            other => HubError::Unreachable { repo_id, endpoint, reason: other.to_string() },
        }
    }
}

/// Lists the files of a folder and of its subfolders as a hub does: `file` and `subfolder/file`.
fn list_files(folder: &Path) -> std::io::Result<Vec<String>> {
    let mut listed = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // `is_dir` follows links: the files of a snapshot are links to blobs.
        if !entry.path().is_dir() {
            listed.push(name);
            continue;
        }
        for file in std::fs::read_dir(entry.path())? {
            let file = file?.file_name();
            listed.push(format!("{name}/{}", file.to_string_lossy()));
        }
    }
    Ok(listed)
}
