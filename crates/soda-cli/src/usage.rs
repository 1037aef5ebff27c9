//! Mistakes on the command line, which end the program with exit code 2.

use std::fmt;

/// A command line that has to be typed in another way. Displays as one sentence.
#[derive(Debug)]
pub(crate) struct UsageError(String);

impl UsageError {
    pub(crate) fn new(sentence: impl fmt::Display) -> Self {
        Self(sentence.to_string())
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Returns a [`UsageError`] of `sentence` unless `condition` holds.
pub(crate) fn require(condition: bool, sentence: &str) -> Result<(), UsageError> {
    if condition { Ok(()) } else { Err(UsageError::new(sentence)) }
}
