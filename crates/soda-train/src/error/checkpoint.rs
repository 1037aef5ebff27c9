//! Errors of checkpoints.

use std::path::PathBuf;

/// A checkpoint that cannot be read, or from which the run cannot be resumed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The file differs from what was written.
    #[error("checkpoint {path} is damaged and was passed over", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a version of soda with another format.
    #[error(
        "the checkpoint {path} is of version {version}, which this soda cannot go on from; use the soda that began \
         the run, or start a new run with its config.toml",
        path = path.display()
    )]
    OtherVersion {
        /// The file.
        path: PathBuf,
        /// The version of its format.
        version: u32,
    },
    /// A setting that decides the result differs from the one that the run began with.
    #[error(
        "the run began with `{key}` = {begun}, and its config.toml has {found} now; put it back, or start a \
         new run"
    )]
    OtherSetting {
        /// The key of the setting in TOML.
        key: String,
        /// The value at the start.
        begun: String,
        /// The value now.
        found: String,
    },
    /// A part of the base model differs from the one that the run began with.
    #[error(
        "`{part}` of the base model {base} is not the one that the run began with; put it back, or start a \
         new run",
        base = .base.display()
    )]
    OtherBase {
        /// The base model.
        base: PathBuf,
        /// The name of the part's folder.
        part: String,
    },
    /// The checkpoints in this folder belong to another configuration than the run's `config.toml`.
    #[error(
        "the checkpoints in {path} belong to other settings; config.toml was changed, put it back",
        path = .0.display()
    )]
    OtherSettings(PathBuf),
    /// The images or captions in this folder are not those the run began with.
    #[error(
        "the pictures or captions in {path} are not those that the run began with; put them back, or start \
         a new run",
        path = .0.display()
    )]
    OtherData(PathBuf),
}
