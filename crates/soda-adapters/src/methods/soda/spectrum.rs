//! The shift `ΔC` of a weight's spectral part: `W0ᵀ = L C B` with orthonormal `L`.
//!
//! | basis | `L` | `C` | `B` | diagonal shift |
//! |---|---|---|---|---|
//! | SVD | `V` | `diag(s)` | `Uᵀ` | `diag(relu(s + δ))`, `ΔC = diag(max(δ, -s))` |
//! | QR | `Q` | `T` | `I` | `T + diag(δ)` |
//!
//! Both bases also have a low-rank shift, `C + triu(A Aᵀ) - triu(A₀ A₀ᵀ)`.
//!
//! The weight gets a correction, `W0ᵀ + L ΔC B`. An initial adapter has a `ΔC` of exactly zero and changes no
//! bit, while rebuilding `W0` from its factors would round.
//!
//! Rows in f32 have a shorter form with the SVD: `x (W0ᵀ + L ΔC B) = ((x L) (diag(s) + ΔC)) B` needs two
//! products with the factors and none with the weight. With factors that were rounded once, its rounding
//! errors have the size of those of the plain product `x W0ᵀ` (`tests/accuracy.rs`, `docs/math.md`). Half
//! precision would round `x L`, so there the correction is added to the plain product.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use soda_kernels::{deep_copy, has_vendor_blas, matmul, scale_columns, with_stride_order};
use soda_linalg::{KroneckerRows, LinalgError, Qr, Svd, apply_autograd};

use super::config::{Basis, Shift, SpectrumConfig};
use super::fused::FusedLayer;
use crate::base_weight::BaseWeight;
use crate::methods::cost_model::CostModel;
use crate::seeded_init::SeededInit;
use crate::weight::{Weight, WeightSvd};

/// A trainable shift of the spectral part of one weight, in a frozen basis.
#[derive(Module, Debug)]
pub struct Spectrum {
    /// `δ` of a diagonal shift, `[k]`, trainable.
    pub delta: Option<Param<Tensor<1>>>,
    /// `A` and `A₀` of a low-rank shift.
    pub low_rank: Option<LowRank>,
    /// `L`, `[in, k]`. The basis follows from the base weight and is not saved.
    left: Tensor<2>,
    /// `B`, `[k, out]`; `None` for the identity on the first `k` outputs.
    right: Option<Tensor<2>>,
    /// The singular values of an SVD, `[k]`, descending.
    s: Option<Tensor<1>>,
    /// The lower bound of `δ`, `[k]`: `-s` of an SVD, `-∞` of a QR.
    lower_bound: Tensor<1>,
    /// Whether `L diag(s) B` may replace the weight in a product.
    exact: bool,
}

/// A low-rank shift `t (triu(A Aᵀ) - triu(A₀ A₀ᵀ))`.
#[derive(Module, Debug)]
pub struct LowRank {
    /// `A`, `[k, r]`, trainable.
    pub a: Param<Tensor<2>>,
    /// `A₀`, `[k, r]`, frozen. It is random because zeros would have a zero gradient, and it is saved.
    pub start: Param<Tensor<2>>,
    /// The strength.
    t: f64,
}

impl Spectrum {
    /// Makes the initial shift of `weight`. `w` is its matrix `[in, out]` in the type that adapters compute
    /// in.
    ///
    /// # Errors
    /// A weight that cannot be decomposed.
    pub(crate) fn new(
        config: &SpectrumConfig,
        weight: &Weight,
        w: &Tensor<2>,
        init: &SeededInit<'_>,
    ) -> Result<Self, LinalgError> {
        let (left, right, s, exact) = match config.basis {
            Basis::Svd => {
                let WeightSvd { svd: Svd { u, s, vt }, exact } = weight.svd()?;
                (u, Some(vt), Some(s), exact)
            }
            Basis::Qr => (Qr::thin(w)?.q, None, None, false),
        };
        let k = left.dims()[1];
        // The basis takes most of the method's memory, and need not be more precise than the products with
        // it.
        let dtype = weight.factor_dtype();
        let exact = exact && dtype == w.dtype();
        // Copies out of the batch of decompositions, whose memory stays allocated as long as a view of it
        // exists.
        let persistent = |factor: Tensor<2>, order: [usize; 2]| {
            let copy = |factor: Tensor<2>| match factor.dtype() == dtype {
                true => deep_copy(factor),
                false => factor.cast(dtype),
            };
            soda_kernels::persistent(factor, |factor| with_stride_order(copy(factor), order))
        };
        let (left, right, s) = match weight.has_vendor_blas() {
            // The columns of `Bᵀ` are scaled, so `Bᵀ` is in row-major order.
            true => (
                persistent(left, [0, 1]),
                right.map(|right| persistent(right, [1, 0])),
                s.map(deep_copy),
            ),
            false => (left.cast(dtype), right.map(|right| right.cast(dtype)), s),
        };
        let lower_bound = match &s {
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
                // This deviation gives `A₀ A₀ᵀ` entries of order 1/k, far below those of `T`.
                let start = init.normal("low_rank", [k, rank], 1.0 / ((k * rank) as f64).sqrt());
                low_rank = Some(LowRank {
                    a: Param::from_tensor(start.clone()),
                    start: Param::from_tensor(start).set_require_grad(false),
                    t: 1.0,
                });
            }
        }
        Ok(Self { delta, low_rank, left, right, s, lower_bound, exact })
    }

    /// Computes `w + L ΔC B` for the weight `w` `[in, out]` that the shift was made from.
    pub fn apply(&self, w: Tensor<2>) -> Tensor<2> {
        let output = w.dims()[1];
        let change = self.times_right(self.times_shift(self.left.clone(), None), output);
        w.clone() + change.cast(w.dtype())
    }

    /// Computes `x (w + L ΔC B)` for rows `x` `[rows, in]`: `[rows, out]`. Both are in the float type of the
    /// network.
    pub(crate) fn product(&self, x: Tensor<2>, w: &BaseWeight) -> Tensor<2> {
        let (rows, [input, output]) = (x.dims()[0], w.dims());
        // A vendor's library multiplies the weight as fast, and the weight may have far fewer rows.
        let cost = self.cost(CostModel::layer(rows, input, output), rows, w);
        if let Some(w) = w.as_float()
            && has_vendor_blas(&x)
            && cost.weight_is_cheaper()
        {
            return matmul(x, self.apply(w.clone()));
        }
        let l = matmul(x.clone().cast(self.left.dtype()), self.left.clone());
        if let Some(s) = self.factored_spectrum(w.as_float()) {
            return self.times_right(self.times_shift(l, Some(s)), output);
        }
        // Added to the exact product of the base, the shift of an initial adapter is zero.
        w.product(x) + self.times_right(self.times_shift(l, None), output).cast(w.dtype())
    }

    /// Computes `(x R) (w + L ΔC B)` as one operation, which keeps only `x` for the backward pass.
    ///
    /// `rotation` has the factors of `R`. Returns `None` unless a vendor's library multiplies and the shift
    /// is diagonal in the basis of an SVD.
    pub(crate) fn fused_product(
        &self,
        x: &Tensor<2>,
        rotation: &[Tensor<2>],
        w: &Tensor<2>,
    ) -> Option<Tensor<2>> {
        let plain = |x: &Tensor<2>| x.clone().without_autodiff();
        let (delta, right) = (self.delta.as_ref()?, plain(self.right.as_ref()?));
        let same_dtype = [w, &self.left, &right].iter().all(|m| m.dtype() == x.dtype());
        if !(same_dtype && has_vendor_blas(x)) || self.factored_spectrum(Some(w)).is_some() {
            return None;
        }
        let sizes: Vec<usize> = rotation.iter().map(|factor| factor.dims()[0]).collect();
        let layer = FusedLayer {
            rotation: KroneckerRows::new(&sizes),
            weight: plain(w).transpose(),
            u: right.transpose(),
            v: plain(&self.left),
            lower_bound: self.lower_bound.clone().without_autodiff(),
        };
        let flat = rotation.iter().map(|factor| factor.clone().flatten(0, 1));
        let flat: Vec<_> = flat.chain([delta.val()]).collect();
        Some(apply_autograd(&layer, x.clone().unsqueeze_dim(2), &flat).flatten(1, 2))
    }

    /// The singular values, if the factors replace the weight `w` in a product. They are those of the
    /// weight in the file, and so do not replace a quantized one, which is `None`.
    fn factored_spectrum(&self, w: Option<&Tensor<2>>) -> Option<&Tensor<1>> {
        let dtype = w?.dtype();
        self.s.as_ref().filter(|_| self.exact && dtype == self.left.dtype())
    }

    /// Computes `l (diag(s) + ΔC)` for `l` `[rows, k]`, or `l ΔC` without `s`.
    fn times_shift(&self, l: Tensor<2>, s: Option<&Tensor<1>>) -> Tensor<2> {
        match (&self.delta, &self.low_rank, s) {
            (Some(delta), _, Some(s)) => scale_columns(l, s.clone() + delta.val(), s.zeros_like()),
            (Some(delta), _, None) => scale_columns(l, delta.val(), self.lower_bound.clone()),
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

    /// Computes `columns B` for `columns` `[rows, k]`: `[rows, out]`.
    fn times_right(&self, columns: Tensor<2>, output: usize) -> Tensor<2> {
        let [rows, k] = columns.dims();
        match &self.right {
            Some(right) => matmul(columns, right.clone()),
            None if k < output => {
                let padding =
                    Tensor::zeros([rows, output - k], (&columns.device(), columns.dtype()));
                Tensor::cat(vec![columns, padding], 1)
            }
            None => columns,
        }
    }

    /// Adds the cost of the shift to that of a layer with the weight `w`.
    ///
    /// The input side multiplies with `L` and `B`, the weight side with `B`.
    pub(crate) fn cost(&self, cost: CostModel, rows: usize, w: &BaseWeight) -> CostModel {
        let [input, k] = self.left.dims();
        // On the weight, `L ΔC` scales columns and is no product.
        let output = if self.right.is_some() { w.dims()[1] } else { 0 };
        let cost = cost.and_factors(rows, input, k, output);
        if self.factored_spectrum(w.as_float()).is_some() {
            cost.without_base(rows, w.dims())
        } else {
            cost
        }
    }

    /// Scales the shift by `t`.
    pub(crate) fn at_strength(self, t: f64) -> Self {
        Self {
            delta: self.delta.map(|delta| delta.map(|delta| delta.mul_scalar(t))),
            low_rank: self.low_rank.map(|low_rank| LowRank { t: low_rank.t * t, ..low_rank }),
            ..self
        }
    }

    /// Merges weighted diagonal shifts of one basis to `Σ λᵢ δᵢ`; an empty list gives `None`.
    ///
    /// # Errors
    /// Shifts of different bases or of low rank, whose sum has neither form.
    pub(crate) fn merge(weighted: Vec<(f64, Self)>) -> Result<Option<Self>, Incompatible> {
        let Some((_, first)) = weighted.first().cloned() else { return Ok(None) };
        let mut sum: Option<Tensor<1>> = None;
        for (weight, shift) in weighted {
            let delta = shift.delta.filter(|_| shift.s.is_some() == first.s.is_some());
            let delta = delta.ok_or(Incompatible)?.val().mul_scalar(weight);
            sum = Some(match sum {
                Some(sum) => sum + delta,
                None => delta,
            });
        }
        Ok(Some(Self { delta: sum.map(Param::from_tensor), ..first }))
    }
}

/// The error of shifts that have no common form.
pub(crate) struct Incompatible;

impl LowRank {
    /// Computes `ΔC`, `[k, k]`, which is exactly zero initially.
    fn core(&self) -> Tensor<2> {
        let gram = |a: Tensor<2>| matmul(a.clone(), a.transpose());
        (gram(self.a.val()) - gram(self.start.val())).triu(0).mul_scalar(self.t)
    }
}
