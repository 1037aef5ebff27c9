//! The errors of this crate. Each message is one sentence that names the cause and the remedy.

use std::path::{Path, PathBuf};

/// Errors of a comparison: an unusable plan, or a file that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The plan is unusable.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A line of a results file does not parse.
    #[error("{path}, line {line}: {reason}; mend or delete the line, and its run is done again", path = path.display())]
    ReadResults {
        /// The results file.
        path: PathBuf,
        /// The line number, from 1.
        line: usize,
        /// The parser's message.
        reason: String,
    },
    /// An image of a run is missing or cannot be decoded.
    #[error("cannot show {path}: {reason}", path = path.display())]
    Image {
        /// The image file.
        path: PathBuf,
        /// The message of the decoder or the encoder.
        reason: String,
    },
    /// The operating system refuses a file operation.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// The operation, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The message of the operating system.
        source: std::io::Error,
    },
}

/// Reasons why a comparison plan cannot be run, or would not be fair.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The plan is not valid TOML, or has unknown or missing fields.
    #[error("the plan is unusable: {}", soda_train::toml_message(.0))]
    Parse(toml::de::Error),
    /// A list of the plan is empty.
    #[error("the plan's `{0}` is empty; name at least one")]
    EmptyList(&'static str),
    /// A list of the plan has an entry twice.
    #[error("the plan's `{list}` has {entry} twice; name each once")]
    Duplicate {
        /// The path of the list in the plan.
        list: &'static str,
        /// The entry.
        entry: String,
    },
    /// A list of the plan contains NaN or infinity.
    #[error("the plan's `{0}` has an entry that is not a finite number")]
    NotFinite(&'static str),
    /// An evaluation names an arm that the plan does not have.
    #[error("there is no arm `{0}`; `strength` and `merge` name arms of the plan")]
    UnknownArm(String),
    /// Two arms have the same name.
    #[error("two arms are called `{0}`; give each its own name")]
    DuplicateArm(String),
    /// The name of an arm cannot be part of a file name.
    #[error("`{0}` cannot name an arm; use at most 100 letters, digits, `-`, `_` and `.`")]
    InvalidArmName(String),
    /// An arm has several candidate settings, but the plan has no data sets to choose on.
    #[error("arm `{0}` has `search` settings; add a `[search]` table with `data` and `seeds`")]
    NoSearchData(String),
    /// A run may end before its last step, and its curves and times would be those of other steps.
    #[error(
        "arm `{0}` has `validation.early_stopping_patience`; a comparison gives every run all its steps, so \
         remove it"
    )]
    EarlyStopping(String),
    /// The rule of the search bounds the drift, which no run measures.
    #[error(
        "`search.choose.drift_at_most` needs unrelated prompts; set `samples.unrelated` in `[train]`"
    )]
    NoUnrelatedPrompts,
    /// A data set is used both to choose settings and to score.
    #[error("{path} is in `search.data` and in `score.data`; settings are not chosen on what is scored", path = .0.display())]
    SearchOnScoredData(PathBuf),
    /// A data set is of a kind that the plan does not define.
    #[error("{folder} is of kind `{0}`; add a table `[kind.{0}]` with its settings", folder = .1.display())]
    UnknownKind(String, PathBuf),
    /// The settings contain `{class}`, but the data set has no class.
    #[error(
        "the settings for {folder} have `{{class}}` in them; write {{ folder = \"{folder}\", class = \"...\" }}",
        folder = .0.display()
    )]
    NoClass(PathBuf),
    /// The settings of an arm are not a valid training configuration.
    #[error("arm `{arm}`: {source}")]
    Arm {
        /// The name of the arm.
        arm: String,
        /// The problem with its settings.
        source: soda_train::TrainError,
    },
}

impl CompareError {
    /// Makes a [`CompareError::Io`] from an I/O error, for `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
