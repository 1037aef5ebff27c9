//! The shift of some singular values: `W0ᵀ + V_k diag(max(δ, -s_k)) U_kᵀ`.
//!
//! The `k` triples are stored with the adapter, so that nothing is decomposed where it is loaded, and the
//! rest of the basis is never kept. The change has rank `k`.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use soda_kernels::{deep_copy, scale_columns, with_stride_order};

use super::config::Selection;
use crate::directions::Directions;
use crate::weight::{Weight, WeightSvd};

use soda_linalg::LinalgError;

/// A trainable shift of `k` singular values of one weight.
#[derive(Module, Debug)]
pub struct TruncatedSpectrum {
    /// `δ`, `[k]`, trainable.
    pub delta: Param<Tensor<1>>,
    /// `V_k`, `[in, k]`, frozen.
    pub left: Param<Tensor<2>>,
    /// `U_k`, `[out, k]`, frozen.
    pub right: Param<Tensor<2>>,
    /// `s_k`, `[k]`, frozen.
    pub s: Param<Tensor<1>>,
}

impl TruncatedSpectrum {
    /// Makes the initial shift of at most `k` singular values of `weight`. `w` is its matrix `[in, out]` in
    /// the type that adapters compute in.
    ///
    /// # Errors
    /// A weight that cannot be decomposed.
    pub(crate) fn new(
        k: usize,
        selection: Selection,
        start: f32,
        weight: &Weight,
        w: &Tensor<2>,
    ) -> Result<Self, LinalgError> {
        let [input, output] = w.dims();
        let k = k.min(input).min(output);
        let place = (&w.device(), w.dtype());
        let delta = Tensor::full([k], start, place);
        if let Directions::InState = weight.directions() {
            let (left, right) =
                (Tensor::zeros([input, k], place), Tensor::zeros([output, k], place));
            return Ok(Self::from_parts(delta, left, right, Tensor::zeros([k], place)));
        }
        let WeightSvd { svd, .. } = weight.svd()?;
        let chosen = match (selection, weight.directions()) {
            (Selection::Gradient, Directions::Measured(directions)) => {
                directions.spectrum.as_ref().map(|size| largest(size, k))
            }
            _ => None,
        };
        let (left, right, s) = (svd.u, svd.vt.transpose(), svd.s);
        let (left, right, s) = match chosen {
            Some(chosen) => (
                left.select(1, chosen.clone()),
                right.select(1, chosen.clone()),
                s.select(0, chosen),
            ),
            None => (left.narrow(1, 0, k), right.narrow(1, 0, k), s.narrow(0, 0, k)),
        };
        let (left, right) = (copy_in_order(left), copy_in_order(right));
        Ok(Self::from_parts(delta, left, right, deep_copy(s)))
    }

    fn from_parts(delta: Tensor<1>, left: Tensor<2>, right: Tensor<2>, s: Tensor<1>) -> Self {
        Self {
            delta: Param::from_tensor(delta),
            left: Param::from_tensor(left).set_require_grad(false),
            right: Param::from_tensor(right).set_require_grad(false),
            s: Param::from_tensor(s).set_require_grad(false),
        }
    }

    /// Whether both shift the same singular values along the same vectors, to the bit.
    fn has_triples_of(&self, other: &Self) -> bool {
        fn same<const D: usize>(a: &Param<Tensor<D>>, b: &Param<Tensor<D>>) -> bool {
            a.dims() == b.dims() && a.val().equal(b.val()).all().into_scalar::<bool>()
        }
        same(&self.s, &other.s) && same(&self.left, &other.left) && same(&self.right, &other.right)
    }

    /// `U_k diag(max(δ, -s_k))`, `[out, k]`.
    pub(crate) fn scaled_right(&self) -> Tensor<2> {
        scale_columns(self.right.val(), self.delta.val(), self.s.val().neg())
    }

    /// Scales the shift by `t`.
    pub(crate) fn at_strength(self, t: f64) -> Self {
        Self { delta: self.delta.map(|delta| delta.mul_scalar(t)), ..self }
    }

    /// The weighted sum of several shifts. Those of the same triples are added, so that their bound holds for
    /// the sum. Otherwise all triples are side by side.
    pub(crate) fn merge(weighted: Vec<(f64, Self)>) -> Option<Self> {
        if weighted.len() < 2 {
            return weighted.into_iter().next().map(|(weight, shift)| shift.at_strength(weight));
        }
        if weighted.windows(2).all(|pair| pair[0].1.has_triples_of(&pair[1].1)) {
            let sum = weighted
                .iter()
                .map(|(weight, shift)| shift.delta.val().mul_scalar(*weight))
                .reduce(|sum, delta| sum + delta)?;
            let (_, Self { left, right, s, .. }) = weighted.into_iter().next()?;
            return Some(Self::from_parts(sum, left.val(), right.val(), s.val()));
        }
        let vectors = |select: fn(&Self) -> &Param<Tensor<2>>| {
            Tensor::cat(weighted.iter().map(|(_, shift)| select(shift).val()).collect(), 1)
        };
        let values = |select: fn(f64, &Self) -> Tensor<1>| {
            Tensor::cat(weighted.iter().map(|(weight, shift)| select(*weight, shift)).collect(), 0)
        };
        Some(Self::from_parts(
            values(|weight, shift| shift.delta.val().mul_scalar(weight)),
            vectors(|shift| &shift.left),
            vectors(|shift| &shift.right),
            values(|_, shift| shift.s.val()),
        ))
    }
}

/// The places of the `k` largest values, in ascending order.
fn largest(values: &Tensor<1>, k: usize) -> Tensor<1, Int> {
    let host: Vec<f32> = values.clone().into_data().iter().collect();
    let mut order: Vec<usize> = (0..host.len()).collect();
    order.sort_by(|a, b| host[*b].total_cmp(&host[*a]));
    order.truncate(k);
    order.sort_unstable();
    let order: Vec<i32> = order.into_iter().map(|place| place as i32).collect();
    Tensor::from_ints(order.as_slice(), &values.device())
}

/// Copies columns of a decomposition in the order in which they are read from a file again.
///
/// A view would keep the whole decomposition in memory, and a library may round a product by the order of its
/// factors.
pub(super) fn copy_in_order(columns: Tensor<2>) -> Tensor<2> {
    deep_copy(with_stride_order(columns, [0, 1]))
}
