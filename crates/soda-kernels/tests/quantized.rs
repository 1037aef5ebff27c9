//! Quantized weights: errors of the formats, equality of devices, products with their gradients, and modules.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use soda_kernels::{
    ActivationFormat, QuantFormat, QuantLayout, QuantizedMatrix, StoredWeight, has_fp8_products,
    linear_deferred, stored_weights, take_stored, with_stored,
};

use common::{assert_matches, distance, random, run};

/// Shapes `[out, in]`: rows of one block, an odd number of blocks, many blocks.
const SHAPES: [[usize; 2]; 3] = [[5, 64], [3, 192], [65, 320]];
/// A shape of the formats whose blocks are rows.
const ROWS_ONLY: [usize; 2] = [7, 40];

/// Pairs of a format and a shape that it has.
fn cases() -> impl Iterator<Item = (QuantFormat, [usize; 2])> {
    let shapes = SHAPES.into_iter().chain([ROWS_ONLY]);
    shapes
        .flat_map(|shape| QuantFormat::ALL.map(|format| (format, shape)))
        .filter(|(format, shape)| QuantLayout::new(*format, *shape).is_some())
}

fn host_values(x: &Tensor<2>) -> Vec<f32> {
    x.clone().into_data().iter().collect()
}

/// The quantized form of a matrix `[out, in]`.
fn quantized(matrix: &Tensor<2>, format: QuantFormat) -> QuantizedMatrix {
    let layout = QuantLayout::new(format, matrix.dims()).unwrap();
    QuantizedMatrix::encode(&host_values(matrix), layout)
}

/// The root mean square error over the root mean square of normal numbers.
#[test]
fn the_error_of_a_format_is_that_of_its_bits() {
    let matrix = random([256, 1280]);
    for (format, least, most) in [
        // Steps of the peak of 1280 numbers over 127, about 3.4 / 127: their uniform error is 0.0077.
        (QuantFormat::Int8, 0.006, 0.009),
        // A mantissa of three bits: steps of 1/8 to 1/16 of the number.
        (QuantFormat::Fp8, 0.02, 0.03),
        // The error that the paper of QLoRA gives for blocks of 64.
        (QuantFormat::Nf4, 0.08, 0.10),
    ] {
        let weight = StoredWeight::quantized(&quantized(&matrix, format), &Device::flex());
        let found = weight.to_float(DType::F32).transpose();
        let power = |x: Tensor<2>| f64::from(x.square().mean().into_scalar::<f32>()).sqrt();
        let error = power(found - matrix.clone()) / power(matrix.clone());
        assert!(error > least && error < most, "{format:?}: {error}");
    }
}

/// The errors of torchao's int8 and fp8 and of bitsandbytes' NF4 on the same matrix, from
/// `docs/parity/quantization/errors.py`.
#[test]
fn a_weight_is_no_further_off_than_that_of_pytorch() {
    let file =
        soda_testing::workspace_path("crates/soda-kernels/tests/fixtures/quantization.safetensors");
    let bytes = std::fs::read(file).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let values = |name: &str| -> Vec<f32> {
        let (numbers, _) = file.tensor(name).unwrap().data().as_chunks::<4>();
        numbers.iter().map(|number| f32::from_le_bytes(*number)).collect()
    };
    let tensor = |name: &str, shape: [usize; 2]| {
        Tensor::<2>::from_data(TensorData::new(values(name), shape), &Device::default())
    };
    let matrix = tensor("matrix", [64, 320]);
    let norms = |x: Tensor<2>| x.square().sum_dim(1);
    for format in QuantFormat::ALL {
        let layout = QuantLayout::new(format, [64, 320]).unwrap();
        let host = QuantizedMatrix::encode(&values("matrix"), layout);
        let found = StoredWeight::quantized(&host, &Device::default()).to_float(DType::F32);
        let errors = norms(found.transpose() - matrix.clone()) / norms(matrix.clone());
        let error = f64::from(errors.mean().into_scalar::<f32>()).sqrt();
        let theirs = f64::from(values(format.name())[0]);
        // torchao has one integer more on one side: steps of 2/255 instead of 2/254.
        assert!(error <= theirs * 1.01, "{format:?}: {error:.5}, and {theirs:.5} of PyTorch");
    }
}

#[test]
fn every_device_has_the_numbers_of_the_cpu() {
    for (format, shape) in cases() {
        // A row of zeros has the scale 0, which is no divisor.
        let matrix = random(shape).slice_fill(0..1, 0.0);
        {
            let host = quantized(&matrix, format);
            let values = |device: &Device, dtype| {
                let weight = StoredWeight::quantized(&host, device);
                assert_eq!(weight.dims(), [shape[1], shape[0]]);
                weight.to_float(dtype).to_device(&Device::flex()).cast(FloatDType::F32)
            };
            let expected = values(&Device::flex(), DType::F32);
            assert!(distance(expected.clone().transpose(), matrix.clone()) < 0.2, "{format:?}");
            assert_eq!(distance(values(&Device::default(), DType::F32), expected.clone()), 0.0);
            if Device::default().supports_dtype(FloatDType::BF16) {
                let rounded = expected.cast(FloatDType::BF16).cast(FloatDType::F32);
                assert_eq!(distance(values(&Device::default(), DType::BF16), rounded), 0.0);
            }
        }
    }
}

#[test]
fn a_product_has_the_value_and_gradient_of_the_matrix() {
    for (format, shape) in cases() {
        let matrix = random(shape) / (shape[1] as f32).sqrt();
        {
            let host = quantized(&matrix, format);
            let dense = StoredWeight::quantized(&host, &Device::flex()).to_float(DType::F32);
            assert_matches(
                format.name(),
                [random([7, shape[1]])],
                |[x], _| StoredWeight::quantized(&host, &x.device()).train().product(x),
                |[x]| {
                    x.clone().matmul(if x.is_autodiff() {
                        Tensor::from_inner(dense.clone())
                    } else {
                        dense.clone()
                    })
                },
            );
        }
    }
}

/// Rows rounded to E4M3 on the host, for `W = diag(s) C`: `y = Q(x) W'` and `dx = Q(dy diag(s)) C`.
#[test]
fn activations_in_fp8_are_rounded_row_by_row() {
    // Sizes of tensor cores and others. The last is a wide row.
    for [rows, output, input] in [[5, 48, 32], [130, 144, 272], [3, 4096, 16]] {
        let layout = QuantLayout::new(QuantFormat::Fp8, [output, input]).unwrap();
        let layout = layout.with_activations(ActivationFormat::Fp8);
        let rounded = |x: Tensor<2>| {
            let layout = QuantLayout::new(QuantFormat::Fp8, x.dims()).unwrap();
            let codes = QuantizedMatrix::encode(&host_values(&x), layout);
            StoredWeight::quantized(&codes, &Device::flex()).to_float(DType::F32).transpose()
        };
        // Rows of different sizes, and one of zeros. The numbers exist in bfloat16.
        let of_bf16 = |x: Tensor<2>| x.cast(FloatDType::BF16).cast(FloatDType::F32);
        let sizes = |count| (random([count, 1]) * 0.7).exp();
        let matrix = random([output, input]) * sizes(output);
        let x = of_bf16(random([rows, input]) * sizes(rows)).slice_fill(1..2, 0.0);
        // In f16 the gradient times the scales of the weight would lose its digits.
        let dy = of_bf16(random([rows, output]) * 1e-5);

        let codes = QuantizedMatrix::encode(&host_values(&matrix), layout);
        let w = StoredWeight::quantized(&codes, &Device::flex()).to_float(DType::F32);
        let y = rounded(x.clone()).matmul(w.clone());
        let scales = matrix.clone().abs().max_dim(1) / 448.0;
        let scaled = dy.clone() * scales.clone().transpose();
        let dx = rounded(scaled).matmul(w.clone().transpose() / scales);

        let tensor_cores = has_fp8_products(&Tensor::<1>::zeros([1], &Device::default()));
        // Tensor cores of 8 bits keep 14 bits of a sum.
        let exact = if tensor_cores { 1e-3 } else { common::EXACT };
        let inputs = [x.clone()];
        let half = common::HALF;
        for (dtype, tolerance) in
            [(FloatDType::F32, exact), (FloatDType::BF16, half), (FloatDType::F16, half)]
        {
            if !Device::default().supports_dtype(dtype) {
                continue;
            }
            let product = |[x]: [Tensor<2>; 1]| {
                StoredWeight::quantized(&codes, &x.device()).train().product(x)
            };
            let (our_y, our_dx) = run(&Device::default(), &inputs, dtype, product, &dy);
            assert_eq!(our_y.dtype(), DType::from(dtype));
            // The sum of two errors of the format, of rows and of the weight.
            if rows > 100 && dtype == FloatDType::F32 {
                let lengths = |x: &Tensor<2>| x.clone().square().sum_dim(1).sqrt() + 1e-20;
                let lengths = lengths(&x).matmul(lengths(&matrix).transpose());
                let ours = our_y.clone().to_device(&Device::flex());
                let off = (ours - x.clone().matmul(matrix.clone().transpose())) / lengths;
                let error = off.square().mean().into_scalar::<f32>() * input as f32;
                assert!(error.sqrt() > 0.03 && error.sqrt() < 0.045, "{error}");
            }
            for (what, ours, theirs) in [("value", our_y, &y), ("gradient", our_dx[0].clone(), &dx)]
            {
                let off = distance(ours, theirs.clone());
                assert!(off <= tolerance, "{rows} {output} {input} {dtype:?}: {what} off by {off}");
            }
        }
    }
}

/// What is no number stays none, in its row only.
#[test]
fn rounded_activations_keep_nan_and_infinity() {
    let device = Device::default();
    let layout = QuantLayout::new(QuantFormat::Fp8, [16, 32]).unwrap();
    let layout = layout.with_activations(ActivationFormat::Fp8);
    let codes = QuantizedMatrix::encode(&host_values(&random([16, 32])), layout);
    let weight = StoredWeight::quantized(&codes, &device);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let x = random([3, 32]).slice_fill([1..2, 4..5], bad);
        let rows: Vec<Vec<f32>> = host_values(&weight.product(x.to_device(&device)))
            .chunks(16)
            .map(<[f32]>::to_vec)
            .collect();
        assert!(rows[1].iter().all(|y| !y.is_finite()), "{bad}: {:?}", rows[1]);
        assert!([&rows[0], &rows[2]].iter().all(|row| row.iter().all(|y| y.is_finite())));
    }
}

#[test]
fn a_layer_computes_with_its_quantized_weight() {
    let device = Device::default();
    let layer = LinearConfig::new(64, 5).with_bias(false).init(&device);
    let matrix = layer.weight.val().transpose().to_device(&Device::flex());
    let weight = StoredWeight::quantized(&quantized(&matrix, QuantFormat::Int8), &device);
    let x = random([3, 64]).to_device(&device);
    let forward = |layer: &Linear| linear_deferred(x.clone(), || layer.weight.val(), None);
    let dense = forward(&layer);

    let layer = with_stored(layer, BTreeMap::from([("weight".to_owned(), weight.clone())]));
    let found = forward(&layer);
    assert_eq!(distance(found.clone(), weight.product(x.clone())), 0.0);
    assert!(distance(found.clone(), dense) < 0.02);
    // A reader of the weight itself gets it in floats.
    assert_eq!(distance(layer.weight.val(), weight.to_float(DType::F32)), 0.0);
    // A reader of the parameter gets no number.
    assert_eq!(layer.weight.base().dims(), [1, 1]);
    assert!(layer.weight.base().into_scalar::<f32>().is_nan());
    // A traversal leaves it as it is, on and off the tape.
    let same = layer.clone().train().valid().to_device(&device);
    assert_eq!(distance(forward(&same), found.clone()), 0.0);

    assert_eq!(stored_weights(&layer).into_keys().collect::<Vec<_>>(), ["weight"]);
    let (bare, weights) = take_stored(layer);
    assert!(stored_weights(&bare).is_empty());
    let again = with_stored(bare, weights);
    assert_eq!(distance(forward(&again), found), 0.0);
}
