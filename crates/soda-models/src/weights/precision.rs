//! The dtypes and formats in which the weights of a network are loaded.

use std::collections::BTreeSet;

use burn::tensor::FloatDType;

use super::storage::WeightStorage;

/// The dtypes and formats of a network's weights.
///
/// An adapter is made from a weight as it is in the file. All other weights never exist in another precision
/// than their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightPrecision {
    /// The dtype of the weights that are not in `exact`, and of the computation.
    pub dtype: FloatDType,
    /// How linear weights that are not in `exact` are stored.
    pub storage: WeightStorage,
    /// Paths of the weights that are loaded as f32, or in the dtype of the file if that has 16 bits. The
    /// caller casts or stores them after it has made the adapters. Those that `storage` concerns wait in host
    /// memory, and all others on the device.
    pub exact: BTreeSet<String>,
}

/// All weights in one dtype.
impl From<FloatDType> for WeightPrecision {
    fn from(dtype: FloatDType) -> Self {
        Self { dtype, storage: WeightStorage::default(), exact: BTreeSet::new() }
    }
}
