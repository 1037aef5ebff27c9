//! The errors of a run, in groups. Each is one sentence that names the thing and the remedy.

mod checkpoint;
mod config;
mod data;
mod run_folder;

use std::path::{Path, PathBuf};

use soda_adapters::AdapterError;
use soda_models::ModelError;
use soda_optim::OptimError;
use soda_pipeline::PipelineError;

pub use checkpoint::CheckpointError;
pub use config::ConfigError;
pub use data::DataError;
pub use run_folder::RunFolderError;

/// Why a run was refused, stopped or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A base model, judge or image that cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An adapter that cannot be planned, attached or written.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// An adapter file that cannot be written.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// An optimizer setting or a stored optimizer state that cannot be used.
    #[error(transparent)]
    Optim(#[from] OptimError),
    /// Settings that cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A data folder that cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A checkpoint from which the run cannot be resumed.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A run's folder that cannot be created or resumed.
    #[error(transparent)]
    RunFolder(#[from] RunFolderError),
    /// Devices that cannot add their gradients.
    #[error("the GPUs of the ranks cannot add their gradients: {0}")]
    Collective(soda_kernels::CollectiveError),
    /// A memory plan where nothing tells how much memory is in use.
    #[error("memory cannot be measured on this device and system: plan on a GPU, or on Linux")]
    NoMemoryMeter,
    /// Ranks that cannot go on together.
    #[error(transparent)]
    Ranks(#[from] soda_distributed::DistributedError),
    /// A file or folder that cannot be read or written.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// The attempted action as a verb, such as "read".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The reason of the operating system.
        source: std::io::Error,
    },
    /// An image that cannot be encoded, or a grid of samples that cannot be decoded.
    #[error("cannot write picture {path}: {reason}", path = path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// The message of the encoder or decoder.
        reason: String,
    },
    /// A loss or a gradient that became NaN or infinite.
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
        /// The file of the last adapter that gave a finite loss.
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
        /// The file of the adapter before this step.
        kept: Option<PathBuf>,
    },
    /// The run was asked to stop while it generated images.
    #[error(
        "stopped while pictures were drawn; `soda train --resume {folder}` goes on",
        folder = .folder.display()
    )]
    StoppedSampling {
        /// The run's folder.
        folder: PathBuf,
    },
    /// This rank, which writes nothing, was asked to stop while it generated images.
    #[error(
        "stopped while pictures were drawn, as this process was asked to; rank 0 says how to go on"
    )]
    RankStoppedSampling,
    /// Another rank has gone, and the run can go on from its newest checkpoint.
    #[error("{source}; `soda train --resume {folder}` goes on after step {step}", folder = .folder.display())]
    RankLost {
        /// What happened to the rank.
        source: soda_distributed::DistributedError,
        /// The number of finished steps.
        step: usize,
        /// The run's folder.
        folder: PathBuf,
    },
    /// The ranks were asked to stop. Rank 0 says how to go on.
    #[error("rank {rank} stopped after step {step}, as all ranks did")]
    RankStopped {
        /// This rank.
        rank: usize,
        /// The number of finished steps.
        step: usize,
    },
    /// The run was asked to stop.
    #[error(
        "stopped after step {step}; `soda train --resume {folder}` goes on",
        folder = .folder.display()
    )]
    Stopped {
        /// The number of finished steps.
        step: usize,
        /// The run's folder.
        folder: PathBuf,
    },
}

impl TrainError {
    /// Adds the file of the last good adapter to the error of a failed training. `None` for all other errors.
    pub(crate) fn keeping(&self, path: &Path) -> Option<Self> {
        let kept = Some(path.to_owned());
        match *self {
            Self::Diverged { step, value, .. } => Some(Self::Diverged { step, value, kept }),
            Self::ScaleCollapsed { step, .. } => Some(Self::ScaleCollapsed { step, kept }),
            _ => None,
        }
    }

    /// Makes a [`TrainError::Io`] of an error of the operating system, for `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// The loss of another rank after `step` steps as an error that says how the run goes on. All other
    /// errors stay as they are.
    pub(crate) fn with_resumable(self, folder: &Path, step: usize) -> Self {
        match self {
            Self::Ranks(source) => Self::RankLost { source, step, folder: folder.to_owned() },
            other => other,
        }
    }

    /// The error with another name for the file or folder that it is of.
    #[must_use]
    pub fn named(self, name: impl FnOnce(&Path) -> PathBuf) -> Self {
        match self {
            Self::Io { action, path, source } => Self::Io { action, path: name(&path), source },
            other => other,
        }
    }

    /// The error of generating images for the run in `folder`, for `map_err`. `None` is the folder of a rank
    /// that writes nothing.
    pub(crate) fn sampling(folder: Option<&Path>) -> impl FnOnce(ModelError) -> Self {
        move |error| match (error, folder) {
            (ModelError::Stopped, Some(folder)) => {
                Self::StoppedSampling { folder: folder.to_owned() }
            }
            (ModelError::Stopped, None) => Self::RankStoppedSampling,
            (error, _) => error.into(),
        }
    }

    /// Makes a [`TrainError::Image`] of an error of an image encoder or decoder, for `map_err`.
    pub(crate) fn image(path: &Path) -> impl FnOnce(image::ImageError) -> Self {
        let path = path.to_owned();
        move |error| Self::Image { path, reason: error.to_string() }
    }
}
