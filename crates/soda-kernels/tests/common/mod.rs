//! Comparison of an operation with a reference formula, shared by the tests of this crate.

#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "a test fails by panicking, and a test file uses a part of this module"
)]

use burn::module::Module as _;
use burn::nn::conv::Conv2d;
use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};
use soda_testing::relative_error;

pub(crate) const EXACT: f64 = 2e-5;
pub(crate) const HALF: f64 = 3e-2;

pub(crate) fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
}

/// `max |ours - theirs| / max |theirs|` in float32. NaN if any value is NaN.
pub(crate) fn distance<const D: usize>(ours: Tensor<D>, theirs: Tensor<D>) -> f64 {
    assert_eq!(ours.dims(), theirs.dims());
    relative_error(&values(ours), &values(theirs))
}

/// The elements of `x` in float32, in row-major order.
fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.to_device(&Device::flex()).cast(FloatDType::F32).into_data().iter().collect()
}

/// The value of `f`, and the gradients of its inner product with `direction` by the inputs.
pub(crate) fn run<const D: usize, const N: usize>(
    device: &Device,
    inputs: &[Tensor<D>; N],
    dtype: FloatDType,
    f: impl Fn([Tensor<D>; N]) -> Tensor<D>,
    direction: &Tensor<D>,
) -> (Tensor<D>, Vec<Tensor<D>>) {
    let leaves: [Tensor<D>; N] = std::array::from_fn(|i| {
        Tensor::from_inner(inputs[i].clone().to_device(device).cast(dtype)).require_grad()
    });
    let y = f(leaves.clone());
    let weights = Tensor::from_inner(direction.clone().to_device(device).cast(dtype));
    let grads = (y.clone() * weights).sum().backward();
    (y.inner(), leaves.iter().map(|leaf| leaf.grad(&grads).unwrap()).collect())
}

/// Asserts that `ours` in float32 and in bfloat16 has the value and gradients of `theirs` in float32.
pub(crate) fn assert_matches<const D: usize, const N: usize>(
    what: &str,
    inputs: [Tensor<D>; N],
    ours: impl Fn([Tensor<D>; N], FloatDType) -> Tensor<D>,
    theirs: impl Fn([Tensor<D>; N]) -> Tensor<D>,
) {
    let direction = random(theirs(inputs.clone()).dims());
    let (y, grads) = run(&Device::flex(), &inputs, FloatDType::F32, &theirs, &direction);
    for (dtype, tolerance) in [(FloatDType::F32, EXACT), (FloatDType::BF16, HALF)] {
        if !Device::default().supports_dtype(dtype) {
            continue;
        }
        let (our_y, our_grads) =
            run(&Device::default(), &inputs, dtype, |x| ours(x, dtype), &direction);
        assert_eq!(our_y.dtype(), DType::from(dtype), "{what}: the dtype of the value");
        let off = distance(our_y, y.clone());
        assert!(off <= tolerance, "{what} {dtype:?}: value off by {off}");
        for (i, (ours, theirs)) in our_grads.into_iter().zip(&grads).enumerate() {
            let off = distance(ours, theirs.clone());
            assert!(off <= tolerance, "{what} {dtype:?}: gradient {i} off by {off}");
        }
    }
}

/// A frozen copy of `layer` in `dtype` on `device`.
pub(crate) fn frozen(layer: &Conv2d, dtype: FloatDType, device: &Device) -> Conv2d {
    let mut layer = layer.clone().to_device(device).no_grad();
    layer.weight = layer.weight.map(|w| w.cast(dtype).set_require_grad(false));
    layer.bias = layer.bias.map(|b| b.map(|b| b.cast(dtype).set_require_grad(false)));
    layer.train().no_grad()
}
