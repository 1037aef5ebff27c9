//! SODA-SVD beside its input, where two products with singular vectors stand for the one with the weight: as accurate
//! as that one, measured against f64, on spectra of every kind.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::Path;

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, StandardNormal};
use safetensors::SafeTensors;
use soda_adapters::soda::SodaConfig;
use soda_adapters::{Method as _, Targets};
use soda_kernels::{has_library, linear_through, matmul};
use soda_linalg::Qr;

/// Few enough that the smallest weights are not formed either.
const ROWS: usize = 32;

#[derive(Module, Debug)]
struct Layer {
    linear: Linear,
}

/// Normal deviates in f64, the same in every run.
fn normal(seed: u64, shape: [usize; 2]) -> Tensor<2> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let entries = (0..shape[0] * shape[1]).map(|_| StandardNormal.sample(&mut rng)).collect();
    from_entries(entries, shape)
}

fn from_entries(entries: Vec<f64>, shape: [usize; 2]) -> Tensor<2> {
    Tensor::from_data(TensorData::new(entries, shape), (&Device::default(), DType::F64))
}

/// A weight `[rows, cols]` with random singular vectors and `σ(i/k)` for singular values.
fn with_spectrum([rows, cols]: [usize; 2], spectrum: impl Fn(f64) -> f64) -> Tensor<2> {
    let k = rows.min(cols);
    let [u, v] = [(1, rows), (2, cols)].map(|(seed, n)| Qr::thin(&normal(seed, [n, k])).unwrap().q);
    let s = (0..k).map(|i| spectrum(i as f64 / k as f64)).collect();
    matmul(u * from_entries(s, [1, k]), v.transpose()).cast(DType::F32)
}

/// Errors of `y` for `exact`: root mean square and largest.
fn errors(y: Tensor<2>, exact: &Tensor<2>) -> [f64; 2] {
    let error = (y.cast(DType::F64) - exact.clone()).abs();
    [error.clone().square().mean().sqrt().into_scalar(), error.max().into_scalar()]
}

/// What a fresh adapter's errors are of the plain product's.
fn ratios(w: Tensor<2>) -> [f64; 2] {
    let [input, output] = w.dims();
    let x = normal(3, [ROWS, input]).cast(DType::F32);
    let exact = matmul(x.clone().cast(DType::F64), w.clone().cast(DType::F64));
    let plain = errors(matmul(x.clone(), w.clone()), &exact);

    let linear = LinearConfig::new(input, output).with_bias(false).init(&Device::default());
    let layer = Layer { linear: Linear { weight: Param::from_tensor(w.clone()), ..linear } };
    let plan = SodaConfig::default().plan(&Targets(vec!["weight".to_owned()]), &layer).unwrap();
    let layer = plan.attach(layer);
    let found = errors(linear_through(x, || layer.linear.weight.val(), None), &exact);
    assert_ne!(found, plain, "the weight was formed");
    [found[0] / plain[0], found[1] / plain[1]]
}

/// Two products have the roundings of two, and the factors one each: about √3 in the mean. The largest of `n` errors that
/// are all independent is about `√(2 ln n)` of their mean, 4 here; errors all along one singular vector are a row's times
/// a column's, and the largest is twice that.
fn check(name: &str, w: Tensor<2>) {
    let [mean, largest] = ratios(w);
    assert!(
        mean < 2.0 && largest < 4.0,
        "{name}: {mean:.2} and {largest:.2} of the product's errors"
    );
}

#[test]
fn as_accurate_as_the_plain_product_on_spectra_of_every_kind() {
    if !Device::default().supports_dtype(DType::F64) || has_library(&normal(0, [1, 1])) {
        // A GPU with a vendor's library adds the shift to the plain product, always.
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
fn as_accurate_as_the_plain_product_on_trained_weights() {
    if !Device::default().supports_dtype(DType::F64) || has_library(&normal(0, [1, 1])) {
        // A GPU with a vendor's library adds the shift to the plain product, always.
        return;
    }
    let file = "../../examples/toybox/base/unet/diffusion_pytorch_model.safetensors";
    let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
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
