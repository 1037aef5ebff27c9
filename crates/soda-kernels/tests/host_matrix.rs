//! Weights in host memory: products with their gradients, in every order of passes, and modules.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use soda_kernels::{
    ActivationFormat, QuantFormat, QuantLayout, QuantizedMatrix, StoredWeight, linear_deferred,
    stored_weights, take_stored, with_copies_ahead, with_stored,
};

use common::{EXACT, assert_matches, distance, random};

/// A matrix `[out, in]` in host memory, in floats of `dtype`.
fn offloaded(matrix: &Tensor<2>, dtype: FloatDType, device: &Device) -> StoredWeight {
    StoredWeight::offloaded_floats(&matrix.clone().cast(dtype).into_data(), device).unwrap()
}

#[test]
fn a_product_has_the_value_and_gradient_of_the_matrix() {
    for shape in [[5, 64], [3, 7], [65, 320]] {
        let matrix = random(shape) / (shape[1] as f32).sqrt();
        let dense = matrix.clone().transpose();
        assert_matches(
            "offloaded",
            [random([7, shape[1]])],
            |[x], dtype| offloaded(&matrix, dtype, &x.device()).train().product(x),
            |[x]| {
                let on_tape = x.is_autodiff();
                x.matmul(if on_tape { Tensor::from_inner(dense.clone()) } else { dense.clone() })
            },
        );
    }
}

/// Codes give the same bits from host memory and from the device.
#[test]
fn a_quantized_weight_is_the_same_in_host_memory() {
    let device = Device::default();
    let values: Vec<f32> = random([16, 192]).into_data().iter().collect();
    let x = random([7, 192]).to_device(&device);
    let layouts = QuantFormat::ALL.map(|format| QuantLayout::new(format, [16, 192]).unwrap());
    let in_fp8 = layouts[1].with_activations(ActivationFormat::Fp8);
    assert_eq!(in_fp8.activations(), ActivationFormat::Fp8);
    for layout in layouts.into_iter().chain([in_fp8]) {
        let format = layout.format();
        let matrix = QuantizedMatrix::encode(&values, layout);
        let on_device = StoredWeight::quantized(&matrix, &device);
        let on_host = StoredWeight::offloaded_codes(&matrix, &device);
        assert_eq!(on_host.to_bytes(), on_device.to_bytes());
        let (a, b) = (on_host.product(x.clone()), on_device.product(x.clone()));
        assert_eq!(distance(a, b), 0.0, "{format:?}");
        let gradient = |weight: &StoredWeight| {
            let x = Tensor::from_inner(x.clone()).require_grad();
            let gradients = weight.clone().train().product(x.clone()).square().sum().backward();
            x.grad(&gradients).unwrap()
        };
        assert_eq!(distance(gradient(&on_host), gradient(&on_device)), 0.0, "{format:?}");
        let (a, b) = (on_host.to_float(DType::F32), on_device.to_float(DType::F32));
        assert_eq!(distance(a, b), 0.0, "{format:?}");
        assert_eq!(on_host.memory().0 + on_host.memory().1, on_device.memory().0);
        assert!(on_host.memory().0 < on_device.memory().0);
    }
}

/// A device copies what the last pass read. A pass that reads otherwise gets the right matrices nevertheless,
/// and so does one whose matrices no longer exist.
#[test]
fn passes_in_any_order_read_the_right_matrices() {
    let device = Device::default();
    let x = random([3, 64]).to_device(&device);
    let matrices: Vec<_> = (0..24).map(|_| random([64, 64])).collect();
    let make = || -> Vec<_> {
        matrices.iter().map(|matrix| offloaded(matrix, FloatDType::F32, &device)).collect()
    };
    // On the CPU: burn's own products round to TF32 on some GPUs.
    let on_host = x.clone().to_device(&Device::flex());
    let product = |w: &Tensor<2>| on_host.clone().matmul(w.clone().transpose());
    let expected: Vec<_> = matrices.iter().map(product).collect();
    let forward: Vec<usize> = (0..24).collect();
    let backward: Vec<usize> = (0..24).chain((0..24).rev()).collect();
    let twice: Vec<usize> = (0..24).map(|i| i / 2).collect();
    let stops = vec![0, 1, 2];
    let orders = [&forward, &forward, &backward, &backward, &stops, &backward, &twice, &twice];
    let mut weights = make();
    for (pass, order) in orders.into_iter().enumerate() {
        if pass == 5 {
            weights = make();
        }
        with_copies_ahead(|| {
            for index in order {
                // A pass within another is part of it.
                let y = with_copies_ahead(|| weights[*index].product(x.clone()));
                let off = distance(y, expected[*index].clone());
                assert!(off <= EXACT, "pass {pass}, matrix {index}: {off}");
            }
        });
    }
    let y = weights[3].product(x);
    assert!(distance(y, expected[3].clone()) <= EXACT);
}

#[test]
fn a_layer_computes_with_its_weight_in_host_memory() {
    let device = Device::default();
    let layer = LinearConfig::new(64, 5).with_bias(false).init(&device);
    let matrix = layer.weight.val().transpose();
    let weight = offloaded(&matrix, FloatDType::F32, &device);
    assert_eq!(weight.dims(), [64, 5]);
    let x = random([3, 64]).to_device(&device);
    let forward = |layer: &Linear| linear_deferred(x.clone(), || layer.weight.val(), None);
    let dense = forward(&layer);

    let layer = with_stored(layer, BTreeMap::from([("weight".to_owned(), weight)]));
    assert!(distance(forward(&layer), dense.clone()) <= EXACT);
    assert_eq!(distance(layer.weight.val(), matrix.transpose()), 0.0);
    let same = layer.clone().train().valid().to_device(&device);
    assert!(distance(forward(&same), dense) <= EXACT);
    let (bare, weights) = take_stored(layer);
    assert!(stored_weights(&bare).is_empty());
    assert_eq!(weights.into_keys().collect::<Vec<_>>(), ["weight"]);
    // What is no matrix of floats is refused.
    let words = Tensor::<1>::zeros([4], &device).into_data();
    assert!(StoredWeight::offloaded_floats(&words, &device).is_none());
}
