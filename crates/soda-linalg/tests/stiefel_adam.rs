//! Momentum Stiefel Adam stays on the manifold, descends, and survives being saved.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use burn::optim::Optimizer;
use burn::tensor::{DType, Tensor};
use common::{Noise, stack, unstack};
use soda_linalg::{StiefelAdam, StiefelAdamConfig, stiefel};

/// `|X - T|²` for a random `T` falls, and `X` stays orthonormal.
#[test]
fn descends_on_the_manifold() {
    for (rows, cols) in [(4, 4), (16, 16), (64, 64), (20, 5), (5, 20), (7, 1)] {
        let mut noise = Noise::new(rows as u64);
        let start: Vec<_> = (0..3).map(|_| noise.orthonormal(rows, cols)).collect();
        let target: Vec<_> = (0..3).map(|_| noise.matrix(rows, cols)).collect();
        let (mut x, target) = (stack(&start, DType::F32), stack(&target, DType::F32));
        let distance = |x: &Tensor<3>| {
            let pairs = unstack(x).into_iter().zip(unstack(&target));
            pairs.map(|(x, t)| (x - t).norm_squared()).sum::<f64>()
        };
        let (optimizer, mut state) = (StiefelAdam::new(&StiefelAdamConfig::default()), None);
        let before = distance(&x);
        for _ in 0..300 {
            let grad = x.clone() - target.clone();
            (x, state) = optimizer.step(1e-2, x, grad, state);
        }
        assert!(distance(&x) < 0.9 * before, "{rows} x {cols}");
        assert!(stiefel::defect(&x).unwrap() < 2e-6, "{rows} x {cols}");
    }
}
