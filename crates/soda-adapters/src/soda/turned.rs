//! A layer of SODA as one operation: the input turns, the spectrum of the weight shifts.
//!
//! ```text
//! t = x R      d = max(δ, -s)      y = t (W0ᵀ + L diag(d) B)
//! ```
//!
//! Its gradient starts from `x` again. On the tape there is `x`, which the layers that read it share, and not each layer's
//! turned rows and its weight, which are most of what a step with SODA would keep. What is computed once more is either the
//! weight or, on few rows, nothing but `t`, a by-product of the rotation's gradient:
//!
//! ```text
//! W = W0ᵀ + L diag(d) B      dt = dy Wᵀ                          dδ = colsum(L ∘ (tᵀ dy Bᵀ))
//! e = dy Bᵀ                  dt = dy W0 + (e diag(d)) Lᵀ         dδ = colsum((t L) ∘ e)
//! ```

use burn::tensor::Tensor;
use soda_kernels::{matmul, matmul_onto, scale_columns, scale_columns_gradient};
use soda_linalg::{Function, KronRows};

/// The function of rows `x` `[rows, in, 1]` and of the factors of `R`, with `δ` as the last. All but the vectors are of one type.
#[derive(Clone, Debug)]
pub(super) struct Turned {
    pub(super) rotation: KronRows,
    /// `W0ᵀ`, `[in, out]`.
    pub(super) weight: Tensor<2>,
    /// `L`, `[in, k]`.
    pub(super) left: Tensor<2>,
    /// `B`, `[k, out]`.
    pub(super) right: Tensor<2>,
    /// `-s`, `[k]`.
    pub(super) least: Tensor<1>,
}

impl Turned {
    /// The weight with its spectrum shifted.
    fn shifted(&self, delta: &Tensor<1>) -> Tensor<2> {
        let columns = scale_columns(self.left.clone(), delta.clone(), self.least.clone());
        self.weight.clone() + matmul(columns, self.right.clone())
    }

    /// Whether `rows` are enough that the weight is the shorter way, there and back.
    fn by_weight(&self, rows: usize) -> [bool; 2] {
        let ([input, k], output) = (self.left.dims(), self.weight.dims()[1]);
        // What both ways have in common is left out.
        let forward = input * output < rows * (input + output);
        let backward =
            2 * input * output * k + rows * input * output < rows * k * (output + 2 * input);
        [forward, backward]
    }
}

impl Function for Turned {
    fn forward(&self, x: Tensor<3>, a: &[Tensor<1>]) -> Tensor<3> {
        let rows = x.dims()[0];
        let (delta, factors) = parts(a);
        let t = self.rotation.product(x.flatten(1, 2), factors);
        let y = if self.by_weight(rows)[0] {
            matmul(t, self.shifted(delta))
        } else {
            let columns = matmul(t.clone(), self.left.clone());
            let columns = scale_columns(columns, delta.clone(), self.least.clone());
            matmul_onto(columns, self.right.clone(), matmul(t, self.weight.clone()))
        };
        y.unsqueeze_dim(2)
    }

    fn backward(
        &self,
        x: Tensor<3>,
        a: &[Tensor<1>],
        grad: Tensor<3>,
        [by_x, by_a]: [bool; 2],
    ) -> (Option<Tensor<3>>, Vec<Tensor<1>>) {
        let rows = x.dims()[0];
        let (x, dy) = (x.flatten::<2>(1, 2), grad.flatten::<2>(1, 2));
        let (delta, factors) = parts(a);
        let by_weight = self.by_weight(rows)[1];
        let (dt, e) = if by_weight {
            (matmul(dy.clone(), self.shifted(delta).transpose()), None)
        } else {
            let e = matmul(dy.clone(), self.right.clone().transpose());
            let columns = scale_columns(e.clone(), delta.clone(), self.least.clone());
            let dt = matmul(dy.clone(), self.weight.clone().transpose());
            (matmul_onto(columns, self.left.clone().transpose(), dt), Some(e))
        };
        let turned = self.rotation.gradient(x, factors, dt, by_x);
        let dx = turned.x.map(|dx| dx.unsqueeze_dim(2));
        if !by_a {
            return (dx, Vec::new());
        }
        let (l, dl) = match e {
            Some(e) => (matmul(turned.product, self.left.clone()), e),
            None => {
                let by_weight = matmul(turned.product.transpose(), dy);
                (self.left.clone(), matmul(by_weight, self.right.clone().transpose()))
            }
        };
        let by_delta = scale_columns_gradient(l, dl, delta.clone(), self.least.clone());
        (dx, turned.factors.into_iter().chain([by_delta]).collect())
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

    /// Value and gradients of the layer as one operation against those of its parts on the tape, with so few rows that the
    /// weight is not formed, as many as it is for one of the two passes, and more.
    #[test]
    fn one_operation_is_its_parts() {
        let (sizes, output) = ([2, 3, 4], 20);
        let (input, k) = (24, 20);
        let turned = Turned {
            rotation: KronRows::new(&sizes),
            weight: random([input, output]),
            left: random([input, k]),
            right: random([k, output]),
            least: random([1, k]).abs().neg().flatten(0, 1),
        };
        let mut ways = Vec::new();
        for rows in [3, 15, 40] {
            ways.push(turned.by_weight(rows));
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
            let columns = scale_columns(taped(&turned.left), delta.clone().flatten(0, 1), least);
            let weight = taped(&turned.weight) + matmul(columns, taped(&turned.right));
            let theirs = matmul(kron_right(x.clone(), &factors), weight);

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
        assert_eq!(ways, [[false, false], [true, false], [true, true]]);
    }
}
