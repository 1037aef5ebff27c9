//! What can go wrong, each in one sentence that names the thing and the remedy.

use std::path::{Path, PathBuf};

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The plan does not parse.
    #[error("the plan is unusable: {0}")]
    ReadPlan(#[source] toml::de::Error),
    /// A list of the plan has nothing in it.
    #[error("the plan's `{0}` is empty; name at least one")]
    Empty(&'static str),
    /// A list of the plan has a number in it that is none.
    #[error("the plan's `{0}` has an entry that is not a finite number")]
    NotFinite(&'static str),
    /// A look at an arm that there is not.
    #[error("there is no arm `{0}`; `strength` and `merge` name arms of the plan")]
    UnknownArm(String),
    /// Two arms of one name.
    #[error("two arms are called `{0}`; give each its own name")]
    SameName(String),
    /// A name that cannot be part of a file name.
    #[error("`{0}` cannot name an arm; use letters, digits, `-`, `_` and `.`")]
    BadName(String),
    /// An arm has settings to choose from, and nothing to choose them on.
    #[error("arm `{0}` has `search` settings; add a `[search]` table with `data` and `seeds`")]
    NoSearch(String),
    /// Choosing settings on what is scored.
    #[error("{path} is in `search.data` and in `score.data`; settings are not chosen on what is scored", path = .0.display())]
    TunedOnScored(PathBuf),
    /// A data set of a kind that there is not.
    #[error("{folder} is of kind `{0}`; add a table `[kind.{0}]` with its settings", folder = .1.display())]
    UnknownKind(String, PathBuf),
    /// Settings that ask for the class of a data set that names none.
    #[error(
        "the settings for {folder} have `{{class}}` in them; write {{ folder = \"{folder}\", class = \"...\" }}",
        folder = .0.display()
    )]
    NoClass(PathBuf),
    /// An arm's settings give no usable training configuration.
    #[error("arm `{arm}`: {source}")]
    Arm {
        /// The arm.
        arm: String,
        /// What is wrong with its settings.
        source: soda_train::TrainError,
    },
    /// An arm's settings are no TOML a configuration could be.
    #[error("arm `{arm}`: {reason}")]
    Settings {
        /// The arm.
        arm: String,
        /// What the writer says.
        reason: String,
    },
    /// A line of the results does not parse.
    #[error("{path}, line {line}: {reason}; mend or delete the line, and its run is done again", path = path.display())]
    ReadResults {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        reason: String,
    },
    /// A picture of a run is missing or broken.
    #[error("cannot show {path}: {reason}", path = path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// What the decoder or the encoder says.
        reason: String,
    },
    /// The operating system refuses.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
}

impl CompareError {
    /// An [`CompareError::Io`] maker for `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
