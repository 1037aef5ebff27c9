//! The cost model that chooses, for each adapted layer, between forming the adapted weight and adapting the
//! input.
//!
//! A training step is a forward pass and a backward pass to the input and the adapter. For `T` rows and a
//! weight `[in, out]`, a layer costs in multiply-adds:
//!
//! | way | products of the layer | products of the adapter |
//! |---|---|---|
//! | no adapter | `2 T in out` | |
//! | forming the weight | `3 T in out` | two of the weight's size |
//! | adapting the input | `2 T in out` | two of the input's size for each trained or frozen factor |
//!
//! Adapting the input never needs the gradient of the weight, the third product of the layer. Where factors
//! replace the weight, the input side has no product with the weight either.

use burn::tensor::{DType, Tensor};
use soda_kernels::has_vendor_blas;

use crate::base_weight::BaseWeight;

/// Multiply-adds of one training step through a layer, both ways.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CostModel {
    weight_side: f64,
    input_side: f64,
}

/// Time of a multiply-add in a product with many small matrices, relative to one in a large product.
///
/// Measurements of `kron_right` lie between 4 (64 rows) and 30 (4096 rows, larger than the cache).
const SMALL_MATRICES: f64 = 10.0;

/// Time of a multiply-add in a product with matrices of some dozens of rows and columns, relative to a large
/// product.
const MEDIUM_MATRICES: f64 = 4.0;

impl CostModel {
    /// The layer alone.
    pub(crate) fn layer(rows: usize, input: usize, output: usize) -> Self {
        let product = (rows * input * output) as f64;
        Self { weight_side: 3.0 * product, input_side: 2.0 * product }
    }

    /// Adds a low-rank product of `l` `[in, k]` and `r` `[k, out]` and its gradient.
    pub(crate) fn and_factors(self, rows: usize, input: usize, k: usize, output: usize) -> Self {
        let on_input = 2.0 * (rows * (input + output) * k) as f64;
        Self {
            weight_side: self.weight_side + 2.0 * (input * k * output) as f64,
            input_side: self.input_side + on_input,
        }
    }

    /// Removes the product with the weight `[in, out]` from the input side, where factors replace the weight.
    pub(crate) fn without_base(self, rows: usize, [input, output]: [usize; 2]) -> Self {
        Self { input_side: self.input_side - 2.0 * (rows * input * output) as f64, ..self }
    }

    /// Adds multiply-adds to the input side.
    pub(crate) fn and_on_input(self, multiply_adds: usize) -> Self {
        Self { input_side: self.input_side + multiply_adds as f64, ..self }
    }

    /// Adds a Kronecker product of `[m, p]` and `[n, q]`, which is added to the weight `[m n, p q]` or
    /// applied to the input factor by factor.
    pub(crate) fn and_kronecker(self, rows: usize, [m, p]: [usize; 2], [n, q]: [usize; 2]) -> Self {
        // One forward product and two backward products.
        let on_input = 3.0 * MEDIUM_MATRICES * (rows * m * q * (n + p)) as f64;
        let on_weight = 3.0 * SMALL_MATRICES * (m * n * p * q) as f64;
        Self { weight_side: self.weight_side + on_weight, input_side: self.input_side + on_input }
    }

    /// Adds a rotation of one side of the weight, of size `width`, at `per_entry` multiply-adds an entry.
    /// `other` is the size of the other side.
    pub(crate) fn and_rotation(
        self,
        rows: usize,
        width: usize,
        other: usize,
        per_entry: usize,
    ) -> Self {
        // One forward product and two backward products.
        let per_row = 3.0 * SMALL_MATRICES * (width * per_entry) as f64;
        Self {
            weight_side: self.weight_side + per_row * other as f64,
            input_side: self.input_side + per_row * rows as f64,
        }
    }

    /// Whether to adapt the input rows `x`.
    ///
    /// Adapting the input is always preferred on a device with a vendor's library for products. There, the
    /// other operations on the weight, in f32, take most of the time. So it is under a stored weight `w`,
    /// which would be kept in floats until the backward pass.
    pub(crate) fn prefers_input(self, x: &Tensor<2>, w: &BaseWeight) -> bool {
        has_vendor_blas(x) || w.as_float().is_none() || !self.weight_is_cheaper()
    }

    /// Whether forming the weight needs no more multiply-adds than adapting the input.
    pub(crate) fn weight_is_cheaper(self) -> bool {
        self.weight_side <= self.input_side
    }
}

/// The float type in which an adapter with parameters of type `own` multiplies the rows `x`.
///
/// A vendor's library multiplies half precision with sums in f32, many times as fast as f32: there it is the
/// type of the rows. Everywhere else it is `own`.
pub(crate) fn product_dtype(x: &Tensor<2>, own: DType) -> DType {
    if has_vendor_blas(x) { x.dtype() } else { own }
}
