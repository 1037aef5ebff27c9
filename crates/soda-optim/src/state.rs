//! Moments and step counts of an optimizer, by name.

use std::collections::BTreeMap;

use burn::tensor::TensorData;

/// Everything that an optimizer needs to continue as if it had not stopped.
///
/// A name is `RULE.GROUP.ROWSxCOLS.QUANTITY`, such as `rotation.denoiser.40x8.momentum`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OptimizerState {
    /// Moments by name.
    pub tensors: BTreeMap<String, TensorData>,
    /// Step counts by name. Prodigy also stores the bits of its two `f64` numbers here.
    pub counts: BTreeMap<String, u64>,
}
