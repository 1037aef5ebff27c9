//! One snapshot of one repository: found in the cache, or downloaded into it.

use std::path::{Path, PathBuf};

use crate::cache::{RepoCache, damage_of};
use crate::download::Source;
use crate::error::HubError;
use crate::failure::Failure;
use crate::http::{Client, Url};
use crate::hub::Hub;
use crate::listing::Listing;
use crate::pipeline_files::{MODEL_INDEX, required_files};
use crate::repo_id::split_revision;

impl Hub {
    /// Returns the local folder of a diffusers pipeline, after downloading the files that the cache lacks.
    ///
    /// `repo_id` is `owner/name` or `owner/name@revision`. `variant` selects weight files such as
    /// `model.fp16.safetensors` in every component that has them, and the plain files of the others. `None`
    /// selects the files without a suffix, or the only variant there is.
    /// `progress` is called with a file's path in the repository, the bytes downloaded so far, and its size
    /// in bytes, which is 0 as long as it is unknown.
    ///
    /// A repository in the cache is still looked up on the server, because its branch may have moved. If the
    /// server cannot be reached or is out of order, the cached snapshot is returned.
    ///
    /// # Errors
    ///
    /// - [`HubError::InvalidRepoId`] if `repo_id` has another form ([`is_repo_id`](crate::is_repo_id)).
    /// - [`HubError::InvalidVariable`] if the endpoint is no URL, or the token cannot be sent.
    /// - [`HubError::RepoNotFound`], [`HubError::RevisionNotFound`] or [`HubError::AccessDenied`] if the
    ///   server refuses the repository.
    /// - [`HubError::Unreachable`], [`HubError::Silent`], [`HubError::NotAHub`], [`HubError::BrokenOff`] or
    ///   [`HubError::Download`] if a request fails after its repetitions.
    /// - [`HubError::Mismatch`] if a file has another length or digest than announced.
    /// - [`HubError::NotCached`] or [`HubError::Damaged`] if the hub is offline and the cache lacks a file.
    /// - [`HubError::NotDiffusers`], [`HubError::InvalidModelIndex`], [`HubError::MissingFile`] or
    ///   [`HubError::TooManyFiles`] if the repository is not a pipeline.
    /// - [`HubError::PickleOnly`], [`HubError::NoVariant`], [`HubError::NoWeights`] or
    ///   [`HubError::MissingShards`] if it has no safetensors of the variant.
    /// - [`HubError::Locked`] or [`HubError::Io`] if the cache cannot be used.
    pub fn snapshot_download(
        &self,
        repo_id: &str,
        variant: Option<&str>,
        progress: &mut dyn FnMut(&str, usize, usize),
    ) -> Result<PathBuf, HubError> {
        let (name, revision) = split_revision(repo_id)?;
        let request = SnapshotRequest { hub: self, repo_id, name, revision, variant };
        if self.offline { request.cached() } else { request.download(progress) }
    }
}

/// A request for the files of one repository at one revision.
struct SnapshotRequest<'a> {
    hub: &'a Hub,
    /// The repo id as the user gave it, with its revision; error messages show it.
    repo_id: &'a str,
    /// `owner/name`.
    name: &'a str,
    revision: &'a str,
    variant: Option<&'a str>,
}

impl SnapshotRequest<'_> {
    /// Returns the snapshot folder in the cache.
    ///
    /// # Errors
    ///
    /// [`HubError::NotCached`] or [`HubError::Damaged`] unless it holds every file that the variant needs.
    fn cached(&self) -> Result<PathBuf, HubError> {
        let not_cached = || HubError::NotCached {
            repo_id: self.repo_id.to_owned(),
            cache_dir: self.hub.cache_dir.clone(),
        };
        let cache = self.cache();
        let commit = cache.commit_of(self.revision).ok_or_else(not_cached)?;
        let snapshot = cache.snapshot(&commit);
        let check = |file: &str| match damage_of(&snapshot.join(file)) {
            Ok(None) => Ok(()),
            Ok(Some(reason)) => Err(HubError::Damaged {
                repo_id: self.repo_id.to_owned(),
                path: snapshot.join(file),
                reason,
            }),
            Err(_) => Err(not_cached()),
        };
        check(MODEL_INDEX)?;
        let index = std::fs::read(snapshot.join(MODEL_INDEX)).map_err(|_| not_cached())?;
        let listed = list_files(&snapshot).map_err(|_| not_cached())?;
        let required = required_files(self.repo_id, &index, &listed, self.variant);
        for file in required.map_err(|_| not_cached())? {
            check(&file)?;
        }
        Ok(snapshot)
    }

    /// Downloads the files that the cache lacks, and returns the snapshot folder.
    ///
    /// # Errors
    ///
    /// As [`Hub::snapshot_download`].
    fn download(&self, progress: &mut dyn FnMut(&str, usize, usize)) -> Result<PathBuf, HubError> {
        let client = self.client()?;
        let endpoint = client.endpoint().shown();
        let named = |failure: Failure| failure.into_error(self.repo_id, &endpoint);
        let listing = match Listing::request(&client, self.name, self.revision) {
            Ok(listing) => listing,
            Err(failure) if failure.is_outage() => {
                return self.cached().map_err(|_| named(failure));
            }
            Err(failure) => return Err(named(failure)),
        };
        if !listing.files.iter().any(|file| file == MODEL_INDEX) {
            return Err(HubError::NotDiffusers(self.repo_id.to_owned()));
        }

        // Files are requested by commit: a branch that moves during the download would mix two versions.
        // The branch's ref in the cache is written last, when all files are present.
        let (cache, commit) = (self.cache(), listing.commit.as_str());
        let source = Source { client: &client, cache: &cache, name: self.name, commit };
        let snapshot = cache.snapshot(commit);
        let mut get = |file: &str| {
            let path = snapshot.join(file);
            match damage_of(&path) {
                Ok(None) => Ok(path),
                _ => source.download(file, &mut *progress).map_err(named),
            }
        };
        let index = get(MODEL_INDEX)?;
        let index = std::fs::read(&index).map_err(|source| HubError::Io { path: index, source })?;
        for file in required_files(self.repo_id, &index, &listing.files, self.variant)? {
            get(&file)?;
        }
        cache.write_ref(self.revision, commit).map_err(named)?;
        Ok(snapshot)
    }

    fn cache(&self) -> RepoCache {
        RepoCache::new(&self.hub.cache_dir, self.name)
    }

    fn client(&self) -> Result<Client, HubError> {
        let endpoint = Url::parse(&self.hub.endpoint).filter(|url| !url.has_query());
        let endpoint = endpoint.ok_or(HubError::InvalidVariable {
            name: "HF_ENDPOINT",
            expected: "write the URL of a hub, such as https://huggingface.co",
        })?;
        let token = self.hub.token.as_deref();
        if token.is_some_and(|token| !token.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(HubError::InvalidVariable {
                name: "HF_TOKEN",
                expected: "a token consists of ASCII letters, digits and signs",
            });
        }
        Ok(Client::new(endpoint, token, self.hub.silence))
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
