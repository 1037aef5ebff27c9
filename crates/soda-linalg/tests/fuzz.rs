//! Arbitrary shapes and bit patterns give an error or a result, and no panic. `PROPTEST_CASES` sets the
//! number of cases. Damaged files of the cache give the decomposition all the same.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use burn::optim::Optimizer;
use burn::tensor::{Device, Tensor, TensorData};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use soda_linalg::optim::{
    Pogo, PogoConfig, RiemannianAdam, RiemannianAdamConfig, RiemannianSgd, RiemannianSgdConfig,
    StiefelAdam, StiefelAdamConfig, StiefelSgd, StiefelSgdConfig,
};
use soda_linalg::stiefel::{self, Retraction};
use soda_linalg::{
    KroneckerMatrix, Lq, Polar, Qr, Svd, SvdCache, SymmetricEigen, kron_left, kron_right,
    rotation_exp, rotation_log, rotation_power,
};
use soda_testing::fuzz;

/// A matrix of ordinary numbers, with some arbitrary f32 bit patterns.
fn matrix() -> impl Strategy<Value = Tensor<2>> {
    let entry = prop_oneof![
        12 => -2.0..2.0f32,
        2 => Just(0.0),
        1 => any::<u32>().prop_map(f32::from_bits),
    ];
    (0..7usize, 0..7usize, 0..3u8).prop_flat_map(move |(rows, cols, square)| {
        let cols = if square > 0 { rows } else { cols };
        proptest::collection::vec(entry.clone(), rows * cols).prop_map(move |entries| {
            Tensor::from_data(TensorData::new(entries, [rows, cols]), &Device::default())
        })
    })
}

fn assert_finite<const D: usize>(name: &str, tensor: &Tensor<D>) {
    let entries: Vec<f32> = tensor.try_to_vec_as().unwrap();
    assert!(entries.iter().all(|entry| entry.is_finite()), "{name}: {entries:?}");
}

fn two_steps(optimizer: &impl Optimizer, lr: f64, x: &Tensor<2>, g: &Tensor<2>) {
    let (x, state) = optimizer.step(lr, x.clone(), g.clone(), None);
    let _ = optimizer.step(lr, x, g.clone(), state);
}

proptest! {
    #[test]
    fn nothing_panics(a in matrix(), b in matrix(), t in -3.0..3.0f64) {
        if let Ok(svd) = Svd::thin(&a) {
            assert_finite("u", &svd.u);
            assert_finite("s", &svd.s);
            assert_finite("vt", &svd.vt);
        }
        for svd in Svd::thin_batch_spectral_divide(&[a.clone(), b.clone(), a.clone()]).iter().flatten() {
            assert_finite("u", &svd.u);
            assert_finite("s", &svd.s);
            assert_finite("vt", &svd.vt);
        }
        if let Ok(qr) = Qr::thin(&a) {
            assert_finite("q", &qr.q);
            assert_finite("r", &qr.r);
        }
        if let Ok(lq) = Lq::thin(&a) {
            assert_finite("l", &lq.l);
        }
        if let Ok(polar) = Polar::new(&a) {
            assert_finite("polar factor", &polar.q);
        }
        if let Ok(eigen) = SymmetricEigen::new(&a) {
            assert_finite("eigenvectors", &eigen.eigenvectors);
        }
        // For matrices that are not rotations, the results have no meaning, but the functions must return.
        let _ = (rotation_power(&a, t), rotation_log(&a), rotation_exp(&a));
        let _ = (stiefel::logarithm(&a, &b), stiefel::distance(&a, &a), stiefel::check_orthonormal(&a, 1e-5));
        let _ = KroneckerMatrix::new(vec![a.clone(), b.clone()]).map(|product| {
            (product.determinant_sign(), product.power(t), product.compose(&product))
        });
        let u = a.clone().flip([0]);
        let retractions =
            [Retraction::Polar, Retraction::Qr, Retraction::Cayley, Retraction::Exponential];
        for retraction in retractions {
            let _ = retraction.apply(a.clone(), u.clone());
        }
        two_steps(&StiefelAdam::new(&StiefelAdamConfig::new()), t, &a, &u);
        two_steps(&StiefelSgd::new(&StiefelSgdConfig::new()), t, &a, &u);
        two_steps(&RiemannianAdam::new(&RiemannianAdamConfig::new()), t, &a, &u);
        two_steps(&RiemannianSgd::new(&RiemannianSgdConfig::new()), t, &a, &u);
        two_steps(&Pogo::new(&PogoConfig::new()), t, &a, &u);
        // Shapes that match: other shapes panic by contract.
        let ([p, n], [q, m]) = (a.dims(), b.dims());
        let leaf = |tensor: Tensor<2>| tensor.autodiff().require_grad();
        let factors = [leaf(a), leaf(b)];
        let w = leaf(Tensor::full([n * m, 2], t, &Device::default()));
        let x = leaf(Tensor::full([3, p * q], t, &Device::default()));
        let sum = kron_left(&factors, w.clone()).sum() + kron_right(x, &factors).sum();
        if p * n * q * m > 0 {
            let gradient = w.grad(&sum.backward());
            assert_eq!(gradient.unwrap().dims(), w.dims());
        }
    }
}

/// A damaged file is computed again and replaced. One whose digest is right as well gives its numbers, as
/// long as they have the shapes of the matrix.
#[test]
fn no_bytes_make_the_cache_of_decompositions_panic() {
    let folder = tempfile::tempdir().unwrap();
    let cache = SvdCache::new(folder.path());
    let entries: Vec<f32> = (0..35).map(|i| ((i * i) as f32).sin()).collect();
    let a = Tensor::<2>::from_data(TensorData::new(entries, [5, 7]), &Device::default());
    let whole = cache.thin(&a).unwrap().s.to_data();
    let path = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let seed = std::fs::read(&path).unwrap();
    fuzz("cached decomposition", std::slice::from_ref(&seed), 500, |input| {
        std::fs::write(&path, input).unwrap();
        assert_eq!(cache.thin(&a).unwrap().s.to_data(), whole);
        assert!(std::fs::read(&path).unwrap() == seed, "the file is not replaced");
        let Some(end) = input.len().checked_sub(32) else { return };
        let digest = Sha256::digest(&input[..end]);
        std::fs::write(&path, [&input[..end], &digest[..]].concat()).unwrap();
        assert_eq!(cache.thin(&a).unwrap().s.dims(), [5]);
        std::fs::write(&path, &seed).unwrap();
    });
}
