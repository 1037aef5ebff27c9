//! The errors of this crate, each with the remedy in its message.

use std::path::PathBuf;

/// The reason why a pipeline cannot be downloaded or found in the cache.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The text is not a repo id.
    #[error("{0} is not a repo id: write owner/name or owner/name@revision")]
    InvalidRepoId(String),

    /// There is no folder for the cache.
    #[error("there is no home directory for the model cache: set HF_HOME to a folder")]
    NoCacheDir,

    /// The server answered 404.
    #[error(
        "{repo_id} is neither a local path nor a repository of {endpoint} (404): check the spelling"
    )]
    RepoNotFound {
        /// The repo id.
        repo_id: String,
        /// The URL of the server.
        endpoint: String,
    },

    /// The server answered 401 or 403: the repository is private, gated or absent.
    #[error(
        "{endpoint} denies access to {repo_id}: check the spelling, set HF_TOKEN to a token that may read it, and accept its terms at {endpoint}/{repo_id} if it is gated"
    )]
    AccessDenied {
        /// The repo id.
        repo_id: String,
        /// The URL of the server.
        endpoint: String,
    },

    /// The server cannot be reached, and the cache lacks the files.
    #[error(
        "{repo_id} is not a local path, and {endpoint} cannot be reached ({reason}): check the network and HF_ENDPOINT, or give a directory"
    )]
    Unreachable {
        /// The repo id.
        repo_id: String,
        /// The URL of the server.
        endpoint: String,
        /// The cause, as the connection reports it.
        reason: String,
    },

    /// The server's answer is invalid, or a transfer broke off.
    #[error(
        "{repo_id} cannot be downloaded from {endpoint}: {reason}; run the command again to resume"
    )]
    Download {
        /// The repo id.
        repo_id: String,
        /// The URL of the server.
        endpoint: String,
        /// The cause.
        reason: String,
    },

    /// The hub is offline, and the cache lacks the files.
    #[error(
        "{repo_id}, or the requested variant of it, is not in the cache {}: unset HF_HUB_OFFLINE to download it",
        .cache_dir.display()
    )]
    NotCached {
        /// The repo id.
        repo_id: String,
        /// The folder of the cache.
        cache_dir: PathBuf,
    },

    /// The repository has no `model_index.json`.
    #[error("{0} has no model_index.json: choose a repository in the diffusers layout")]
    NotDiffusers(String),

    /// The repository's `model_index.json` is not a JSON object.
    #[error("the model_index.json of {repo_id} is not a JSON object: {source}")]
    InvalidModelIndex {
        /// The repo id.
        repo_id: String,
        /// The position and the kind of the syntax error.
        source: serde_json::Error,
    },

    /// The weights are pickles, which can run code when they are read.
    #[error(
        "{repo_id} has its {subfolder} as a pickle only, which can run any code when it is read: convert it in Python, with from_pretrained(\"{repo_id}\").save_pretrained(folder, safe_serialization=True)"
    )]
    PickleOnly {
        /// The repo id.
        repo_id: String,
        /// The subfolder of the repository, such as `unet`.
        subfolder: String,
    },

    /// The repository has no weights of the requested variant.
    #[error("{repo_id} has no {subfolder} {}: {}", describe(.variant.as_deref()), remedy(.found))]
    NoWeights {
        /// The repo id.
        repo_id: String,
        /// The subfolder of the repository, such as `unet`.
        subfolder: String,
        /// The requested variant.
        variant: Option<String>,
        /// The weight files that the subfolder has.
        found: Vec<String>,
    },

    /// The cache cannot be read or written.
    #[error("{} cannot be read or written: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
}

fn describe(variant: Option<&str>) -> String {
    match variant {
        Some(variant) => format!("of the variant {variant}"),
        None => "without a variant".to_owned(),
    }
}

fn remedy(found: &[String]) -> String {
    match found {
        [] => "it has no weights there at all".to_owned(),
        found => format!("choose another --variant; it has {}", found.join(", ")),
    }
}
