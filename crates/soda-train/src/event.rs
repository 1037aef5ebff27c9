//! Progress of a run, for a caller that shows it.

/// The stage of the samples before training.
pub(crate) const SAMPLING_BEFORE: &str = "sampling before";
/// The stage of the training steps.
pub(crate) const TRAINING: &str = "training";
/// The stage of the samples during training.
pub(crate) const SAMPLING: &str = "sampling";
/// The stage of the samples after training.
pub(crate) const SAMPLING_AFTER: &str = "sampling after";
/// The stage in which the base model generates class images.
pub(crate) const CLASS_IMAGES: &str = "generating class images";

/// The stages in which the run looks at its flag `stop` after each step.
const STOPPABLE: &[&str] = &[SAMPLING_BEFORE, TRAINING, SAMPLING, SAMPLING_AFTER, CLASS_IMAGES];

/// A message that a run sends while it works.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A stage begins.
    Stage {
        /// A description for users.
        name: &'a str,
    },
    /// A part of the current stage is done.
    Progress {
        /// The number of finished parts.
        done: usize,
        /// The number of all parts.
        total: usize,
        /// The loss of the step, during training.
        loss: Option<f32>,
    },
    /// A problem that does not stop the run.
    Warning(&'a str),
    /// Information that may interest the user.
    Note(&'a str),
}

impl Event<'_> {
    /// Whether the run notices within a step that `stop` was set, in the stage that begins here. `None` if no
    /// stage begins. In other stages there is nothing yet that a stop would store.
    pub fn begins_stoppable_stage(&self) -> Option<bool> {
        match self {
            Self::Stage { name } => Some(STOPPABLE.contains(name)),
            Self::Progress { .. } | Self::Warning(_) | Self::Note(_) => None,
        }
    }
}
