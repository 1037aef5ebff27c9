//! What can go wrong in a run.

use std::path::PathBuf;

use soda_adapters::AdapterError;
use soda_models::ModelError;

/// Everything a run refuses or cannot survive, each as one sentence that names the thing and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A base model, judge or picture that cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An adapter that cannot be planned, attached or written.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The data folder is missing or is no folder.
    #[error("there is no data folder {path}; give a folder of pictures with `--data`", path = .0.display())]
    NoFolder(PathBuf),
    /// A folder without pictures.
    #[error(
        "{path} holds no picture (png, jpg, jpeg, webp, bmp, tif, tiff); a subject needs at least one",
        path = .0.display()
    )]
    EmptyDataset(PathBuf),
    /// A picture without words.
    #[error(
        "{path} has no caption: put a line for it in metadata.jsonl, a .txt file beside it, or give `--prompt`",
        path = .0.display()
    )]
    NoCaption(PathBuf),
    /// A line of metadata that is unusable.
    #[error("{path}, line {line}: {reason}", path = path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A file that cannot be read or written.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// "read", "write" or "create".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The run's folder is taken.
    #[error("{path} already holds a run; give another `--name`, or remove it", path = .0.display())]
    RunExists(PathBuf),
    /// A setting out of range.
    #[error("`{field}` must be {range}")]
    OutOfRange {
        /// Name of the field.
        field: &'static str,
        /// What is allowed.
        range: &'static str,
    },
    /// The configuration does not parse.
    #[error("the configuration is unusable: {reason}")]
    ReadConfig {
        /// What the TOML parser says.
        reason: String,
    },
    /// The configuration cannot be written as TOML.
    #[error("the configuration cannot be written: {reason}")]
    WriteConfig {
        /// What the TOML writer says.
        reason: String,
    },
    /// The loss became NaN or infinite.
    #[error("the loss became {loss} at step {step}; lower the learning rates")]
    Diverged {
        /// The step, from 1.
        step: usize,
        /// The loss.
        loss: f32,
    },
    /// A picture could not be encoded for the report.
    #[error("cannot write picture {path}: {reason}", path = path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// What the encoder says.
        reason: String,
    },
}

impl TrainError {
    /// An [`TrainError::Io`] maker for `map_err`.
    pub(crate) fn io(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
