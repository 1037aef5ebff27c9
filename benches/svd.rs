//! Thin SVD and QR by soda-linalg and by nalgebra, of one matrix and of a tenth of SDXL's attention weights,
//! and from the cache. `benches/lapack.py` times LAPACK at the same sizes.
//!
//! On a GPU:
//! `CUDARC_CUDA_VERSION=13000 cargo bench --workspace --bench svd --features soda-cli/cuda -- a_tenth`.

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

/// A tenth of SDXL's attention weights. The 560 linear layers are 60 of 640 x 640, 20 of 640 x 2048, 360 of
/// 1280 x 1280 and 120 of 1280 x 2048.
fn attention() -> Vec<Tensor<2>> {
    tenths(1)
}

fn tenths(tenths: usize) -> Vec<Tensor<2>> {
    let shapes = [(6, [640, 640]), (2, [640, 2048]), (36, [1280, 1280]), (12, [1280, 2048])];
    let each = |&(count, shape)| (0..count * tenths).map(move |_| random(shape));
    shapes.iter().flat_map(each).collect()
}

/// Reads the matrices from the device, decomposes them on the host, and uploads the factors.
#[divan::bench(sample_count = 1, sample_size = 1)]
fn a_tenth_of_sdxl(bencher: Bencher) {
    let (matrices, device, host) = (attention(), Device::default(), Device::flex());
    bencher.bench_local(|| {
        let read: Vec<_> = matrices.iter().map(|a| a.clone().to_device(&host)).collect();
        let upload = |svd: Svd| {
            let Svd { u, s, vt } = svd;
            Svd { u: u.to_device(&device), s: s.to_device(&device), vt: vt.to_device(&device) }
        };
        let factors = Svd::thin_batch(&read).into_iter().map(|svd| svd.map(upload));
        let factors: Vec<_> = factors.collect();
        device.sync().expect("the device syncs");
        factors
    });
}

/// Decomposes on the host, in f32 or in f64 with factors rounded once.
#[divan::bench(sample_count = 2, sample_size = 1, args = [false, true])]
fn a_tenth_of_sdxl_on_host(bencher: Bencher, via_f64: bool) {
    let matrices = attention();
    let decompose = if via_f64 { Svd::thin_batch_via_f64 } else { Svd::thin_batch };
    bencher.bench_local(|| decompose(&matrices));
}

/// Decomposes on the device by spectral divide and conquer, after its kernels are compiled.
#[divan::bench(sample_count = 1, sample_size = 1)]
fn a_tenth_of_sdxl_spectral_divide(bencher: Bencher) {
    let (matrices, device) = (attention(), Device::default());
    drop(Svd::thin_batch_spectral_divide(&matrices[..8]));
    bencher.bench_local(|| {
        let factors = Svd::thin_batch_spectral_divide(&matrices);
        device.sync().expect("the device syncs");
        factors
    });
}

#[divan::bench(sample_count = 3, sample_size = 1)]
fn a_tenth_of_sdxl_from_cache(bencher: Bencher) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (matrices, cache) = (attention(), SvdCache::new(folder.path()));
    cache.thin_batch(&matrices);
    bencher.bench_local(|| cache.thin_batch(&matrices));
}

/// All attention weights of SDXL, computed or read from the cache, in 18 GB of memory:
/// `-- --ignored whole_of_sdxl`.
#[divan::bench(ignore, sample_count = 1, sample_size = 1, args = [true, false])]
fn whole_of_sdxl(bencher: Bencher, cached: bool) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (matrices, cache) = (tenths(10), SvdCache::new(folder.path()));
    if cached {
        drop(cache.thin_batch(&matrices));
    }
    bencher.bench_local(|| cache.thin_batch(&matrices));
}
