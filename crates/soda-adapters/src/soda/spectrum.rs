//! The shift of a weight's spectral part: `W0ᵀ = L C B` with orthonormal `L`, and `C` moves.
//!
//! | basis | `L` | `C` | `B` | diagonal shift |
//! |---|---|---|---|---|
//! | SVD | `V` | `diag(s)` | `Uᵀ` | `diag(relu(s + δ))` |
//! | QR | `Q` | `T` | `I` | `T + diag(δ)` |
//!
//! and for both a low-rank shift, `C + triu(A Aᵀ) - triu(A₀ A₀ᵀ)`.
//!
//! It is applied as a correction of the exact weight, `W0ᵀ + L ΔC B`, so that a fresh adapter (`ΔC`
//! exactly zero) changes no bit, which rebuilding `W0` from its factors would.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation};
use soda_kernels::matmul;
use soda_linalg::{LinalgError, Qr, Svd};

use super::{Basis, Shift, SpectrumConfig};
use crate::cost::Cost;
use crate::fold::Weight;
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
        let (left, right, s) = match config.basis {
            Basis::Svd => {
                let Svd { u, s, vt } = weight.svd(w)?;
                (u, Some(vt), Some(s))
            }
            Basis::Qr => (Qr::thin(w)?.q, None, None),
        };
        let k = left.dims()[1];
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
        Ok(Self { delta, low_rank, left, right, s })
    }

    /// `w + L ΔC B` for the weight `w` `[in, out]` it was made from.
    pub fn apply(&self, w: Tensor<2>) -> Tensor<2> {
        let output = w.dims()[1];
        w + self.times_core(self.left.clone(), output)
    }

    /// `x L ΔC B` for rows `x` `[rows, in]`, in the basis' float type.
    pub(crate) fn product(&self, x: Tensor<2>, output: usize) -> Tensor<2> {
        self.times_core(matmul(x.cast(self.left.dtype()), self.left.clone()), output)
    }

    /// `l ΔC B` for `l` `[rows, k]`: `[rows, out]`.
    fn times_core(&self, l: Tensor<2>, output: usize) -> Tensor<2> {
        let [rows, k] = l.dims();
        let columns = match (&self.delta, &self.low_rank) {
            (Some(delta), _) => l * self.gain(delta.val()).unsqueeze_dim(0),
            (None, Some(low_rank)) => matmul(l, low_rank.core()),
            (None, None) => l.zeros_like(),
        };
        match &self.right {
            Some(right) => matmul(columns, right.clone()),
            None if k < output => {
                let rest = Tensor::zeros([rows, output - k], (&columns.device(), columns.dtype()));
                Tensor::cat(vec![columns, rest], 1)
            }
            None => columns,
        }
    }

    /// What it adds to the cost of a layer: the product with `L` on the input side only, that with `B` on
    /// both.
    pub(crate) fn cost(&self, cost: Cost, rows: usize, output: usize) -> Cost {
        let [input, k] = self.left.dims();
        // On the weight, `L ΔC` is formed by columns and costs no product of its own.
        let output = if self.right.is_some() { output } else { 0 };
        cost.and_factors(rows, input, k, output)
    }

    /// The diagonal of `ΔC`.
    fn gain(&self, delta: Tensor<1>) -> Tensor<1> {
        match &self.s {
            Some(s) => activation::relu(s.clone() + delta) - s.clone(),
            None => delta,
        }
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
