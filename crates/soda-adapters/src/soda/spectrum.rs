//! The shift of a weight's spectral part: `W0ᵀ = L C B` with orthonormal `L`, and `C` moves.
//!
//! | basis | `L` | `C` | `B` | diagonal shift |
//! |---|---|---|---|---|
//! | SVD | `V` | `diag(s)` | `Uᵀ` | `diag(relu(s + δ))`, `ΔC = diag(max(δ, -s))` |
//! | QR | `Q` | `T` | `I` | `T + diag(δ)` |
//!
//! and for both a low-rank shift, `C + triu(A Aᵀ) - triu(A₀ A₀ᵀ)`.
//!
//! On the weight it is a correction, `W0ᵀ + L ΔC B`, so that a fresh adapter (`ΔC` exactly zero) changes no bit, which
//! rebuilding `W0` from its factors would.
//!
//! On rows of f32 there is a shorter form, `x (W0ᵀ + L ΔC B) = ((x L) (diag(s) + ΔC)) B` of the SVD: two products with the
//! factors and none with the weight. Factors that were rounded once make it as accurate as the plain product `x W0ᵀ`: a
//! fresh adapter changes roundings of the size that the product has itself (`tests/accuracy.rs`, `docs/math.md`). Half
//! precisions would round `x L`, so there the correction is added as on the weight.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use soda_kernels::{has_library, in_order, lasting, matmul, own, scale_columns};
use soda_linalg::{KronRows, LinalgError, Qr, Svd, with_gradient};

use super::turned::Turned;
use super::{Basis, Shift, SpectrumConfig};
use crate::cost::{Cost, product_dtype};
use crate::fold::{Decomposed, Weight};
use crate::init::Init;

/// A trainable shift in the frozen basis of one weight.
#[derive(Module, Debug)]
pub struct Spectrum {
    /// `δ`, `[k]`, of a diagonal shift.
    pub delta: Option<Param<Tensor<1>>>,
    /// `A` and `A₀` of a low-rank shift.
    pub low_rank: Option<LowRank>,
    /// `L`, `[in, k]`; recomputed from the base like the rest of the basis, never saved.
    left: Tensor<2>,
    /// `B`, `[k, out]`; absent where it is the identity on the first `k` outputs.
    right: Option<Tensor<2>>,
    /// Singular values, `[k]`, descending, of the SVD.
    s: Option<Tensor<1>>,
    /// `-s`, the least that `δ` may be, or `-∞` where the diagonal is no spectrum.
    least: Tensor<1>,
    /// Whether `L diag(s) B` stands for the weight in a product.
    exact: bool,
}

/// `t (triu(A Aᵀ) - triu(A₀ A₀ᵀ))`.
#[derive(Module, Debug)]
pub struct LowRank {
    /// `A`, `[k, r]`, trainable.
    pub a: Param<Tensor<2>>,
    /// `A₀`, frozen: random, because a zero start has a zero gradient; saved, because it is random.
    pub start: Param<Tensor<2>>,
    /// The strength.
    t: f64,
}

impl Spectrum {
    /// A fresh shift of `weight`, which is `w` `[in, out]` in the type that adapters compute in.
    ///
    /// # Errors
    /// A weight that cannot be decomposed.
    pub(crate) fn new(
        config: &SpectrumConfig,
        weight: &Weight,
        w: &Tensor<2>,
        init: &Init<'_>,
    ) -> Result<Self, LinalgError> {
        let (left, right, s, exact) = match config.basis {
            Basis::Svd => {
                let Decomposed { svd: Svd { u, s, vt }, exact } = weight.svd()?;
                (u, Some(vt), Some(s), exact)
            }
            Basis::Qr => (Qr::thin(w)?.q, None, None, false),
        };
        let k = left.dims()[1];
        // The basis is most of what the method keeps; it need not be finer than the products with it.
        let dtype = product_dtype(&weight.matrix, w.dtype());
        // Out of the stack that they were decomposed in, which is held as long as a part of it is.
        let kept = |factor: Tensor<2>, order: [usize; 2]| {
            let copy = |factor: Tensor<2>| match factor.dtype() == dtype {
                true => own(factor),
                false => factor.cast(dtype),
            };
            lasting(factor, |factor| in_order(copy(factor), order))
        };
        let (left, right, s) = match has_library(&weight.matrix) {
            // `Bᵀ` lies row by row, since its columns are scaled.
            true => (kept(left, [0, 1]), right.map(|right| kept(right, [1, 0])), s.map(own)),
            false => (left.cast(dtype), right.map(|right| right.cast(dtype)), s),
        };
        let least = match &s {
            Some(s) => s.clone().neg(),
            None => Tensor::full([k], f64::NEG_INFINITY, (&w.device(), w.dtype())),
        };
        let (mut delta, mut low_rank) = (None, None);
        match config.shift {
            Shift::Diagonal { init: start } => {
                let start = Tensor::full([k], start, (&w.device(), w.dtype()));
                delta = Some(Param::from_tensor(start));
            }
            Shift::LowRank { rank, .. } => {
                // `A₀ A₀ᵀ` has entries of order 1/k then, well below those of a weight's `T`.
                let start = init.normal("low_rank", [k, rank], 1.0 / ((k * rank) as f64).sqrt());
                low_rank = Some(LowRank {
                    a: Param::from_tensor(start.clone()),
                    start: Param::from_tensor(start).set_require_grad(false),
                    t: 1.0,
                });
            }
        }
        Ok(Self { delta, low_rank, left, right, s, least, exact })
    }

    /// `w + L ΔC B` for the weight `w` `[in, out]` it was made from.
    pub fn apply(&self, w: Tensor<2>) -> Tensor<2> {
        let output = w.dims()[1];
        let change = self.outward(self.times_shift(self.left.clone(), None), output);
        w.clone() + change.cast(w.dtype())
    }

    /// `x (w + L ΔC B)` for rows `x` `[rows, in]`, both of the network's float type.
    pub(crate) fn product(&self, x: Tensor<2>, w: &Tensor<2>) -> Tensor<2> {
        let (rows, [input, output]) = (x.dims()[0], w.dims());
        // A library's products are as quick on the weight, which may have far fewer rows.
        if has_library(&x) && self.cost(Cost::layer(rows, input, output), rows, w).is_by_weight() {
            return matmul(x, self.apply(w.clone()));
        }
        let l = matmul(x.clone().cast(self.left.dtype()), self.left.clone());
        if let Some(s) = self.in_factors(w) {
            return self.outward(self.times_shift(l, Some(s)), output);
        }
        // The base's product stays exact, the shift is added: a fresh adapter adds zeros.
        matmul(x, w.clone()) + self.outward(self.times_shift(l, None), output).cast(w.dtype())
    }

    /// `(x R) (w + L ΔC B)` for the factors of `R`, as one operation that keeps `x` alone: where a library multiplies, of a
    /// diagonal shift in an SVD's basis.
    pub(crate) fn turned_product(
        &self,
        x: &Tensor<2>,
        rotation: &[Tensor<2>],
        w: &Tensor<2>,
    ) -> Option<Tensor<2>> {
        let plain = |x: &Tensor<2>| x.clone().without_autodiff();
        let (delta, right) = (self.delta.as_ref()?, plain(self.right.as_ref()?));
        let alike = [w, &self.left, &right].iter().all(|m| m.dtype() == x.dtype());
        if !(alike && has_library(x)) || self.in_factors(w).is_some() {
            return None;
        }
        let sizes: Vec<usize> = rotation.iter().map(|factor| factor.dims()[0]).collect();
        let turned = Turned {
            rotation: KronRows::new(&sizes),
            weight: plain(w).transpose(),
            u: right.transpose(),
            v: plain(&self.left),
            least: self.least.clone().without_autodiff(),
        };
        let flat = rotation.iter().map(|factor| factor.clone().flatten(0, 1));
        let flat: Vec<_> = flat.chain([delta.val()]).collect();
        Some(with_gradient(&turned, x.clone().unsqueeze_dim(2), &flat).flatten(1, 2))
    }

    /// `s`, where a product with `w` is one with its factors.
    fn in_factors(&self, w: &Tensor<2>) -> Option<&Tensor<1>> {
        self.s.as_ref().filter(|_| self.exact && w.dtype() == self.left.dtype())
    }

    /// `l (diag(s) + ΔC)` for `l` `[rows, k]`.
    fn times_shift(&self, l: Tensor<2>, s: Option<&Tensor<1>>) -> Tensor<2> {
        match (&self.delta, &self.low_rank, s) {
            (Some(delta), _, Some(s)) => scale_columns(l, s.clone() + delta.val(), s.zeros_like()),
            (Some(delta), _, None) => scale_columns(l, delta.val(), self.least.clone()),
            (None, Some(low_rank), s) => {
                let change = matmul(l.clone(), low_rank.core().cast(l.dtype()));
                match s {
                    Some(s) => l * s.clone().unsqueeze_dim(0) + change,
                    None => change,
                }
            }
            (None, None, _) => l.zeros_like(),
        }
    }

    /// `columns B` for `columns` `[rows, k]`: `[rows, out]`.
    fn outward(&self, columns: Tensor<2>, output: usize) -> Tensor<2> {
        let [rows, k] = columns.dims();
        match &self.right {
            Some(right) => matmul(columns, right.clone()),
            None if k < output => {
                let rest = Tensor::zeros([rows, output - k], (&columns.device(), columns.dtype()));
                Tensor::cat(vec![columns, rest], 1)
            }
            None => columns,
        }
    }

    /// What it adds to the cost of a layer with the weight `w`: the product with `L` on the input side only, that with
    /// `B` on both.
    pub(crate) fn cost(&self, cost: Cost, rows: usize, w: &Tensor<2>) -> Cost {
        let [input, k] = self.left.dims();
        // On the weight, `L ΔC` is formed by columns and costs no product of its own.
        let output = if self.right.is_some() { w.dims()[1] } else { 0 };
        let cost = cost.and_factors(rows, input, k, output);
        if self.in_factors(w).is_some() { cost.without_base(rows, w.dims()) } else { cost }
    }

    /// `t` times the shift.
    pub(crate) fn at_strength(self, t: f64) -> Self {
        Self {
            delta: self.delta.map(|delta| delta.map(|delta| delta.mul_scalar(t))),
            low_rank: self.low_rank.map(|low_rank| LowRank { t: low_rank.t * t, ..low_rank }),
            ..self
        }
    }

    /// `Σ λᵢ δᵢ`; none of none, and an error where the shifts are of different bases or of low rank,
    /// whose sum is none of theirs.
    pub(crate) fn combine(parts: Vec<(f64, Self)>) -> Result<Option<Self>, Incompatible> {
        let Some((_, first)) = parts.first().cloned() else { return Ok(None) };
        let mut sum: Option<Tensor<1>> = None;
        for (weight, part) in parts {
            let delta = part.delta.filter(|_| part.s.is_some() == first.s.is_some());
            let delta = delta.ok_or(Incompatible)?.val().mul_scalar(weight);
            sum = Some(match sum {
                Some(sum) => sum + delta,
                None => delta,
            });
        }
        Ok(Some(Self { delta: sum.map(Param::from_tensor), ..first }))
    }
}

/// Shifts that do not add up to one.
pub(crate) struct Incompatible;

impl LowRank {
    /// `[k, k]`, exactly zero at the start.
    fn core(&self) -> Tensor<2> {
        let gram = |a: Tensor<2>| matmul(a.clone(), a.transpose());
        (gram(self.a.val()) - gram(self.start.val())).triu(0).mul_scalar(self.t)
    }
}
