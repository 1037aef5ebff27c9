//! A layer with SODA as one operation: a rotation of the input and a shift of the weight's spectrum.
//!
//! ```text
//! W0 = U diag(s) Vᵀ      d = max(δ, -s)      W = W0 + U diag(d) Vᵀ      y = x R Wᵀ
//! ```
//!
//! The backward pass recomputes the intermediate values from `x`. The autodiff graph keeps only `x`, which
//! several layers share.
//!
//! Forward and backward pass each take the cheapest of three ways ([`Way`]):
//!
//! ```text
//! rows             t = x R    y = t W0ᵀ + (t V diag(d)) Uᵀ
//!                  e = dy U   dt = dy W0 + (e diag(d)) Vᵀ      dδ = colsum((t V) ∘ e)
//! weight           t = x R    y = t Wᵀ
//!                  dt = dy W  dW = dyᵀ t                       dδ = colsum(U ∘ (dW V))
//! rotated weight   M = W Rᵀ   y = x Mᵀ
//!                  dx = dy M  dM = dyᵀ x                       dδ = colsum(U ∘ (dW V))
//! ```
//!
//! The gradient of `t = x R` gives `dx` and `dR` from `dt`. The gradient of `M = W Rᵀ` gives `dW` and `dR`
//! from `dM`.

use burn::tensor::Tensor;
use soda_kernels::{addmm, matmul, scale_columns, scale_columns_gradient};
use soda_linalg::{AutogradFunction, KroneckerRows};

/// The operation on rows `x` `[rows, in, 1]`, the factors of `R`, and `δ` as the last argument.
///
/// All matrices have one float type.
#[derive(Clone, Debug)]
pub(super) struct FusedLayer {
    /// The product of rows with `R`.
    pub(super) rotation: KroneckerRows,
    /// The base weight `W0`, `[out, in]`.
    pub(super) weight: Tensor<2>,
    /// `U`, `[out, k]`.
    pub(super) u: Tensor<2>,
    /// `V`, `[in, k]`.
    pub(super) v: Tensor<2>,
    /// The lower bound of `δ`, `-s`, `[k]`.
    pub(super) lower_bound: Tensor<1>,
}

/// The intermediate values that a pass forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Rotated rows, and no weight.
    Rows,
    /// Rotated rows and the shifted weight.
    Weight,
    /// The shifted and rotated weight, whose number of rows is `out`.
    RotatedWeight,
}

/// Multiply-adds of a product that take as long as rotating one entry of a row, forward and backward.
///
/// Measured on a Hopper GPU in bf16.
const ROTATION_COST: [usize; 2] = [1600, 4000];

impl FusedLayer {
    /// Returns the cheapest ways for a number of rows, forward and backward.
    fn ways(&self, rows: usize) -> [Way; 2] {
        let ([output, input], k) = (self.weight.dims(), self.u.dims()[1]);
        let (layer, shift) = (rows * input * output, input * output * k);
        let cheapest = |on_rows: usize, on_weight: usize, per_entry: usize| {
            let rotation = |rows: usize| rows * input * per_entry;
            let costs = [
                (on_rows + rotation(rows), Way::Rows),
                (on_weight + rotation(rows), Way::Weight),
                (on_weight + rotation(output), Way::RotatedWeight),
            ];
            costs.into_iter().min_by_key(|(cost, _)| *cost).map_or(Way::Rows, |(_, way)| way)
        };
        [
            cheapest(layer + rows * k * (input + output), shift + layer, ROTATION_COST[0]),
            cheapest(
                layer + rows * k * (output + 2 * input),
                2 * (shift + layer),
                ROTATION_COST[1],
            ),
        ]
    }

    /// Computes the shifted weight `W`, `[out, in]`.
    fn shifted_weight(&self, delta: &Tensor<1>) -> Tensor<2> {
        let columns = scale_columns(self.u.clone(), delta.clone(), self.lower_bound.clone());
        addmm(columns, self.v.clone().transpose(), self.weight.clone())
    }

    /// Computes `dδ` from `dW`.
    fn delta_gradient(&self, delta: &Tensor<1>, dw: Tensor<2>) -> Tensor<1> {
        let projected = matmul(dw, self.v.clone());
        scale_columns_gradient(self.u.clone(), projected, delta.clone(), self.lower_bound.clone())
    }
}

impl AutogradFunction for FusedLayer {
    fn forward(&self, x: Tensor<3>, a: &[Tensor<1>]) -> Tensor<3> {
        let (delta, factors) = delta_and_factors(a);
        let x = x.flatten::<2>(1, 2);
        let way = self.ways(x.dims()[0])[0];
        let y = match way {
            Way::Rows => {
                let t = self.rotation.forward(x, factors);
                let columns = matmul(t.clone(), self.v.clone());
                let columns = scale_columns(columns, delta.clone(), self.lower_bound.clone());
                let y = matmul(t, self.weight.clone().transpose());
                addmm(columns, self.u.clone().transpose(), y)
            }
            Way::Weight => {
                matmul(self.rotation.forward(x, factors), self.shifted_weight(delta).transpose())
            }
            Way::RotatedWeight => {
                let transposed = self.rotation.clone().transposed();
                matmul(x, transposed.forward(self.shifted_weight(delta), factors).transpose())
            }
        };
        y.unsqueeze_dim(2)
    }

    fn backward(
        &self,
        x: Tensor<3>,
        a: &[Tensor<1>],
        grad: Tensor<3>,
        [needs_dx, _]: [bool; 2],
    ) -> (Option<Tensor<3>>, Vec<Tensor<1>>) {
        let (delta, factors) = delta_and_factors(a);
        let (x, dy) = (x.flatten::<2>(1, 2), grad.flatten::<2>(1, 2));
        let way = self.ways(x.dims()[0])[1];
        let (dx, d_factors, d_delta) = match way {
            Way::Rows => {
                let e = matmul(dy.clone(), self.u.clone());
                let columns = scale_columns(e.clone(), delta.clone(), self.lower_bound.clone());
                let dt = matmul(dy, self.weight.clone());
                let dt = addmm(columns, self.v.clone().transpose(), dt);
                let rotation = self.rotation.backward(x, factors, dt, needs_dx);
                let projected = matmul(rotation.output, self.v.clone());
                let lower_bound = self.lower_bound.clone();
                let d_delta = scale_columns_gradient(projected, e, delta.clone(), lower_bound);
                (rotation.x, rotation.factors, d_delta)
            }
            Way::Weight => {
                let dt = matmul(dy.clone(), self.shifted_weight(delta));
                let rotation = self.rotation.backward(x, factors, dt, needs_dx);
                let dw = matmul(dy.transpose(), rotation.output);
                (rotation.x, rotation.factors, self.delta_gradient(delta, dw))
            }
            Way::RotatedWeight => {
                let dm = matmul(dy.clone().transpose(), x);
                let transposed = self.rotation.clone().transposed();
                let rotation = transposed.backward(self.shifted_weight(delta), factors, dm, true);
                let dx = needs_dx.then(|| matmul(dy, rotation.output));
                let dw = rotation.x.expect("the gradient of the weight was requested");
                (dx, rotation.factors, self.delta_gradient(delta, dw))
            }
        };
        (dx.map(|dx| dx.unsqueeze_dim(2)), d_factors.into_iter().chain([d_delta]).collect())
    }
}

/// Splits the arguments into `δ` and the factors.
fn delta_and_factors(a: &[Tensor<1>]) -> (&Tensor<1>, &[Tensor<1>]) {
    a.split_last().expect("the last argument is the shift")
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};
    use soda_linalg::{apply_autograd, kron_right};
    use soda_testing::relative_error;

    use super::*;

    fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::default())
    }

    /// Compares value and gradients with those of the separate operations, for every pair of ways.
    #[test]
    fn fused_layer_is_the_product_of_its_operations() {
        let (sizes, output) = ([2, 3, 4], 60);
        // More columns than an SVD has, so that forming the weight is the cheapest way of some backward pass.
        let (input, k) = (24, 60);
        let layer = FusedLayer {
            rotation: KroneckerRows::new(&sizes),
            weight: random([output, input]),
            u: random([output, k]),
            v: random([input, k]),
            lower_bound: random([1, k]).abs().neg().flatten(0, 1),
        };
        let mut ways = Vec::new();
        for rows in [5, 30, 50, 70] {
            ways.push(layer.ways(rows));
            let leaf = |x: Tensor<2>| Tensor::<2>::from_inner(x).require_grad();
            let x = leaf(random([rows, input]));
            let factors: Vec<_> = sizes.iter().map(|&n| leaf(random([n, n]))).collect();
            let delta = leaf(random([1, k]));
            let direction = Tensor::<2>::from_inner(random([rows, output]));
            let flat = factors.iter().chain([&delta]).map(|a| a.clone().flatten(0, 1));
            let flat: Vec<_> = flat.collect();
            let ours = apply_autograd(&layer, x.clone().unsqueeze_dim(2), &flat).flatten::<2>(1, 2);

            let on_tape = |x: &Tensor<2>| Tensor::<2>::from_inner(x.clone());
            let lower_bound = Tensor::<1>::from_inner(layer.lower_bound.clone());
            let columns =
                scale_columns(on_tape(&layer.u), delta.clone().flatten(0, 1), lower_bound);
            let weight = on_tape(&layer.weight) + matmul(columns, on_tape(&layer.v).transpose());
            let theirs = matmul(kron_right(x.clone(), &factors), weight.transpose());

            let grads = |y: &Tensor<2>| {
                let grads = (y.clone() * direction.clone()).sum().backward();
                let all = [&x].into_iter().chain(&factors).chain([&delta]);
                all.map(|leaf| leaf.grad(&grads).expect("every input requires a gradient"))
                    .collect::<Vec<_>>()
            };
            let error = |ours: Tensor<2>, theirs: Tensor<2>| {
                let values = |x: Tensor<2>| x.into_data().iter::<f32>().collect::<Vec<_>>();
                relative_error(&values(ours), &values(theirs))
            };
            assert!(error(ours.clone().inner(), theirs.clone().inner()) < 1e-5, "{rows} rows");
            for (i, (ours, theirs)) in grads(&ours).into_iter().zip(grads(&theirs)).enumerate() {
                let error = error(ours, theirs);
                assert!(error < 1e-5, "{rows} rows: gradient {i} has a relative error of {error}");
            }
        }
        let [rows, weight, rotated] = [Way::Rows, Way::Weight, Way::RotatedWeight];
        assert_eq!(ways, [[rows; 2], [weight, rows], [weight; 2], [rotated; 2]]);
    }
}
