//! Why a request or a transfer failed, before the repository's name is known.

use std::path::PathBuf;

use crate::error::HubError;
use crate::names::shown;

/// The failure of one request, one transfer or one step in the cache.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No connection to `host` can be made.
    Unreachable { host: String, reason: String },
    /// `host` sends nothing, or almost nothing, for `seconds`.
    Silent { host: String, seconds: u64 },
    /// The status is an error. `file` is absent for the list of files.
    Status {
        status: u16,
        /// The header `X-Error-Code`, by which a hub tells a missing repository from a missing revision.
        code: Option<String>,
        retry_after: Option<u64>,
        file: Option<String>,
    },
    /// `host` answers, but not as a hub does.
    NotAHub { host: String, reason: String },
    /// The connection ended before the file did. `what` is a file or the list of files.
    BrokenOff { what: String, done: u64, size: Option<u64> },
    /// The bytes are not those that the hub announced.
    Mismatch {
        file: String,
        reason: String,
        /// Whether a part of the bytes is from an earlier transfer, so that a fresh one may succeed.
        resumed: bool,
    },
    /// Another process holds the lock of the file and makes no progress.
    Locked { path: PathBuf },
    /// The cache cannot be read or written.
    Io { path: PathBuf, source: std::io::Error },
}

impl Failure {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// Adds the file to the failure of a request for it.
    pub(crate) fn of_file(self, name: &str) -> Self {
        match self {
            Self::Status { status, code, retry_after, .. } => {
                Self::Status { status, code, retry_after, file: Some(name.to_owned()) }
            }
            Self::BrokenOff { done, size, .. } => {
                Self::BrokenOff { what: name.to_owned(), done, size }
            }
            other => other,
        }
    }

    /// Whether the server may work again in a moment.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self, Self::Status { status: 429 | 500 | 502 | 503 | 504, .. })
    }

    /// Whether the hub is out of reach or out of order, so that a cached snapshot may stand in for it.
    pub(crate) fn is_outage(&self) -> bool {
        let is_status = matches!(self, Self::Status { status, .. } if *status >= 500);
        is_status
            || self.is_busy()
            || matches!(
                self,
                Self::Unreachable { .. }
                    | Self::Silent { .. }
                    | Self::NotAHub { .. }
                    | Self::BrokenOff { .. }
            )
    }

    /// Returns the error that names the repository and the remedy.
    pub(crate) fn into_error(self, repo_id: &str, endpoint: &str) -> HubError {
        let (repo_id, endpoint) = (repo_id.to_owned(), endpoint.to_owned());
        match self {
            Self::Unreachable { host, reason } => {
                HubError::Unreachable { repo_id, endpoint: host, reason }
            }
            Self::Silent { host, seconds } => HubError::Silent { repo_id, host, seconds },
            // The Hub also answers 401 for a repository that does not exist, so as not to reveal private
            // names.
            Self::Status { status: 401 | 403, .. } => HubError::AccessDenied { repo_id, endpoint },
            Self::Status { status: 404, file: None, code, .. } => match code.as_deref() {
                Some("RevisionNotFound") => HubError::RevisionNotFound { repo_id, endpoint },
                _ => HubError::RepoNotFound { repo_id, endpoint },
            },
            Self::Status { status: 404, file: Some(file), .. } => HubError::Download {
                repo_id,
                endpoint,
                reason: format!("it lists {file} and does not have it (404)"),
            },
            Self::Status { status: 429, .. } => HubError::Download {
                repo_id,
                endpoint,
                reason: "it refuses further requests for some time (429)".to_owned(),
            },
            Self::Status { status, .. } => {
                HubError::Download { repo_id, endpoint, reason: format!("its status is {status}") }
            }
            Self::NotAHub { host, reason } => HubError::NotAHub { repo_id, host, reason },
            Self::BrokenOff { what: file, done, size } => {
                HubError::BrokenOff { repo_id, file, done, size }
            }
            Self::Mismatch { file, reason, .. } => {
                HubError::Mismatch { repo_id, endpoint, file, reason }
            }
            Self::Locked { path } => HubError::Locked { repo_id, path },
            Self::Io { path, source } => HubError::Io { path, source },
        }
    }
}

/// Returns the failure of a request to `host`, which has no answer.
pub(crate) fn of_request(host: &str, error: &ureq::Error, silence: u64) -> Failure {
    let host = host.to_owned();
    match error {
        ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => {
            Failure::Unreachable { host, reason: "the connection takes too long".to_owned() }
        }
        ureq::Error::Timeout(_) => Failure::Silent { host, seconds: silence },
        ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) | ureq::Error::Http(_) => {
            Failure::NotAHub { host, reason: shown(&error.to_string()) }
        }
        ureq::Error::Io(source) if is_end(source) => {
            Failure::BrokenOff { what: "the answer".to_owned(), done: 0, size: None }
        }
        ureq::Error::Io(source) => Failure::Unreachable { host, reason: source.to_string() },
        other => Failure::Unreachable { host, reason: shown(&other.to_string()) },
    }
}

/// Whether the other side closed a connection that had been made.
fn is_end(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}
