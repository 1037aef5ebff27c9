//! Errors of the crate.

use crate::param_group::ParamGroup;

/// A setting or a stored state that an optimizer cannot use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptimError {
    /// Stored parameters have other paths or shapes than the module's.
    #[error(
        "stored parameters do not match the module: {0}; restore them with the settings they were trained with"
    )]
    OtherParameters(String),
    /// A stored optimizer state was written by another optimizer, or is incomplete.
    #[error(
        "the stored optimizer state belongs to another optimizer or is incomplete; restore it with the settings it was \
         trained with"
    )]
    OtherState,
    /// A parameter group has its own learning rate with Prodigy.
    #[error(
        "Prodigy estimates one learning rate for all parameters; remove the learning rate of the group `{0}`, or choose \
         another flat optimizer"
    )]
    GroupRateWithProdigy(ParamGroup),
}
