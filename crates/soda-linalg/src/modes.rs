//! Mode products: small matrices on the axes of a large array, and their gradients.
//!
//! `x` is `[before, Π nᵢ, after]`, its middle axis read as `n1 × … × nm`. With `x⁽ⁱ⁾` the array before the
//! matrix `Mᵢ` is applied and `y⁽ⁱ⁾` after, as matrices with axis `i` in front,
//!
//! ```text
//! y⁽ⁱ⁾ = Mᵢ x⁽ⁱ⁾        ∂L/∂Mᵢ = ∂L/∂y⁽ⁱ⁾ x⁽ⁱ⁾ᵀ        ∂L/∂x⁽ⁱ⁾ = Mᵢᵀ ∂L/∂y⁽ⁱ⁾
//! ```
//!
//! The gradient starts from `x` again instead of keeping every `x⁽ⁱ⁾`: the tape holds one array of the
//! size of `x` and not m.
//!
//! On the columns of `x` the gradient takes the array as a matrix `[rest, nᵢ]`, out of whose product the new axis comes on
//! the other side: the next one lies where it has to, and each is one plain product instead of a batch of small ones.
//! The sums over all of `x` for `∂L/∂Mᵢ` are one product too. That takes a half to four fifths of the time; forward it
//! gains nothing.
//!
//! On a CPU the arithmetic is the small part: a fresh array of many megabytes costs more in page faults
//! than the products on it. There the array goes through in pieces that stay in the cache, all m
//! products on one piece after the other, forward and backward.

#![cfg_attr(
    not(any(feature = "flex", feature = "cube")),
    allow(dead_code, reason = "without a listed backend the tape has its own gradient")
)]

use burn::tensor::Tensor;
use rayon::prelude::*;
use soda_kernels::{Turn, TurnGradient, matmul};

use crate::backend::{Function, on_host};

/// The matrices' sizes, and how they lie in the vectors that hold them.
#[derive(Clone, Debug)]
pub(crate) struct Modes {
    /// `[pᵢ, nᵢ]`.
    pub(crate) sizes: Vec<[usize; 2]>,
    /// Whether the vectors hold the matrices' transposes.
    pub(crate) transposed: bool,
}

/// Entries of an array that is worth cutting.
const LARGE: usize = 1 << 20;
/// Entries of a piece: a few of them fit into a core's second cache, and the products on one are too
/// small for the backend to spread over the cores; the pieces are.
const PIECE: usize = 1 << 15;
/// Fewer are not worth a task.
const SHARE: usize = 1 << 13;
/// Fewer columns make poor matrix products.
const COLUMNS: usize = 64;

impl Function for Modes {
    fn forward(&self, x: Tensor<3>, a: &[Tensor<1>]) -> Tensor<3> {
        if let Some(y) = self.turned(&x, a) {
            return y;
        }
        let dtype = x.dtype();
        let x = x.cast(a[0].dtype());
        let matrices = self.matrices(a);
        // On the tape every cut would have a gradient as large as `x`.
        let y = match cut(&x)
            .filter(|_| !x.is_autodiff() && !matrices.iter().any(Tensor::is_autodiff))
        {
            Some((axis, length)) => {
                let pieces = x.split(length, axis).into_par_iter();
                Tensor::cat(pieces.map(|x| self.products(&matrices, x, |_| ())).collect(), axis)
            }
            None => self.products(&matrices, x, |_| ()),
        };
        y.cast(dtype)
    }

    fn backward(
        &self,
        x: Tensor<3>,
        a: &[Tensor<1>],
        grad: Tensor<3>,
        [by_x, by_a]: [bool; 2],
    ) -> (Option<Tensor<3>>, Vec<Tensor<1>>) {
        if let Some(found) = self.turned_gradient(&x, a, &grad, by_x, false) {
            return (found.x.map(|dx| dx.reshape(x.dims())), found.factors);
        }
        let dtype = grad.dtype();
        let (x, grad) = (x.cast(a[0].dtype()), grad.cast(a[0].dtype()));
        let matrices = self.matrices(a);
        let (axis, pieces) = match cut(&x).or_else(|| shares(&x)) {
            Some((axis, length)) => {
                (axis, x.split(length, axis).into_iter().zip(grad.split(length, axis)).collect())
            }
            None => (0, vec![(x, grad)]),
        };
        let pieces: Vec<_> = pieces
            .into_par_iter()
            .map(|(x, grad)| self.piece_backward(&matrices, x, grad, by_x, by_a))
            .collect();
        let (mut dx, mut da) = (Vec::with_capacity(pieces.len()), Vec::new());
        for (piece, gradients) in pieces {
            dx.extend(piece);
            da = if da.is_empty() {
                gradients
            } else {
                da.into_iter().zip(gradients).map(|(sum, gradient)| sum + gradient).collect()
            };
        }
        (by_x.then(|| Tensor::cat(dx, axis).cast(dtype)), self.flat(da))
    }
}

impl Modes {
    /// [`Function::forward`] by a kernel of the device's own, where it has one.
    fn turned(&self, x: &Tensor<3>, a: &[Tensor<1>]) -> Option<Tensor<3>> {
        let y = self.turn(&self.squares(x)?).product(&rows(x), a)?;
        Some(y.reshape(x.dims()))
    }

    /// [`Function::backward`], likewise; and [`Function::forward`] if `again`.
    fn turned_gradient(
        &self,
        x: &Tensor<3>,
        a: &[Tensor<1>],
        grad: &Tensor<3>,
        by_x: bool,
        again: bool,
    ) -> Option<TurnGradient> {
        self.turn(&self.squares(x)?).gradient(&rows(x), a, &rows(grad), by_x, again)
    }

    /// The gradients by `x`, if wanted, and by the matrices, with the product itself, for rows `[rows, Π nᵢ]`. Off the tape.
    pub(crate) fn gradient_again(
        &self,
        x: Tensor<2>,
        a: &[Tensor<1>],
        grad: Tensor<2>,
        by_x: bool,
    ) -> (Option<Tensor<2>>, Vec<Tensor<1>>, Tensor<2>) {
        let deep = |x: Tensor<2>| x.unsqueeze_dim::<3>(2);
        let (x, grad) = (deep(x), deep(grad));
        if let Some(TurnGradient { x: dx, factors, product: Some(y) }) =
            self.turned_gradient(&x, a, &grad, by_x, true)
        {
            return (dx, factors, y);
        }
        let y = rows(&self.forward(x.clone(), a));
        let (dx, da) = self.backward(x, a, grad, [by_x, true]);
        (dx.map(|dx| rows(&dx)), da, y)
    }

    fn turn<'a>(&self, sizes: &'a [usize]) -> Turn<'a> {
        Turn { sizes, transposed: self.transposed }
    }

    /// The matrices' sizes, where they are square and act on the last axis, off the tape.
    fn squares(&self, x: &Tensor<3>) -> Option<Vec<usize>> {
        let on_rows = x.dims()[2] == 1 && !x.is_autodiff();
        let sizes = self.sizes.iter().map(|&[p, n]| (on_rows && p == n).then_some(n));
        sizes.collect()
    }

    /// The matrices `Mᵢ` out of their vectors.
    fn matrices(&self, a: &[Tensor<1>]) -> Vec<Tensor<2>> {
        let matrices = a.iter().cloned().zip(&self.sizes).map(|(a, &[p, n])| {
            if self.transposed { a.reshape([n, p]).transpose() } else { a.reshape([p, n]) }
        });
        matrices.collect()
    }

    /// The inverse of [`Modes::matrices`].
    fn flat(&self, matrices: Vec<Tensor<2>>) -> Vec<Tensor<1>> {
        let orient = |m: Tensor<2>| if self.transposed { m.transpose() } else { m };
        matrices.into_iter().map(|m| orient(m).flatten(0, 1)).collect()
    }

    /// All products, from the last axis to the first; `keep` sees each one's argument.
    fn products(
        &self,
        matrices: &[Tensor<2>],
        x: Tensor<3>,
        mut keep: impl FnMut(&Tensor<3>),
    ) -> Tensor<3> {
        let [first, _, last] = x.dims();
        let mut after = last;
        let mut x = x;
        for (i, (matrix, &[p, n])) in matrices.iter().zip(&self.sizes).enumerate().rev() {
            let before = first * self.sizes[..i].iter().map(|[_, n]| n).product::<usize>();
            let argument = x.reshape([before, n, after]);
            keep(&argument);
            x = product(matrix, argument);
            after *= p;
        }
        let width = self.sizes.iter().map(|[p, _]| p).product::<usize>();
        x.reshape([first, width, last])
    }

    /// The gradients on one piece, by `x` where wanted and by the matrices.
    fn piece_backward(
        &self,
        matrices: &[Tensor<2>],
        x: Tensor<3>,
        grad: Tensor<3>,
        by_x: bool,
        by_a: bool,
    ) -> (Option<Tensor<3>>, Vec<Tensor<2>>) {
        let dims = x.dims();
        if dims[2] == 1 {
            return self.turned_backward(matrices, x, grad, by_x, by_a);
        }
        let mut arguments = Vec::with_capacity(matrices.len());
        if by_a {
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
                gradients.push(contracted(grad.clone(), argument.reshape([before, n, after])));
            }
            if by_x || i + 1 < matrices.len() {
                grad = product(&matrix.clone().transpose(), grad);
            }
        }
        (by_x.then(|| grad.reshape(dims)), gradients)
    }
}

impl Modes {
    /// [`Modes::piece_backward`] on `x` `[rows, Π nᵢ, 1]`: with `t⁽ⁱ⁾` `[rest, nᵢ]` the array before a matrix and
    /// `g⁽ⁱ⁾` `[pᵢ, rest]` the gradient after it, `∂L/∂Mᵢ = g⁽ⁱ⁾ t⁽ⁱ⁾` and `∂L/∂t⁽ⁱ⁾ = g⁽ⁱ⁾ᵀ Mᵢ`.
    fn turned_backward(
        &self,
        matrices: &[Tensor<2>],
        x: Tensor<3>,
        grad: Tensor<3>,
        by_x: bool,
        by_a: bool,
    ) -> (Option<Tensor<3>>, Vec<Tensor<2>>) {
        let split = |x: Tensor<2>, n: usize| {
            let rest = x.dims().iter().product::<usize>() / n;
            x.reshape([rest, n])
        };
        let (dims, mut t) = (x.dims(), x.squeeze_dim::<2>(2));
        let mut arguments = Vec::with_capacity(matrices.len());
        if by_a {
            for (matrix, &[_, n]) in matrices.iter().zip(&self.sizes).rev() {
                let argument = split(t, n);
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
            if by_x || i + 1 < matrices.len() {
                g = matmul(g.transpose(), matrix.clone());
            }
        }
        (by_x.then(|| g.reshape(dims)), gradients)
    }
}

/// `x` `[rows, Π nᵢ, 1]` as a matrix.
fn rows(x: &Tensor<3>) -> Tensor<2> {
    x.clone().flatten(1, 2)
}

/// `M x` for `x` `[before, n, after]`, along the axis of length n.
fn product(matrix: &Tensor<2>, x: Tensor<3>) -> Tensor<3> {
    let ([p, _], [before, n, after]) = (matrix.dims(), x.dims());
    if after == 1 {
        // The axis is contiguous: one plain matrix product.
        let y = matmul(x.reshape([before, n]), matrix.clone().transpose());
        return y.reshape([before, p, 1]);
    }
    matmul(matrix.clone().unsqueeze_dim::<3>(0), x)
}

/// `Σ g xᵀ` over `before`, for `g` `[before, p, after]` and `x` `[before, n, after]`: `[p, n]`.
fn contracted(g: Tensor<3>, x: Tensor<3>) -> Tensor<2> {
    let ([before, p, after], [_, n, _]) = (g.dims(), x.dims());
    if after == 1 {
        return matmul(g.reshape([before, p]).transpose(), x.reshape([before, n]));
    }
    matmul(g, x.transpose()).sum_dim(0).reshape([p, n])
}

/// Along which axis to cut `x` into pieces of what length.
fn cut(x: &Tensor<3>) -> Option<(usize, usize)> {
    let dims @ [before, _, after] = x.dims();
    let (axis, least) = if before >= after { (0, 1) } else { (2, COLUMNS) };
    let entries: usize = dims.iter().product();
    let length = (PIECE / (entries / dims[axis].max(1)).max(1)).max(least);
    (entries >= LARGE && length < dims[axis] && on_host(x)).then_some((axis, length))
}

/// The same where the rows of an array that is not that large are worth a task for each thread.
fn shares(x: &Tensor<3>) -> Option<(usize, usize)> {
    let [before, width, after] = x.dims();
    let length = before.div_ceil(rayon::current_num_threads());
    let worth = after == 1 && length < before && length * width >= SHARE;
    (worth && on_host(x)).then_some((0, length))
}
