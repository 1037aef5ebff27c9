//! What the headers of a hub say of a file: its content's name, its length, and the commit it is from.

use ureq::http::HeaderMap;

use super::client::Client;
use super::redirect::is_redirect;
use super::url::Url;
use crate::failure::Failure;
use crate::names::{etag_name, shown};

/// The longest file that is downloaded, in bytes: one tebibyte.
const MAX_SIZE: u64 = 1 << 40;

/// What a hub announces of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FileMetadata {
    /// The plain name of the content, under which the cache keeps it.
    pub(crate) etag: String,
    /// The length in bytes, if the hub says it.
    pub(crate) size: Option<u64>,
}

/// Asks for the metadata of the file at `url`, by a request for its first byte.
///
/// A hub answers for large files with a redirect to another host, which already has the metadata. The other
/// host is asked only for what the hub leaves out.
///
/// # Errors
///
/// Every failure of a request; [`Failure::NotAHub`] if the metadata is missing or invalid.
pub(crate) fn file_metadata(
    client: &Client,
    url: &Url,
    commit: &str,
) -> Result<FileMetadata, Failure> {
    let mut hops = Hops::new(commit);
    let mut wrong = None;
    let fields = [("Range", "bytes=0-0".to_owned())];
    let mut answer = client.get(url, &fields, |answer| {
        wrong = hops.add(answer.is_own, answer.status, &answer.headers).err();
        wrong.is_some() || (is_redirect(answer.status) && hops.is_complete())
    })?;
    answer.drain();
    let metadata = match wrong {
        None => hops.finish(),
        Some(reason) => Err(reason),
    };
    metadata.map_err(|reason| answer.not_a_hub(reason))
}

/// The metadata that the answers to one request have given so far.
pub(crate) struct Hops<'a> {
    commit: &'a str,
    etag: Option<String>,
    linked_etag: Option<String>,
    size: Option<u64>,
    linked_size: Option<u64>,
}

impl<'a> Hops<'a> {
    pub(crate) fn new(commit: &'a str) -> Self {
        Self { commit, etag: None, linked_etag: None, size: None, linked_size: None }
    }

    /// Adds the headers of one answer. `is_own` tells those of the hub from those of other hosts.
    ///
    /// # Errors
    ///
    /// The reason why a header is impossible.
    pub(crate) fn add(
        &mut self,
        is_own: bool,
        status: u16,
        headers: &HeaderMap,
    ) -> Result<(), String> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if is_own {
            if let Some(commit) = text("X-Repo-Commit")
                && !commit.trim().eq_ignore_ascii_case(self.commit)
            {
                let commit = shown(commit);
                return Err(format!("its X-Repo-Commit is {commit}, not {}", self.commit));
            }
            if let Some(etag) = text("X-Linked-Etag") {
                self.linked_etag = Some(etag.to_owned());
            }
            if let Some(size) = text("X-Linked-Size") {
                let invalid = || format!("its X-Linked-Size is {}", shown(size));
                self.linked_size = Some(size.trim().parse().map_err(|_| invalid())?);
            }
        }
        if self.etag.is_none() {
            self.etag = text("ETag").map(str::to_owned);
        }
        self.size = match status {
            200 => text("Content-Length").and_then(|length| length.trim().parse().ok()),
            206 | 416 => text("Content-Range").and_then(|range| range_of(range)?.total),
            _ => None,
        };
        Ok(())
    }

    /// Whether the hub itself has announced both the content's name and its length.
    pub(crate) fn is_complete(&self) -> bool {
        self.linked_etag.is_some() && self.linked_size.is_some()
    }

    /// # Errors
    ///
    /// The reason why the metadata is missing or invalid.
    pub(crate) fn finish(self) -> Result<FileMetadata, String> {
        let etag = self.linked_etag.or(self.etag).ok_or("its answer has no ETag")?;
        let Some(name) = etag_name(&etag) else {
            return Err(format!("its ETag is no plain name: {}", shown(&etag)));
        };
        let size = self.linked_size.or(self.size);
        match size.filter(|size| *size > MAX_SIZE) {
            Some(size) => Err(format!("it announces a file of {size} bytes")),
            None => Ok(FileMetadata { etag: name.to_owned(), size }),
        }
    }
}

/// The value of `Content-Range`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ContentRange {
    /// The position of the first byte. `None` if the range could not be served.
    pub(crate) start: Option<u64>,
    /// The length of the whole file, if it is known.
    pub(crate) total: Option<u64>,
}

/// Parses the value of `Content-Range`, such as `bytes 0-9/100`.
pub(crate) fn range_of(text: &str) -> Option<ContentRange> {
    let (range, total) = text.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let start = match range {
        "*" => None,
        range => {
            let (first, last) = range.split_once('-')?;
            let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
            Some(Some(first).filter(|first| *first <= last)?)
        }
    };
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some(ContentRange { start, total })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use ureq::http::{HeaderMap, HeaderName, HeaderValue};

    use super::{ContentRange, FileMetadata, Hops, range_of};

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// Whether an answer is the hub's own, its status, and its header fields.
    type Hop<'a> = (bool, u16, &'a [(&'a str, &'a str)]);

    fn finish(hops: &[Hop<'_>]) -> Result<(String, Option<u64>), String> {
        let mut found = Hops::new(COMMIT);
        for (is_own, status, fields) in hops {
            let mut headers = HeaderMap::new();
            for (name, value) in *fields {
                let name: HeaderName = name.parse().unwrap();
                headers.insert(name, HeaderValue::from_str(value).unwrap());
            }
            found.add(*is_own, *status, &headers)?;
        }
        let FileMetadata { etag, size } = found.finish()?;
        Ok((etag, size))
    }

    #[test]
    fn a_small_file_has_its_metadata_in_one_answer() {
        let fields = [("ETag", "W/\"ab\""), ("Content-Range", "bytes 0-0/7")];
        assert_eq!(finish(&[(true, 206, &fields)]).unwrap(), ("ab".to_owned(), Some(7)));
        let fields = [("ETag", "\"ab\""), ("Content-Length", "7"), ("X-Repo-Commit", COMMIT)];
        assert_eq!(finish(&[(true, 200, &fields)]).unwrap(), ("ab".to_owned(), Some(7)));
        let empty = [("ETag", "\"ab\""), ("Content-Range", "bytes */0")];
        assert_eq!(finish(&[(true, 416, &empty)]).unwrap(), ("ab".to_owned(), Some(0)));
    }

    #[test]
    fn a_hub_speaks_for_the_host_that_has_the_file() {
        let linked = [("X-Linked-Etag", "\"ab\""), ("X-Linked-Size", "7"), ("ETag", "\"cd\"")];
        let other = [("X-Linked-Etag", "\"ef\""), ("ETag", "\"gh\""), ("X-Repo-Commit", "none")];
        let found = finish(&[(true, 302, &linked), (false, 206, &other)]).unwrap();
        assert_eq!(found, ("ab".to_owned(), Some(7)));
        let plain = [("ETag", "\"cd\"")];
        let range = [("Content-Range", "bytes 0-0/9"), ("ETag", "\"gh\"")];
        let found = finish(&[(true, 302, &plain), (false, 206, &range)]).unwrap();
        assert_eq!(found, ("cd".to_owned(), Some(9)));
    }

    #[test]
    fn impossible_headers_are_named() {
        let one = |name, value| finish(&[(true, 200, &[("ETag", "\"ab\""), (name, value)])]);
        for (name, value) in [
            ("X-Repo-Commit", "../../x"),
            ("X-Linked-Etag", "../../x"),
            ("X-Linked-Size", "-1"),
            ("Content-Length", "4611686018427387904"),
        ] {
            let reason = one(name, value).unwrap_err();
            assert!(reason.contains(value), "{reason}");
        }
        assert!(finish(&[(true, 200, &[])]).unwrap_err().contains("no ETag"));
    }

    #[test]
    fn content_ranges_are_parsed() {
        let range = |start, total| Some(ContentRange { start, total });
        assert_eq!(range_of("bytes 3-9/10"), range(Some(3), Some(10)));
        assert_eq!(range_of("bytes 3-9/*"), range(Some(3), None));
        assert_eq!(range_of("bytes */10"), range(None, Some(10)));
        for text in ["", "bytes", "bytes 3/10", "bytes 9-3/10", "bytes a-b/c", "items 0-1/2"] {
            assert_eq!(range_of(text), None, "{text}");
        }
    }
}
