//! Which way through an adapted layer is shorter: forming its weight, or applying the adapter to its input.
//!
//! A step is a forward pass and a backward pass to the input and the adapter. In multiply-adds a layer, for
//! `T` rows, `in` and `out` columns:
//!
//! | | the layer | the adapter, on the weight | on the input |
//! |---|---|---|---|
//! | bare | `2 T in out` | | |
//! | weight formed | `3 T in out` | `2` products of the weight's size | |
//! | input | `2 T in out` | | `2` products of the input's size for each trained or frozen factor |
//!
//! The weight's own gradient, the third product, is what the input side never needs; where factors stand for the weight
//! it has no product with the layer either. Measured on a CPU (benches/adapters.rs), the count foretells the quicker way
//! at every size of SD 1.5 and SDXL but where the two are within a tenth.

use burn::tensor::{DType, Tensor};
use soda_kernels::has_library;

/// Multiply-adds of one step through a layer, both ways.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    weight: f64,
    input: f64,
}

/// What a multiply-add in a product with many small matrices costs beside one in a large one: measured
/// between 4 (64 rows) and 30 (4096 rows, past the cache) of `kron_right` (crate documentation of
/// soda-linalg).
const SMALL: f64 = 10.0;

/// The same of matrices of some dozens of rows and columns.
const MEDIUM: f64 = 4.0;

impl Cost {
    /// The layer itself.
    pub(crate) fn layer(rows: usize, input: usize, output: usize) -> Self {
        let product = (rows * input * output) as f64;
        Self { weight: 3.0 * product, input: 2.0 * product }
    }

    /// A product of `l [in, k]` and `r [k, out]` with the layer's weight or its input between: formed, and
    /// its gradient.
    pub(crate) fn and_factors(self, rows: usize, input: usize, k: usize, output: usize) -> Self {
        let on_input = 2.0 * (rows * (input + output) * k) as f64;
        Self {
            weight: self.weight + 2.0 * (input * k * output) as f64,
            input: self.input + on_input,
        }
    }

    /// The input side takes factors for the weight `[in, out]` and has no product with the weight itself.
    pub(crate) fn without_base(self, rows: usize, [input, output]: [usize; 2]) -> Self {
        Self { input: self.input - 2.0 * (rows * input * output) as f64, ..self }
    }

    /// More that the input side has to do, in multiply-adds.
    pub(crate) fn and_on_input(self, more: usize) -> Self {
        Self { input: self.input + more as f64, ..self }
    }

    /// A Kronecker product of `[m, p]` and `[n, q]` added to the weight `[m n, p q]`: formed and added, or applied to
    /// the input one after the other.
    pub(crate) fn and_kronecker(self, rows: usize, [m, p]: [usize; 2], [n, q]: [usize; 2]) -> Self {
        // Forward, and backward to either factor.
        let on_input = 3.0 * MEDIUM * (rows * m * q * (n + p)) as f64;
        let on_weight = 3.0 * SMALL * (m * n * p * q) as f64;
        Self { weight: self.weight + on_weight, input: self.input + on_input }
    }

    /// A rotation of `width` of one side, `entries` multiply-adds an entry; `other` is the other side.
    pub(crate) fn and_rotation(
        self,
        rows: usize,
        width: usize,
        other: usize,
        entries: usize,
    ) -> Self {
        // Forward, and backward to either factor.
        let each = 3.0 * SMALL * (width * entries) as f64;
        Self { weight: self.weight + each * other as f64, input: self.input + each * rows as f64 }
    }

    /// Whether the input side is the shorter way for the rows `x`.
    ///
    /// It always is where products go to a vendor's library: beside those every other operation on the
    /// weight, in float32, is what takes the time. (What is a product with the weight too may still be done there.)
    pub(crate) fn input_side(self, x: &Tensor<2>) -> bool {
        has_library(x) || !self.is_by_weight()
    }

    /// Whether the count is less with the weight formed.
    pub(crate) fn is_by_weight(self) -> bool {
        self.weight <= self.input
    }
}

/// The type in which an adapter with parameters of type `own` multiplies the rows `x`: its own, but that of the
/// rows where a library multiplies half precision and sums it in float32, many times as fast.
pub(crate) fn product_dtype(x: &Tensor<2>, own: DType) -> DType {
    if has_library(x) { x.dtype() } else { own }
}
