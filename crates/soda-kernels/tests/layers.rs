//! What is one operation because of how layers follow each other: values and gradients, as in `gradients`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use burn::nn::PaddingConfig2d;
use burn::nn::conv::Conv2dConfig;
use burn::tensor::{Device, Tensor};
use soda_kernels::{
    addmm, concat_channels, conv2d, conv2d_residual, linear_low_rank, linear_residual,
};

use common::{distance, frozen, random, same};

#[test]
fn maps_joined() {
    for channels in [[8, 16], [3, 5]] {
        let inputs = channels.map(|c| random([2, c, 4, 6]));
        let both = [inputs[0].clone(), inputs[1].clone()];
        let direction = random([2, channels[0] + channels[1], 4, 6]);
        let there = |x: &Tensor<4>, device: &Device| {
            Tensor::<4>::from_inner(x.clone().to_device(device)).require_grad()
        };
        let run = |device: &Device, f: fn(Tensor<4>, Tensor<4>) -> Tensor<4>| {
            let [a, b] = both.each_ref().map(|x| there(x, device));
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

/// Widths that 16 bytes divide and others.
#[test]
fn a_change_of_low_rank() {
    for [rows, input, rank, output] in [[7, 10, 3, 5], [40, 32, 8, 24]] {
        let [x, w, a, b] = [[rows, input], [input, output], [input, rank], [rank, output]];
        let inputs = [x, w, a, b].map(|shape| random(shape) / (shape[0] as f32).sqrt());
        same(
            "low rank",
            inputs,
            |[x, w, a, b], _| linear_low_rank(x, w, a, b),
            |[x, w, a, b]| x.clone().matmul(w) + x.matmul(a).matmul(b),
        );
        // As in training, where the weight has no gradient and the factors are float32.
        let w = random([input, output]) / (input as f32).sqrt();
        let there =
            |x: &Tensor<2>| Tensor::from_inner(w.clone().to_device(&x.device())).cast(x.dtype());
        let [x, a, b] = [[rows, input], [input, rank], [rank, output]];
        same(
            "low rank, frozen",
            [x, a, b].map(|shape| random(shape) / (shape[0] as f32).sqrt()),
            |[x, a, b], _| {
                let w = there(&x);
                linear_low_rank(x, w, a.cast(burn::tensor::FloatDType::F32), b)
            },
            |[x, a, b]| x.clone().matmul(there(&x)) + x.matmul(a).matmul(b),
        );
    }
}

#[test]
fn products_added_to_what_is_there() {
    for [m, k, n] in [[3, 5, 7], [16, 8, 24]] {
        let inputs = [[m, k], [k, n], [m, n]].map(random);
        let plain = |[a, b, c]: [Tensor<2>; 3]| a.matmul(b) + c;
        same("onto", inputs, |[a, b, c], _| addmm(a, b, c), plain);
    }
    // What others hold stays what it is.
    let device = Device::default();
    let [a, b, c] = [random([4, 4]), random([4, 4]), random([4, 4])];
    let [on_a, on_b, on_c] = [&a, &b, &c].map(|x| x.clone().to_device(&device));
    let twice = [(), ()].map(|()| addmm(on_a.clone(), on_b.clone(), on_c.clone()));
    for sum in twice {
        assert!(distance(sum, a.clone().matmul(b.clone()) + c.clone()) <= common::EXACT);
    }
}

/// A bias and the skip connection, each with its gradient; widths that 16 bytes divide and others.
#[test]
fn what_is_added_to_a_linear_layer() {
    for [batch, tokens, input, output] in [[2, 5, 6, 7], [3, 16, 8, 32]] {
        let w = random([input, output]);
        let there = |x: &Tensor<3>| {
            Tensor::<2>::from_inner(w.clone().to_device(&x.device())).cast(x.dtype())
        };
        let row = |bias: Tensor<3>| bias.reshape([output]);
        let inputs = [[batch, tokens, input], [1, 1, output], [batch, tokens, output]].map(random);
        same(
            "linear and more",
            inputs.clone(),
            |[x, bias, rest], _| {
                let w = there(&x);
                linear_residual(x, || w, Some(row(bias)), Some(rest))
            },
            |[x, bias, rest]| x.clone().matmul(there(&x).unsqueeze()) + bias + rest,
        );
        let [x, bias, _] = inputs;
        same(
            "linear and a bias",
            [x, bias],
            |[x, bias], _| {
                let w = there(&x);
                linear_residual(x, || w, Some(row(bias)), None)
            },
            |[x, bias]| x.clone().matmul(there(&x).unsqueeze()) + bias,
        );
    }
}

#[test]
fn what_is_added_to_a_convolution() {
    for (channels, kernel) in [([4, 6], 3), ([8, 16], 3), ([8, 16], 1)] {
        let padding = kernel / 2;
        let layer = Conv2dConfig::new(channels, [kernel; 2])
            .with_padding(PaddingConfig2d::Explicit(padding, padding, padding, padding))
            .init(&Device::flex());
        let inputs = [[2, channels[0], 5, 4], [2, channels[1], 1, 1], [2, channels[1], 5, 4]];
        same(
            "convolution and more",
            inputs.map(random),
            |[x, each, rest], dtype| {
                let layer = frozen(&layer, dtype, &Device::default());
                let each = each.reshape([2, channels[1]]);
                conv2d_residual(&layer, x, Some(each), Some(rest))
            },
            |[x, each, rest]| layer.forward(x) + each + rest,
        );
        same(
            "convolution and the rest",
            [inputs[0], inputs[2]].map(random),
            |[x, rest], dtype| {
                conv2d_residual(&frozen(&layer, dtype, &Device::default()), x, None, Some(rest))
            },
            |[x, rest]| layer.forward(x) + rest,
        );
        same(
            "convolution alone",
            [random(inputs[0])],
            |[x], dtype| conv2d(&frozen(&layer, dtype, &Device::default()), x),
            |[x]| layer.forward(x),
        );
    }
}
