//! What the ranks of a training do together.

use crate::error::DistributedError;

/// A named value that all ranks must have alike, such as a setting or a hash of the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The name and the remedy, as a message shows them after "differs in", such as "the setting `seed`; give
    /// all ranks the same".
    pub what: String,
    /// The value, or a hash of it.
    pub value: String,
}

impl Item {
    /// An item.
    pub fn new(what: impl Into<String>, value: impl Into<String>) -> Self {
        Self { what: what.into(), value: value.into() }
    }
}

/// What the ranks of a training do together. All ranks call the same functions in the same order.
///
/// An error is the end: the other ranks have been told, and every later call fails.
pub trait Reduce: Send + Sync {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// The number of ranks.
    fn world(&self) -> usize;

    /// Replaces `values` by their sum over all ranks. All ranks have the same number of values, and get the
    /// same bits.
    ///
    /// # Errors
    /// A rank has gone, hangs, or does something else.
    fn sum(&self, values: &mut [f32]) -> Result<(), DistributedError>;

    /// The bytes of rank 0, on every rank. The others give nothing, and take at most `limit` bytes.
    ///
    /// # Errors
    /// As [`Reduce::sum`].
    fn broadcast(&self, bytes: Vec<u8>, limit: usize) -> Result<Vec<u8>, DistributedError>;

    /// The bytes of every rank in the order of the ranks, on rank 0; nothing on the others. Rank 0 takes at
    /// most `limit` bytes of each.
    ///
    /// A rank sends when rank 0 is ready to receive, so that a rank with less work than the others waits.
    ///
    /// # Errors
    /// As [`Reduce::sum`].
    fn gather(&self, bytes: Vec<u8>, limit: usize) -> Result<Vec<Vec<u8>>, DistributedError>;

    /// Ends the training because `rank` sent bytes that are no `what`, such as "samples". Rank 0 is blamed
    /// for what a broadcast gave. Returns the error for this rank.
    fn refuse(&self, rank: usize, what: &str) -> DistributedError;

    /// Compares `items` with those of rank 0.
    ///
    /// # Errors
    /// [`DistributedError::Differs`] with the first rank and item that differs, or as [`Reduce::sum`].
    fn agree(&self, items: &[Item]) -> Result<(), DistributedError>;

    /// Says that this rank works on, if it said so more than a second ago. The others wait for a rank that
    /// does.
    fn alive(&self);

    /// Ends the training of all ranks with `sentence`, to which the name of this rank is added.
    fn end(&self, sentence: &str);
}

/// A training of one process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Reduce for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn sum(&self, _values: &mut [f32]) -> Result<(), DistributedError> {
        Ok(())
    }

    fn broadcast(&self, bytes: Vec<u8>, _limit: usize) -> Result<Vec<u8>, DistributedError> {
        Ok(bytes)
    }

    fn gather(&self, bytes: Vec<u8>, _limit: usize) -> Result<Vec<Vec<u8>>, DistributedError> {
        Ok(vec![bytes])
    }

    fn refuse(&self, rank: usize, what: &str) -> DistributedError {
        DistributedError::Foreign { rank, host: String::new(), what: what.to_owned() }
    }

    fn agree(&self, _items: &[Item]) -> Result<(), DistributedError> {
        Ok(())
    }

    fn alive(&self) {}

    fn end(&self, _sentence: &str) {}
}
