//! What an adapted linear layer costs in training: forward, and backward to its input and its adapter; time, and the most
//! memory that is allocated at once (`max alloc`, on the calling thread).
//!
//! Rows of a method's name alone are the crate as it is used, the shorter way chosen for each size.
//! `weight` always forms the effective weight, `input` always applies the formula to the layer's input, `input_exact` in
//! the form that half precisions take, beside the exact product of the base. `dense` is SODA's formula as written, with the
//! rotation and the weight rebuilt as matrices. Every row does the work of `frozen` (the bare layer, whose
//! input needs its gradient) besides its own; compare ratios within one run.

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Tensor, activation};
use divan::{AllocProfiler, Bencher, black_box};
use soda_adapters::lora::LoraConfig;
use soda_adapters::soda::SodaConfig;
use soda_adapters::{Method as _, MethodConfig, Targets};
use soda_kernels::linear_through;
use soda_linalg::{Svd, factorize, kron, kron_right};

/// All of it on one thread, as a step of training has one for each part of a batch; so is all its memory counted. Another
/// number of threads by `RAYON_NUM_THREADS`.
fn main() {
    let threads = std::env::var("RAYON_NUM_THREADS").ok().and_then(|threads| threads.parse().ok());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(1)).build();
    pool.expect("threads").install(divan::main);
}

/// Tokens, in, out: self-attention of SD 1.5 (320 at 64 x 64, 640 at 32 x 32, 1280 at 16 x 16) and of SDXL (640 at
/// 64 x 64, 1280 at 32 x 32), cross-attention's keys of both (77 tokens of text).
const SIZES: [[usize; 3]; 8] = [
    [4096, 320, 320],
    [4096, 640, 640],
    [1024, 640, 640],
    [1024, 1280, 1280],
    [256, 1280, 1280],
    [77, 768, 320],
    [77, 768, 1280],
    [77, 2048, 1280],
];

#[global_allocator]
static ALLOC: AllocProfiler = AllocProfiler::system();

#[derive(Module, Debug)]
struct Layer {
    linear: Linear,
}

fn random(shape: [usize; 2]) -> Tensor<2> {
    Tensor::random(shape, Distribution::Normal(0.0, 0.05), &Device::default())
}

/// Times one forward and backward of `forward`, from an input that needs its gradient.
fn step(
    bencher: Bencher,
    [tokens, input, _]: [usize; 3],
    forward: impl Fn(Tensor<2>) -> Tensor<2>,
) {
    let x = random([tokens, input]);
    bencher.bench_local(|| {
        let x = x.clone().autodiff().require_grad();
        let grads = forward(x.clone()).sum().backward();
        black_box(x.grad(&grads))
    });
}

/// The layer with a method of the crate on it, as a network of this workspace calls it.
fn adapted(bencher: Bencher, size: [usize; 3], method: impl Into<MethodConfig>) {
    let layer = attached(size, method);
    step(bencher, size, |x| linear_through(x, || layer.linear.weight.val(), None));
}

/// The same, its weight formed whatever the size.
fn by_weight(bencher: Bencher, size: [usize; 3], method: impl Into<MethodConfig>) {
    let layer = attached(size, method);
    step(bencher, size, |x| layer.linear.forward(x));
}

fn attached(size: [usize; 3], method: impl Into<MethodConfig>) -> Layer {
    let [_, input, output] = size;
    let linear = LinearConfig::new(input, output).with_bias(false).init(&Device::default());
    let layer = Layer { linear };
    let plan =
        method.into().plan(&Targets(vec!["weight".to_owned()]), &layer).expect("a plain layer");
    plan.attach(layer).train()
}

fn preset(bencher: Bencher, size: [usize; 3], name: &str) {
    adapted(bencher, size, MethodConfig::preset(name).expect("a method of the crate"));
}

fn lora_config() -> LoraConfig {
    LoraConfig { rank: 32, ..LoraConfig::default() }
}

#[divan::bench(sample_count = 10, sample_size = 1, args = SIZES)]
fn frozen(bencher: Bencher, size: [usize; 3]) {
    let w = random([size[1], size[2]]).autodiff();
    step(bencher, size, |x| x.matmul(w.clone()));
}

#[divan::bench(sample_count = 10, sample_size = 1, args = SIZES)]
fn lora32_input(bencher: Bencher, size: [usize; 3]) {
    let [_, input, output] = size;
    let w = random([input, output]).autodiff();
    let leaf = |shape| Param::from_tensor(random(shape)).train();
    let (a, b) = (leaf([input, 32]), leaf([32, output]));
    step(bencher, size, |x| {
        x.clone().matmul(w.clone()) + x.matmul(a.val()).matmul(b.val()).mul_scalar(0.5)
    });
}

#[divan::bench(sample_count = 10, sample_size = 1, args = SIZES)]
fn lora32_weight(bencher: Bencher, size: [usize; 3]) {
    by_weight(bencher, size, lora_config());
}

#[divan::bench(sample_count = 10, sample_size = 1, args = SIZES)]
fn lora32(bencher: Bencher, size: [usize; 3]) {
    adapted(bencher, size, lora_config());
}

#[divan::bench(sample_count = 10, sample_size = 1, args = SIZES)]
fn soda_weight(bencher: Bencher, size: [usize; 3]) {
    by_weight(bencher, size, SodaConfig::default());
}

#[divan::bench(sample_count = 10, sample_size = 1, args = SIZES)]
fn soda(bencher: Bencher, size: [usize; 3]) {
    adapted(bencher, size, SodaConfig::default());
}

/// The parts of SODA-SVD on one weight, on the tape.
struct Parts {
    w: Tensor<2>,
    u: Tensor<2>,
    s: Tensor<1>,
    vt: Tensor<2>,
    delta: Param<Tensor<1>>,
    factors: Vec<Param<Tensor<2>>>,
}

impl Parts {
    fn new([_, input, output]: [usize; 3]) -> Self {
        let w = random([input, output]);
        let Svd { u, s, vt } = Svd::thin(&w).expect("finite");
        let device = Device::default();
        let delta = Param::from_tensor(s.zeros_like()).train();
        let sizes = factorize(input, 3).expect("a width");
        let factor = |n: usize| Param::from_tensor(Tensor::eye(n, &device)).train();
        let factors = sizes.into_iter().map(factor).collect();
        let [w, u, vt] = [w, u, vt].map(Tensor::autodiff);
        Self { w, u, s: s.autodiff(), vt, delta, factors }
    }

    fn rotation(&self) -> Vec<Tensor<2>> {
        self.factors.iter().map(Param::val).collect()
    }

    fn shifted(&self) -> Tensor<1> {
        activation::relu(self.s.clone() + self.delta.val())
    }
}

#[divan::bench(sample_count = 10, sample_size = 1, args = SIZES)]
fn soda_input(bencher: Bencher, size: [usize; 3]) {
    let parts = Parts::new(size);
    step(bencher, size, |x| {
        let columns = kron_right(x, &parts.rotation()).matmul(parts.u.clone());
        (columns * parts.shifted().unsqueeze_dim(0)).matmul(parts.vt.clone())
    });
}

#[divan::bench(sample_count = 10, sample_size = 1, args = SIZES)]
fn soda_input_exact(bencher: Bencher, size: [usize; 3]) {
    let parts = Parts::new(size);
    step(bencher, size, |x| {
        let x = kron_right(x, &parts.rotation());
        let gain = parts.shifted() - parts.s.clone();
        let spectral = x.clone().matmul(parts.u.clone()) * gain.unsqueeze_dim(0);
        x.matmul(parts.w.clone()) + spectral.matmul(parts.vt.clone())
    });
}

#[divan::bench(sample_count = 5, sample_size = 1, args = SIZES)]
fn soda_dense(bencher: Bencher, size: [usize; 3]) {
    let parts = Parts::new(size);
    step(bencher, size, |x| {
        let w = (parts.u.clone().matmul(parts.shifted().diag())).matmul(parts.vt.clone());
        x.matmul(kron(&parts.rotation()).matmul(w))
    });
}

/// `diag(s)` as a matrix.
trait Diagonal {
    fn diag(self) -> Tensor<2>;
}

impl Diagonal for Tensor<1> {
    fn diag(self) -> Tensor<2> {
        let identity = Tensor::<2>::eye(self.dims()[0], &self.device());
        identity * self.unsqueeze_dim(0)
    }
}

macro_rules! methods {
    ($($name:ident: $preset:literal)+) => {
        $(#[divan::bench(sample_count = 5, sample_size = 1, args = SIZES)]
        fn $name(bencher: Bencher, size: [usize; 3]) {
            preset(bencher, size, $preset);
        })+
    };
}

methods! {
    soda_qr: "soda-qr"
    svdiff: "svdiff"
    kronecker: "kronecker"
    dora: "dora"
    loha: "loha"
    lokr: "lokr"
    oft: "oft"
    boft: "boft"
}
