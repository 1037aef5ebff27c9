//! A Kronecker rotation by mode products against the dense product, for width 1280 with factors (4, 16, 20).
//!
//! The operands are activations and a weight. The backward benches differentiate a sum of squares with
//! respect to the factors; the sum costs the same in both.

use burn::tensor::{Device, Distribution, Tensor};
use divan::{Bencher, black_box};
use soda_linalg::{kron, kron_left, kron_right};

fn main() {
    divan::main();
}

const SIZES: [usize; 3] = [4, 16, 20];
const WIDTH: usize = 1280;
const TOKENS: [usize; 4] = [64, 256, 1024, 4096];

fn random(shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::random(shape, Distribution::Normal(0.0, 0.1), device)
}

fn factors(device: &Device) -> Vec<Tensor<2>> {
    SIZES.iter().map(|&n| random([n, n], device)).collect()
}

/// Runs `f` and waits for the device.
fn synced(f: impl Fn() -> Tensor<2>, device: &Device) -> Tensor<2> {
    let out = black_box(f());
    device.sync().expect("the device syncs");
    out
}

#[divan::bench(sample_count = 20, args = TOKENS)]
fn activations_dense(bencher: Bencher, tokens: usize) {
    let device = Device::default();
    let (x, r) = (random([tokens, WIDTH], &device), kron(&factors(&device)));
    bencher.bench_local(|| synced(|| x.clone().matmul(r.clone()), &device));
}

#[divan::bench(sample_count = 20, args = TOKENS)]
fn activations_kronecker(bencher: Bencher, tokens: usize) {
    let device = Device::default();
    let (x, factors) = (random([tokens, WIDTH], &device), factors(&device));
    bencher.bench_local(|| synced(|| kron_right(x.clone(), &factors), &device));
}

#[divan::bench(sample_count = 20)]
fn weight_dense(bencher: Bencher) {
    let device = Device::default();
    let (w, r) = (random([WIDTH, WIDTH], &device), kron(&factors(&device)));
    bencher.bench_local(|| synced(|| r.clone().matmul(w.clone()), &device));
}

#[divan::bench(sample_count = 20)]
fn weight_kronecker(bencher: Bencher) {
    let device = Device::default();
    let (w, factors) = (random([WIDTH, WIDTH], &device), factors(&device));
    bencher.bench_local(|| synced(|| kron_left(&factors, w.clone()), &device));
}

/// Times the gradient with respect to every factor, through the given product.
fn backward(product: impl Fn(&[Tensor<2>]) -> Tensor<2>, bencher: Bencher) {
    let device = Device::default();
    let plain = factors(&device);
    bencher.bench_local(|| {
        let leaf = |factor: &Tensor<2>| factor.clone().autodiff().require_grad();
        let factors: Vec<_> = plain.iter().map(leaf).collect();
        let grads = product(&factors).square().sum().backward();
        let grads: Vec<_> = factors.iter().map(|factor| factor.grad(&grads)).collect();
        device.sync().expect("the device syncs");
        grads
    });
}

#[divan::bench(sample_count = 10)]
fn weight_dense_backward(bencher: Bencher) {
    let w = random([WIDTH, WIDTH], &Device::default());
    backward(|factors| kron(factors).matmul(w.clone()), bencher);
}

#[divan::bench(sample_count = 10)]
fn weight_kronecker_backward(bencher: Bencher) {
    let w = random([WIDTH, WIDTH], &Device::default());
    backward(|factors| kron_left(factors, w.clone()), bencher);
}

#[divan::bench(sample_count = 10, args = TOKENS)]
fn activations_dense_backward(bencher: Bencher, tokens: usize) {
    let x = random([tokens, WIDTH], &Device::default()).autodiff();
    backward(|factors| x.clone().matmul(kron(factors)), bencher);
}

#[divan::bench(sample_count = 10, args = TOKENS)]
fn activations_kronecker_backward(bencher: Bencher, tokens: usize) {
    let x = random([tokens, WIDTH], &Device::default()).autodiff();
    backward(|factors| kron_right(x.clone(), factors), bencher);
}
