//! Generation with the bundled model at batch 1 and 8, and its three stages.
//!
//! `docs/parity/speed.py` times diffusers at the same sizes. Run both on an idle machine, one after the
//! other, with the same number of threads (`RAYON_NUM_THREADS`).

use std::path::Path;

use burn::tensor::{Device, Tensor};
use divan::{Bencher, black_box};
use soda_models::noise::randn;
use soda_models::pipeline::{GenerateConfig, Pipeline};

const BATCHES: [usize; 2] = [1, 8];

/// The allocator of the binary `soda`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}

fn pipeline() -> Pipeline {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/toybox/base");
    Pipeline::load(&base, &Device::default()).expect("the bundled model loads")
}

fn prompts(batch: usize) -> Vec<String> {
    vec!["a photo of a red mug".to_owned(); batch]
}

/// 30 steps with classifier-free guidance, from prompt to pixels.
#[divan::bench(sample_count = 5, args = BATCHES)]
fn generate(bencher: Bencher, batch: usize) {
    let pipeline = pipeline();
    // The default of the binary on a CPU: one shard of the batch per core.
    let shards = rayon::current_num_threads();
    let request = GenerateConfig { prompts: prompts(batch), shards, ..GenerateConfig::default() };
    bencher.bench_local(|| pipeline.generate(&request, &mut |_, _| {}).expect("a valid request"));
}

/// One call of the UNet with classifier-free guidance, which doubles the batch. An image takes 30 calls.
#[divan::bench(sample_count = 20, args = BATCHES)]
fn unet(bencher: Bencher, batch: usize) {
    let pipeline = pipeline();
    let device = &pipeline.device;
    let sample = randn::<4>(0, 0, [2 * batch, 4, 16, 16], device);
    let text = pipeline.encode_prompts(&prompts(2 * batch));
    let t = Tensor::<1>::full([2 * batch], 500.0, device);
    bencher.bench_local(|| {
        black_box(pipeline.denoiser.forward(sample.clone(), t.clone(), text.clone()));
        device.sync().expect("the device syncs");
    });
}

/// The decoder of the autoencoder.
#[divan::bench(sample_count = 20, args = BATCHES)]
fn decode(bencher: Bencher, batch: usize) {
    let pipeline = pipeline();
    let latents = randn::<4>(0, 0, [batch, 4, 16, 16], &pipeline.device);
    bencher.bench_local(|| black_box(pipeline.decode(latents.clone()).into_data()));
}

/// The text encoder, for the prompts and one negative prompt.
#[divan::bench(sample_count = 20, args = BATCHES)]
fn encode_prompts(bencher: Bencher, batch: usize) {
    let pipeline = pipeline();
    let prompts = prompts(batch + 1);
    bencher.bench_local(|| black_box(pipeline.encode_prompts(&prompts).into_data()));
}
