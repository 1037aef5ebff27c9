//! Mode products: small matrices along the axes of a large array, and their gradients.
//!
//! `x` is `[before, Π nᵢ, after]`, with its middle axis read as `n1 × … × nm`. `x⁽ⁱ⁾` is the array before the
//! matrix `Mᵢ` is applied and `y⁽ⁱ⁾` the array after it, both as matrices with axis `i` in front:
//!
//! ```text
//! y⁽ⁱ⁾ = Mᵢ x⁽ⁱ⁾        ∂L/∂Mᵢ = ∂L/∂y⁽ⁱ⁾ x⁽ⁱ⁾ᵀ        ∂L/∂x⁽ⁱ⁾ = Mᵢᵀ ∂L/∂y⁽ⁱ⁾
//! ```
//!
//! The backward pass computes the arrays `x⁽ⁱ⁾` again, so that autodiff saves one array of the size of `x`
//! instead of m.
//!
//! On rows (`after = 1`) the backward pass takes the array as a matrix `[rest, nᵢ]`. The new axis of each
//! product is on the other side, so that the next axis is already in place.
//!
//! Each product on rows is then one matrix product instead of a batch of small ones, and so is the sum for
//! `∂L/∂Mᵢ`. The forward pass gains nothing from this.
//!
//! On a CPU a fresh array of many megabytes costs more in page faults than the products on it. There the
//! array is processed in chunks that stay in the cache, with all m products on one chunk before the next.

#![cfg_attr(
    not(any(feature = "flex", feature = "cube")),
    allow(dead_code, reason = "without a listed backend burn differentiates the forward pass")
)]

use burn::tensor::Tensor;
use rayon::prelude::*;
use soda_kernels::{KroneckerGradient, KroneckerProduct, matmul};

use super::chunks::{chunk_for_cache, chunk_for_threads};
use crate::backend::AutogradFunction;

/// The sizes of the matrices, and their layout in the vectors that hold them.
#[derive(Clone, Debug)]
pub(super) struct ModeProducts {
    /// `[pᵢ, nᵢ]`.
    pub(super) sizes: Vec<[usize; 2]>,
    /// Whether the vectors hold the transposed matrices.
    pub(super) transposed: bool,
}

impl AutogradFunction for ModeProducts {
    fn forward(&self, x: Tensor<3>, params: &[Tensor<1>]) -> Tensor<3> {
        if let Some(y) = self.forward_by_kernel(&x, params) {
            return y;
        }
        let dtype = x.dtype();
        let x = x.cast(params[0].dtype());
        let matrices = self.matrices(params);
        // With autodiff, every chunk would have a gradient as large as `x`.
        let is_autodiff = || x.is_autodiff() || matrices.iter().any(Tensor::is_autodiff);
        let y = match chunk_for_cache(&x).filter(|_| !is_autodiff()) {
            Some((axis, length)) => {
                let chunks = x.split(length, axis).into_par_iter();
                Tensor::cat(chunks.map(|x| self.products(&matrices, x, |_| ())).collect(), axis)
            }
            None => self.products(&matrices, x, |_| ()),
        };
        y.cast(dtype)
    }

    fn backward(
        &self,
        x: Tensor<3>,
        params: &[Tensor<1>],
        grad: Tensor<3>,
        [x_needs_grad, params_need_grad]: [bool; 2],
    ) -> (Option<Tensor<3>>, Vec<Tensor<1>>) {
        if let Some(found) = self.backward_by_kernel(&x, params, &grad, x_needs_grad, false) {
            return (found.x.map(|dx| dx.reshape(x.dims())), found.factors);
        }
        let dtype = grad.dtype();
        let (x, grad) = (x.cast(params[0].dtype()), grad.cast(params[0].dtype()));
        let matrices = self.matrices(params);
        let (axis, chunks) = match chunk_for_cache(&x).or_else(|| chunk_for_threads(&x)) {
            Some((axis, length)) => {
                (axis, x.split(length, axis).into_iter().zip(grad.split(length, axis)).collect())
            }
            None => (0, vec![(x, grad)]),
        };
        let chunks: Vec<_> = chunks
            .into_par_iter()
            .map(|(x, grad)| {
                self.backward_of_chunk(&matrices, x, grad, x_needs_grad, params_need_grad)
            })
            .collect();
        let (mut dx, mut sums) = (Vec::with_capacity(chunks.len()), Vec::new());
        for (chunk, gradients) in chunks {
            dx.extend(chunk);
            sums = if sums.is_empty() {
                gradients
            } else {
                sums.into_iter().zip(gradients).map(|(sum, gradient)| sum + gradient).collect()
            };
        }
        (x_needs_grad.then(|| Tensor::cat(dx, axis).cast(dtype)), self.flat(sums))
    }
}

impl ModeProducts {
    /// [`AutogradFunction::forward`] by the device's fused kernel, if it has one for these sizes.
    fn forward_by_kernel(&self, x: &Tensor<3>, params: &[Tensor<1>]) -> Option<Tensor<3>> {
        let y = self.kernel(&self.square_sizes(x)?).apply(&as_rows(x), params)?;
        Some(y.reshape(x.dims()))
    }

    /// [`AutogradFunction::backward`] by the device's fused kernel, and the forward result if `with_output`.
    fn backward_by_kernel(
        &self,
        x: &Tensor<3>,
        params: &[Tensor<1>],
        grad: &Tensor<3>,
        x_needs_grad: bool,
        with_output: bool,
    ) -> Option<KroneckerGradient> {
        let sizes = self.square_sizes(x)?;
        let (rows, grad) = (as_rows(x), as_rows(grad));
        self.kernel(&sizes).gradient(&rows, params, &grad, x_needs_grad, with_output)
    }

    /// The gradients of rows `[rows, Π nᵢ]` and of the matrices, and the product itself, without autodiff.
    pub(super) fn backward_and_output(
        &self,
        x: Tensor<2>,
        params: &[Tensor<1>],
        grad: Tensor<2>,
        x_needs_grad: bool,
    ) -> (Option<Tensor<2>>, Vec<Tensor<1>>, Tensor<2>) {
        let unsqueeze = |x: Tensor<2>| x.unsqueeze_dim::<3>(2);
        let (x, grad) = (unsqueeze(x), unsqueeze(grad));
        if let Some(KroneckerGradient { x: dx, factors, product: Some(y) }) =
            self.backward_by_kernel(&x, params, &grad, x_needs_grad, true)
        {
            return (dx, factors, y);
        }
        let y = as_rows(&self.forward(x.clone(), params));
        let (dx, dparams) = self.backward(x, params, grad, [x_needs_grad, true]);
        (dx.map(|dx| as_rows(&dx)), dparams, y)
    }

    fn kernel<'a>(&self, sizes: &'a [usize]) -> KroneckerProduct<'a> {
        KroneckerProduct { sizes, transposed: self.transposed }
    }

    /// The sizes of the matrices, if they are square and act on rows without autodiff.
    fn square_sizes(&self, x: &Tensor<3>) -> Option<Vec<usize>> {
        let on_rows = x.dims()[2] == 1 && !x.is_autodiff();
        let sizes = self.sizes.iter().map(|&[p, n]| (on_rows && p == n).then_some(n));
        sizes.collect()
    }

    /// The matrices `Mᵢ`, `[pᵢ, nᵢ]`, from their vectors.
    fn matrices(&self, params: &[Tensor<1>]) -> Vec<Tensor<2>> {
        let matrices = params.iter().cloned().zip(&self.sizes).map(|(a, &[p, n])| {
            if self.transposed { a.reshape([n, p]).transpose() } else { a.reshape([p, n]) }
        });
        matrices.collect()
    }

    /// The inverse of [`ModeProducts::matrices`].
    fn flat(&self, matrices: Vec<Tensor<2>>) -> Vec<Tensor<1>> {
        let orient = |m: Tensor<2>| if self.transposed { m.transpose() } else { m };
        matrices.into_iter().map(|m| orient(m).flatten(0, 1)).collect()
    }

    /// All products, from the last axis to the first; `save` receives the argument of each.
    fn products(
        &self,
        matrices: &[Tensor<2>],
        x: Tensor<3>,
        mut save: impl FnMut(&Tensor<3>),
    ) -> Tensor<3> {
        let [first, _, last] = x.dims();
        let mut after = last;
        let mut x = x;
        for (i, (matrix, &[p, n])) in matrices.iter().zip(&self.sizes).enumerate().rev() {
            let before = first * self.sizes[..i].iter().map(|[_, n]| n).product::<usize>();
            let argument = x.reshape([before, n, after]);
            save(&argument);
            x = mode_product(matrix, argument);
            after *= p;
        }
        let width = self.sizes.iter().map(|[p, _]| p).product::<usize>();
        x.reshape([first, width, last])
    }

    /// The gradients of one chunk, with respect to the chunk and to the matrices.
    fn backward_of_chunk(
        &self,
        matrices: &[Tensor<2>],
        x: Tensor<3>,
        grad: Tensor<3>,
        x_needs_grad: bool,
        params_need_grad: bool,
    ) -> (Option<Tensor<3>>, Vec<Tensor<2>>) {
        let dims = x.dims();
        if dims[2] == 1 {
            return self.backward_of_rows(matrices, x, grad, x_needs_grad, params_need_grad);
        }
        let mut arguments = Vec::with_capacity(matrices.len());
        if params_need_grad {
            self.products(matrices, x, |argument| arguments.push(argument.clone()));
        }
        let mut grad = grad;
        let mut gradients = Vec::with_capacity(matrices.len());
        let [first, _, last] = dims;
        for (i, (matrix, &[p, n])) in matrices.iter().zip(&self.sizes).enumerate() {
            let before = first * self.sizes[..i].iter().map(|[_, n]| n).product::<usize>();
            let after = last * self.sizes[i + 1..].iter().map(|[p, _]| p).product::<usize>();
            grad = grad.reshape([before, p, after]);
            if let Some(argument) = arguments.pop() {
                gradients.push(matrix_gradient(grad.clone(), argument.reshape([before, n, after])));
            }
            if x_needs_grad || i + 1 < matrices.len() {
                grad = mode_product(&matrix.clone().transpose(), grad);
            }
        }
        (x_needs_grad.then(|| grad.reshape(dims)), gradients)
    }

    /// [`ModeProducts::backward_of_chunk`] for rows `[rows, Π nᵢ, 1]`.
    ///
    /// With `t⁽ⁱ⁾` `[rest, nᵢ]` the array before a matrix and `g⁽ⁱ⁾` `[pᵢ, rest]` the gradient after it,
    /// `∂L/∂Mᵢ = g⁽ⁱ⁾ t⁽ⁱ⁾` and `∂L/∂t⁽ⁱ⁾ = g⁽ⁱ⁾ᵀ Mᵢ`.
    fn backward_of_rows(
        &self,
        matrices: &[Tensor<2>],
        x: Tensor<3>,
        grad: Tensor<3>,
        x_needs_grad: bool,
        params_need_grad: bool,
    ) -> (Option<Tensor<3>>, Vec<Tensor<2>>) {
        let split_last_axis = |x: Tensor<2>, n: usize| {
            let rest = x.dims().iter().product::<usize>() / n;
            x.reshape([rest, n])
        };
        let (dims, mut t) = (x.dims(), x.squeeze_dim::<2>(2));
        let mut arguments = Vec::with_capacity(matrices.len());
        if params_need_grad {
            for (matrix, &[_, n]) in matrices.iter().zip(&self.sizes).rev() {
                let argument = split_last_axis(t, n);
                t = matmul(matrix.clone(), argument.clone().transpose());
                arguments.push(argument);
            }
        }
        let mut g = grad.squeeze_dim::<2>(2).transpose();
        let mut gradients = Vec::with_capacity(matrices.len());
        for (i, (matrix, &[p, _])) in matrices.iter().zip(&self.sizes).enumerate() {
            let rest = g.dims().iter().product::<usize>() / p;
            g = g.reshape([p, rest]);
            if let Some(argument) = arguments.pop() {
                gradients.push(matmul(g.clone(), argument));
            }
            if x_needs_grad || i + 1 < matrices.len() {
                g = matmul(g.transpose(), matrix.clone());
            }
        }
        (x_needs_grad.then(|| g.reshape(dims)), gradients)
    }
}

/// `x` `[rows, Π nᵢ, 1]` as a matrix `[rows, Π nᵢ]`.
fn as_rows(x: &Tensor<3>) -> Tensor<2> {
    x.clone().flatten(1, 2)
}

/// `M x` along the middle axis, `[before, p, after]`, for `x` `[before, n, after]`.
fn mode_product(matrix: &Tensor<2>, x: Tensor<3>) -> Tensor<3> {
    let ([p, _], [before, n, after]) = (matrix.dims(), x.dims());
    if after == 1 {
        // The axis is contiguous, so that one matrix product suffices.
        let y = matmul(x.reshape([before, n]), matrix.clone().transpose());
        return y.reshape([before, p, 1]);
    }
    matmul(matrix.clone().unsqueeze_dim::<3>(0), x)
}

/// `Σ g xᵀ` over `before`, `[p, n]`, for `g` `[before, p, after]` and `x` `[before, n, after]`.
fn matrix_gradient(g: Tensor<3>, x: Tensor<3>) -> Tensor<2> {
    let ([before, p, after], [_, n, _]) = (g.dims(), x.dims());
    if after == 1 {
        return matmul(g.reshape([before, p]).transpose(), x.reshape([before, n]));
    }
    matmul(g, x.transpose()).sum_dim(0).reshape([p, n])
}
