//! The connection settings of a hub.

use std::path::PathBuf;
use std::time::Duration;

/// A hub server, the access token for it, and the local cache.
#[derive(Clone)]
pub struct Hub {
    /// The URL of the server, without a slash at its end.
    pub endpoint: String,
    /// The access token that private and gated repositories require.
    ///
    /// The token is sent to the endpoint's scheme, host and port only, and not to a server that the hub
    /// redirects to.
    pub token: Option<String>,
    /// The folder of the cache, which holds one `models--owner--name` folder for each repository.
    pub cache_dir: PathBuf,
    /// Whether to answer from the cache alone and open no connection.
    pub offline: bool,
    /// How long a server may send nothing before the download fails.
    pub silence: Duration,
}

impl std::fmt::Debug for Hub {
    // The token is a secret, and an endpoint may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("cache_dir", &self.cache_dir)
            .field("offline", &self.offline)
            .field("silence", &self.silence)
            .finish_non_exhaustive()
    }
}
