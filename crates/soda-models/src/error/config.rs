//! Errors of `config.json` files and the other JSON files of a model.

use std::path::PathBuf;

/// Why a JSON file of a model was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file does not parse, lacks a field, or has an unknown field.
    #[error("{} is not a config that this version reads: {source}", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The position in the file and the reason.
        source: serde_json::Error,
    },

    /// A field has a value of the wrong type.
    #[error("{}: the field `{field}` is wrong: {source}", .path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field's name.
        field: String,
        /// What is wrong with the value.
        source: serde_json::Error,
    },

    /// A field has a value that is not implemented. Ignoring the value would change the model.
    #[error("{} sets `{field}` to {value}, which is not supported: use {supported}", .path.display())]
    UnsupportedField {
        /// The file.
        path: PathBuf,
        /// The field's name.
        field: String,
        /// The value found, as JSON.
        value: String,
        /// The values that are accepted.
        supported: String,
    },
}
