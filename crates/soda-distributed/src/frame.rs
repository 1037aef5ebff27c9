//! Messages on a connection: a header of 14 bytes, then the payload.
//!
//! | bytes | meaning |
//! |---|---|
//! | 0 | [`Kind`] |
//! | 1 | [`Operation`] of [`Kind::Data`] |
//! | 2..6 | number of the operation since the start, little-endian |
//! | 6..14 | length of the payload, little-endian |

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

/// The most bytes of a sentence that ends the training.
pub(crate) const LONGEST_SENTENCE: usize = 4096;

/// The bytes that are received before more memory is taken.
const CHUNK: usize = 1 << 20;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The first message of a rank.
    Hello = 1,
    /// The answer of rank 0: its host.
    Welcome = 2,
    /// The sender works on. It has no payload.
    Alive = 3,
    /// The training ends. The payload is the sentence.
    End = 4,
    /// A part of an operation.
    Data = 5,
}

/// What all ranks do at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    None = 0,
    Sum = 1,
    Broadcast = 2,
    Agree = 3,
    Gather = 4,
}

/// The header of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) operation: u8,
    pub(crate) sequence: u32,
    pub(crate) length: u64,
}

/// Why nothing was read.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// The connection has ended.
    Closed,
    /// No byte came in time.
    Silent,
    /// The bytes are no message that may come here.
    Malformed,
    /// Another error of the operating system.
    Io(io::Error),
}

/// Reads from a connection whose reads return after a short time.
pub(crate) struct Reader<'a, R> {
    /// The connection.
    pub(crate) input: R,
    /// The longest time without a byte.
    pub(crate) patience: Duration,
    /// What is done while nothing comes, some times a second.
    pub(crate) on_wait: &'a mut dyn FnMut(),
}

impl<R: Read> Reader<'_, R> {
    /// Reads the header of the next message.
    pub(crate) fn header(&mut self) -> Result<Header, ReadError> {
        let mut bytes = [0; 14];
        self.fill(&mut bytes)?;
        let kinds = [Kind::Hello, Kind::Welcome, Kind::Alive, Kind::End, Kind::Data];
        let kind = kinds.into_iter().find(|kind| *kind as u8 == bytes[0]);
        let (sequence, length) = bytes[2..].split_at(4);
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
        Ok(Header {
            kind: kind.ok_or(ReadError::Malformed)?,
            operation: bytes[1],
            sequence: number(sequence) as u32,
            length: number(length),
        })
    }

    /// Reads a payload into `bytes`, whose old content is lost. Takes memory as the payload comes.
    pub(crate) fn payload(
        &mut self,
        length: u64,
        limit: usize,
        bytes: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        let length = usize::try_from(length).ok().filter(|length| *length <= limit);
        let length = length.ok_or(ReadError::Malformed)?;
        bytes.clear();
        while bytes.len() < length {
            let start = bytes.len();
            // A buffer that was as long before costs nothing new.
            let next = (length - start).min(CHUNK.max(bytes.capacity() - start));
            bytes.resize(start + next, 0);
            self.fill(&mut bytes[start..])?;
        }
        Ok(())
    }

    fn fill(&mut self, mut bytes: &mut [u8]) -> Result<(), ReadError> {
        let mut since = Instant::now();
        while !bytes.is_empty() {
            match self.input.read(bytes) {
                Ok(0) => return Err(ReadError::Closed),
                Ok(count) => {
                    bytes = &mut bytes[count..];
                    since = Instant::now();
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        if since.elapsed() >= self.patience {
                            return Err(ReadError::Silent);
                        }
                        (self.on_wait)();
                    }
                    kind if is_closed(kind) => return Err(ReadError::Closed),
                    _ => return Err(ReadError::Io(error)),
                },
            }
        }
        Ok(())
    }
}

/// Whether an error says that the other side has closed the connection.
pub(crate) fn is_closed(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
    )
}

/// Writes a message.
pub(crate) fn write(
    mut output: impl Write,
    kind: Kind,
    operation: Operation,
    sequence: u32,
    payload: &[u8],
) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(14 + payload.len().min(1 << 16));
    bytes.extend([kind as u8, operation as u8]);
    bytes.extend(sequence.to_le_bytes());
    bytes.extend((payload.len() as u64).to_le_bytes());
    // A short message is one packet.
    let (first, rest) = payload.split_at(payload.len().min(1 << 16));
    bytes.extend(first);
    output.write_all(&bytes)?;
    output.write_all(rest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    fn reader<'a>(input: &'a [u8], on_wait: &'a mut dyn FnMut()) -> Reader<'a, &'a [u8]> {
        Reader { input, patience: Duration::ZERO, on_wait }
    }

    #[test]
    fn a_message_is_read_as_it_was_written() {
        for length in [0, 5, 1 << 16, CHUNK + 7] {
            let payload: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let mut bytes = Vec::new();
            write(&mut bytes, Kind::Data, Operation::Sum, 70_000, &payload).unwrap();
            let mut nothing = || ();
            let mut reader = reader(&bytes, &mut nothing);
            let header = reader.header().unwrap();
            assert_eq!((header.kind, header.operation), (Kind::Data, Operation::Sum as u8));
            assert_eq!((header.sequence, header.length), (70_000, length as u64));
            let mut read = vec![9; 3];
            reader.payload(header.length, length, &mut read).unwrap();
            assert_eq!(read, payload);
            assert!(matches!(reader.header(), Err(ReadError::Closed)));
        }
    }

    #[test]
    fn a_length_beyond_the_limit_takes_no_memory() {
        let mut nothing = || ();
        let mut bytes = Vec::new();
        for length in [u64::MAX, 1 << 40, 11] {
            let mut reader = reader(&[0; 4], &mut nothing);
            assert!(matches!(reader.payload(length, 10, &mut bytes), Err(ReadError::Malformed)));
        }
        // A length within the limit, of which little comes.
        let mut reader = reader(&[0; 4], &mut nothing);
        assert!(matches!(reader.payload(1 << 40, usize::MAX, &mut bytes), Err(ReadError::Closed)));
        assert!(bytes.capacity() <= 4 * CHUNK, "{}", bytes.capacity());
    }
}
