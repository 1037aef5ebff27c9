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
    #[error("cannot {action} {path}: {source}{hint}", path = path.display(), hint = hint(source.kind()))]
    Io {
        /// What was tried, such as "read".
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
    /// Buckets that the base model cannot have.
    #[error("`{field}` is {value}: {reason}")]
    Buckets {
        /// Name of the field.
        field: &'static str,
        /// What it is.
        value: usize,
        /// Why it cannot be, and what can.
        reason: String,
    },
    /// A mask that does not fit its picture.
    #[error("mask {path} {reason}", path = path.display())]
    Mask {
        /// The mask's file, or the picture's where the mask is its transparency.
        path: PathBuf,
        /// What is wrong with it, and the remedy.
        reason: String,
    },
    /// Masks that are asked for and not there.
    #[error(
        "no picture in {path} has a mask: {remedy}, or leave `masks` out",
        path = path.display()
    )]
    NoMasks {
        /// The folder.
        path: PathBuf,
        /// What makes a mask.
        remedy: &'static str,
    },
    /// A picture that no bucket takes without enlarging it.
    #[error(
        "{path} has {width} x {height} pixels, less than one step of {step}: remove it, or allow \
         `buckets.upscale`",
        path = path.display()
    )]
    SmallPicture {
        /// The file.
        path: PathBuf,
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
        /// The buckets' step.
        step: u32,
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
    /// A loss or a gradient became NaN or infinite.
    #[error(
        "loss or gradient became {value} at step {step}{kept}; lower the learning rates",
        kept = .kept.as_ref().map_or_else(String::new, |path| format!(
            ", the last adapter that gave a finite loss is in {}",
            path.display()
        ))
    )]
    Diverged {
        /// The step, from 1.
        step: usize,
        /// The loss, or the norm of the gradient.
        value: f32,
        /// Where the last adapter that gave a finite loss was written.
        kept: Option<PathBuf>,
    },
    /// No loss scale keeps the gradients of f16 finite.
    #[error(
        "the gradients of step {step} overflow f16 at any loss scale{kept}; set `precision = \"bf16\"` or \
         \"f32\", or lower the learning rates",
        kept = .kept.as_ref().map_or_else(String::new, |path| format!(
            ", the adapter before it is in {}",
            path.display()
        ))
    )]
    ScaleCollapsed {
        /// The step, from 1.
        step: usize,
        /// Where the adapter was written.
        kept: Option<PathBuf>,
    },
    /// The device does not compute in the precision of the settings.
    #[error("this device does not compute in {0}: set `precision = \"f32\"`")]
    UnsupportedPrecision(String),
    /// The run was asked to stop.
    #[error(
        "stopped after step {step}; `soda train --resume {folder}` goes on",
        folder = .folder.display()
    )]
    Stopped {
        /// Steps done.
        step: usize,
        /// The run's folder.
        folder: PathBuf,
    },
    /// A folder without a run.
    #[error("{path} holds no run: there is no config.toml in it", path = .0.display())]
    NoRun(PathBuf),
    /// A run that another process works on.
    #[error("another process is working on {path}; wait for it, or stop it", path = .0.display())]
    RunBusy(PathBuf),
    /// A run that needs no more steps.
    #[error("{path} is finished; to train on, start a new run with more steps", path = .0.display())]
    Finished(PathBuf),
    /// A checkpoint that is damaged.
    #[error("checkpoint {path} is damaged and was passed over", path = .path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
    },
    /// A checkpoint that another version of soda wrote.
    #[error(
        "the checkpoint {path} is of version {version}, which this soda cannot go on from; use the soda that began \
         the run, or start a new run with its config.toml",
        path = path.display()
    )]
    OtherCheckpoint {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// A checkpoint that does not fit the run's configuration.
    #[error(
        "the checkpoints in {path} belong to other settings; config.toml was changed, put it back",
        path = .0.display()
    )]
    OtherSettings(PathBuf),
    /// Pictures or captions that are not those a run began with.
    #[error(
        "the pictures or captions in {path} are not those that the run began with; put them back, or start \
         a new run",
        path = .0.display()
    )]
    OtherData(PathBuf),
    /// A setting that is no `key=value`.
    #[error("`{0}` is no setting; write it as key=value, such as optimizer.rotation_lr=1e-3")]
    Assignment(String),
    /// A preset that is not there.
    #[error("there is no preset `{found}`{hint}; the presets are {known}")]
    UnknownPreset {
        /// What was asked for.
        found: String,
        /// The nearest name there is, as part of the sentence.
        hint: String,
        /// All names.
        known: String,
    },
    /// Two settings that exclude each other.
    #[error("{0}")]
    Conflict(&'static str),
    /// A picture could not be encoded for the report.
    #[error("cannot write picture {path}: {reason}", path = path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// What the encoder says.
        reason: String,
    },
}

/// What helps against the operating system's refusal, as part of the sentence.
fn hint(kind: std::io::ErrorKind) -> &'static str {
    use std::io::ErrorKind;
    match kind {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            "; make room, and `soda train --resume` goes on from the newest checkpoint"
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::NotADirectory => {
            "; choose another folder, such as with `--runs`"
        }
        _ => "",
    }
}

impl TrainError {
    /// The same of a training that cannot go on, with the file that keeps its last good adapter; `None` of any other.
    pub(crate) fn keeping(&self, path: &std::path::Path) -> Option<Self> {
        let kept = Some(path.to_owned());
        match *self {
            Self::Diverged { step, value, .. } => Some(Self::Diverged { step, value, kept }),
            Self::ScaleCollapsed { step, .. } => Some(Self::ScaleCollapsed { step, kept }),
            _ => None,
        }
    }

    /// An [`TrainError::Io`] maker for `map_err`.
    pub(crate) fn io(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
