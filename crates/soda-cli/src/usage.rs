//! Mistakes on the command line, which end the program with exit code 2.

use std::fmt;
use std::path::Path;

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

/// Suffixes of single files with weights.
const WEIGHT_FILES: [&str; 6] = ["safetensors", "ckpt", "pt", "pth", "bin", "sft"];

/// Returns a [`UsageError`] of `sentence` if a folder to be written has the name of a file of weights.
pub(crate) fn require_folder_name(path: &Path, sentence: &str) -> Result<(), UsageError> {
    require(!WEIGHT_FILES.iter().any(|suffix| has_suffix(path, suffix)), sentence)
}

/// Returns a [`UsageError`] if a safetensors file that is to be written has the name of a pickle.
pub(crate) fn require_safetensors_name(path: &Path) -> Result<(), UsageError> {
    let is_pickle = WEIGHT_FILES[1..5].iter().any(|suffix| has_suffix(path, suffix));
    require(!is_pickle, "what is written is no pickle: let --out end with .safetensors")
}

/// Whether a path ends with a suffix, in upper or lower case.
pub(crate) fn has_suffix(path: &Path, suffix: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(suffix))
}

/// Returns a [`UsageError`] of `sentence` unless `condition` holds.
pub(crate) fn require(condition: bool, sentence: &str) -> Result<(), UsageError> {
    if condition { Ok(()) } else { Err(UsageError::new(sentence)) }
}
