//! The accuracy of SODA-SVD on the input side, where two products with singular vectors replace the product
//! with the weight.
//!
//! The tests compare its rounding errors with those of the plain product, against f64, on spectra of every
//! kind.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, StandardNormal};
use safetensors::SafeTensors;
use soda_adapters::soda::SodaConfig;
use soda_adapters::{Method as _, Targets};
use soda_kernels::{has_vendor_blas, linear_deferred, matmul};
use soda_linalg::Qr;
use soda_testing::max_abs;

/// Number of rows, so small that no adapted weight is formed.
const ROWS: usize = 32;

#[derive(Module, Debug)]
struct Layer {
    linear: Linear,
}

/// Normal values in f64, with a fixed seed.
fn normal(seed: u64, shape: [usize; 2]) -> Tensor<2> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let entries = (0..shape[0] * shape[1]).map(|_| StandardNormal.sample(&mut rng)).collect();
    from_entries(entries, shape)
}

fn from_entries(entries: Vec<f64>, shape: [usize; 2]) -> Tensor<2> {
    Tensor::from_data(TensorData::new(entries, shape), (&Device::default(), DType::F64))
}

/// A weight `[rows, cols]` with random singular vectors and the singular values `spectrum(i/k)`.
fn with_spectrum([rows, cols]: [usize; 2], spectrum: impl Fn(f64) -> f64) -> Tensor<2> {
    let k = rows.min(cols);
    let [u, v] = [(1, rows), (2, cols)].map(|(seed, n)| Qr::thin(&normal(seed, [n, k])).unwrap().q);
    let s = (0..k).map(|i| spectrum(i as f64 / k as f64)).collect();
    matmul(u * from_entries(s, [1, k]), v.transpose()).cast(DType::F32)
}

/// Root mean square and largest absolute error of `y`. NaN if any value is NaN.
fn errors(y: Tensor<2>, exact: &Tensor<2>) -> [f64; 2] {
    let error = y.cast(DType::F64) - exact.clone();
    let largest = max_abs(error.clone().into_data().iter::<f64>());
    [error.square().mean().sqrt().into_scalar(), largest]
}

/// The errors of an initial adapter, relative to those of the plain product.
fn ratios(w: Tensor<2>) -> [f64; 2] {
    let [input, output] = w.dims();
    let x = normal(3, [ROWS, input]).cast(DType::F32);
    let exact = matmul(x.clone().cast(DType::F64), w.clone().cast(DType::F64));
    let plain = errors(matmul(x.clone(), w.clone()), &exact);

    let linear = LinearConfig::new(input, output).with_bias(false).init(&Device::default());
    let layer = Layer { linear: Linear { weight: Param::from_tensor(w.clone()), ..linear } };
    let plan = SodaConfig::default().plan(&Targets(vec!["weight".to_owned()]), &layer).unwrap();
    let layer = plan.attach(layer);
    let found = errors(linear_deferred(x, || layer.linear.weight.val(), None), &exact);
    assert_ne!(found, plain, "the weight was formed");
    [found[0] / plain[0], found[1] / plain[1]]
}

/// Checks the relative errors of a weight.
///
/// The two products and the two rounded factors give about √3 in the mean. The largest of `n` independent
/// errors is about `√(2 ln n)` times their mean, which is 4 here. Errors along one singular vector are
/// products of a row's and a column's error, and the largest is twice that.
fn check(name: &str, w: Tensor<2>) {
    let [mean, largest] = ratios(w);
    assert!(
        mean < 2.0 && largest < 4.0,
        "{name}: {mean:.2} and {largest:.2} of the product's errors"
    );
}

#[test]
fn rounding_errors_are_those_of_the_plain_product_on_every_spectrum() {
    if !Device::default().supports_dtype(DType::F64) || has_vendor_blas(&normal(0, [1, 1])) {
        // A GPU with a vendor's library always adds the shift to the plain product.
        return;
    }
    for shape in [[320, 320], [768, 320], [320, 768]] {
        check("random entries", normal(4, shape).mul_scalar(0.03).cast(DType::F32));
        check("1/i", with_spectrum(shape, |i| 1.0 / (1.0 + 300.0 * i)));
        check("1/√i", with_spectrum(shape, |i| 1.0 / (1.0 + 300.0 * i).sqrt()));
        check("down to rounding", with_spectrum(shape, |i| (-16.0 * i).exp()));
        check("of low rank", with_spectrum(shape, |i| if i < 0.1 { 1.0 } else { 0.0 }));
        let outlier = |i| if i == 0.0 { 100.0 } else { 1.0 - i };
        check("one far above the rest", with_spectrum(shape, outlier));
        check("all equal", with_spectrum(shape, |_| 1.0));
    }
}

#[test]
fn rounding_errors_are_those_of_the_plain_product_on_trained_weights() {
    if !Device::default().supports_dtype(DType::F64) || has_vendor_blas(&normal(0, [1, 1])) {
        // A GPU with a vendor's library always adds the shift to the plain product.
        return;
    }
    let file = "examples/toybox/base/unet/diffusion_pytorch_model.safetensors";
    let bytes = std::fs::read(soda_testing::workspace_path(file)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut names: Vec<_> = file.names();
    names.sort_unstable();
    for name in names.into_iter().filter(|name| name.contains(".to_") && name.ends_with("weight")) {
        let view = file.tensor(name).unwrap();
        let dtype = match view.dtype() {
            safetensors::Dtype::F32 => DType::F32,
            safetensors::Dtype::F16 => DType::F16,
            other => panic!("{other:?}"),
        };
        let data = TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype);
        let data = data.convert_dtype(DType::F32);
        check(name, Tensor::<2>::from_data(data, &Device::default()).transpose());
    }
}
