//! Products of rows with a Kronecker product of matrices, by a kernel of the device.
//!
//! As matrix products they are one batched product of small matrices for each factor and pass, and each reads
//! and writes the whole operand. On a GPU a row fits the shared memory of a block and passes through all
//! factors there.

use burn::tensor::Tensor;

use crate::cuda;

/// The map `y = M x` of rows `x` `[Π nᵢ]`, with `M = M1 ⊗ … ⊗ Mm` and square factors `Mᵢ`, given as vectors
/// `[nᵢ nᵢ]`.
#[derive(Clone, Copy, Debug)]
pub struct KroneckerProduct<'a> {
    /// The sizes `nᵢ` of the factors.
    pub sizes: &'a [usize],
    /// Whether the vectors hold the transposes of the factors.
    pub transposed: bool,
}

impl KroneckerProduct<'_> {
    /// Applies the product to the rows `x` `[rows, Π nᵢ]`; the result has the dtype of `x`. The tensors are
    /// off the tape.
    ///
    /// The kernel computes in float32. For half precision it keeps 11 or 16 bits between two factors.
    ///
    /// The result is `None` if the device has no kernel for these operands. The CUDA kernels take up to four
    /// float32 factors of at most 16 rows.
    pub fn apply(&self, x: &Tensor<2>, factors: &[Tensor<1>]) -> Option<Tensor<2>> {
        cuda::kronecker_product((self.sizes, self.transposed), x, factors)
    }

    /// Computes the gradients by the factors from the gradient `dy` of the product, by `x` if `with_dx`, and
    /// the product itself if `with_product`. The result is `None` as for [`apply`](Self::apply).
    pub fn gradient(
        &self,
        x: &Tensor<2>,
        factors: &[Tensor<1>],
        dy: &Tensor<2>,
        with_dx: bool,
        with_product: bool,
    ) -> Option<KroneckerGradient> {
        let shape = (self.sizes, self.transposed);
        let (x, factors, product) =
            cuda::kronecker_gradient(shape, x, factors, dy, with_dx, with_product)?;
        Some(KroneckerGradient { x, factors, product })
    }
}

/// The result of [`KroneckerProduct::gradient`].
#[derive(Clone, Debug)]
pub struct KroneckerGradient {
    /// The gradient by the rows, if it was asked for.
    pub x: Option<Tensor<2>>,
    /// The gradients by the factors, vectors `[nᵢ nᵢ]`.
    pub factors: Vec<Tensor<1>>,
    /// The product itself, if it was asked for.
    pub product: Option<Tensor<2>>,
}
