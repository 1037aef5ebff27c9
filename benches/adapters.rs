//! The training cost of an adapted linear layer: forward, and backward to its input and its adapter.
//!
//! Each bench reports the time and the peak of allocated memory (`max alloc`, on the calling thread). A bench
//! includes the work of `frozen`, the bare layer with a gradient of its input; compare ratios within one run.
//!
//! | name | computation |
//! |---|---|
//! | a method alone | the crate's choice between weight and input for the size |
//! | `_weight` | forms the effective weight |
//! | `_input` | applies the adapter to the layer's input |
//! | `_input_exact` | applies it as in half precision, with the exact product of the base weight |
//! | `_dense` | SODA's formula as written, with rotation and weight as dense matrices |

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Tensor, activation};
use divan::{AllocProfiler, Bencher, black_box};
use soda_adapters::lora::LoraConfig;
use soda_adapters::soda::SodaConfig;
use soda_adapters::{Method as _, MethodConfig, PlanOptions, Probe, Targets};
use soda_kernels::linear_deferred;
use soda_linalg::{Svd, factor_sizes, kron, kron_right};

/// Runs on one thread, as each shard of a batch does in training, so that all memory is counted.
/// `RAYON_NUM_THREADS` sets another number of threads.
fn main() {
    let threads = std::env::var("RAYON_NUM_THREADS").ok().and_then(|threads| threads.parse().ok());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(1)).build();
    pool.expect("threads").install(divan::main);
}

/// `[tokens, in, out]`: self-attention of SD 1.5 (320 at 64 x 64, 640 at 32 x 32, 1280 at 16 x 16) and of
/// SDXL (640 at 64 x 64, 1280 at 32 x 32), cross-attention's keys of both (77 tokens of text).
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

/// Times one forward and backward pass of `forward`, with a gradient of the input.
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

/// Times a layer with a method attached, as a network of this workspace calls it.
fn adapted(bencher: Bencher, size: [usize; 3], method: impl Into<MethodConfig>) {
    let layer = attached(size, method);
    step(bencher, size, |x| linear_deferred(x, || layer.linear.weight.val(), None));
}

/// Times a layer with a method attached, whose effective weight is formed for every size.
fn adapted_by_weight(bencher: Bencher, size: [usize; 3], method: impl Into<MethodConfig>) {
    let layer = attached(size, method);
    step(bencher, size, |x| layer.linear.forward(x));
}

fn attached(size: [usize; 3], method: impl Into<MethodConfig>) -> Layer {
    let [_, input, output] = size;
    let linear = LinearConfig::new(input, output).with_bias(false).init(&Device::default());
    let layer = Layer { linear };
    let (method, targets) = (method.into(), Targets(vec!["weight".to_owned()]));
    let mut options = PlanOptions::default();
    // The time does not depend on the directions, and those of a gradient of zero are as good as any.
    let probes = method.plan_probes(&targets, &layer, &mut options).expect("a plain layer");
    let calibration = Probe::measure(probes.adapters(), &BTreeMap::new()).expect("zeros");
    options.calibration = Some(&calibration);
    let plan = method.plan_with(&targets, &layer, &mut options).expect("a plain layer");
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
    adapted_by_weight(bencher, size, lora_config());
}

#[divan::bench(sample_count = 10, sample_size = 1, args = SIZES)]
fn lora32(bencher: Bencher, size: [usize; 3]) {
    adapted(bencher, size, lora_config());
}

#[divan::bench(sample_count = 10, sample_size = 1, args = SIZES)]
fn soda_weight(bencher: Bencher, size: [usize; 3]) {
    adapted_by_weight(bencher, size, SodaConfig::default());
}

#[divan::bench(sample_count = 10, sample_size = 1, args = SIZES)]
fn soda(bencher: Bencher, size: [usize; 3]) {
    adapted(bencher, size, SodaConfig::default());
}

#[divan::bench(sample_count = 10, sample_size = 1, args = SIZES)]
fn soda_subspace(bencher: Bencher, size: [usize; 3]) {
    preset(bencher, size, "soda-subspace");
}

/// The tensors of SODA-SVD on one weight, with autodiff.
struct SodaTensors {
    w: Tensor<2>,
    u: Tensor<2>,
    s: Tensor<1>,
    vt: Tensor<2>,
    delta: Param<Tensor<1>>,
    factors: Vec<Param<Tensor<2>>>,
}

impl SodaTensors {
    fn new([_, input, output]: [usize; 3]) -> Self {
        let w = random([input, output]);
        let Svd { u, s, vt } = Svd::thin(&w).expect("finite");
        let device = Device::default();
        let delta = Param::from_tensor(s.zeros_like()).train();
        let sizes = factor_sizes(input, 3).expect("a width");
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
    let soda = SodaTensors::new(size);
    step(bencher, size, |x| {
        let columns = kron_right(x, &soda.rotation()).matmul(soda.u.clone());
        (columns * soda.shifted().unsqueeze_dim(0)).matmul(soda.vt.clone())
    });
}

#[divan::bench(sample_count = 10, sample_size = 1, args = SIZES)]
fn soda_input_exact(bencher: Bencher, size: [usize; 3]) {
    let soda = SodaTensors::new(size);
    step(bencher, size, |x| {
        let x = kron_right(x, &soda.rotation());
        let gain = soda.shifted() - soda.s.clone();
        let spectral = x.clone().matmul(soda.u.clone()) * gain.unsqueeze_dim(0);
        x.matmul(soda.w.clone()) + spectral.matmul(soda.vt.clone())
    });
}

#[divan::bench(sample_count = 5, sample_size = 1, args = SIZES)]
fn soda_dense(bencher: Bencher, size: [usize; 3]) {
    let soda = SodaTensors::new(size);
    step(bencher, size, |x| {
        let w = (soda.u.clone().matmul(soda.shifted().diag())).matmul(soda.vt.clone());
        x.matmul(kron(&soda.rotation()).matmul(w))
    });
}

/// The diagonal matrix of a vector.
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
