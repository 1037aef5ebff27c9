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

    /// An environment variable has an impossible value.
    #[error("{name} is not valid: {expected}")]
    InvalidVariable {
        /// The name of the variable.
        name: &'static str,
        /// What its value has to be.
        expected: &'static str,
    },

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

    /// The repository has no branch, tag or commit of this name.
    #[error("{repo_id} names a revision that {endpoint} does not have (404): check what follows @")]
    RevisionNotFound {
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

    /// The server sends nothing, or next to nothing.
    #[error(
        "{host} sends nothing for {seconds} s while {repo_id} is downloaded: run the command again to resume, or set HF_HUB_DOWNLOAD_TIMEOUT to more seconds"
    )]
    Silent {
        /// The repo id.
        repo_id: String,
        /// The URL of the server, which may be one that the hub redirects to.
        host: String,
        /// How long the server was waited for.
        seconds: u64,
    },

    /// Something answers that is no hub, such as the login page of a network.
    #[error(
        "{repo_id} cannot be downloaded: {host} answers, but not as a hub does ({reason}); check HF_ENDPOINT and the network"
    )]
    NotAHub {
        /// The repo id.
        repo_id: String,
        /// The URL of the server.
        host: String,
        /// What is wrong with the answer.
        reason: String,
    },

    /// The connection ended before the file did.
    #[error(
        "the transfer of {file} of {repo_id} broke off after {}: run the command again to resume",
        bytes(*.done, *.size)
    )]
    BrokenOff {
        /// The repo id.
        repo_id: String,
        /// The path in the repository.
        file: String,
        /// The bytes that arrived.
        done: u64,
        /// The bytes of the whole file, if the server announced them.
        size: Option<u64>,
    },

    /// The bytes differ from what the hub announced. They are not kept.
    #[error(
        "{file} of {repo_id} is not the file that {endpoint} announces: {reason}; it was not kept, so run the command again or change HF_ENDPOINT"
    )]
    Mismatch {
        /// The repo id.
        repo_id: String,
        /// The URL of the server.
        endpoint: String,
        /// The path in the repository.
        file: String,
        /// The difference.
        reason: String,
    },

    /// Another process holds the lock of a file and makes no progress.
    #[error(
        "another process holds the lock {} and makes no progress: end it, then run the command again to download {repo_id}",
        .path.display()
    )]
    Locked {
        /// The repo id.
        repo_id: String,
        /// The lock file.
        path: PathBuf,
    },

    /// The server refuses or fails.
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

    /// The hub is offline, and a file of the cache is damaged.
    #[error(
        "{repo_id} is damaged in the cache, {}: {reason}; unset HF_HUB_OFFLINE to download the file again",
        .path.display()
    )]
    Damaged {
        /// The repo id.
        repo_id: String,
        /// The file.
        path: PathBuf,
        /// The damage.
        reason: String,
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

    /// The repository lacks a file that every pipeline has.
    #[error("{repo_id} has no {file}: choose a repository with all parts of its pipeline")]
    MissingFile {
        /// The repo id.
        repo_id: String,
        /// The path in the repository.
        file: String,
    },

    /// The repository has more files than any pipeline.
    #[error(
        "{repo_id} has {count} files for its pipeline, more than {limit}: choose another repository"
    )]
    TooManyFiles {
        /// The repo id.
        repo_id: String,
        /// The number of files.
        count: usize,
        /// The highest number that is downloaded.
        limit: usize,
    },

    /// No component of the pipeline has the requested variant.
    #[error("{repo_id} has no weights of the variant {variant}: {}", variants(.found))]
    NoVariant {
        /// The repo id.
        repo_id: String,
        /// The requested variant.
        variant: String,
        /// The variants that its components have.
        found: Vec<String>,
    },

    /// Some shards of the weights are absent.
    #[error(
        "{repo_id} has {found} of the {expected} shards of its {subfolder}: choose a repository with all of them"
    )]
    MissingShards {
        /// The repo id.
        repo_id: String,
        /// The subfolder of the repository, such as `unet`.
        subfolder: String,
        /// The number of shards that are there.
        found: usize,
        /// The number of shards by their names.
        expected: usize,
    },

    /// A component has neither the requested variant nor weights without a suffix.
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

fn bytes(done: u64, size: Option<u64>) -> String {
    match size {
        Some(size) => format!("{done} of {size} bytes"),
        None => format!("{done} bytes"),
    }
}

fn describe(variant: Option<&str>) -> String {
    match variant {
        Some(variant) => format!("of the variant {variant} and none without a variant"),
        None => "without a variant".to_owned(),
    }
}

fn remedy(found: &[String]) -> String {
    match found {
        [] => "it has no weights there at all".to_owned(),
        found => format!("choose another --variant; it has {}", found.join(", ")),
    }
}

fn variants(found: &[String]) -> String {
    match found {
        [] => "leave --variant out".to_owned(),
        found => format!("leave --variant out, or choose one of {}", found.join(", ")),
    }
}
