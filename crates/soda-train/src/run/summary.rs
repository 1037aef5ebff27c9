//! The result of a finished run.

use std::path::PathBuf;

use crate::config::TrainConfig;
use crate::eval::scores::Scores;
use crate::run::history::History;

/// The measurements of a finished run, as its report shows them.
pub struct RunSummary {
    /// The run's name.
    pub name: String,
    /// The run's folder.
    pub folder: PathBuf,
    /// The resolved settings.
    pub config: TrainConfig,
    /// The number of training images.
    pub examples: usize,
    /// The folders of the training images and their repeats as text, if there are several or with repeats.
    pub folders: Option<String>,
    /// The number of images in each bucket as text, if the run has buckets.
    pub buckets: Option<String>,
    /// The file names of the images that were held out for validation.
    pub held_out: Vec<String>,
    /// The prompts of the samples.
    pub prompts: Vec<String>,
    /// Losses, gradient norms, learning rates and validation losses.
    pub history: History,
    /// The settings as TOML, as in the run's folder.
    pub settings: String,
    /// The duration of the training steps in seconds.
    pub seconds: f64,
    /// The most memory in bytes that the device's pools held: after the steps, or after the last samples.
    /// What came before the steps is not in it. `None` where the backend has no pools, as on a CPU.
    pub device_memory: Option<u64>,
    /// The number of adapted layers.
    pub num_layers: usize,
    /// The number of trained parameters.
    pub num_params: usize,
    /// The largest `|QᵀQ - I|` over all factors of rotations.
    pub orthogonality: f32,
    /// Scores of the base model.
    pub before: Option<Scores>,
    /// Scores of the fine-tuned model.
    pub after: Option<Scores>,
    /// Scores of the true images, which a perfect fine-tune would reach.
    pub truth: Option<Scores>,
}

impl RunSummary {
    /// Whether the adapter has rotations. Their orthogonality is NaN where one of them is broken.
    pub(crate) fn has_rotations(&self) -> bool {
        self.orthogonality != 0.0
    }
}
