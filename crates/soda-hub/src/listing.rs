//! The list of a repository's files at one commit, as a hub gives it.

use serde::Deserialize;

use crate::failure::Failure;
use crate::http::Client;
use crate::names::{is_commit, shown};
use crate::retry::with_repetitions;

/// The longest list that is read, in bytes.
const MAX_LIST: usize = 16 << 20;

/// How often a busy server is asked again.
const REPETITIONS: u32 = 3;

/// The name of the list in messages.
const LIST: &str = "the list of files";

/// The files of a repository at one commit.
#[derive(Debug)]
pub(crate) struct Listing {
    /// The hash of the commit, in hexadecimal digits.
    pub(crate) commit: String,
    /// Paths in the repository, as the hub names them. They are not checked.
    pub(crate) files: Vec<String>,
}

/// The answer of a hub, without the many fields that are not used.
#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Listing {
    /// Asks the hub for the files of `name` at `revision`.
    ///
    /// # Errors
    ///
    /// Every failure of a request; [`Failure::NotAHub`] if the answer is no list.
    pub(crate) fn request(client: &Client, name: &str, revision: &str) -> Result<Self, Failure> {
        let path = format!("api/models/{name}/revision/{revision}");
        let host = client.endpoint().host();
        let url = client.endpoint().with_path(&path).ok_or_else(|| Failure::NotAHub {
            host: host.clone(),
            reason: "its URL is too long".to_owned(),
        })?;
        let repetitions = |failure: &Failure| match failure {
            Failure::BrokenOff { .. } => 1,
            failure if failure.is_busy() => REPETITIONS,
            _ => 0,
        };
        let bytes = with_repetitions(repetitions, || {
            let answer = client.get(&url, &[], |_| false)?;
            answer.into_bytes(LIST, MAX_LIST)
        })?;
        let listing = Self::parse(&bytes).and_then(|listing| {
            // A commit is a promise of its files.
            let is_other = revision.len() == 40 && is_commit(revision);
            if is_other && !revision.eq_ignore_ascii_case(&listing.commit) {
                return Err(format!("it lists the commit {}, not {revision}", listing.commit));
            }
            Ok(listing)
        });
        listing.map_err(|reason| Failure::NotAHub { host, reason })
    }

    /// Parses the JSON of a list.
    ///
    /// # Errors
    ///
    /// The reason why the bytes are no list.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let info: Info = serde_json::from_slice(bytes).map_err(|error| {
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).to_lowercase();
            let is_page = text.trim_start().starts_with('<');
            let what = if is_page { "a web page" } else { "no list of files in JSON" };
            format!("it sends {what}: {}", shown(&error.to_string()))
        })?;
        if !is_commit(&info.sha) {
            return Err(format!("its commit is \"{}\"", shown(&info.sha)));
        }
        let files = info.siblings.into_iter().map(|file| file.rfilename).collect();
        Ok(Self { commit: info.sha, files })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::Listing;

    #[test]
    fn a_list_has_a_commit_and_files() {
        let json =
            br#"{"id":"a/b","sha":"0123abc","siblings":[{"rfilename":"x","size":1}],"tags":[]}"#;
        let listing = Listing::parse(json).unwrap();
        assert_eq!((listing.commit.as_str(), listing.files), ("0123abc", vec!["x".to_owned()]));
    }

    #[test]
    fn what_is_no_list_is_described() {
        let deep = "[".repeat(200_000);
        for (text, expected) in [
            ("<html>hello</html>", "a web page"),
            ("", "no list"),
            ("{\"sha\":\"0123abc\"}", "siblings"),
            ("{\"sha\":\"0123abc\",\"siblings\":[{\"rfilename\":1}]}", "no list"),
            ("{\"sha\":\"../../x\",\"siblings\":[]}", "../../x"),
            ("{\"sha\":\"\",\"siblings\":[]}", "commit"),
            (&deep, "no list"),
        ] {
            let reason = Listing::parse(text.as_bytes()).unwrap_err();
            assert!(reason.contains(expected) && reason.len() < 200, "{reason}");
        }
    }
}
