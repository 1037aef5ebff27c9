//! The operations of soda-kernels against burn's own, forward and backward to the input. The sizes are those
//! of the bundled model: batch 4, latents of 16 x 16, frozen weights.

use burn::module::Module as _;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, PaddingConfig2d};
use burn::tensor::activation::{silu, softmax};
use burn::tensor::{Device, Distribution, Tensor};
use divan::Bencher;
use soda_kernels::{attention, conv2d, group_norm};

fn main() {
    divan::main();
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::default())
}

/// Times one forward pass and one backward pass to `x`.
fn step(bencher: Bencher, x: Tensor<4>, f: impl Fn(Tensor<4>) -> Tensor<4>) {
    bencher.bench_local(|| {
        let x = Tensor::from_inner(x.clone()).require_grad();
        let grads = f(x.clone()).sum().backward();
        let gradient = x.grad(&grads);
        Device::default().sync().expect("the device syncs");
        gradient
    });
}

fn conv(channels: usize, stride: usize) -> Conv2d {
    Conv2dConfig::new([channels, channels], [3, 3])
        .with_stride([stride, stride])
        .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
        .init(&Device::default())
        .train()
        .no_grad()
}

const CHANNELS: [usize; 2] = [64, 128];

#[divan::bench(sample_count = 20, args = CHANNELS)]
fn conv_burn(bencher: Bencher, channels: usize) {
    let layer = conv(channels, 1);
    step(bencher, random([4, channels, 16, 16]), |x| layer.forward(x));
}

#[divan::bench(sample_count = 20, args = CHANNELS)]
fn conv_soda(bencher: Bencher, channels: usize) {
    let layer = conv(channels, 1);
    step(bencher, random([4, channels, 16, 16]), |x| conv2d(&layer, x));
}

fn norm(channels: usize) -> GroupNorm {
    GroupNormConfig::new(16, channels).init(&Device::default()).train().no_grad()
}

#[divan::bench(sample_count = 20, args = CHANNELS)]
fn norm_silu_burn(bencher: Bencher, channels: usize) {
    let layer = norm(channels);
    step(bencher, random([4, channels, 16, 16]), |x| silu(layer.forward(x)));
}

#[divan::bench(sample_count = 20, args = CHANNELS)]
fn norm_silu_soda(bencher: Bencher, channels: usize) {
    let layer = norm(channels);
    step(bencher, random([4, channels, 16, 16]), |x| group_norm(&layer, x, true));
}

#[divan::bench(sample_count = 20)]
fn attention_burn(bencher: Bencher) {
    step(bencher, random([4, 4, 256, 16]), |x| {
        softmax(x.clone().matmul(x.clone().transpose()).mul_scalar(0.25), 3).matmul(x)
    });
}

#[divan::bench(sample_count = 20)]
fn attention_soda(bencher: Bencher) {
    step(bencher, random([4, 4, 256, 16]), |x| attention(x.clone(), x.clone(), x));
}
