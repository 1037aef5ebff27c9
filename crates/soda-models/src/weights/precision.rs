//! The dtypes and formats in which the weights of a network are loaded.

use std::collections::BTreeSet;

use burn::tensor::FloatDType;
use soda_kernels::QuantFormat;

/// The dtypes and formats of a network's weights.
///
/// An adapter is made from a weight as it is in the file. All other weights never exist in another precision
/// than their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightPrecision {
    /// The dtype of the weights that are not in `exact`, and of the computation.
    pub dtype: FloatDType,
    /// The number format of linear weights that are not in `exact`; `None` for `dtype`.
    pub quantization: Option<QuantFormat>,
    /// Paths of the weights that are loaded as f32, or beside quantized weights in the dtype of the file. The
    /// caller casts or quantizes them after it has made the adapters.
    pub exact: BTreeSet<String>,
}

/// All weights in one dtype.
impl From<FloatDType> for WeightPrecision {
    fn from(dtype: FloatDType) -> Self {
        Self { dtype, quantization: None, exact: BTreeSet::new() }
    }
}
