//! One file of a repository: asked for, transferred or resumed, checked, and linked into its snapshot.

use std::path::PathBuf;

use crate::cache::{Digest, Partial, RepoCache, is_digest_of};
use crate::failure::Failure;
use crate::http::{Answer, Client, FileMetadata, Url, file_metadata, range_of};
use crate::retry::with_repetitions;

/// How often a broken transfer is resumed, and a busy server asked again.
const REPETITIONS: u32 = 3;

/// The longest file that is not weights, in bytes.
const MAX_TEXT: u64 = 64 << 20;

/// The function that is told of a file's path, the bytes so far, and its length.
pub(crate) type Report<'a> = dyn FnMut(&str, usize, usize) + 'a;

/// A repository at one commit, on a hub and in the cache.
pub(crate) struct Source<'a> {
    pub(crate) client: &'a Client,
    pub(crate) cache: &'a RepoCache,
    /// `owner/name`.
    pub(crate) name: &'a str,
    pub(crate) commit: &'a str,
}

impl Source<'_> {
    /// Downloads `file` into the cache, and returns its path in the snapshot.
    ///
    /// # Errors
    ///
    /// The last failure, after the repetitions of what may pass.
    pub(crate) fn download(&self, file: &str, report: &mut Report<'_>) -> Result<PathBuf, Failure> {
        let repetitions = |failure: &Failure| match failure {
            Failure::BrokenOff { .. } | Failure::Mismatch { resumed: true, .. } => REPETITIONS,
            Failure::Silent { .. } => 1,
            failure if failure.is_busy() => REPETITIONS,
            _ => 0,
        };
        with_repetitions(repetitions, || self.attempt(file, report))
            .map_err(|failure| failure.of_file(file))
    }

    fn attempt(&self, file: &str, report: &mut Report<'_>) -> Result<PathBuf, Failure> {
        let path = format!("{}/resolve/{}/{file}", self.name, self.commit);
        let url = self.client.endpoint().with_path(&path).ok_or_else(|| Failure::NotAHub {
            host: self.client.endpoint().host(),
            reason: "it lists a file whose name is too long for a URL".to_owned(),
        })?;
        let metadata = file_metadata(self.client, &url, self.commit)?;
        let is_weights = file.ends_with(".safetensors");
        if let Some(size) = metadata.size.filter(|size| !is_weights && *size > MAX_TEXT) {
            let reason = format!("it has {size} bytes, more than {MAX_TEXT}");
            return Err(Failure::Mismatch { file: file.to_owned(), reason, resumed: false });
        }
        let _lock = self.cache.lock(&metadata.etag)?;
        if !self.has_blob(file, &metadata)? {
            let limit = if is_weights { u64::MAX } else { MAX_TEXT };
            self.transfer(&url, file, &metadata, limit, report)?;
        }
        let size = as_usize(metadata.size.unwrap_or_default());
        report(file, size, size);
        self.cache.link(self.commit, file, &metadata.etag)
    }

    /// Whether the cache has the content already. A damaged one is removed.
    fn has_blob(&self, file: &str, metadata: &FileMetadata) -> Result<bool, Failure> {
        let blob = self.cache.blob(&metadata.etag);
        let Ok(found) = std::fs::metadata(&blob) else { return Ok(false) };
        let digest = Digest::of_name(&metadata.etag);
        if metadata.size.is_none_or(|size| size == found.len()) {
            // A content that was checked before is not read again, unless that is quick.
            if found.len() > MAX_TEXT || !digest.is_known() || is_digest_of(&blob, &digest)? {
                return Ok(true);
            }
        } else if is_digest_of(&blob, &digest)? {
            let size = metadata.size.unwrap_or_default();
            let reason = format!("the content of its digest has {} bytes, not {size}", found.len());
            return Err(Failure::Mismatch { file: file.to_owned(), reason, resumed: false });
        }
        self.cache.remove_blob(&metadata.etag)?;
        Ok(false)
    }

    /// Transfers what the cache lacks of a content, and checks the whole.
    fn transfer(
        &self,
        url: &Url,
        file: &str,
        metadata: &FileMetadata,
        limit: u64,
        report: &mut Report<'_>,
    ) -> Result<(), Failure> {
        let digest = Digest::of_name(&metadata.etag);
        let is_known = digest.is_known();
        let mut partial = Partial::open(self.cache.partial(&metadata.etag), digest, metadata.size)?;
        if metadata.size.is_none_or(|size| partial.length() < size) {
            let mut fields = Vec::new();
            if partial.length() > 0 {
                fields.push(("Range", format!("bytes={}-", partial.length())));
                // A digest tells whether the parts belong together. Without one, the server has to.
                if !is_known {
                    fields.push(("If-Range", format!("\"{}\"", metadata.etag)));
                }
            }
            let answer = self.client.get(url, &fields, |_| false)?;
            let size = self.expect(&answer, file, metadata, &mut partial, is_known)?;
            let total = as_usize(size.unwrap_or_default());
            report(file, as_usize(partial.length()), total);
            let limit = size.unwrap_or(limit);
            let mut is_longer = false;
            let read = answer.read_to(file, size, &mut |bytes| {
                is_longer = partial.length() + bytes.len() as u64 > limit;
                if !is_longer {
                    partial.write(bytes)?;
                    report(file, as_usize(partial.length()), total);
                }
                Ok(!is_longer)
            });
            read.map_err(|failure| match failure {
                // The bytes of earlier answers count.
                Failure::BrokenOff { what, size, .. } => {
                    Failure::BrokenOff { what, done: partial.length(), size }
                }
                other => other,
            })?;
            if is_longer {
                let (file, resumed) = (file.to_owned(), partial.is_resumed());
                partial.restart()?;
                let reason = format!("it has more than {limit} bytes");
                return Err(Failure::Mismatch { file, reason, resumed });
            }
            if size.is_some_and(|size| partial.length() < size) {
                let (what, done) = (file.to_owned(), partial.length());
                return Err(Failure::BrokenOff { what, done, size });
            }
        }
        partial.finish(file, &self.cache.blob(&metadata.etag))
    }

    /// Compares the head of an answer with what was asked, and returns the length of the whole file.
    ///
    /// A server that ignores the range sends the whole file, so that `partial` starts again.
    fn expect(
        &self,
        answer: &Answer,
        file: &str,
        metadata: &FileMetadata,
        partial: &mut Partial,
        is_known: bool,
    ) -> Result<Option<u64>, Failure> {
        let mismatch =
            |reason: String, resumed| Failure::Mismatch { file: file.to_owned(), reason, resumed };
        let range = answer.header("Content-Range").and_then(range_of);
        match answer.status {
            200 if partial.length() > 0 => partial.restart()?,
            200 => {}
            206 => {
                // Some servers leave the range out. A digest tells whether they sent the right one.
                let unsaid = if is_known { partial.length() } else { 0 };
                let start = range.as_ref().map_or(Some(unsaid), |range| range.start);
                if start != Some(partial.length()) {
                    return Err(answer.not_a_hub("it sends another range than the one asked for"));
                }
            }
            // What the cache has of the file is no beginning of it.
            _ => {
                let resumed = partial.is_resumed();
                partial.restart()?;
                let reason = format!("its range is refused ({})", answer.status);
                return Err(mismatch(reason, resumed));
            }
        }
        let announced = answer.content_length().map(|rest| rest.saturating_add(partial.length()));
        let of_answer = range.and_then(|range| range.total).or(announced);
        let size = metadata.size.or(of_answer);
        for found in [of_answer, announced].into_iter().flatten() {
            if size.is_some_and(|size| size != found) {
                let size = size.unwrap_or_default();
                let resumed = partial.is_resumed();
                return Err(mismatch(format!("{found} of {size} bytes are sent"), resumed));
            }
        }
        if size.is_none() && !is_known {
            return Err(answer.not_a_hub(format!("it gives {file} neither a length nor a digest")));
        }
        Ok(size)
    }
}

fn as_usize(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
