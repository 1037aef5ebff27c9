//! Progress of a run, for a caller that shows it.

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
