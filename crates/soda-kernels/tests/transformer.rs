//! Value and gradient of the operations of transformers: SwiGLU, normalized and rotated heads, and attention
//! beside a gated MLP, against the formulas in burn's operations.
//!
//! Tolerances are those of `gradients.rs`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use burn::module::Module as _;
use burn::nn::{RmsNorm, RmsNormConfig};
use burn::tensor::activation::{silu, softmax};
use burn::tensor::{Device, FloatDType, Tensor};
use soda_kernels::{
    RotaryEmbedding, modulated_layer_norm, parallel_attention, rms_norm_rotary, swiglu,
};

use common::{EXACT, assert_matches, distance, random, run};

/// The gate by its formula.
fn plain_swiglu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let half = x.dims()[D - 1] / 2;
    silu(x.clone().narrow(D - 1, 0, half)) * x.narrow(D - 1, half, half)
}

/// A norm with a random scale, `dtype` and device of choice, trained or not.
fn norm(gamma: &Tensor<2>, dtype: FloatDType, device: &Device, trained: bool) -> RmsNorm {
    let width = gamma.dims()[1];
    let mut layer = RmsNormConfig::new(width).with_epsilon(1e-6).init(device);
    layer.gamma = layer.gamma.map(|_| {
        let gamma = gamma.clone().to_device(device).cast(dtype).reshape([width]);
        Tensor::from_inner(gamma).set_require_grad(false)
    });
    if trained { layer.train() } else { layer.train().no_grad() }
}

/// Rotations by random angles, one for each pair of channels.
fn rotations(samples: usize, tokens: usize, width: usize) -> RotaryEmbedding {
    let angles = random([samples, tokens, width / 2, 1]).mul_scalar(3.0);
    let both = |x: [Tensor<4>; 2]| Tensor::cat(x.to_vec(), 3).reshape([samples, tokens, 1, width]);
    let (cos, sin) = (angles.clone().cos(), angles.sin());
    RotaryEmbedding {
        cos: both([cos.clone(), cos]),
        sin: both([sin.clone().mul_scalar(-1.0), sin]),
    }
}

fn at(rotary: &RotaryEmbedding, device: &Device) -> RotaryEmbedding {
    let table = |table: &Tensor<4>| Tensor::from_inner(table.clone().to_device(device));
    RotaryEmbedding { cos: table(&rotary.cos), sin: table(&rotary.sin) }
}

/// Normalizes heads `[b, n, heads, d]` and rotates each pair as a complex number.
fn plain_rotated(gamma: &Tensor<2>, rotary: &RotaryEmbedding, x: Tensor<4>) -> Tensor<4> {
    let like = |constant: Tensor<4>| match x.is_autodiff() {
        true => Tensor::from_inner(constant),
        false => constant,
    };
    let [batch, tokens, heads, width] = x.dims();
    let mean = x.clone().powi_scalar(2).mean_dim(3);
    let normal = x.clone() / (mean + 1e-6).sqrt() * like(gamma.clone().unsqueeze());
    let pairs: Tensor<5> = normal.reshape([batch, tokens, heads, width / 2, 2]);
    let [re, im] =
        [0, 1].map(|part| -> Tensor<4> { pairs.clone().narrow(4, part, 1).squeeze_dim(4) });
    let table = |table: &Tensor<4>| {
        let samples = table.dims()[0];
        let pairs: Tensor<5> = table.clone().reshape([samples, tokens, 1, width / 2, 2]);
        like(pairs.narrow(4, 1, 1).squeeze_dim(4))
    };
    let (cos, sin) = (table(&rotary.cos), table(&rotary.sin));
    let rotated = vec![re.clone() * cos.clone() - im.clone() * sin.clone(), re * sin + im * cos];
    Tensor::<4>::stack::<5>(rotated, 4).reshape([batch, tokens, heads, width])
}

#[test]
fn swiglus() {
    for width in [48, 10, 4096] {
        let plain = |[x]: [Tensor<3>; 1]| plain_swiglu(x);
        assert_matches("swiglu", [random([2, 5, width])], |[x], _| swiglu(x), plain);
    }
    // Gates that are shut and wide open.
    let ends = random([2, 5, 48]).mul_scalar(60.0);
    let value = swiglu(ends.clone().to_device(&Device::default()));
    assert!(distance(value, plain_swiglu(ends)) <= EXACT);
}

#[test]
fn normalized_and_rotated_heads() {
    // A head that fills a warp and heads that do not, tables of one sample and of each, and a width that the
    // CUDA kernel does not take.
    for (samples, [batch, tokens, heads, width]) in [
        (1, [2, 5, 3, 128]),
        (2, [2, 7, 2, 64]),
        (1, [1, 33, 4, 24]),
        (3, [3, 4, 1, 256]),
        (1, [2, 3, 2, 6]),
    ] {
        let (gamma, rotary) = (random([1, width]), rotations(samples, tokens, width));
        let device = Device::default();
        assert_matches(
            &format!("heads {:?}", [batch, tokens, heads, width]),
            [random([batch, tokens, heads, width])],
            |[x], dtype| {
                rms_norm_rotary(&norm(&gamma, dtype, &device, false), x, &at(&rotary, &device))
            },
            |[x]| plain_rotated(&gamma, &rotary, x),
        );
    }
}

/// Heads that are a part of wider rows are read in place.
#[test]
fn heads_within_rows() {
    let (gamma, rotary) = (random([1, 64]), rotations(1, 9, 64));
    let device = Device::default();
    let part = |x: Tensor<4>| x.narrow(2, 2, 3);
    assert_matches(
        "a part of the heads",
        [random([2, 9, 8, 64])],
        |[x], dtype| {
            rms_norm_rotary(&norm(&gamma, dtype, &device, false), part(x), &at(&rotary, &device))
        },
        |[x]| plain_rotated(&gamma, &rotary, part(x)),
    );
}

/// Attention of the rotated parts beside the gated MLP, by formulas.
fn plain_parallel(
    gammas: &[Tensor<2>; 2],
    rotary: &RotaryEmbedding,
    heads: usize,
    x: Tensor<3>,
) -> Tensor<3> {
    let ([batch, tokens, all], width) = (x.dims(), gammas[0].dims()[1]);
    let channels = heads * width;
    let part = |index: usize| {
        let part = x.clone().narrow(2, index * channels, channels);
        part.reshape([batch, tokens, heads, width])
    };
    let [q, k] = [0, 1].map(|index| plain_rotated(&gammas[index], rotary, part(index)));
    let [q, k, v] = [q, k, part(2)].map(|x| x.swap_dims(1, 2));
    let scores = q.matmul(k.swap_dims(2, 3)).mul_scalar((width as f64).powf(-0.5));
    let attended = softmax(scores, 3).matmul(v).swap_dims(1, 2).reshape([batch, tokens, channels]);
    let gated = plain_swiglu(x.narrow(2, 3 * channels, all - 3 * channels));
    Tensor::cat(vec![attended, gated], 2)
}

#[test]
fn attention_beside_a_gated_mlp() {
    // Widths of heads and MLP that the CUDA kernels take, and an MLP that they do not.
    for (batch, tokens, heads, width, inner) in
        [(2, 70, 2, 128, 32), (1, 33, 3, 64, 40), (2, 9, 2, 16, 8), (1, 12, 2, 8, 3)]
    {
        let gammas = [random([1, width]), random([1, width])];
        let rotary = rotations(1, tokens, width);
        let device = Device::default();
        let layer = |x: Tensor<3>, dtype, trained| {
            let norms = gammas.each_ref().map(|gamma| norm(gamma, dtype, &device, trained));
            parallel_attention(x, norms.each_ref(), &at(&rotary, &device), heads)
        };
        let x = random([batch, tokens, 3 * heads * width + 2 * inner]);
        assert_matches(
            &format!("{heads} heads of {width} and {inner} channels"),
            [x.clone()],
            |[x], dtype| layer(x, dtype, false),
            |[x]| plain_parallel(&gammas, &rotary, heads, x),
        );
        // Trained norms take single operations, with the same result.
        let direction = random([batch, tokens, heads * width + inner]);
        let of = |trained| {
            let f = |[x]: [Tensor<3>; 1]| layer(x, FloatDType::F32, trained);
            run(&device, std::array::from_ref(&x), FloatDType::F32, f, &direction)
        };
        let ((ours, grads), (theirs, their_grads)) = (of(true), of(false));
        assert!(distance(ours, theirs) <= EXACT);
        assert!(distance(grads[0].clone(), their_grads[0].clone()) <= EXACT);
    }
}

#[test]
fn modulated_layer_norms() {
    let plain = |[x, scale, shift]: [Tensor<3>; 3]| {
        let centred = x.clone() - x.mean_dim(2);
        let variance = centred.clone().powi_scalar(2).mean_dim(2);
        centred / (variance + 1e-6).sqrt() * (scale + 1.0) + shift
    };
    for (samples, [batch, tokens, width]) in
        [(2, [2, 5, 48]), (1, [2, 5, 48]), (3, [3, 7, 33]), (2, [2, 3, 3072])]
    {
        let modulation = || random([samples, 1, width]).mul_scalar(0.3);
        let inputs = [random([batch, tokens, width]).add_scalar(0.5), modulation(), modulation()];
        assert_matches(
            &format!("modulated norm of {:?}", [batch, tokens, width]),
            inputs,
            |[x, scale, shift], _| modulated_layer_norm(x, scale, shift, 1e-6),
            plain,
        );
    }
}

#[test]
#[should_panic(expected = "do not fit")]
fn rotations_of_another_length_are_refused() {
    let (gamma, device) = (random([1, 8]), Device::default());
    let layer = norm(&gamma, FloatDType::F32, &device, false);
    let x: Tensor<4> = Tensor::ones([1, 5, 2, 8], &device);
    let _ = rms_norm_rotary(&layer, x, &at(&rotations(1, 4, 8), &device));
}
