//! JSON files of a model directory: reading, editing and writing.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{ConfigError, ModelError};
use crate::input_file::{SizeLimit, read_text};

/// Reads a JSON object. `what` describes the file for the error of a missing file.
pub(super) fn read(path: &Path, what: &'static str) -> Result<Map<String, Value>, ModelError> {
    // Some of the files are those of a tokenizer.
    let text = read_text(path, SizeLimit::TOKENIZER).map_err(|e| ModelError::io(path, what, e))?;
    let json = |source| ConfigError::Json { path: path.to_path_buf(), source };
    Ok(serde_json::from_str(&text).map_err(json)?)
}

/// Reads a JSON object, or gives `None` where there is no such file.
pub(super) fn read_optional(path: &Path) -> Result<Option<Map<String, Value>>, ModelError> {
    match path.exists() {
        true => read(path, "a file of the tokenizer").map(Some),
        false => Ok(None),
    }
}

/// Changes a JSON object in place. A file that does not exist is left alone.
pub(super) fn edit(
    path: &Path,
    change: impl FnOnce(&mut Map<String, Value>),
) -> Result<(), ModelError> {
    let Some(mut object) = read_optional(path)? else { return Ok(()) };
    change(&mut object);
    write(path, &object)
}

/// Writes a JSON object.
pub(super) fn write(path: &Path, object: &Map<String, Value>) -> Result<(), ModelError> {
    let json = |source| ConfigError::Json { path: path.to_path_buf(), source };
    let text = serde_json::to_string_pretty(object).map_err(json)?;
    fs::write(path, text).map_err(|source| ModelError::Io { path: path.to_path_buf(), source })
}
