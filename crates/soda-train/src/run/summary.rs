//! What came of a run.

use std::path::PathBuf;

use crate::config::TrainConfig;
use crate::eval::scores::Scores;
use crate::run::history::History;

/// What came of it.
pub struct Outcome {
    /// The run's name.
    pub name: String,
    /// The run's folder.
    pub folder: PathBuf,
    /// The settings, as resolved.
    pub config: TrainConfig,
    /// Number of training pictures.
    pub examples: usize,
    /// How many each bucket has, in words, where there are buckets.
    pub buckets: Option<String>,
    /// File names of those that were measured instead.
    pub held_out: Vec<String>,
    /// Prompts of the samples.
    pub prompts: Vec<String>,
    /// What was measured on the way.
    pub history: History,
    /// The settings as the run's folder has them, TOML.
    pub settings: String,
    /// Seconds of the training's steps.
    pub seconds: f64,
    /// Adapted layers.
    pub num_layers: usize,
    /// Trained numbers.
    pub num_params: usize,
    /// `max |QᵀQ - I|` over all rotation factors.
    pub orthogonality: f32,
    /// Scores of the untuned model.
    pub before: Option<Scores>,
    /// Scores of the tuned one.
    pub after: Option<Scores>,
    /// Scores of the truth itself: what a perfect fine-tune would reach.
    pub truth: Option<Scores>,
}
