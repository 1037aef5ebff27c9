//! The optimizers: on the manifold after 10,000 steps (1,000 on a GPU, which takes minutes for the launches of more), downhill, saved and restored, and the two of
//! Kong, Wang and Tao step by step beside the formulas in f64 (nalgebra).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use burn::optim::{AdamWConfig, Optimizer, RecordState, StateSink, StateSource};
use burn::tensor::{DType, Device, Tensor};
use common::{Noise, defect, max_abs, single, stack, unstack};
use nalgebra::DMatrix;
use soda_kernels::has_library;
use soda_linalg::optim::{
    Exponential, Metric, Pogo, PogoConfig, RiemannianAdam, RiemannianAdamConfig, RiemannianSgd,
    RiemannianSgdConfig, StiefelAdam, StiefelAdamConfig, StiefelSgd, StiefelSgdConfig,
};
use soda_linalg::stiefel::{self, Retraction};

const SHAPES: [(usize, usize); 8] =
    [(2, 2), (4, 4), (20, 20), (96, 96), (20, 5), (5, 20), (96, 8), (7, 1)];

/// Steps under gradients that never settle.
fn wander(name: &str, optimizer: impl Optimizer, lr: f64) {
    wander_on(&SHAPES, name, optimizer, lr);
}

fn wander_on(shapes: &[(usize, usize)], name: &str, optimizer: impl Optimizer, lr: f64) {
    for &(rows, cols) in shapes {
        let mut noise = Noise::new((rows * cols) as u64);
        let mut x = stack(&[noise.orthonormal(rows, cols)], DType::F32);
        let grads: Vec<_> =
            (0..7).map(|_| stack(&[noise.matrix(rows, cols)], DType::F32)).collect();
        let mut state = None;
        let steps = if has_library(&x) { 1_000 } else { 10_000 };
        for step in 0..steps {
            (x, state) = optimizer.step(lr, x, grads[step % grads.len()].clone(), state);
        }
        let distance = stiefel::defect(&x).unwrap();
        assert!(distance <= 2e-6, "{name}, {rows} x {cols}: {distance:e}");
    }
}

#[test]
fn stiefel_adam_stays() {
    wander("adam", StiefelAdam::new(&StiefelAdamConfig::new()), 1e-2);
}

#[test]
fn stiefel_sgd_stays() {
    wander("sgd", StiefelSgd::new(&StiefelSgdConfig::new()), 1e-2);
}

#[test]
fn riemannian_sgd_stays() {
    wander("riemannian sgd", RiemannianSgd::new(&RiemannianSgdConfig::new()), 1e-2);
}

#[test]
fn riemannian_adam_stays() {
    wander("riemannian adam", RiemannianAdam::new(&RiemannianAdamConfig::new()), 1e-2);
}

#[test]
fn pogo_stays() {
    wander("pogo", Pogo::new(&PogoConfig::new()), 1e-2);
}

/// Square, tall and wide, small enough for every combination of the axes.
const SMALL: [(usize, usize); 3] = [(4, 4), (5, 2), (2, 5)];
const EXPONENTIALS: [Exponential; 3] =
    [Exponential::Euler, Exponential::Cayley, Exponential::Exact];
const METRICS: [Metric; 2] = [Metric::Canonical, Metric::Euclidean];
const RETRACTIONS: [Retraction; 4] =
    [Retraction::Polar, Retraction::Qr, Retraction::Cayley, Retraction::Exponential];

#[test]
fn stiefel_adam_stays_by_every_map() {
    for (metric, exponential) in METRICS.into_iter().flat_map(|m| EXPONENTIALS.map(|e| (m, e))) {
        let config = StiefelAdamConfig::new().with_metric(metric).with_exponential(exponential);
        let name = format!("adam {metric:?} {exponential:?}");
        wander_on(&SMALL, &name, StiefelAdam::new(&config), 1e-2);
    }
}

#[test]
fn stiefel_sgd_stays_by_every_map() {
    for (metric, exponential) in METRICS.into_iter().flat_map(|m| EXPONENTIALS.map(|e| (m, e))) {
        let config = StiefelSgdConfig::new().with_metric(metric).with_exponential(exponential);
        let name = format!("sgd {metric:?} {exponential:?}");
        wander_on(&SMALL, &name, StiefelSgd::new(&config), 1e-2);
    }
}

#[test]
fn riemannian_adam_stays_by_every_retraction() {
    for retraction in RETRACTIONS {
        let config = RiemannianAdamConfig::new().with_retraction(retraction);
        let name = format!("riemannian adam {retraction:?}");
        wander_on(&SMALL, &name, RiemannianAdam::new(&config), 1e-2);
    }
}

#[test]
fn riemannian_sgd_stays_by_every_retraction() {
    for retraction in RETRACTIONS {
        let config = RiemannianSgdConfig::new().with_retraction(retraction);
        let name = format!("riemannian sgd {retraction:?}");
        wander_on(&SMALL, &name, RiemannianSgd::new(&config), 1e-2);
    }
}

#[test]
fn a_large_step_does_not_leave() {
    for (rows, cols) in SHAPES {
        let mut noise = Noise::new(1);
        let mut x = stack(&[noise.orthonormal(rows, cols)], DType::F32);
        let (adam, mut state) = (StiefelAdam::new(&StiefelAdamConfig::new()), None);
        for step in 0..20 {
            let grad = stack(&[noise.matrix(rows, cols)], DType::F32);
            // The normal part V diverges at lr = 1, by the formulas and not by their rounding.
            let lr = if rows == cols { 1.0 } else { 0.1 };
            (x, state) = adam.step(lr, x, grad, state);
            let distance = stiefel::defect(&x).unwrap();
            assert!(distance <= 2e-6, "{rows} x {cols}, {step}: {distance:e}");
        }
    }
}

/// The negative control: an optimizer without the constraint is seen to leave.
#[test]
fn adamw_leaves_the_manifold() {
    let mut noise = Noise::new(3);
    let mut x = stack(&[noise.orthonormal(8, 8)], DType::F32);
    let target = stack(&[noise.matrix(8, 8)], DType::F32);
    let (optimizer, mut state) = (AdamWConfig::new().build(), None);
    for _ in 0..100 {
        let grad = x.clone() - target.clone();
        (x, state) = optimizer.step(1e-2, x, grad, state);
    }
    assert!(stiefel::defect(&x).unwrap() > 0.1);
    assert!(stiefel::check(&x, 1e-3).is_err());
}

/// `|X - T|²` for a random `T` falls.
fn descend(name: &str, optimizer: impl Optimizer, lr: f64) {
    for (rows, cols) in SHAPES {
        let mut noise = Noise::new(rows as u64);
        let start: Vec<_> = (0..3).map(|_| noise.orthonormal(rows, cols)).collect();
        // A rotation away: what a determinant of -1 separates cannot be reached.
        let mut turned = |x: &DMatrix<f64>| {
            let skew = noise.matrix(rows, rows) * (0.3 / (rows as f64).sqrt());
            (&skew - skew.transpose()).exp() * x
        };
        let target: Vec<_> = start.iter().map(&mut turned).collect();
        let (mut x, target) = (stack(&start, DType::F32), stack(&target, DType::F32));
        let distance = |x: &Tensor<3>| {
            let pairs = unstack(x).into_iter().zip(unstack(&target));
            pairs.map(|(x, t)| (x - t).norm_squared()).sum::<f64>()
        };
        let (before, mut state) = (distance(&x), None);
        for _ in 0..400 {
            let grad = x.clone() - target.clone();
            (x, state) = optimizer.step(lr, x, grad, state);
        }
        let after = distance(&x);
        assert!(after < 0.95 * before, "{name}, {rows} x {cols}: {before} to {after}");
    }
}

#[test]
fn all_descend() {
    for metric in METRICS {
        for exponential in EXPONENTIALS {
            let name = format!("{metric:?} {exponential:?}");
            let sgd = StiefelSgdConfig::new().with_metric(metric).with_exponential(exponential);
            descend(&name, StiefelSgd::new(&sgd), 1e-2);
            let adam = StiefelAdamConfig::new().with_metric(metric).with_exponential(exponential);
            descend(&name, StiefelAdam::new(&adam), 1e-2);
        }
    }
    for retraction in RETRACTIONS {
        let name = format!("{retraction:?}");
        let sgd = RiemannianSgdConfig::new().with_retraction(retraction);
        descend(&name, RiemannianSgd::new(&sgd), 1e-2);
        let adam = RiemannianAdamConfig::new().with_retraction(retraction);
        descend(&name, RiemannianAdam::new(&adam), 1e-2);
    }
    descend("pogo", Pogo::new(&PogoConfig::new()), 1e-2);
}

fn a(metric: Metric) -> f64 {
    match metric {
        Metric::Canonical => 0.5,
        Metric::Euclidean => 0.0,
    }
}

fn polar_factor(x: DMatrix<f64>) -> DMatrix<f64> {
    let svd = x.svd(true, true);
    svd.u.unwrap() * svd.v_t.unwrap()
}

/// `I + Z`, Cayley or exp, written out.
fn map(exponential: Exponential, z: &DMatrix<f64>) -> DMatrix<f64> {
    let identity = DMatrix::identity(z.nrows(), z.nrows());
    match exponential {
        Exponential::Euler => identity + z,
        Exponential::Cayley => (&identity - z / 2.0).try_inverse().unwrap() * (&identity + z / 2.0),
        Exponential::Exact => z.exp(),
    }
}

/// The Adam of the paper in f64, for a tall or square `x`.
fn adam_reference(
    mut x: DMatrix<f64>,
    grads: &[DMatrix<f64>],
    lr: f64,
    config: &StiefelAdamConfig,
) -> DMatrix<f64> {
    let (n, m) = x.shape();
    let (a, b1, b2, eps) = (a(config.metric), config.beta_1, config.beta_2, config.epsilon);
    let b = a / (a - 1.0);
    let (mut y, mut py) = (DMatrix::zeros(m, m), DMatrix::zeros(m, m));
    let (mut v, mut pv) = (DMatrix::zeros(n, m), DMatrix::zeros(n, m));
    for (t, g) in (1..).zip(grads) {
        let xg = x.transpose() * g;
        let gy = (&xg - xg.transpose()) * ((1.0 - b) / 2.0);
        let gv = g - &x * &xg;
        pv = pv * b2 + gv.map(|e| e * e) * (1.0 - b2);
        y = y * b1 - &gy * (1.0 - b1);
        py = py * b2 + gy.map(|e| e * e) * (1.0 - b2);
        let (c1, c2) = (1.0 - b1.powi(t), 1.0 - b2.powi(t));
        let z = y.zip_map(&py, |y, p: f64| lr / c1 * y / ((p / c2).sqrt() + eps));
        x = &x * map(config.exponential, &z);
        if n > m {
            v = &v * b1 - &v * &y * ((3.0 * a - 2.0) / 2.0 * lr) - gv * (1.0 - b1);
            let w = v.zip_map(&pv, |v, p: f64| v / ((p / c2).sqrt() + eps));
            let gram = x.transpose() * &x;
            let w = &w - &x * gram.clone().try_inverse().unwrap() * x.transpose() * &w;
            let p = &x * w.transpose() * &v;
            x += &w * gram * lr;
            v -= p * lr;
        }
        x = polar_factor(x);
    }
    x
}

/// The SGD of the paper in f64, for a tall or square `x`.
fn sgd_reference(
    mut x: DMatrix<f64>,
    grads: &[DMatrix<f64>],
    lr: f64,
    config: &StiefelSgdConfig,
) -> DMatrix<f64> {
    let (n, m) = x.shape();
    let (a, mu, d) = (a(config.metric), config.momentum, config.dampening);
    let b = a / (a - 1.0);
    let (mut y, mut v) = (DMatrix::zeros(m, m), DMatrix::zeros(n, m));
    for g in grads {
        let xg = x.transpose() * g;
        let gy = (&xg - xg.transpose()) * ((1.0 - b) / 2.0);
        let gv = g - &x * &xg;
        let turn = if mu == 0.0 { 0.0 } else { (3.0 * a - 2.0) / 2.0 * lr };
        v = &v * mu - &v * &y * turn - gv * (1.0 - d);
        y = y * mu - gy * (1.0 - d);
        x = &x * map(config.exponential, &(&y * lr));
        if n > m {
            let p = &x * v.transpose() * &v;
            let gram = x.transpose() * &x;
            x += &v * gram * lr;
            v -= p * lr;
        }
        x = polar_factor(x);
    }
    x
}

/// The same steps by the optimizer, from the same start, on a tall, square or wide `x`.
fn follow(
    optimizer: &impl Optimizer,
    lr: f64,
    rows: usize,
    cols: usize,
    reference: impl Fn(DMatrix<f64>, &[DMatrix<f64>]) -> DMatrix<f64>,
) -> f64 {
    let mut noise = Noise::new((rows + cols) as u64);
    let start = noise.orthonormal(rows, cols);
    let grads: Vec<_> = (0..20).map(|_| noise.matrix(rows, cols)).collect();
    let (mut x, mut state) = (single(&start), None);
    for grad in &grads {
        (x, state) = optimizer.step(lr, x, single(grad), state);
    }
    let expected = if rows < cols {
        let grads: Vec<_> = grads.iter().map(|grad| grad.transpose()).collect();
        reference(start.transpose(), &grads).transpose()
    } else {
        reference(start, &grads)
    };
    max_abs(&(common::dmatrix(&x) - expected))
}

#[test]
fn both_follow_the_formulas_of_the_paper() {
    for metric in METRICS {
        for exponential in EXPONENTIALS {
            for (rows, cols) in [(6, 6), (9, 4), (4, 9)] {
                let name = format!("{metric:?} {exponential:?} {rows} x {cols}");
                let config =
                    StiefelAdamConfig::new().with_metric(metric).with_exponential(exponential);
                let reference = |x, grads: &[_]| adam_reference(x, grads, 0.02, &config);
                let error = follow(&StiefelAdam::new(&config), 0.02, rows, cols, reference);
                assert!(error < 2e-4, "adam, {name}: {error:e}");

                let config = StiefelSgdConfig::new()
                    .with_metric(metric)
                    .with_exponential(exponential)
                    .with_dampening(0.1);
                let reference = |x, grads: &[_]| sgd_reference(x, grads, 0.02, &config);
                let error = follow(&StiefelSgd::new(&config), 0.02, rows, cols, reference);
                assert!(error < 2e-5, "sgd, {name}: {error:e}");
            }
        }
    }
}

/// A stack steps as its members do.
#[test]
fn leading_axes_are_a_batch() {
    let mut noise = Noise::new(9);
    let starts: Vec<_> = (0..4).map(|_| noise.orthonormal(6, 6)).collect();
    let grads: Vec<_> = (0..4).map(|_| noise.matrix(6, 6)).collect();
    let adam = StiefelAdam::new(&StiefelAdamConfig::new());
    let (x, g) = (stack(&starts, DType::F32), stack(&grads, DType::F32));
    let (together, _) = adam.step(1e-2, x.reshape([2, 2, 6, 6]), g.reshape([2, 2, 6, 6]), None);
    let together = unstack(&together.reshape([4, 6, 6]));
    for ((start, grad), together) in starts.iter().zip(&grads).zip(together) {
        let (alone, _) = adam.step(1e-2, single(start), single(grad), None);
        assert!(max_abs(&(common::dmatrix(&alone) - together)) < 1e-6);
    }
}

/// Saved after three steps and restored, the fourth is the same.
fn survives<O: Optimizer>(optimizer: &O, rows: usize, cols: usize) {
    let mut noise = Noise::new(11);
    let (mut x, mut state) = (single(&noise.orthonormal(rows, cols)), None);
    for _ in 0..3 {
        (x, state) = optimizer.step(1e-2, x, single(&noise.matrix(rows, cols)), state);
    }
    let mut sink = StateSink::default();
    state.as_ref().unwrap().state_flatten("p", &mut sink);
    let mut source = StateSource::new(sink.scalars.into_iter().collect());
    sink.tensors.into_iter().for_each(|(name, data)| source.insert_tensor(name, data));
    let restored = O::State::<2>::state_unflatten("p", &mut source, &Device::default());
    assert!(restored.is_some());
    let grad = single(&noise.matrix(rows, cols));
    let (kept, _) = optimizer.step(1e-2, x.clone(), grad.clone(), state);
    let (restored, _) = optimizer.step(1e-2, x, grad, restored);
    assert_eq!(kept.to_data(), restored.to_data());
}

#[test]
fn states_survive_being_saved() {
    for (rows, cols) in [(5, 5), (7, 3), (3, 7)] {
        survives(&StiefelAdam::new(&StiefelAdamConfig::new()), rows, cols);
        survives(&StiefelSgd::new(&StiefelSgdConfig::new()), rows, cols);
        survives(&RiemannianAdam::new(&RiemannianAdamConfig::new()), rows, cols);
        survives(&RiemannianSgd::new(&RiemannianSgdConfig::new()), rows, cols);
        survives(&Pogo::new(&PogoConfig::new()), rows, cols);
    }
}

/// Vectors are points of the sphere, an empty tensor is nothing to do, NaN shows and does not hang.
#[test]
fn odd_tensors_do_not_panic() {
    let adam = StiefelAdam::new(&StiefelAdamConfig::new());
    let device = Device::default();
    let x = Tensor::<1>::from_data([0.6, 0.8], &device);
    let (x, _) = adam.step(0.1, x, Tensor::from_data([1.0, 0.0], &device), None);
    assert!(stiefel::defect(&x).unwrap() < 2e-6);
    let empty = Tensor::<2>::zeros([0, 3], &device);
    assert_eq!(adam.step(0.1, empty.clone(), empty, None).0.dims(), [0, 3]);
    let nan = Tensor::<2>::full([3, 3], f32::NAN, &device);
    for retraction in [Retraction::Polar, Retraction::Qr, Retraction::Cayley] {
        let sgd = RiemannianSgd::new(&RiemannianSgdConfig::new().with_retraction(retraction));
        let (x, _) = sgd.step(0.1, Tensor::eye(3, &device), nan.clone(), None);
        assert!(!defect(&common::dmatrix(&x)).is_finite());
    }
}
