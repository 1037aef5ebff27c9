//! A layer of SODA as one operation: the spectrum of its weight shifts, its input turns.
//!
//! ```text
//! W0 = U diag(s) Vᵀ      d = max(δ, -s)      W = W0 + U diag(d) Vᵀ      y = x R Wᵀ
//! ```
//!
//! Its gradient starts from `x` again. On the tape there is `x`, which the layers that read it share, and not what lies between,
//! which is most of what a step with SODA would keep.
//!
//! There are three ways through it, of which each pass takes the shortest ([`Way`]):
//!
//! ```text
//! rows            t = x R      y = t W0ᵀ + (t V diag(d)) Uᵀ      e = dy U      dt = dy W0 + (e diag(d)) Vᵀ      dδ = colsum((t V) ∘ e)
//! weight          t = x R      y = t Wᵀ                          dt = dy W     dW = dyᵀ t                     dδ = colsum(U ∘ (dW V))
//! turned weight   M = W Rᵀ     y = x Mᵀ                          dx = dy M     dM = dyᵀ x                     dδ = colsum(U ∘ (dW V))
//! ```
//!
//! where the gradient of `t = x R` gives `dx` and `dR` from `dt`, and that of `M = W Rᵀ` gives `dW` and `dR` from `dM`.

use burn::tensor::Tensor;
use soda_kernels::{matmul, matmul_onto, scale_columns, scale_columns_gradient};
use soda_linalg::{Function, KronRows};

/// The function of rows `x` `[rows, in, 1]` and of the factors of `R`, with `δ` as the last. All but the vectors are of one type.
#[derive(Clone, Debug)]
pub(super) struct Turned {
    /// `x R` of rows `x`.
    pub(super) rotation: KronRows,
    /// `W0`, `[out, in]`.
    pub(super) weight: Tensor<2>,
    /// `U`, `[out, k]`.
    pub(super) u: Tensor<2>,
    /// `V`, `[in, k]`.
    pub(super) v: Tensor<2>,
    /// `-s`, `[k]`.
    pub(super) least: Tensor<1>,
}

/// What is formed on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// No weight.
    Rows,
    /// The shifted weight.
    Weight,
    /// The shifted weight, turned: its rows are `out`, however many the input has.
    TurnedWeight,
}

/// Multiply-adds of a product that take as long as turning one number of a row, forward and in the gradient: measured on
/// Hopper in bfloat16 (`docs/gpu.md`).
const TURN: [usize; 2] = [1600, 4000];

impl Turned {
    /// The shortest ways for so many rows, forward and in the gradient.
    fn ways(&self, rows: usize) -> [Way; 2] {
        let ([output, input], k) = (self.weight.dims(), self.u.dims()[1]);
        let (layer, shift) = (rows * input * output, input * output * k);
        let shortest = |on_rows: usize, on_weight: usize, turn: usize| {
            let turned = |by: usize| by * input * turn;
            let costs = [
                (on_rows + turned(rows), Way::Rows),
                (on_weight + turned(rows), Way::Weight),
                (on_weight + turned(output), Way::TurnedWeight),
            ];
            costs.into_iter().min_by_key(|(cost, _)| *cost).map_or(Way::Rows, |(_, way)| way)
        };
        [
            shortest(layer + rows * k * (input + output), shift + layer, TURN[0]),
            shortest(layer + rows * k * (output + 2 * input), 2 * (shift + layer), TURN[1]),
        ]
    }

    /// `W`.
    fn shifted(&self, delta: &Tensor<1>) -> Tensor<2> {
        let columns = scale_columns(self.u.clone(), delta.clone(), self.least.clone());
        matmul_onto(columns, self.v.clone().transpose(), self.weight.clone())
    }

    /// `dδ` from `dW`.
    fn by_delta(&self, delta: &Tensor<1>, dw: Tensor<2>) -> Tensor<1> {
        let along = matmul(dw, self.v.clone());
        scale_columns_gradient(self.u.clone(), along, delta.clone(), self.least.clone())
    }
}

impl Function for Turned {
    fn forward(&self, x: Tensor<3>, a: &[Tensor<1>]) -> Tensor<3> {
        let (delta, factors) = parts(a);
        let x = x.flatten::<2>(1, 2);
        let way = self.ways(x.dims()[0])[0];
        let y = match way {
            Way::Rows => {
                let t = self.rotation.product(x, factors);
                let columns = matmul(t.clone(), self.v.clone());
                let columns = scale_columns(columns, delta.clone(), self.least.clone());
                let y = matmul(t, self.weight.clone().transpose());
                matmul_onto(columns, self.u.clone().transpose(), y)
            }
            Way::Weight => {
                matmul(self.rotation.product(x, factors), self.shifted(delta).transpose())
            }
            Way::TurnedWeight => {
                let turn = self.rotation.clone().transposed();
                matmul(x, turn.product(self.shifted(delta), factors).transpose())
            }
        };
        y.unsqueeze_dim(2)
    }

    fn backward(
        &self,
        x: Tensor<3>,
        a: &[Tensor<1>],
        grad: Tensor<3>,
        [by_x, _]: [bool; 2],
    ) -> (Option<Tensor<3>>, Vec<Tensor<1>>) {
        let (delta, factors) = parts(a);
        let (x, dy) = (x.flatten::<2>(1, 2), grad.flatten::<2>(1, 2));
        let way = self.ways(x.dims()[0])[1];
        let (dx, by_factors, by_delta) = match way {
            Way::Rows => {
                let e = matmul(dy.clone(), self.u.clone());
                let columns = scale_columns(e.clone(), delta.clone(), self.least.clone());
                let dt = matmul(dy, self.weight.clone());
                let dt = matmul_onto(columns, self.v.clone().transpose(), dt);
                let turned = self.rotation.gradient(x, factors, dt, by_x);
                let along = matmul(turned.product, self.v.clone());
                let least = self.least.clone();
                let by_delta = scale_columns_gradient(along, e, delta.clone(), least);
                (turned.x, turned.factors, by_delta)
            }
            Way::Weight => {
                let dt = matmul(dy.clone(), self.shifted(delta));
                let turned = self.rotation.gradient(x, factors, dt, by_x);
                let dw = matmul(dy.transpose(), turned.product);
                (turned.x, turned.factors, self.by_delta(delta, dw))
            }
            Way::TurnedWeight => {
                let dm = matmul(dy.clone().transpose(), x);
                let turn = self.rotation.clone().transposed();
                let turned = turn.gradient(self.shifted(delta), factors, dm, true);
                let dx = by_x.then(|| matmul(dy, turned.product));
                let dw = turned.x.expect("the gradient by the weight was asked for");
                (dx, turned.factors, self.by_delta(delta, dw))
            }
        };
        (dx.map(|dx| dx.unsqueeze_dim(2)), by_factors.into_iter().chain([by_delta]).collect())
    }
}

/// `δ`, and the factors.
fn parts(a: &[Tensor<1>]) -> (&Tensor<1>, &[Tensor<1>]) {
    a.split_last().expect("a shift is behind the factors")
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};
    use soda_linalg::{kron_right, with_gradient};

    use super::*;

    fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::default())
    }

    /// Value and gradients of the layer as one operation against those of its parts on the tape, with as many rows for each way,
    /// and each pair of ways, that there is.
    #[test]
    fn one_operation_is_its_parts() {
        let (sizes, output) = ([2, 3, 4], 60);
        // More columns than an SVD has, so that a gradient has reason to form the weight.
        let (input, k) = (24, 60);
        let turned = Turned {
            rotation: KronRows::new(&sizes),
            weight: random([output, input]),
            u: random([output, k]),
            v: random([input, k]),
            least: random([1, k]).abs().neg().flatten(0, 1),
        };
        let mut ways = Vec::new();
        for rows in [5, 30, 50, 70] {
            ways.push(turned.ways(rows));
            let leaf = |x: Tensor<2>| Tensor::<2>::from_inner(x).require_grad();
            let x = leaf(random([rows, input]));
            let factors: Vec<_> = sizes.iter().map(|&n| leaf(random([n, n]))).collect();
            let delta = leaf(random([1, k]));
            let direction = Tensor::<2>::from_inner(random([rows, output]));
            let flat = factors.iter().chain([&delta]).map(|a| a.clone().flatten(0, 1));
            let flat: Vec<_> = flat.collect();
            let ours = with_gradient(&turned, x.clone().unsqueeze_dim(2), &flat).flatten::<2>(1, 2);

            let taped = |x: &Tensor<2>| Tensor::<2>::from_inner(x.clone());
            let least = Tensor::<1>::from_inner(turned.least.clone());
            let columns = scale_columns(taped(&turned.u), delta.clone().flatten(0, 1), least);
            let weight = taped(&turned.weight) + matmul(columns, taped(&turned.v).transpose());
            let theirs = matmul(kron_right(x.clone(), &factors), weight.transpose());

            let grads = |y: &Tensor<2>| {
                let grads = (y.clone() * direction.clone()).sum().backward();
                let all = [&x].into_iter().chain(&factors).chain([&delta]);
                all.map(|leaf| leaf.grad(&grads).expect("it is on the tape")).collect::<Vec<_>>()
            };
            let off = |ours: Tensor<2>, theirs: Tensor<2>| {
                let scale: f32 = theirs.clone().abs().max().into_scalar();
                (ours - theirs).abs().max().into_scalar::<f32>() / scale
            };
            assert!(off(ours.clone().inner(), theirs.clone().inner()) < 1e-5, "{rows} rows");
            for (i, (ours, theirs)) in grads(&ours).into_iter().zip(grads(&theirs)).enumerate() {
                let off = off(ours, theirs);
                assert!(off < 1e-5, "{rows} rows: gradient {i} off by {off}");
            }
        }
        let [rows, weight, turned] = [Way::Rows, Way::Weight, Way::TurnedWeight];
        assert_eq!(ways, [[rows; 2], [weight, rows], [weight; 2], [turned; 2]]);
    }
}
