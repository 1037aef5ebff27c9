//! One optimizer step over the 1,680 Kronecker factors of SODA on SDXL's 560 attention layers, and the
//! retractions at one size.

use burn::optim::Optimizer;
use burn::tensor::{Device, Distribution, Tensor};
use divan::Bencher;
use soda_linalg::optim::{
    Pogo, PogoConfig, RiemannianAdam, RiemannianAdamConfig, StiefelAdam, StiefelAdamConfig,
    StiefelSgd, StiefelSgdConfig,
};
use soda_linalg::stiefel::{self, Retraction};

fn main() {
    divan::main();
}

/// The number of factors of each size: 640 has 8, 8, 10; 1280 has 4, 16, 20; 2048 has 4, 8, 64.
const SDXL: [(usize, usize); 6] = [(500, 4), (260, 8), (60, 10), (360, 16), (360, 20), (140, 64)];

fn step<O: Optimizer>(bencher: Bencher, optimizer: O) {
    let device = Device::default();
    let lr = 5e-5;
    let mut batches: Vec<_> = SDXL
        .iter()
        .map(|&(count, n)| {
            let x = stiefel::random_point([count, n, n], &device);
            let g = Tensor::<3>::random([count, n, n], Distribution::Normal(0.0, 1.0), &device);
            let (x, state) = optimizer.step(lr, x, g.clone(), None);
            (x, g, state)
        })
        .collect();
    bencher.bench_local(|| {
        for (x, g, state) in &mut batches {
            (*x, *state) = optimizer.step(lr, x.clone(), g.clone(), state.take());
        }
        device.sync().expect("the device syncs");
    });
}

#[divan::bench(sample_count = 50)]
fn stiefel_adam(bencher: Bencher) {
    step(bencher, StiefelAdam::new(&StiefelAdamConfig::new()));
}

#[divan::bench(sample_count = 50)]
fn stiefel_sgd(bencher: Bencher) {
    step(bencher, StiefelSgd::new(&StiefelSgdConfig::new()));
}

#[divan::bench(sample_count = 50)]
fn riemannian_adam(bencher: Bencher) {
    step(bencher, RiemannianAdam::new(&RiemannianAdamConfig::new()));
}

#[divan::bench(sample_count = 50)]
fn pogo(bencher: Bencher) {
    step(bencher, Pogo::new(&PogoConfig::new()));
}

#[divan::bench(sample_count = 50, args = [Retraction::Polar, Retraction::Qr, Retraction::Cayley, Retraction::Exponential])]
fn retract_360_matrices_of_20(bencher: Bencher, retraction: &Retraction) {
    let device = Device::default();
    let x = stiefel::random_point([360, 20, 20], &device);
    let u = stiefel::project_tangent(x.clone(), x.random_like(Distribution::Normal(0.0, 0.01)));
    bencher.bench_local(|| {
        let y = retraction.apply(x.clone(), u.clone()).expect("finite");
        device.sync().expect("the device syncs");
        y
    });
}
