//! Gradients by autodiff against central differences, in f64, and against dense formulas.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use burn::tensor::{DType, Device, Tensor};
use common::{Noise, dmatrix, max_abs, orthogonality_error, relative_error, tensor, tensor_f32};
use nalgebra::DMatrix;
use soda_kernels::matmul;
use soda_linalg::stiefel::{self, Retraction};
use soda_linalg::{
    block_diag_left, block_diag_right, cayley, cayley_neumann, kron_left, kron_right, skew,
};

/// Compares the gradient of `sum(weights * f(inputs))` with respect to every entry of every input.
fn check(name: &str, shapes: &[(usize, usize)], f: impl Fn(Vec<Tensor<2>>) -> Tensor<2>) {
    if !Device::default().supports_dtype(DType::F64) {
        return;
    }
    let mut noise = Noise::new(1);
    let inputs: Vec<DMatrix<f64>> =
        shapes.iter().map(|&(rows, cols)| noise.matrix(rows, cols) * 0.5).collect();
    let plain = |inputs: &[DMatrix<f64>]| f(inputs.iter().map(|a| tensor(a, DType::F64)).collect());
    let out = plain(&inputs).dims();
    let weights = noise.matrix(out[0], out[1]);

    let leaves: Vec<_> =
        inputs.iter().map(|a| tensor(a, DType::F64).autodiff().require_grad()).collect();
    let loss = (f(leaves.clone()) * tensor(&weights, DType::F64)).sum();
    let grads = loss.backward();
    let value = |inputs: &[DMatrix<f64>]| dmatrix(&plain(inputs)).component_mul(&weights).sum();
    for (which, leaf) in leaves.iter().enumerate() {
        let grad = dmatrix(&leaf.grad(&grads).unwrap());
        for at in 0..inputs[which].len() {
            let moved = |by: f64| {
                let mut inputs = inputs.clone();
                inputs[which][at] += by;
                value(&inputs)
            };
            let h = 1e-5;
            let difference = (moved(h) - moved(-h)) / (2.0 * h);
            let error = (difference - grad[at]).abs() / (1.0 + difference.abs());
            assert!(error <= 1e-6, "{name}: {difference} and {} at {at} of {which}", grad[at]);
        }
    }
}

#[test]
fn cayley_transforms() {
    let flat = |c: Tensor<3>| c.reshape([8, 4]);
    let stacked = |inputs: Vec<Tensor<2>>| skew(inputs[0].clone().reshape([2, 4, 4]));
    check("exact", &[(8, 4)], |inputs| flat(cayley(stacked(inputs))));
    check("Neumann", &[(8, 4)], |inputs| flat(cayley_neumann(stacked(inputs), 5)));
}

#[test]
fn block_diagonal_products() {
    check("right", &[(3, 8), (8, 4)], |mut inputs| {
        let blocks = inputs.remove(1).reshape([2, 4, 4]);
        block_diag_right(inputs.remove(0), blocks)
    });
    check("left", &[(8, 3), (8, 4)], |mut inputs| {
        let blocks = inputs.remove(1).reshape([2, 4, 4]);
        block_diag_left(blocks, inputs.remove(0))
    });
}

#[test]
fn kronecker_products() {
    let shapes = [(2, 2), (3, 3), (4, 4), (24, 2)];
    check("left", &shapes, |mut inputs| {
        let w = inputs.pop().unwrap();
        kron_left(&inputs, w)
    });
    check("right", &[(2, 3), (3, 3), (4, 2), (2, 24)], |mut inputs| {
        let x = inputs.pop().unwrap();
        kron_right(x, &inputs)
    });
}

/// Gradients with respect to the point and to the tangent, near a point of the manifold.
#[test]
fn retractions_and_geodesics() {
    for (rows, cols) in [(4, 4), (6, 3), (3, 6)] {
        let point = Noise::new(5).orthonormal(rows, cols);
        let near = |inputs: &[Tensor<2>]| {
            (tensor(&point, DType::F64) + inputs[0].clone().mul_scalar(0.1), inputs[1].clone())
        };
        let shapes = [(rows, cols); 2];
        for retraction in [Retraction::Polar, Retraction::Cayley, Retraction::Exponential] {
            check(&format!("{retraction:?}"), &shapes, |inputs| {
                let (x, u) = near(&inputs);
                retraction.apply(x, u).unwrap()
            });
        }
        check("tangent", &shapes, |inputs| {
            let (x, u) = near(&inputs);
            stiefel::project_tangent(x, u)
        });
        check("geodesic", &shapes, |inputs| {
            let (x, u) = near(&inputs);
            stiefel::geodesic(x, u, 0.7)
        });
    }
}

/// The reference is burn's gradient of the dense formula.
#[test]
fn gradients_agree_with_dense_formulas() {
    let mut noise = Noise::new(4);
    let mut leaf =
        |rows, cols| tensor_f32(&(noise.matrix(rows, cols) * 0.2)).autodiff().require_grad();
    let (x, w, blocks) = (leaf(5, 6), leaf(12, 5), leaf(6, 4));
    let compare = |name: &str, ours: Tensor<2>, dense: Tensor<2>, leaves: [&Tensor<2>; 2]| {
        let weights = tensor_f32(&Noise::new(6).matrix(ours.dims()[0], ours.dims()[1]));
        let ours = (ours * weights.clone()).sum().backward();
        let dense = (dense * weights).sum().backward();
        for leaf in leaves {
            let [ours, dense] = [&ours, &dense].map(|grads| dmatrix(&leaf.grad(grads).unwrap()));
            assert!(
                relative_error(&dense, &ours) < 1e-5,
                "{name}: {}",
                relative_error(&dense, &ours)
            );
        }
    };
    // Each graph serves one backward pass.
    let stacked = || blocks.clone().reshape([3, 2, 4]);
    let row = |i: usize| {
        let zeros = |n: usize| Tensor::<2>::zeros([2, n], &Device::default());
        let block = blocks.clone().narrow(0, 2 * i, 2);
        let parts = [zeros(4 * i), block, zeros(4 * (2 - i))];
        Tensor::cat(parts.into_iter().filter(|part| part.dims()[1] > 0).collect(), 1)
    };
    let dense = || Tensor::cat((0..3).map(row).collect(), 0);
    let right = block_diag_right(x.clone(), stacked());
    compare("right", right, matmul(x.clone(), dense()), [&x, &blocks]);
    let left = block_diag_left(stacked(), w.clone());
    compare("left", left, matmul(dense(), w.clone()), [&w, &blocks]);

    let a = leaf(6, 6);
    let generator = || a.clone() - a.clone().transpose();
    let flat = |c: Tensor<3>| c.squeeze_dim::<2>(0);
    // (I - A)⁻¹ (I + A) = I + 2 (A + A² + …), and |A| is about 1/2.
    let identity = Tensor::<2>::eye(6, &Device::default());
    let series = |terms: usize| {
        let (generator, mut sum) = (generator(), identity.clone());
        for _ in 0..terms {
            sum = identity.clone() + matmul(generator.clone(), sum);
        }
        sum.mul_scalar(2.0) - identity.clone()
    };
    let exact = flat(cayley(generator().unsqueeze_dim(0)));
    compare("Cayley", exact, series(100), [&a, &a]);
    let neumann = flat(cayley_neumann(generator().unsqueeze_dim(0), 3));
    compare("Neumann", neumann, series(3), [&a, &a]);
}

/// The transform is a rotation for small and for large arguments; the Neumann series is nearly one.
#[test]
fn the_cayley_transform_is_a_rotation() {
    for size in [1e-3, 0.3, 3.0, 100.0] {
        let a = Noise::new(2).matrix(12, 12) * size;
        let a = (&a - a.transpose()) * 0.5;
        let identity = DMatrix::<f64>::identity(12, 12);
        let expected = (&identity - &a).try_inverse().unwrap() * (&identity + &a);
        let found = dmatrix(&cayley(tensor_f32(&a).unsqueeze_dim(0)).squeeze_dim(0));
        let condition = 1.0 + size; // of the inverse
        assert!(max_abs(&(&found - &expected)) < 4e-6 * condition, "{size}");
        assert!(orthogonality_error(&found) < 4e-6 * condition, "{size}");
        if size < 0.01 {
            let series =
                dmatrix(&cayley_neumann(tensor_f32(&a).unsqueeze_dim(0), 4).squeeze_dim(0));
            assert!(max_abs(&(series - expected)) < 1e-6);
        }
    }
}

#[test]
fn block_products_agree_with_the_dense_matrix() {
    let mut noise = Noise::new(3);
    let blocks: Vec<_> = (0..3).map(|_| noise.matrix(2, 4)).collect();
    let mut dense = DMatrix::zeros(6, 12);
    for (i, block) in blocks.iter().enumerate() {
        dense.view_mut((2 * i, 4 * i), (2, 4)).copy_from(block);
    }
    let (x, w) = (noise.matrix(5, 6), noise.matrix(12, 5));
    let stacked = common::to_batch(&blocks, DType::F32);
    let right = dmatrix(&block_diag_right(tensor_f32(&x), stacked.clone()));
    assert!(max_abs(&(right - x * &dense)) < 1e-5);
    let left = dmatrix(&block_diag_left(stacked, tensor_f32(&w)));
    assert!(max_abs(&(left - dense * w)) < 1e-5);
}
