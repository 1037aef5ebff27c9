//! What can go wrong between a network, a method and an adapter file.

use std::path::PathBuf;

use soda_linalg::LinalgError;

use crate::component::Component;

/// Everything this crate refuses, each as one sentence that names the thing and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// A target pattern is no regular expression.
    #[error("target pattern `{pattern}` is not a regular expression: {reason}")]
    InvalidPattern {
        /// The pattern as given.
        pattern: String,
        /// What the regex parser says.
        reason: String,
    },
    /// A target pattern matches no weight.
    #[error(
        "target pattern `{pattern}` matches no weight of the network; its {count} matrices are named like {examples}"
    )]
    UnmatchedPattern {
        /// The pattern as given.
        pattern: String,
        /// How many weight matrices the network has.
        count: usize,
        /// A few of their paths.
        examples: String,
    },
    /// No pattern was given at all.
    #[error(
        "no target pattern was given; use one of the presets ({presets}) or a regular expression"
    )]
    NoTargets {
        /// The names of the presets.
        presets: String,
    },
    /// A targeted weight is neither a matrix nor a convolution's kernel.
    #[error(
        "{path} has shape {shape:?}; adapters attach to linear layers (rank 2) and convolutions (rank 4)"
    )]
    NotAMatrix {
        /// Path of the weight.
        path: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Planning on a module that already tracks gradients.
    #[error(
        "{path} is on an autodiff device; plan on the plain module, attach, then call `train()`"
    )]
    OnTape {
        /// Path of the weight.
        path: String,
    },
    /// A method's settings contradict themselves.
    #[error("the {method} configuration is unusable: {reason}")]
    Config {
        /// The method's name.
        method: &'static str,
        /// What is wrong, and what is allowed.
        reason: &'static str,
    },
    /// A weight could not be decomposed.
    #[error("cannot decompose {path}: {source}")]
    Decomposition {
        /// Path of the weight.
        path: String,
        /// What the decomposition refused.
        source: LinalgError,
    },
    /// The file cannot be read or written.
    #[error("cannot {action} adapter file {path}: {source}", path = path.display())]
    Io {
        /// "read" or "write".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The file is not a safetensors file, or is cut short.
    #[error(
        "{path} is not a complete safetensors file ({reason}); copy or train it again",
        path = path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        reason: String,
    },
    /// A safetensors file of another kind.
    #[error(
        "{path} is not a SODA adapter: its metadata has no usable `{field}`",
        path = path.display()
    )]
    NotAnAdapter {
        /// The file.
        path: PathBuf,
        /// The metadata field that is missing or unreadable.
        field: &'static str,
    },
    /// Written by another version of the format.
    #[error(
        "{path} has adapter format version {found}, this build reads versions {supported}; update soda or retrain",
        path = path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Version found.
        found: String,
        /// Version understood.
        supported: &'static str,
    },
    /// Numbers against decompositions with other signs.
    #[error(
        "{path} counts on decompositions by another rule of signs ({found}; this build's is {supported}); update soda or retrain",
        path = path.display()
    )]
    Signs {
        /// The file.
        path: PathBuf,
        /// The rule found.
        found: String,
        /// The rule of this build.
        supported: &'static str,
    },
    /// A method this build does not have.
    #[error("there is no method `{found}`; this build knows {known}")]
    UnknownMethod {
        /// Method found.
        found: String,
        /// Methods known.
        known: String,
    },
    /// A file whose method or settings this build cannot read.
    #[error(
        "{path} holds a `{method}` adapter with settings this build cannot read ({reason}); update soda or retrain",
        path = path.display()
    )]
    Settings {
        /// The file.
        path: PathBuf,
        /// The method it names.
        method: String,
        /// What the parser says.
        reason: String,
    },
    /// Adapters that cannot become one.
    #[error(
        "the adapters on {path} have no common form (different methods or settings, or a method without \
         rotations); merge them as residuals"
    )]
    NoCommonForm {
        /// Path of the weight.
        path: String,
    },
    /// A PEFT configuration of another kind, or a broken one.
    #[error(
        "{path} is no configuration of PEFT's LORA or OFT that this build can read: {reason}",
        path = path.display()
    )]
    PeftConfig {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        reason: String,
    },
    /// A foreign file for another network.
    #[error(
        "nothing in {path} belongs to a weight of this base (it holds names like {example}); \
         is it for another base, or of a method other than LoRA, DoRA, OFT, LoHa and LoKr?",
        path = path.display()
    )]
    NothingMatched {
        /// The file.
        path: PathBuf,
        /// A name in it.
        example: String,
    },
    /// A foreign file with half an adapter.
    #[error("the file has tensors for {weight}, but not its {part}; it is incomplete")]
    MissingPart {
        /// The weight.
        weight: String,
        /// What is missing.
        part: &'static str,
    },
    /// A foreign file with something that no method here has.
    #[error(
        "the file has a {part} for {weight}, which no method here can represent; merge it into a model with the tool \
         that made it, or train without it"
    )]
    ForeignPart {
        /// The weight.
        weight: String,
        /// What it is.
        part: &'static str,
    },
    /// The base lacks a network that the adapter is for.
    #[error(
        "the adapter is for a {component} too, which this base does not have; load the base it was trained on"
    )]
    NoNetwork {
        /// The network.
        component: Component,
    },
    /// The adapter belongs to another base model.
    #[error(
        "the adapter was trained on base {expected}, this model is {found}: its rotations and spectral \
         shifts mean nothing here; load the base it was trained on"
    )]
    OtherBase {
        /// Hash of the base the adapter was trained on, shortened.
        expected: String,
        /// Hash of the model at hand, shortened.
        found: String,
    },
    /// The file's tensors are not those the method attaches.
    #[error(
        "the adapter does not fit its own description: {missing} missing{missing_example}, {unknown} unknown{unknown_example}"
    )]
    Keys {
        /// How many tensors are missing.
        missing: usize,
        /// The first of them.
        missing_example: String,
        /// How many tensors nothing asks for.
        unknown: usize,
        /// The first of them.
        unknown_example: String,
    },
    /// A tensor of the wrong shape.
    #[error("adapter tensor {key} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Name in the file.
        key: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape the network asks for.
        expected: Vec<usize>,
    },
    /// A tensor that holds no floats.
    #[error("adapter tensor {key} has type {found}, expected F32, F16 or BF16")]
    DType {
        /// Name in the file.
        key: String,
        /// Type in the file.
        found: String,
    },
    /// NaN or infinity.
    #[error("adapter tensor {key} holds NaN or infinity; the training that wrote it diverged")]
    NonFinite {
        /// Name in the file.
        key: String,
    },
    /// A rotation factor that is none.
    #[error(
        "adapter tensor {key} is not orthogonal (max |QᵀQ - I| = {deviation:.1e}); the file is damaged"
    )]
    NotOrthogonal {
        /// Name in the file.
        key: String,
        /// How far it is off.
        deviation: f32,
    },
}

impl AdapterError {
    /// A pattern that does not parse.
    pub(crate) fn pattern(pattern: &str, error: &regex::Error) -> Self {
        Self::InvalidPattern {
            pattern: pattern.to_owned(),
            // The regex crate draws a picture over several lines; its last line says what is wrong.
            reason: error.to_string().lines().last().unwrap_or_default().trim().to_owned(),
        }
    }
}
