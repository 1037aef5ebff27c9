//! The digest that an ETag is: SHA-256 for large files, git's SHA-1 of a blob for small ones.

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// What a file's digest has to be, by its ETag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Digest {
    /// SHA-256, as 64 hexadecimal digits.
    Sha256(String),
    /// SHA-1 of the bytes, or of git's blob with the bytes, as 40 hexadecimal digits.
    Sha1(String),
    /// The ETag is no digest of a known kind.
    Unknown,
}

impl Digest {
    /// Returns the digest that a blob of this name has.
    pub(crate) fn of_name(etag: &str) -> Self {
        let is_hex = etag.bytes().all(|b| b.is_ascii_hexdigit());
        match etag.len() {
            64 if is_hex => Self::Sha256(etag.to_ascii_lowercase()),
            40 if is_hex => Self::Sha1(etag.to_ascii_lowercase()),
            _ => Self::Unknown,
        }
    }

    pub(crate) fn is_known(&self) -> bool {
        *self != Self::Unknown
    }

    /// Returns a hasher for a file of `size` bytes. Without a size, git's digest cannot be made.
    pub(crate) fn hasher(&self, size: Option<u64>) -> Hasher {
        match self {
            Self::Sha256(expected) => Hasher::Sha256(expected.clone(), Sha256::new()),
            Self::Sha1(expected) => {
                let git = size.map(|size| Sha1::new_with_prefix(format!("blob {size}\0")));
                Hasher::Sha1(expected.clone(), Sha1::new(), git)
            }
            Self::Unknown => Hasher::Unknown,
        }
    }
}

/// The digest of the bytes so far.
#[derive(Clone)]
pub(crate) enum Hasher {
    Sha256(String, Sha256),
    Sha1(String, Sha1, Option<Sha1>),
    Unknown,
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(_, hasher) => hasher.update(bytes),
            Self::Sha1(_, plain, git) => {
                plain.update(bytes);
                if let Some(git) = git {
                    git.update(bytes);
                }
            }
            Self::Unknown => {}
        }
    }

    /// # Errors
    ///
    /// The difference, as the end of a sentence.
    pub(crate) fn finish(self) -> Result<(), String> {
        match self {
            Self::Sha256(expected, hasher) => {
                let found = format!("{:x}", hasher.finalize());
                let reason = || format!("its SHA-256 is {found}, not {expected}");
                (found == expected).then_some(()).ok_or_else(reason)
            }
            Self::Sha1(expected, plain, git) => {
                let found = git.map(|git| format!("{:x}", git.finalize()));
                let plain = format!("{:x}", plain.finalize());
                let is_equal = plain == expected || found.as_ref() == Some(&expected);
                let found = found.unwrap_or(plain);
                let reason = || format!("its SHA-1 is {found}, not {expected}");
                is_equal.then_some(()).ok_or_else(reason)
            }
            Self::Unknown => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::Digest;

    /// Each digest is that of the bytes `hello\n`: by sha256sum, git hash-object and sha1sum.
    const DIGESTS: [&str; 3] = [
        "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        "ce013625030ba8dba906f756967f9e9ca394464a",
        "f572d396fae9206628714fb2ce00f72e94f2258f",
    ];

    #[test]
    fn known_digests_are_those_of_the_tools() {
        for digest in DIGESTS {
            let check = |bytes: &[u8], size| {
                let mut hasher = Digest::of_name(digest).hasher(Some(size));
                bytes.chunks(4).for_each(|chunk| hasher.update(chunk));
                hasher.finish()
            };
            check(b"hello\n", 6).unwrap();
            assert!(check(b"hullo\n", 6).unwrap_err().contains(digest));
            assert!(check(b"hello", 6).is_err());
        }
    }

    #[test]
    fn other_names_are_no_digests() {
        for name in ["", "abc", &"g".repeat(64), &"a".repeat(63), "a-1"] {
            assert!(!Digest::of_name(name).is_known(), "{name}");
        }
    }
}
