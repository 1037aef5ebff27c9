//! Steps of an iteration towards the polar factor of a matrix, by matrix products alone.
//!
//! ```text
//! G = XᵀX      X <- X (a I + b G + c G²)
//! ```
//!
//! With the coefficients of Newton and Schulz the iterates converge to the orthogonal polar factor.
//!
//! On CUDA all steps but the last run on tensor cores. Every float32 number is split into two TF32 numbers of
//! 11 bits (Ootomo and Yokota, arXiv 2203.03341). Their sums are less accurate than float32 by a few
//! roundings. The last step is float32 and removes that error from the orthogonality of the result.

use burn::tensor::Tensor;

use super::matmul::matmul;
use crate::cuda::{self, Tf32Split};

/// An iterate `X` `[b, m, n]` of the polar iteration and its Gram matrices `XᵀX` `[b, n, n]`, off the
/// autodiff tape.
pub struct PolarIteration {
    x: Tensor<3>,
    gram: Tensor<3>,
    /// `X` split for tensor cores, on devices that have them.
    split: Option<Tf32Split>,
}

impl PolarIteration {
    /// Starts at `x` `[b, m, n]` with the Gram matrices `gram` `[b, n, n]`, which the caller has computed.
    pub fn new(x: Tensor<3>, gram: Tensor<3>) -> Self {
        let split = cuda::tf32_split(&x);
        Self { x, gram, split }
    }

    /// The Gram matrices `XᵀX` of the iterate, up to a few roundings.
    pub fn gram(&self) -> &Tensor<3> {
        &self.gram
    }

    /// Computes the next iterate with the coefficients `[a, b, c]`.
    #[must_use]
    pub fn step(self, coefficients: [f64; 3]) -> Self {
        if let Some(split) = self.split
            && let Some((split, x, gram)) = cuda::polar_step(split, &self.gram, coefficients)
        {
            return Self { x, gram, split: Some(split) };
        }
        let x = polynomial(self.x, self.gram, coefficients);
        Self { gram: gram(&x), x, split: None }
    }

    /// Computes the last iterate in float32 with the coefficients `[a, b, c]`.
    pub fn finish(self, coefficients: [f64; 3]) -> Tensor<3> {
        // The Gram matrices of split iterates have the error that this step removes.
        let gram = if self.split.is_some() { gram(&self.x) } else { self.gram };
        polynomial(self.x, gram, coefficients)
    }

    /// Returns the iterate as it is.
    pub fn into_iterate(self) -> Tensor<3> {
        self.x
    }
}

/// `X (a I + b G + c G²)`.
fn polynomial(x: Tensor<3>, gram: Tensor<3>, [a, b, c]: [f64; 3]) -> Tensor<3> {
    let [_, _, n] = x.dims();
    let identity = Tensor::<2>::eye(n, &x.device()).cast(x.dtype()).unsqueeze_dim::<3>(0);
    let inner = gram.clone().mul_scalar(c) + identity.clone().mul_scalar(b);
    let outer = matmul(gram, inner) + identity.mul_scalar(a);
    matmul(x, outer)
}

fn gram(x: &Tensor<3>) -> Tensor<3> {
    matmul(x.clone().transpose(), x.clone())
}
