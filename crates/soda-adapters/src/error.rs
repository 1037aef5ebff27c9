//! Errors of this crate: a selection that fails, a method that cannot be applied, a state that does not fit.

use soda_linalg::LinalgError;

/// An error of selecting weights, planning adapters or loading their state.
///
/// Every message is one sentence that names the setting, weight or tensor at fault and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// The weights to adapt cannot be selected.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The trained tensors do not belong to the network or to the method.
    #[error(transparent)]
    State(#[from] StateError),
    /// The settings of a method are out of range or contradict each other.
    #[error("the {method} configuration is unusable: {reason}")]
    Config {
        /// Name of the method.
        method: &'static str,
        /// What is wrong, and which values are allowed.
        reason: &'static str,
    },
    /// No method has this name.
    #[error("there is no method `{found}`; this build knows {known}")]
    UnknownMethod {
        /// The name that was given.
        found: String,
        /// The names that exist, separated by commas.
        known: String,
    },
    /// A decomposition of a weight or a logarithm of a rotation failed.
    #[error("cannot decompose {path}: {source}")]
    Decomposition {
        /// Path of the weight.
        path: String,
        /// The reason from the linear algebra.
        source: LinalgError,
    },
    /// Another process does not give its part of the decompositions.
    #[error(transparent)]
    Divided(Box<dyn std::error::Error + Send + Sync>),
    /// A method needs a [`Calibration`](crate::Calibration) that the plan was not given.
    #[error(
        "the {method} configuration places its parameters by the training data, and {path} was not \
         calibrated; pass a calibration to the plan, or choose `subspace = \"principal\"`"
    )]
    NotCalibrated {
        /// Name of the method.
        method: &'static str,
        /// Path of the weight.
        path: String,
    },
    /// A probe did not see the rows of a layer: a convolution, or a weight that no layer multiplies with
    /// rows.
    #[error(
        "`subspace = \"activations\"` needs the rows that a linear layer multiplies, which {path} does not \
         show; choose `subspace = \"gradient\"`, or targets without convolutions"
    )]
    NoActivations {
        /// Path of the weight.
        path: String,
    },
    /// A mask by the timestep multiplies rows, which a convolution does not show.
    #[error(
        "`timestep_mask` needs the rows that a linear layer multiplies, and {path} is a convolution; choose \
         targets without convolutions"
    )]
    MaskedConvolution {
        /// Path of the weight.
        path: String,
    },
    /// Adapters of different forms cannot be merged into one adapter.
    #[error(
        "the adapters on {path} have no common form (different methods or settings, or a method without \
         rotations); merge them as residuals (`--mode residual`)"
    )]
    NoCommonForm {
        /// Path of the weight.
        path: String,
    },
}

/// An error of [`Targets::select`](crate::Targets::select).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// A target pattern is not a regular expression.
    #[error("target pattern `{pattern}` is not a regular expression: {reason}")]
    InvalidPattern {
        /// The pattern as given.
        pattern: String,
        /// The reason from the regex parser.
        reason: String,
    },
    /// A target pattern matches no weight.
    #[error(
        "target pattern `{pattern}` matches no weight of the network; its {count} matrices are named like {examples}"
    )]
    UnmatchedPattern {
        /// The pattern as given.
        pattern: String,
        /// Number of weight matrices in the network.
        count: usize,
        /// Up to three of their paths.
        examples: String,
    },
    /// The list of targets is empty.
    #[error(
        "no target pattern was given; use one of the presets ({presets}) or a regular expression"
    )]
    NoPattern {
        /// The names of the presets.
        presets: String,
    },
    /// A selected parameter is neither a matrix nor the kernel of a two-dimensional convolution.
    #[error(
        "{path} has shape {shape:?}; adapters attach to linear layers (rank 2) and convolutions (rank 4)"
    )]
    NotAMatrix {
        /// Path of the parameter.
        path: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// The module already tracks gradients.
    #[error(
        "{path} is on an autodiff device; plan on the plain module, attach, then call `train()`"
    )]
    OnAutodiffDevice {
        /// Path of the weight.
        path: String,
    },
}

impl TargetError {
    /// [`TargetError::InvalidPattern`] with the reason that the regex crate gives.
    pub(crate) fn invalid_pattern(pattern: &str, error: &regex::Error) -> Self {
        Self::InvalidPattern {
            pattern: pattern.to_owned(),
            // The regex crate points at the position over several lines; its last line has the reason.
            reason: error.to_string().lines().last().unwrap_or_default().trim().to_owned(),
        }
    }
}

/// An error of [`AdapterState::plan`](crate::AdapterState::plan): the state does not fit its network or its
/// method.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The adapter was trained on another base model.
    #[error(
        "the adapter was trained on base {expected}, this model is {found}, and its method needs its own base; \
         load that, or `soda export` the adapter there as kohya and `soda import` it here"
    )]
    OtherBase {
        /// Hash of the base that the adapter was trained on, the first 12 digits.
        expected: String,
        /// Hash of this model, the first 12 digits.
        found: String,
    },
    /// The tensors are not those that the method trains.
    #[error(
        "the adapter does not fit its own description: {missing} missing{missing_example}, {unknown} unknown{unknown_example}"
    )]
    Keys {
        /// Number of missing tensors.
        missing: usize,
        /// The first missing name, as ` (such as NAME)`; empty if there is none.
        missing_example: String,
        /// Number of tensors that the method does not have.
        unknown: usize,
        /// The first unknown name, as ` (such as NAME)`; empty if there is none.
        unknown_example: String,
    },
    /// A tensor has the wrong shape.
    #[error("adapter tensor {key} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Name of the tensor.
        key: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that the method needs on this weight.
        expected: Vec<usize>,
    },
    /// A factor of a rotation is not orthogonal.
    #[error(
        "adapter tensor {key} is not orthogonal (max |QᵀQ - I| = {deviation:.1e}); the file is damaged"
    )]
    NotOrthogonal {
        /// Name of the tensor.
        key: String,
        /// `max |QᵀQ - I|`.
        deviation: f32,
    },
}
