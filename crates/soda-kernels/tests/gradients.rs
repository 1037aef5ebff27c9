//! Values and gradients of every operation on the build's default device, against the formula in burn's
//! operations on the CPU. A GPU is no reference for itself, since burn's float32 products may be TF32 there.
//!
//! Tolerances are relative to the largest number of the reference. 2e-5 for float32 is a few roundings of
//! sums of some hundred terms; 3e-2 for bfloat16 against float32 is a few of its roundings of 2^-8.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use burn::module::Module as _;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNormConfig, LayerNormConfig, PaddingConfig2d};
use burn::tensor::activation::{gelu, silu, softmax};
use burn::tensor::{Device, FloatDType, Int, Tensor};
use soda_kernels::{
    attention, conv2d, geglu, geglu_with_bias, group_norm, layer_norm, linear, matmul,
    scale_columns,
};

use common::{EXACT, HALF, assert_matches, distance, frozen, random, run};

#[test]
fn matrix_products() {
    for (lhs, rhs) in [([1, 1, 5, 7], [1, 1, 7, 3]), ([2, 3, 16, 24], [2, 3, 24, 8])] {
        let inputs = [random(lhs), random(rhs)];
        assert_matches("matmul", inputs.clone(), |[a, b], _| matmul(a, b), |[a, b]| a.matmul(b));
        // The memory formats that a network produces: transposed matrices, and heads as slices of the width.
        let transposed = inputs.map(|x| x.swap_dims(2, 3));
        let back = |x: Tensor<4>| x.swap_dims(2, 3);
        assert_matches(
            "transposed",
            transposed,
            |[a, b], _| matmul(back(a), back(b)),
            |[a, b]| back(a).matmul(back(b)),
        );
        let split =
            [random([lhs[0], lhs[2], lhs[1], lhs[3]]), random([rhs[0], rhs[2], rhs[1], rhs[3]])];
        let heads = |x: Tensor<4>| x.swap_dims(1, 2);
        assert_matches(
            "heads",
            split,
            |[a, b], _| matmul(heads(a), heads(b)),
            |[a, b]| heads(a).matmul(heads(b)),
        );
    }
}

#[test]
fn leading_axes_of_size_one_broadcast() {
    let inputs = [random([1, 5, 7]), random([6, 7, 3])];
    assert_matches("one to many", inputs.clone(), |[a, b], _| matmul(a, b), |[a, b]| a.matmul(b));
    let transposed = inputs.map(|x| x.swap_dims(1, 2));
    assert_matches("many to one", transposed, |[a, b], _| matmul(b, a), |[a, b]| b.matmul(a));
}

#[test]
fn linear_layers() {
    let (w, b) = (random([12, 20]), random([20]));
    let layer = |x: Tensor<3>, dtype: FloatDType| {
        let device = Device::default();
        let w = w.clone().to_device(&device).cast(dtype);
        let b = b.clone().to_device(&device).cast(dtype);
        linear(x, Tensor::from_inner(w), Some(Tensor::from_inner(b)))
    };
    assert_matches(
        "linear",
        [random([2, 9, 12])],
        |[x], dtype| layer(x, dtype),
        |[x]| {
            let (w, b): (Tensor<2>, Tensor<1>) =
                (Tensor::from_inner(w.clone()), Tensor::from_inner(b.clone()));
            x.matmul(w.unsqueeze()) + b.unsqueeze()
        },
    );
}

#[test]
fn convolutions() {
    let explicit = PaddingConfig2d::Explicit;
    for (kernel, stride, padding, size) in [
        ([3, 3], [1, 1], explicit(1, 1, 1, 1), [8, 6]),
        ([3, 3], [2, 2], explicit(1, 1, 1, 1), [8, 6]),
        // No window reaches the last row and column.
        ([3, 3], [2, 2], explicit(0, 0, 0, 0), [8, 6]),
        ([3, 3], [2, 2], explicit(0, 0, 1, 1), [8, 6]),
        ([1, 1], [1, 1], explicit(0, 0, 0, 0), [5, 4]),
        ([5, 3], [1, 1], PaddingConfig2d::Valid, [7, 6]),
    ] {
        let layer = Conv2dConfig::new([8, 16], kernel)
            .with_stride(stride)
            .with_padding(padding.clone())
            .init(&Device::flex());
        let what = format!("conv {kernel:?} {stride:?} {padding:?}");
        let [h, w] = size;
        assert_matches(
            &what,
            [random([2, 8, h, w])],
            |[x], dtype| conv2d(&frozen(&layer, dtype, &Device::default()), x),
            |[x]| frozen(&layer, FloatDType::F32, &Device::flex()).forward(x),
        );
    }
}

/// Maps larger than a task of the CPU, and maps so small that a task has several samples.
#[test]
fn convolutions_of_large_and_small_maps() {
    for (stride, padding, shape) in [
        (1, 1, [2, 32, 41, 37]),
        (2, 1, [1, 32, 83, 70]),
        (1, 0, [5, 32, 6, 7]),
        (2, 1, [7, 32, 9, 8]),
    ] {
        let layer = Conv2dConfig::new([32, 8], [3, 3])
            .with_stride([stride, stride])
            .with_padding(PaddingConfig2d::Explicit(padding, padding, padding, padding))
            .init(&Device::flex());
        assert_matches(
            &format!("conv of {shape:?}"),
            [random(shape)],
            |[x], dtype| conv2d(&frozen(&layer, dtype, &Device::default()), x),
            |[x]| frozen(&layer, FloatDType::F32, &Device::flex()).forward(x),
        );
    }
}

/// Kernel 3 at stride 1 with enough channels for the CPU's Winograd filtering. The cases cover every vector
/// width, one and several samples a task, parts of the rows, and paddings other than 1. A weight may reuse
/// the address of the previous one.
#[test]
fn convolutions_by_winograd_filtering() {
    for (padding, [b, h, w]) in [
        (1, [3, 4, 4]),
        (1, [2, 10, 8]),
        (1, [2, 26, 16]),
        (1, [1, 38, 32]),
        (1, [2, 6, 12]),
        (0, [4, 8, 10]),
        (2, [2, 6, 6]),
    ] {
        let layer = Conv2dConfig::new([40, 24], [3, 3])
            .with_padding(PaddingConfig2d::Explicit(padding, padding, padding, padding))
            .init(&Device::flex());
        assert_matches(
            &format!("conv of {b}x{h}x{w} padded by {padding}"),
            [random([b, 40, h, w])],
            |[x], dtype| conv2d(&frozen(&layer, dtype, &Device::default()), x),
            |[x]| frozen(&layer, FloatDType::F32, &Device::flex()).forward(x),
        );
    }
}

#[test]
fn trained_convolutions_have_a_weight_gradient() {
    let layer = Conv2dConfig::new([4, 6], [3, 3])
        .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
        .init(&Device::flex());
    let x = random([2, 4, 6, 6]);
    let grad = |device: &Device, forward: fn(&Conv2d, Tensor<4>) -> Tensor<4>| {
        let layer = layer.clone().to_device(device).train();
        let x = Tensor::from_inner(x.clone().to_device(device));
        let grads = forward(&layer, x).square().sum().backward();
        layer.weight.val().grad(&grads).unwrap()
    };
    let ours = grad(&Device::default(), conv2d);
    let theirs = grad(&Device::flex(), |layer, x| layer.forward(x));
    // burn's kernel for this gradient may use TF32 on a GPU, which has ten bits of mantissa.
    assert!(distance(ours, theirs) <= 2e-3);
}

fn attention_of([q, k, v]: [Tensor<4>; 3]) -> Tensor<4> {
    attention(q, k, v)
}

/// Scores of one sign, so far from zero that their exponentials overflow or underflow.
#[test]
fn attention_of_extreme_scores() {
    for offset in [-40.0, 40.0] {
        let ones: Tensor<4> = Tensor::ones([1, 1, 40, 64], &Device::flex());
        let q = random([1, 1, 40, 64]).mul_scalar(0.1) + ones.clone().mul_scalar(offset);
        let k = random([1, 1, 70, 64]).mul_scalar(0.01) + ones.narrow(2, 0, 1);
        let v = random([1, 1, 70, 64]);
        let plain = |[q, k, v]: [Tensor<4>; 3]| {
            softmax(q.matmul(k.swap_dims(2, 3)).mul_scalar(0.125), 3).matmul(v)
        };
        // The inputs are rounded once, so that both sides have the same scores.
        let inputs = [q, k, v].map(|x| x.cast(FloatDType::BF16).cast(FloatDType::F32));
        let direction = random([1, 1, 40, 64]);
        let (y, _) = run(&Device::flex(), &inputs, FloatDType::F32, plain, &direction);
        for dtype in [FloatDType::F32, FloatDType::BF16, FloatDType::F16] {
            if Device::default().supports_dtype(dtype) {
                let (ours, grads) =
                    run(&Device::default(), &inputs, dtype, attention_of, &direction);
                let off = distance(ours, y.clone());
                assert!(off <= HALF, "{dtype:?} at {offset}: off by {off}");
                for grad in grads {
                    let sum: f32 = grad.cast(FloatDType::F32).abs().sum().into_scalar();
                    assert!(sum.is_finite(), "{dtype:?} at {offset}");
                }
            }
        }
    }
}

#[test]
fn attentions() {
    let plain = |[q, k, v]: [Tensor<4>; 3]| {
        let scale = (q.dims()[3] as f64).powf(-0.5);
        softmax(q.matmul(k.swap_dims(2, 3)).mul_scalar(scale), 3).matmul(v)
    };
    let ours = |x: [Tensor<4>; 3], _| attention_of(x);
    // Blocks of queries and keys that are not full; every width of a head that the CUDA kernels distinguish,
    // and one that they do not take.
    for (b, heads, n, m, d) in [
        (2, 3, 10, 10, 8),
        (1, 2, 33, 77, 40),
        (2, 4, 16, 200, 16),
        (1, 2, 300, 301, 8),
        (2, 2, 130, 77, 64),
        (1, 3, 65, 66, 80),
        (1, 1, 70, 64, 128),
        (2, 2, 450, 330, 128),
        (1, 3, 193, 129, 120),
        // Few keys, whose gradients are summed by several blocks.
        (1, 2, 700, 77, 64),
        (2, 1, 1111, 77, 128),
        (1, 2, 530, 30, 16),
        (1, 2, 20, 30, 160),
    ] {
        let kv = || random([b, heads, m, d]);
        assert_matches("attention", [random([b, heads, n, d]), kv(), kv()], ours, plain);
    }
    // Heads as slices of the width, as a network has them.
    let heads = |x: Tensor<4>| x.swap_dims(1, 2);
    let inputs = [random([2, 33, 3, 64]), random([2, 77, 3, 64]), random([2, 77, 3, 64])];
    assert_matches(
        "heads",
        inputs,
        |x, _| heads(attention_of(x.map(heads))),
        |x| heads(plain(x.map(heads))),
    );
}

#[test]
fn attention_without_saved_weights() {
    // Slightly more attention weights than the tape saves.
    let n = 2900;
    let inputs = [(); 3].map(|()| random([1, 2, n, 4]).mul_scalar(0.5));
    let direction = random([1, 2, n, 4]);
    let (y, grads) = run(&Device::default(), &inputs, FloatDType::F32, attention_of, &direction);
    let (their_y, theirs) = run(
        &Device::flex(),
        &inputs,
        FloatDType::F32,
        |[q, k, v]| softmax(q.matmul(k.swap_dims(2, 3)).mul_scalar(0.5), 3).matmul(v),
        &direction,
    );
    // Sums of 2900 terms of both signs.
    assert!(distance(y, their_y) <= 10.0 * EXACT);
    for (ours, theirs) in grads.into_iter().zip(theirs) {
        assert!(distance(ours, theirs) <= 10.0 * EXACT);
    }
}

#[test]
fn norms() {
    for (groups, channels, side, act) in [(4, 16, 5, true), (4, 16, 5, false), (2, 6, 9, true)] {
        let mut layer = GroupNormConfig::new(groups, channels).init(&Device::flex()).no_grad();
        let perturbed = |p: Option<burn::module::Param<Tensor<1>>>| {
            p.map(|p| p.map(|p| (p + random([channels])).set_require_grad(false)))
        };
        (layer.gamma, layer.beta) = (perturbed(layer.gamma), perturbed(layer.beta));
        let at = |dtype: FloatDType, device: Device| {
            let mut layer = layer.clone().to_device(&device);
            let cast = |p: Option<burn::module::Param<Tensor<1>>>| {
                p.map(|p| p.map(|p| p.cast(dtype).set_require_grad(false)))
            };
            (layer.gamma, layer.beta) = (cast(layer.gamma), cast(layer.beta));
            layer.train().no_grad()
        };
        assert_matches(
            "group norm",
            [random([2, channels, side, side]).add_scalar(3.0)],
            |[x], dtype| group_norm(&at(dtype, Device::default()), x, act),
            |[x]| {
                let z = at(FloatDType::F32, Device::flex()).forward(x);
                if act { silu(z) } else { z }
            },
        );
    }
    for width in [24, 77, 700] {
        let layer = LayerNormConfig::new(width).init(&Device::flex());
        let at = |dtype: FloatDType, device: Device| {
            let mut layer = layer.clone().to_device(&device);
            layer.gamma = layer.gamma.map(|p| p.cast(dtype).set_require_grad(false));
            layer.beta = layer.beta.map(|p| p.map(|p| p.cast(dtype).set_require_grad(false)));
            layer.train().no_grad()
        };
        assert_matches(
            "layer norm",
            [random([2, 3, width]).add_scalar(1.0)],
            |[x], dtype| layer_norm(&at(dtype, Device::default()), 1e-5, x),
            |[x]| at(FloatDType::F32, Device::flex()).forward(x),
        );
    }
}

#[test]
fn geglu_with_and_without_bias() {
    let plain = |[x]: [Tensor<3>; 1]| {
        let half = x.dims()[2] / 2;
        // burn's gradient of gelu is an approximation, but that of its erf is exact.
        let b = x.clone().narrow(2, half, half);
        let exact = b.clone() * (b.mul_scalar(0.5f64.sqrt()).erf() + 1.0).mul_scalar(0.5);
        x.narrow(2, 0, half) * exact
    };
    assert_matches("geglu", [random([2, 5, 48])], |[x], _| geglu(x), plain);
    for width in [48, 10] {
        let bias = random([1, width]).flatten::<1>(0, 1);
        let ours = |[x]: [Tensor<3>; 1], dtype| {
            let bias = bias.clone().to_device(&x.device()).cast(dtype);
            geglu_with_bias(x, Some(bias))
        };
        let shifted = |[x]: [Tensor<3>; 1]| {
            let bias = Tensor::from_inner(bias.clone()).unsqueeze();
            plain([x + bias])
        };
        let theirs = |[x]: [Tensor<3>; 1]| match x.is_autodiff() {
            true => shifted([x]),
            false => plain([x + bias.clone().unsqueeze()]),
        };
        assert_matches("geglu with bias", [random([2, 5, width])], ours, theirs);
    }
    let x = random([2, 5, 48]);
    let value = x.clone().narrow(2, 0, 24) * gelu(x.clone().narrow(2, 24, 24));
    assert!(distance(geglu(x.to_device(&Device::default())), value) <= EXACT);
}

#[test]
fn clamped_column_scaling() {
    for [rows, k] in [[7, 10], [300, 64], [33, 160], [1, 1]] {
        // Every second gain is above its floor, by more than the rounding.
        let gain = random([1, k]);
        let offsets = Tensor::<1, Int>::arange(0..k as i64, &Device::flex()).float();
        let floor = gain.clone().reshape([k]) + (offsets % 2.0 - 0.5);
        let plain = |[l, gain]: [Tensor<2>; 2]| {
            let floor = Tensor::from_inner(floor.clone()).to_device(&l.device()).unsqueeze_dim(0);
            l * gain.max_pair(floor)
        };
        let ours = |[l, gain]: [Tensor<2>; 2], _| {
            let floor = Tensor::from_inner(floor.clone().to_device(&l.device()));
            scale_columns(l, gain.reshape([k]).cast(FloatDType::F32), floor)
        };
        assert_matches("scale_columns", [random([rows, k]), gain], ours, plain);
    }
    let (l, floor) = (random([4, 2]), Tensor::full([2], f32::NEG_INFINITY, &Device::flex()));
    let device = Device::default();
    let gain = Tensor::<1>::from_data([f32::NAN, 3.0], &device);
    let y = scale_columns(l.clone().to_device(&device), gain, floor.to_device(&device));
    let y: Vec<f32> = y.into_data().iter().collect();
    assert!(y.chunks(2).all(|row| row[0].is_nan() && row[1].is_finite()), "{y:?}");
}
