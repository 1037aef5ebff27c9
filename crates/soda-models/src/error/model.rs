//! The error type of the crate.

use std::path::PathBuf;

use burn::tensor::FloatDType;

use super::{config::ConfigError, image::ImageError, weights::WeightsError};

/// Why a model could not be read, used or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A JSON file of the model was refused.
    #[error(transparent)]
    Config(#[from] ConfigError),

    /// A weight file was refused.
    #[error(transparent)]
    Weights(#[from] WeightsError),

    /// An image file was refused, or a generated image is not finite.
    #[error(transparent)]
    Image(#[from] ImageError),

    /// A file is given where a model directory is expected.
    #[error(
        "{file} is a file, and a model directory in diffusers' layout is expected there; `soda convert --base \
         {file} --config DIR --out NEW` makes one of a single file of weights, with the configs of the model DIR",
        file = .path.display()
    )]
    SingleFile {
        /// The file.
        path: PathBuf,
    },

    /// A file or directory of a model does not exist.
    #[error("{} does not exist: {what} is expected there; check the model directory", .path.display())]
    Missing {
        /// The path that was looked for.
        path: PathBuf,
        /// What is expected there, for example "the UNet's config.json".
        what: &'static str,
    },

    /// The operating system refused to read or write a file.
    #[error("{} cannot be read or written: {source}", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },

    /// The device does not compute in the requested dtype.
    #[error("this device does not compute in {dtype:?}: use f32")]
    UnsupportedPrecision {
        /// The requested dtype.
        dtype: FloatDType,
    },

    /// A tokenizer file was refused.
    #[error("{} is no usable tokenizer: {reason}", .path.display())]
    Tokenizer {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with the file.
        reason: String,
    },

    /// A new token cannot be added to the vocabulary, or cannot be written.
    #[error("the new token `{token}` cannot be used: {reason}")]
    Token {
        /// The token, as prompts spell it.
        token: String,
        /// Why the token cannot be used.
        reason: String,
    },

    /// The system does not start as many threads as requested.
    #[error("cannot start {count} threads: {reason}; set a smaller `shards`")]
    Threads {
        /// The requested number of shards.
        count: usize,
        /// The system's reason.
        reason: String,
    },

    /// Generating was stopped by its caller.
    #[error("generating was stopped")]
    Stopped,

    /// A setting has a value that cannot be used.
    #[error("`{field}` is {value}, but {expected}")]
    InvalidRequest {
        /// The setting's name.
        field: &'static str,
        /// The requested value.
        value: String,
        /// The values that are accepted.
        expected: String,
    },
}

impl ModelError {
    /// Makes `Missing` of a system error that says "not found", and `Io` of all others.
    pub(crate) fn io(path: &std::path::Path, what: &'static str, source: std::io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            std::io::ErrorKind::NotFound => Self::Missing { path, what },
            _ => Self::Io { path, source },
        }
    }
}
