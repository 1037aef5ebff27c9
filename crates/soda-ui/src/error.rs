//! Why the server cannot start.

use std::net::SocketAddr;
use std::path::PathBuf;

/// A server that cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UiError {
    /// Another address than the loopback one, without a token.
    #[error("{0} can be reached by other machines: give --token with at least 16 characters")]
    TokenRequired(SocketAddr),
    /// A token that is short or that no cookie can hold.
    #[error("the token must have 16 to 256 letters, digits, `-` or `_`")]
    Token,
    /// An address that cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another --port")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The reason of the operating system.
        source: std::io::Error,
    },
    /// The folder of the runs, which cannot be created.
    #[error("cannot create {path}: {source}; choose another folder with --runs", path = path.display())]
    Runs {
        /// The folder.
        path: PathBuf,
        /// The reason of the operating system.
        source: std::io::Error,
    },
    /// The operating system gives no random numbers.
    #[error("cannot make a random token: {0}")]
    Random(String),
}
