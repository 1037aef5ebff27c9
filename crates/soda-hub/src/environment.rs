//! The settings of a hub from the environment variables of Python's `huggingface_hub`.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::HubError;
use crate::hub::Hub;

/// The server that is used if `HF_ENDPOINT` is not set.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// How long a silent server is waited for if `HF_HUB_DOWNLOAD_TIMEOUT` is not set.
const DEFAULT_SILENCE: Duration = Duration::from_secs(10);

/// The longest silence that can be set, in seconds.
const MAX_SILENCE: u64 = 3600;

/// The longest token that is read from a file, in bytes.
const MAX_TOKEN: u64 = 4096;

impl Hub {
    /// Reads the settings from the environment variables of `huggingface_hub`.
    ///
    /// | variable | field | default |
    /// |---|---|---|
    /// | `HF_ENDPOINT` | `endpoint` | `https://huggingface.co` |
    /// | `HF_TOKEN` | `token` | the content of the file `HF_TOKEN_PATH` |
    /// | `HF_TOKEN_PATH` | `token` | the file `token` in `HF_HOME`, which `huggingface-cli login` writes |
    /// | `HF_HUB_CACHE` | `cache_dir` | the folder `hub` in `HF_HOME` |
    /// | `HF_HOME` | | `huggingface` in `XDG_CACHE_HOME`, or else `~/.cache/huggingface` |
    /// | `HF_HUB_OFFLINE` | `offline`, true for `1`, `on`, `yes` or `true` | false |
    /// | `HF_HUB_DOWNLOAD_TIMEOUT` | `silence`, in seconds | 10 |
    ///
    /// # Errors
    ///
    /// - [`HubError::NoCacheDir`] if neither a cache is set nor the user has a home directory.
    /// - [`HubError::InvalidVariable`] if a variable has an impossible value.
    /// - [`HubError::Io`] if the cache folder is relative and the current directory cannot be found, or if
    ///   the file of the token cannot be read.
    pub fn from_env() -> Result<Self, HubError> {
        read(|name| std::env::var_os(name))
    }
}

/// Reads the settings of a hub. `var` returns the value of a variable.
///
/// # Errors
///
/// As [`Hub::from_env`].
fn read(var: impl Fn(&str) -> Option<OsString>) -> Result<Hub, HubError> {
    let var = |name: &str| var(name).filter(|value| !value.is_empty());
    let text = |name: &'static str, expected: &'static str| {
        let invalid = |_| HubError::InvalidVariable { name, expected };
        var(name).map(|value| value.into_string().map_err(invalid)).transpose()
    };
    let is_true = |name: &str| {
        var(name).is_some_and(|value| {
            let value = value.to_string_lossy().to_lowercase();
            ["1", "on", "yes", "true"].contains(&value.as_str())
        })
    };

    let user = || var("HOME").map(PathBuf::from).or_else(std::env::home_dir);
    let path = |name: &str| var(name).map(|value| expanded(Path::new(&value), user()));
    let home = match path("HF_HOME") {
        Some(home) => Some(home),
        None => path("XDG_CACHE_HOME")
            .or_else(|| user().map(|home| home.join(".cache")))
            .map(|cache| cache.join("huggingface")),
    };
    let cache_dir = match (path("HF_HUB_CACHE"), &home) {
        (Some(cache_dir), _) => cache_dir,
        (None, Some(home)) => home.join("hub"),
        (None, None) => return Err(HubError::NoCacheDir),
    };
    let token_file = path("HF_TOKEN_PATH").or_else(|| home.map(|home| home.join("token")));
    let token = match text("HF_TOKEN", "write a token in plain ASCII characters")? {
        Some(token) => Some(token),
        None => token_file.as_deref().map(stored_token).transpose()?.flatten(),
    };
    let silence = match text("HF_HUB_DOWNLOAD_TIMEOUT", "write a number of seconds")? {
        None => DEFAULT_SILENCE,
        Some(seconds) => seconds
            .trim()
            .parse()
            .ok()
            .filter(|seconds| (1..=MAX_SILENCE).contains(seconds))
            .map(Duration::from_secs)
            .ok_or(HubError::InvalidVariable {
                name: "HF_HUB_DOWNLOAD_TIMEOUT",
                expected: "write a whole number of seconds from 1 to 3600",
            })?,
    };
    Ok(Hub {
        endpoint: text("HF_ENDPOINT", "write the URL of a hub, such as https://huggingface.co")?
            .map_or(DEFAULT_ENDPOINT.to_owned(), |url| url.trim_end_matches('/').to_owned()),
        token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
        cache_dir: std::path::absolute(&cache_dir)
            .map_err(|source| HubError::Io { path: cache_dir, source })?,
        offline: is_true("HF_HUB_OFFLINE"),
        silence,
    })
}

/// Replaces `~` at the start of a path, as `huggingface_hub` does.
fn expanded(path: &Path, home: Option<PathBuf>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

/// The token that `huggingface-cli login` stored. `None` if there is none.
fn stored_token(path: &Path) -> Result<Option<String>, HubError> {
    // A pipe would be waited for when it is opened.
    if !path.is_file() {
        return Ok(None);
    }
    let mut token = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_TOKEN).read_to_string(&mut token))
        .map_err(|source| HubError::Io { path: path.to_owned(), source })?;
    Ok(Some(token))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::path::Path;
    use std::time::Duration;

    use super::{Hub, HubError, read};

    fn hub(variables: &[(&str, &str)]) -> Result<Hub, HubError> {
        read(|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| value.into())
        })
    }

    #[test]
    fn the_cache_is_where_python_has_it() {
        for (variables, expected) in [
            (&[][..], "/u/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/h")], "/u/h/hub"),
            (&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")], "/c"),
            (&[("HF_HOME", "")], "/u/.cache/huggingface/hub"),
        ] {
            let found = hub(&[&[("HOME", "/u")], variables].concat()).unwrap().cache_dir;
            assert_eq!(found, std::path::absolute(expected).unwrap());
        }
    }

    #[test]
    fn the_token_is_that_of_the_variable_or_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("other");
        std::fs::write(dir.path().join("token"), "stored\n").unwrap();
        std::fs::write(&file, "named").unwrap();
        let home = ("HF_HOME", dir.path().to_str().unwrap());
        let token = |more: &[(&str, &str)]| hub(&[&[home], more].concat()).unwrap().token;
        assert_eq!(token(&[]).as_deref(), Some("stored"));
        let path = ("HF_TOKEN_PATH", file.to_str().unwrap());
        assert_eq!(token(&[path]).as_deref(), Some("named"));
        assert_eq!(token(&[path, ("HF_TOKEN", " given ")]).as_deref(), Some("given"));
        assert_eq!(token(&[("HF_TOKEN_PATH", "/nowhere/token")]), None);
    }

    #[test]
    fn other_values_are_read_and_checked() {
        let home = [("HF_HOME", "/h")];
        let default = hub(&home).unwrap();
        assert!(!default.offline && default.endpoint == "https://huggingface.co");
        assert!(default.cache_dir.starts_with(std::path::absolute(Path::new("/h")).unwrap()));
        let set = [
            home[0],
            ("HF_ENDPOINT", "http://a/b/"),
            ("HF_HUB_OFFLINE", "Yes"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "30"),
        ];
        let set = hub(&set).unwrap();
        assert!(set.offline && set.endpoint == "http://a/b");
        assert_eq!(set.silence, Duration::from_secs(30));
        for seconds in ["0", "-1", "x", "3601", "99999999999999999999"] {
            let error = hub(&[home[0], ("HF_HUB_DOWNLOAD_TIMEOUT", seconds)]).unwrap_err();
            assert!(error.to_string().contains("HF_HUB_DOWNLOAD_TIMEOUT"), "{error}");
        }
    }
}
