//! Values and gradients of fused layers, as in `gradients.rs`: epilogues, low-rank updates, concatenated
//! channels.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use burn::nn::PaddingConfig2d;
use burn::nn::conv::Conv2dConfig;
use burn::tensor::{Device, Tensor};
use soda_kernels::{
    add_low_rank, addmm, concat_channels, conv2d, conv2d_residual, linear_low_rank,
    linear_residual, upsample_nearest,
};

use common::{assert_matches, distance, frozen, random};

#[test]
fn concatenated_channels() {
    for channels in [[8, 16], [3, 5]] {
        let inputs = channels.map(|c| random([2, c, 4, 6]));
        let both = [inputs[0].clone(), inputs[1].clone()];
        let direction = random([2, channels[0] + channels[1], 4, 6]);
        let to_leaf = |x: &Tensor<4>, device: &Device| {
            Tensor::<4>::from_inner(x.clone().to_device(device)).require_grad()
        };
        let run = |device: &Device, f: fn(Tensor<4>, Tensor<4>) -> Tensor<4>| {
            let [a, b] = both.each_ref().map(|x| to_leaf(x, device));
            let y = f(a.clone(), b.clone());
            let weights = Tensor::from_inner(direction.clone().to_device(device));
            let grads = (y.clone() * weights).sum().backward();
            [y.inner(), a.grad(&grads).unwrap(), b.grad(&grads).unwrap()]
        };
        let theirs = run(&Device::flex(), |a, b| Tensor::cat(vec![a, b], 1));
        for (ours, theirs) in run(&Device::default(), concat_channels).into_iter().zip(theirs) {
            assert_eq!(distance(ours, theirs), 0.0);
        }
    }
}

/// Widths that are multiples of 16 bytes, and others.
#[test]
fn low_rank_updates() {
    for [rows, input, rank, output] in [[7, 10, 3, 5], [40, 32, 8, 24]] {
        let [x, w, a, b] = [[rows, input], [input, output], [input, rank], [rank, output]];
        let inputs = [x, w, a, b].map(|shape| random(shape) / (shape[0] as f32).sqrt());
        assert_matches(
            "low rank",
            inputs,
            |[x, w, a, b], _| linear_low_rank(x, w, a, b),
            |[x, w, a, b]| x.clone().matmul(w) + x.matmul(a).matmul(b),
        );
        // The case of training: the weight has no gradient, and the factors are float32.
        let w = random([input, output]) / (input as f32).sqrt();
        let on_device_of =
            |x: &Tensor<2>| Tensor::from_inner(w.clone().to_device(&x.device())).cast(x.dtype());
        let [x, a, b] = [[rows, input], [input, rank], [rank, output]];
        assert_matches(
            "low rank, frozen",
            [x, a, b].map(|shape| random(shape) / (shape[0] as f32).sqrt()),
            |[x, a, b], _| {
                let w = on_device_of(&x);
                linear_low_rank(x, w, a.cast(burn::tensor::FloatDType::F32), b)
            },
            |[x, a, b]| x.clone().matmul(on_device_of(&x)) + x.matmul(a).matmul(b),
        );
        // The case of a quantized weight: its product comes from elsewhere.
        let shapes = [[rows, output], [rows, input], [input, rank], [rank, output]];
        assert_matches(
            "low rank, added",
            shapes.map(|shape| random(shape) / (shape[0] as f32).sqrt()),
            |[y, x, a, b], _| add_low_rank(y, x, a, b.cast(burn::tensor::FloatDType::F32)),
            |[y, x, a, b]| y + x.matmul(a).matmul(b),
        );
    }
}

/// The first layer of a network: nothing but the factors has a gradient.
#[test]
fn an_update_of_constants_has_the_gradients_of_its_factors() {
    let [y, x] = [[6, 24], [6, 8]].map(random);
    let factors = [[8, 4], [4, 24]].map(random);
    let direction = random([6, 24]);
    let run = |device: &Device, f: fn([Tensor<2>; 4]) -> Tensor<2>| {
        let [y, x] = [&y, &x].map(|x| Tensor::from_inner(x.clone().to_device(device)));
        let sum = |[a, b]: [Tensor<2>; 2]| f([y.clone(), x.clone(), a, b]);
        common::run(device, &factors, burn::tensor::FloatDType::F32, sum, &direction)
    };
    let (y, ours) = run(&Device::default(), |[y, x, a, b]| add_low_rank(y, x, a, b));
    let (expected, theirs) = run(&Device::flex(), |[y, x, a, b]| y + x.matmul(a).matmul(b));
    assert!(distance(y, expected) <= common::EXACT);
    for (ours, theirs) in ours.into_iter().zip(theirs) {
        assert!(distance(ours, theirs) <= common::EXACT);
    }
}

/// A sum that another tensor shares is not changed by the update.
#[test]
fn an_update_leaves_a_shared_sum_as_it_is() {
    let device = Device::default();
    let shapes = [[16, 24], [16, 8], [8, 4], [4, 24]];
    let [y, x, a, b] = shapes.map(|shape| random(shape).to_device(&device));
    let before = y.clone().into_data();
    let kept = y.clone();
    let sum = add_low_rank(y, x, a, b);
    assert!(distance(sum, kept.clone()) > 0.1);
    assert_eq!(kept.into_data(), before);
}

/// Sizes for which a quotient of floats is not the whole number that it should be: 91 / 7 as a product with a
/// rounded inverse, and 26 times 52 in bfloat16.
#[test]
fn upsampling_by_two_sums_the_gradients_of_pixels() {
    let doubled = |x: Tensor<4>, [height, width]: [usize; 2]| {
        let [b, c, h, w] = x.dims();
        let x = x.reshape([b, c, h, 1, w, 1]).expand([b, c, h, 2, w, 2]);
        x.reshape([b, c, 2 * h, 2 * w]).narrow(2, 0, height).narrow(3, 0, width)
    };
    for (shape, size) in [
        ([2, 3, 4, 5], [8, 10]),
        ([1, 8, 5, 7], [9, 13]),
        ([1, 2, 7, 1], [14, 1]),
        ([1, 4, 26, 38], [52, 76]),
        ([1, 1, 76, 52], [151, 104]),
    ] {
        assert_matches(
            &format!("upsampling to {size:?}"),
            [random(shape)],
            |[x], _| upsample_nearest(x, size),
            |[x]| doubled(x, size),
        );
    }
}

#[test]
fn products_added_to_a_matrix() {
    for [m, k, n] in [[3, 5, 7], [16, 8, 24]] {
        let inputs = [[m, k], [k, n], [m, n]].map(random);
        let plain = |[a, b, c]: [Tensor<2>; 3]| a.matmul(b) + c;
        assert_matches("addmm", inputs, |[a, b, c], _| addmm(a, b, c), plain);
    }
    // A matrix that another tensor shares does not change.
    let device = Device::default();
    let [a, b, c] = [random([4, 4]), random([4, 4]), random([4, 4])];
    let [on_a, on_b, on_c] = [&a, &b, &c].map(|x| x.clone().to_device(&device));
    let twice = [(), ()].map(|()| addmm(on_a.clone(), on_b.clone(), on_c.clone()));
    for sum in twice {
        assert!(distance(sum, a.clone().matmul(b.clone()) + c.clone()) <= common::EXACT);
    }
}

/// A bias and a residual, per_sample_bias with its gradient; widths that are multiples of 16 bytes, and
/// others.
#[test]
fn bias_and_residual_of_a_linear_layer() {
    for [batch, tokens, input, output] in [[2, 5, 6, 7], [3, 16, 8, 32]] {
        let w = random([input, output]);
        let on_device_of = |x: &Tensor<3>| {
            Tensor::<2>::from_inner(w.clone().to_device(&x.device())).cast(x.dtype())
        };
        let row = |bias: Tensor<3>| bias.reshape([output]);
        let inputs = [[batch, tokens, input], [1, 1, output], [batch, tokens, output]].map(random);
        assert_matches(
            "linear with bias and residual",
            inputs.clone(),
            |[x, bias, residual], _| {
                let w = on_device_of(&x);
                linear_residual(x, || w, Some(row(bias)), Some(residual))
            },
            |[x, bias, residual]| x.clone().matmul(on_device_of(&x).unsqueeze()) + bias + residual,
        );
        let [x, bias, _] = inputs;
        assert_matches(
            "linear with bias",
            [x, bias],
            |[x, bias], _| {
                let w = on_device_of(&x);
                linear_residual(x, || w, Some(row(bias)), None)
            },
            |[x, bias]| x.clone().matmul(on_device_of(&x).unsqueeze()) + bias,
        );
    }
}

#[test]
fn bias_and_residual_of_a_convolution() {
    for (channels, kernel) in [([4, 6], 3), ([8, 16], 3), ([8, 16], 1)] {
        let padding = kernel / 2;
        let layer = Conv2dConfig::new(channels, [kernel; 2])
            .with_padding(PaddingConfig2d::Explicit(padding, padding, padding, padding))
            .init(&Device::flex());
        let inputs = [[2, channels[0], 5, 4], [2, channels[1], 1, 1], [2, channels[1], 5, 4]];
        assert_matches(
            "convolution with bias and residual",
            inputs.map(random),
            |[x, per_sample_bias, residual], dtype| {
                let layer = frozen(&layer, dtype, &Device::default());
                let per_sample_bias = per_sample_bias.reshape([2, channels[1]]);
                conv2d_residual(&layer, x, Some(per_sample_bias), Some(residual))
            },
            |[x, per_sample_bias, residual]| layer.forward(x) + per_sample_bias + residual,
        );
        assert_matches(
            "convolution with residual",
            [inputs[0], inputs[2]].map(random),
            |[x, residual], dtype| {
                conv2d_residual(&frozen(&layer, dtype, &Device::default()), x, None, Some(residual))
            },
            |[x, residual]| layer.forward(x) + residual,
        );
        assert_matches(
            "convolution alone",
            [random(inputs[0])],
            |[x], dtype| conv2d(&frozen(&layer, dtype, &Device::default()), x),
            |[x]| layer.forward(x),
        );
    }
}
