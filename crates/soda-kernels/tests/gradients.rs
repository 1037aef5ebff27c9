//! Every operation, on the device that the build prefers, has the value and the gradient that the same formula in
//! burn's own operations has on a CPU. (A GPU is no reference for itself: burn's float32 products there may be TF32.)
//!
//! Tolerances are relative to the largest number of the reference: 2e-5 for float32, a few roundings of sums of some
//! hundred terms; 3e-2 for bfloat16 against float32, a few of its roundings of 2^-8.

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

use common::{EXACT, HALF, distance, frozen, random, run, same};

#[test]
fn products() {
    for (lhs, rhs) in [([1, 1, 5, 7], [1, 1, 7, 3]), ([2, 3, 16, 24], [2, 3, 24, 8])] {
        let inputs = [random(lhs), random(rhs)];
        same("matmul", inputs.clone(), |[a, b], _| matmul(a, b), |[a, b]| a.matmul(b));
        // Every layout of memory that a network produces: transposed, and heads split off the width.
        let turned = inputs.map(|x| x.swap_dims(2, 3));
        let back = |x: Tensor<4>| x.swap_dims(2, 3);
        same(
            "transposed",
            turned,
            |[a, b], _| matmul(back(a), back(b)),
            |[a, b]| back(a).matmul(back(b)),
        );
        let split =
            [random([lhs[0], lhs[2], lhs[1], lhs[3]]), random([rhs[0], rhs[2], rhs[1], rhs[3]])];
        let heads = |x: Tensor<4>| x.swap_dims(1, 2);
        same(
            "heads",
            split,
            |[a, b], _| matmul(heads(a), heads(b)),
            |[a, b]| heads(a).matmul(heads(b)),
        );
    }
}

#[test]
fn a_matrix_for_all_of_a_stack() {
    let inputs = [random([1, 5, 7]), random([6, 7, 3])];
    same("one to many", inputs.clone(), |[a, b], _| matmul(a, b), |[a, b]| a.matmul(b));
    let turned = inputs.map(|x| x.swap_dims(1, 2));
    same("many to one", turned, |[a, b], _| matmul(b, a), |[a, b]| b.matmul(a));
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
    same(
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
        // The last row and column are reached by no window.
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
        same(
            &what,
            [random([2, 8, h, w])],
            |[x], dtype| conv2d(&frozen(&layer, dtype, &Device::default()), x),
            |[x]| frozen(&layer, FloatDType::F32, &Device::flex()).forward(x),
        );
    }
}

/// Maps that do not fit into a tile of the CPU's, and ones so small that it takes several samples together.
#[test]
fn large_and_small_maps() {
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
        same(
            &format!("conv of {shape:?}"),
            [random(shape)],
            |[x], dtype| conv2d(&frozen(&layer, dtype, &Device::default()), x),
            |[x]| frozen(&layer, FloatDType::F32, &Device::flex()).forward(x),
        );
    }
}

/// Kernel 3 at stride 1 with enough channels, which the CPU convolves by Winograd's tiles: every width of its vectors,
/// samples alone and together, a part of the rows at a time, paddings other than one. Each weight lies where the one
/// before it may have been.
#[test]
fn maps_of_many_channels() {
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
        same(
            &format!("conv of {b}x{h}x{w} padded by {padding}"),
            [random([b, 40, h, w])],
            |[x], dtype| conv2d(&frozen(&layer, dtype, &Device::default()), x),
            |[x]| frozen(&layer, FloatDType::F32, &Device::flex()).forward(x),
        );
    }
}

#[test]
fn a_convolution_that_is_trained_gets_its_gradient() {
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
    // burn's kernel for this gradient may be TF32 on a GPU: ten bits.
    assert!(distance(ours, theirs) <= 2e-3);
}

fn attention_of([q, k, v]: [Tensor<4>; 3]) -> Tensor<4> {
    attention(q, k, v)
}

/// Scores far from zero, all of one sign, and of a size that no exponential holds.
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
        // Rounded once, so that both see the same scores.
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
    // Blocks of queries and keys that are not full; every width of heads for which a GPU has a kernel of its own, and one
    // for which it has none.
    for (b, heads, n, m, d) in [
        (2, 3, 10, 10, 8),
        (1, 2, 33, 77, 40),
        (2, 4, 16, 200, 16),
        (1, 2, 300, 301, 8),
        (2, 2, 130, 77, 64),
        (1, 3, 65, 66, 80),
        (1, 1, 70, 64, 128),
        (1, 2, 20, 30, 160),
    ] {
        let kv = || random([b, heads, m, d]);
        same("attention", [random([b, heads, n, d]), kv(), kv()], ours, plain);
    }
    // As a network has them: heads split off the width.
    let heads = |x: Tensor<4>| x.swap_dims(1, 2);
    let inputs = [random([2, 33, 3, 64]), random([2, 77, 3, 64]), random([2, 77, 3, 64])];
    same("heads", inputs, |x, _| heads(attention_of(x.map(heads))), |x| heads(plain(x.map(heads))));
}

#[test]
fn attention_that_keeps_no_scores() {
    // Just over the number of scores that are kept.
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
    // Sums of 2900 terms of either sign.
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
        same(
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
        same(
            "layer norm",
            [random([2, 3, width]).add_scalar(1.0)],
            |[x], dtype| layer_norm(&at(dtype, Device::default()), 1e-5, x),
            |[x]| at(FloatDType::F32, Device::flex()).forward(x),
        );
    }
}

#[test]
fn gates() {
    let plain = |[x]: [Tensor<3>; 1]| {
        let half = x.dims()[2] / 2;
        // burn's gradient of gelu is an approximation; its erf has the exact one.
        let b = x.clone().narrow(2, half, half);
        let exact = b.clone() * (b.mul_scalar(0.5f64.sqrt()).erf() + 1.0).mul_scalar(0.5);
        x.narrow(2, 0, half) * exact
    };
    same("geglu", [random([2, 5, 48])], |[x], _| geglu(x), plain);
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
        same("geglu of a sum", [random([2, 5, width])], ours, theirs);
    }
    let x = random([2, 5, 48]);
    let value = x.clone().narrow(2, 0, 24) * gelu(x.clone().narrow(2, 24, 24));
    assert!(distance(geglu(x.to_device(&Device::default())), value) <= EXACT);
}

#[test]
fn columns_times_gains_kept_from_below() {
    for [rows, k] in [[7, 10], [300, 64], [33, 160], [1, 1]] {
        // Every second gain counts, by more than its rounding.
        let gain = random([1, k]);
        let offsets = Tensor::<1, Int>::arange(0..k as i64, &Device::flex()).float();
        let least = gain.clone().reshape([k]) + (offsets % 2.0 - 0.5);
        let plain = |[l, gain]: [Tensor<2>; 2]| {
            let least = Tensor::from_inner(least.clone()).to_device(&l.device()).unsqueeze_dim(0);
            l * gain.max_pair(least)
        };
        let ours = |[l, gain]: [Tensor<2>; 2], _| {
            let least = Tensor::from_inner(least.clone().to_device(&l.device()));
            scale_columns(l, gain.reshape([k]).cast(FloatDType::F32), least)
        };
        same("columns", [random([rows, k]), gain], ours, plain);
    }
    let (l, least) = (random([4, 2]), Tensor::full([2], f32::NEG_INFINITY, &Device::flex()));
    let device = Device::default();
    let gain = Tensor::<1>::from_data([f32::NAN, 3.0], &device);
    let y = scale_columns(l.clone().to_device(&device), gain, least.to_device(&device));
    let y: Vec<f32> = y.into_data().iter().collect();
    assert!(y.chunks(2).all(|row| row[0].is_nan() && row[1].is_finite()), "{y:?}");
}
