//! The first message of a rank to rank 0, and what rank 0 makes of it.

use sha2::{Digest as _, Sha256};

use crate::host::{self, readable};

/// The start of a hello. A program that is no soda sends something else.
const MAGIC: &[u8; 8] = b"sodarank";
/// The version of the protocol, which changes with its messages.
const PROTOCOL: u32 = 1;
/// The most bytes of a version.
const LONGEST_VERSION: usize = 64;
/// The most bytes of a hello.
pub(crate) const LONGEST: usize = 8 + 4 + 32 + 4 + 4 + 2 + LONGEST_VERSION + 2 + host::LONGEST;

/// What a rank says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    protocol: u32,
    /// A hash of the job's token, of one length for all tokens.
    token: [u8; 32],
    pub(crate) rank: usize,
    pub(crate) world: usize,
    /// The version of the program.
    version: String,
    pub(crate) host: String,
}

impl Hello {
    pub(crate) fn new(token: &str, rank: usize, world: usize, host: &str) -> Self {
        Self {
            protocol: PROTOCOL,
            token: Sha256::new_with_prefix("soda job token ").chain_update(token).finalize().into(),
            rank,
            world,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: readable(host),
        }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.protocol.to_le_bytes());
        bytes.extend(self.token);
        for number in [self.rank, self.world] {
            bytes.extend((number as u32).to_le_bytes());
        }
        for text in [&self.version, &self.host] {
            bytes.extend((text.len() as u16).to_le_bytes());
            bytes.extend(text.as_bytes());
        }
        bytes
    }

    /// Reads a hello. `None` if the bytes are none.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(MAGIC)?;
        let protocol = u32::from_le_bytes(take(&mut rest)?);
        let token = take(&mut rest)?;
        let [rank, world] = [take(&mut rest)?, take(&mut rest)?]
            .map(|number: [u8; 4]| u32::from_le_bytes(number) as usize);
        let [version, host] = [text(&mut rest, LONGEST_VERSION)?, text(&mut rest, host::LONGEST)?];
        rest.is_empty().then_some(Self { protocol, token, rank, world, version, host })
    }

    /// Whether the other side knows the token. The time does not depend on where the hashes differ.
    pub(crate) fn has_token_of(&self, other: &Self) -> bool {
        let differ = self.token.iter().zip(&other.token).fold(0, |all, (a, b)| all | (a ^ b));
        std::hint::black_box(differ) == 0
    }

    /// Why a rank with the hello `other` cannot take part with rank 0, which says `self`.
    pub(crate) fn refusal(&self, other: &Self) -> Option<String> {
        let Self { rank, world, version, host, .. } = other;
        if other.protocol != self.protocol || *version != self.version {
            return Some(format!(
                "rank {rank} on {host} runs soda {version} and rank 0 on {} runs soda {}; give all ranks the \
                 same program",
                self.host, self.version
            ));
        }
        if *world != self.world {
            return Some(format!(
                "rank {rank} on {host} is one of {world} ranks and rank 0 on {} one of {}; give all ranks the \
                 same WORLD_SIZE",
                self.host, self.world
            ));
        }
        (!(1..self.world).contains(rank)).then(|| {
            format!(
                "two processes are rank {rank}, on {} and on {host}; number the ranks",
                self.host
            )
        })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

fn text(bytes: &mut &[u8], longest: usize) -> Option<String> {
    let length = usize::from(u16::from_le_bytes(take(bytes)?));
    if length > longest {
        return None;
    }
    let (first, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    let text = std::str::from_utf8(first).ok()?;
    // The text is shown to users of other machines.
    (readable(text) == text).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    #[test]
    fn a_hello_is_read_as_it_was_written() {
        let hello = Hello::new("secret", 3, 8, "gpu\u{7}1");
        let bytes = hello.to_bytes();
        assert!(bytes.len() <= LONGEST);
        assert_eq!(Hello::from_bytes(&bytes), Some(hello.clone()));
        assert_eq!(hello.host, "gpu1");
        for cut in 0..bytes.len() {
            assert_eq!(Hello::from_bytes(&bytes[..cut]), None);
        }
        assert_eq!(Hello::from_bytes(&[&bytes[..], b"x"].concat()), None);
        assert!(hello.has_token_of(&Hello::new("secret", 1, 2, "")));
        assert!(!hello.has_token_of(&Hello::new("Secret", 3, 8, "gpu1")));
    }

    #[test]
    fn a_rank_that_does_not_fit_is_refused_by_name() {
        let root = Hello::new("", 0, 3, "a");
        assert_eq!(root.refusal(&Hello::new("", 2, 3, "b")), None);
        let refused = |hello: Hello| root.refusal(&hello).unwrap();
        assert!(refused(Hello::new("", 2, 4, "b")).contains("WORLD_SIZE"));
        assert!(refused(Hello::new("", 0, 3, "b")).contains("two processes are rank 0, on a and"));
        let old = Hello { version: "0.0.1".to_owned(), ..Hello::new("", 1, 3, "b") };
        assert!(refused(old).contains("rank 1 on b runs soda 0.0.1"));
    }
}
