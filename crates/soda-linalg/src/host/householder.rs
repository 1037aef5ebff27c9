//! The QR decomposition by blocked Householder reflections (Golub and Van Loan, Matrix Computations, 5.2).
//!
//! ```text
//! H = I - v vᵀ / τ,  v1 = 1,  H x = ∓|x| e1                A = H1 H2 … Hk R
//! H1 … Hb = I - V T⁻¹ Vᵀ,   T = triu(VᵀV) with τ on the diagonal
//! ```
//!
//! faer's own QR treats a column as dependent once its remainder falls below `16 m ε` of its norm, and drops
//! the remainder. The backward error of a tall f32 matrix is then 1e-3. Here every column is reflected, with
//! faer's kernels.
//!
//! Blocks are halved down to single columns (Elmroth and Gustavson 2000), so that nearly all arithmetic is in
//! matrix products.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::householder::{
    apply_block_householder_on_the_left_in_place_scratch,
    apply_block_householder_sequence_on_the_left_in_place_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj,
    apply_block_householder_transpose_on_the_left_in_place_with_conj, make_householder_in_place,
};
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::qr::no_pivoting::factor::recommended_block_size;
use faer::prelude::*;
use faer::{Accum, Conj, Mat, MatMut, MatRef, Par};

use super::real::Real;

/// A QR decomposition with `Q` as reflections; the diagonal of `R` has any sign.
pub(super) struct Householder<T> {
    /// `R` on and above the diagonal, the vectors `v` below it.
    packed: Mat<T>,
    /// The matrices `T` of the blocks, side by side.
    factors: Mat<T>,
    par: Par,
}

impl<T: Real> Householder<T> {
    /// Decomposes `a`.
    pub(super) fn new(a: MatRef<'_, T>, par: Par) -> Self {
        let (m, n) = a.shape();
        let k = m.min(n);
        let block = recommended_block_size::<T>(m, n);
        let (mut packed, mut factors) = (a.to_owned(), Mat::zeros(block, k));
        let scratch = apply_block_householder_on_the_left_in_place_scratch::<T>(m, block, n);
        let mut buffer = MemBuffer::new(scratch);
        let stack = MemStack::new(&mut buffer);
        for start in (0..k).step_by(block) {
            let width = block.min(k - start);
            let rest = packed.as_mut().split_at_row_mut(start).1.split_at_col_mut(start).1;
            let (mut panel, rest) = rest.split_at_col_mut(width);
            let mut factor = factors.as_mut().submatrix_mut(0, start, width, width);
            reflect(panel.rb_mut(), factor.rb_mut(), stack);
            apply_transpose(panel.rb(), factor.rb(), rest, par, stack);
        }
        Self { packed, factors, par }
    }

    /// The thin `R`, `[k, n]`.
    pub(super) fn r(&self) -> Mat<T> {
        let (k, n, zero) = (self.factors.ncols(), self.packed.ncols(), T::from_f64(0.0));
        Mat::from_fn(k, n, |i, j| if i <= j { self.packed[(i, j)] } else { zero })
    }

    /// The thin `Q`, `[m, k]`.
    pub(super) fn q(&self) -> Mat<T> {
        let k = self.factors.ncols();
        self.q_times(Mat::<T>::identity(k, k).as_ref())
    }

    /// `Q c`, `[m, p]`, for `c` `[k, p]`.
    pub(super) fn q_times(&self, c: MatRef<'_, T>) -> Mat<T> {
        let (m, (block, k), p) = (self.packed.nrows(), self.factors.shape(), c.ncols());
        let mut out = Mat::zeros(m, p);
        out.submatrix_mut(0, 0, k, p).copy_from(c);
        let scratch =
            apply_block_householder_sequence_on_the_left_in_place_scratch::<T>(m, block, p);
        apply_block_householder_sequence_on_the_left_in_place_with_conj(
            self.packed.as_ref().subcols(0, k),
            self.factors.as_ref(),
            Conj::No,
            out.as_mut(),
            self.par,
            MemStack::new(&mut MemBuffer::new(scratch)),
        );
        out
    }
}

/// Reflects the columns of `a`, at most as many as it has rows, and writes their `T` to `factor`.
fn reflect<T: Real>(a: MatMut<'_, T>, factor: MatMut<'_, T>, stack: &mut MemStack) {
    let width = a.ncols();
    if width == 1 {
        let (mut head, tail) = a.col_mut(0).split_at_row_mut(1);
        let mut factor = factor;
        factor[(0, 0)] = make_householder_in_place(&mut head[0], tail).tau;
        return;
    }
    let half = width / 2;
    let (mut left, mut right) = a.split_at_col_mut(half);
    let (mut factor_left, across, _, factor_right) = factor.split_at_mut(half, half);
    reflect(left.rb_mut(), factor_left.rb_mut(), stack);
    apply_transpose(left.rb(), factor_left.rb(), right.rb_mut(), Par::Seq, stack);
    let mut right = right.split_at_row_mut(half).1;
    reflect(right.rb_mut(), factor_right, stack);
    inner_products(left.rb().split_at_row(half).1, right.rb(), across);
}

/// Sets `out = leftᵀ V`, where `V` is lower trapezoidal with ones on its diagonal.
fn inner_products<T: Real>(left: MatRef<'_, T>, v: MatRef<'_, T>, mut out: MatMut<'_, T>) {
    let (left_top, left_rest) = left.split_at_row(v.ncols());
    let (v_top, v_rest) = v.split_at_row(v.ncols());
    let parts = [
        (Accum::Replace, left_top, v_top, BlockStructure::UnitTriangularLower),
        (Accum::Add, left_rest, v_rest, BlockStructure::Rectangular),
    ];
    let full = BlockStructure::Rectangular;
    for (accum, left, v, structure) in parts {
        let one = T::from_f64(1.0);
        let (left, out) = (left.transpose(), out.rb_mut());
        triangular::matmul(out, full, accum, left, full, v, structure, one, Par::Seq);
    }
}

/// Sets `rest <- (I - V T⁻¹ Vᵀ)ᵀ rest`.
fn apply_transpose<T: Real>(
    v: MatRef<'_, T>,
    factor: MatRef<'_, T>,
    rest: MatMut<'_, T>,
    par: Par,
    stack: &mut MemStack,
) {
    if rest.ncols() > 0 {
        apply_block_householder_transpose_on_the_left_in_place_with_conj(
            v,
            factor,
            Conj::No,
            rest,
            par,
            stack,
        );
    }
}
