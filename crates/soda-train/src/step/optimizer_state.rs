//! What an optimizer stores.

use std::collections::BTreeMap;

use burn::tensor::TensorData;

/// Moments and step counts by name: what an optimizer needs to go on as if it had not stopped.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OptimizerState {
    /// Moments.
    pub tensors: BTreeMap<String, TensorData>,
    /// Step counts.
    pub counts: BTreeMap<String, u64>,
}
