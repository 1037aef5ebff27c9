//! A Kronecker product on rows with an explicit backward pass.

use burn::tensor::Tensor;

use super::mode_products::ModeProducts;
use crate::backend::AutogradFunction as _;

/// The product `x (A1 ⊗ … ⊗ Am)` with square factors, and its gradients, as two separate methods.
///
/// It is a building block of an [`AutogradFunction`](crate::AutogradFunction);
/// [`kron_right`](crate::kron_right) is the differentiable function. Factors are vectors `[nᵢ nᵢ]`, the
/// row-major entries of `Aᵢ`.
#[derive(Clone, Debug)]
pub struct KroneckerRows(ModeProducts);

/// The results of [`KroneckerRows::backward`].
#[derive(Clone, Debug)]
pub struct KroneckerGradients {
    /// The gradient with respect to the rows, `[rows, Π nᵢ]`, if it was requested.
    pub x: Option<Tensor<2>>,
    /// The gradient with respect to each factor, `[nᵢ nᵢ]`.
    pub factors: Vec<Tensor<1>>,
    /// The result of [`KroneckerRows::forward`], `[rows, Π nᵢ]`, which the backward pass computes again.
    pub output: Tensor<2>,
}

impl KroneckerRows {
    /// Returns the product with factors of the sizes `nᵢ`.
    pub fn new(sizes: &[usize]) -> Self {
        Self(ModeProducts { sizes: sizes.iter().map(|&n| [n, n]).collect(), transposed: true })
    }

    /// Returns the product with the transposed factors: `x (A1 ⊗ … ⊗ Am)ᵀ`.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self(ModeProducts { transposed: !self.0.transposed, ..self.0 })
    }

    /// Returns `x (A1 ⊗ … ⊗ Am)`, `[rows, Π nᵢ]` in the dtype of `x`, for rows `x` `[rows, Π nᵢ]`.
    ///
    /// # Panics
    ///
    /// If the shapes do not match the sizes of [`KroneckerRows::new`].
    pub fn forward(&self, x: Tensor<2>, factors: &[Tensor<1>]) -> Tensor<2> {
        self.0.forward(x.unsqueeze_dim(2), factors).flatten(1, 2)
    }

    /// Returns the gradients from `grad`, `[rows, Π nᵢ]`, the gradient of [`KroneckerRows::forward`].
    ///
    /// `x_needs_grad` requests the gradient with respect to `x`. The tensors must be without autodiff.
    ///
    /// # Panics
    ///
    /// If the shapes do not match the sizes of [`KroneckerRows::new`].
    pub fn backward(
        &self,
        x: Tensor<2>,
        factors: &[Tensor<1>],
        grad: Tensor<2>,
        x_needs_grad: bool,
    ) -> KroneckerGradients {
        let (x, factors, output) = self.0.backward_and_output(x, factors, grad, x_needs_grad);
        KroneckerGradients { x, factors, output }
    }
}
