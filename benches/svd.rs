//! Thin SVD: this crate, nalgebra, one matrix at a time and a batch, and the cache.

use burn::tensor::{Device, Distribution, Tensor};
use divan::Bencher;
use nalgebra::DMatrix;
use soda_linalg::{Qr, Svd, SvdCache};

fn main() {
    divan::main();
}

fn random(shape: [usize; 2]) -> Tensor<2> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::default())
}

fn entries(shape: [usize; 2]) -> Vec<f32> {
    random(shape).try_to_vec_as().expect("readable")
}

#[divan::bench(sample_count = 5, sample_size = 1, args = [[8, 8], [64, 64], [320, 320], [640, 640], [1280, 1280], [2048, 1280], [2560, 320]])]
fn svd(bencher: Bencher, shape: [usize; 2]) {
    let a = random(shape);
    bencher.bench_local(|| Svd::thin(&a).expect("finite"));
}

#[divan::bench(sample_count = 1, sample_size = 1, args = [[8, 8], [64, 64], [320, 320], [640, 640], [1280, 1280], [2048, 1280]])]
fn svd_nalgebra(bencher: Bencher, shape: [usize; 2]) {
    let a = DMatrix::from_row_slice(shape[0], shape[1], &entries(shape));
    bencher.bench_local(|| a.clone().svd(true, true));
}

const QR: [[usize; 2]; 5] = [[8, 8], [64, 64], [320, 320], [1280, 1280], [2560, 320]];

#[divan::bench(sample_count = 10, sample_size = 1, args = QR)]
fn qr(bencher: Bencher, shape: [usize; 2]) {
    let a = random(shape);
    bencher.bench_local(|| Qr::thin(&a).expect("finite"));
}

#[divan::bench(sample_count = 3, sample_size = 1, args = QR)]
fn qr_nalgebra(bencher: Bencher, shape: [usize; 2]) {
    let a = DMatrix::from_row_slice(shape[0], shape[1], &entries(shape));
    bencher.bench_local(|| a.clone().qr().unpack());
}

/// A tenth of SDXL's attention: 560 linears are 60 of 640 x 640, 20 of 640 x 2048, 360 of 1280 x 1280
/// and 120 of 1280 x 2048.
fn attention() -> Vec<Tensor<2>> {
    let shapes = [(6, [640, 640]), (2, [640, 2048]), (36, [1280, 1280]), (12, [1280, 2048])];
    shapes.iter().flat_map(|&(count, shape)| (0..count).map(move |_| random(shape))).collect()
}

#[divan::bench(sample_count = 1, sample_size = 1)]
fn a_tenth_of_sdxl(bencher: Bencher) {
    let matrices = attention();
    bencher.bench_local(|| Svd::thin_batch(&matrices));
}

#[divan::bench(sample_count = 3, sample_size = 1)]
fn a_tenth_of_sdxl_from_the_cache(bencher: Bencher) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (matrices, cache) = (attention(), SvdCache::new(folder.path()));
    cache.thin_batch(&matrices);
    bencher.bench_local(|| cache.thin_batch(&matrices));
}
