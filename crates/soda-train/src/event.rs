//! What a run tells while it goes on.

/// What a run tells while it goes on.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A stage begins.
    Stage {
        /// What is done, for people.
        name: &'a str,
    },
    /// Parts of the stage are done.
    Progress {
        /// How many.
        done: usize,
        /// Of how many.
        total: usize,
        /// The loss of the step, while training.
        loss: Option<f32>,
    },
    /// Something that does not stop the run, but that a person should know.
    Warning(&'a str),
    /// Something that a person may want to know.
    Note(&'a str),
}
