//! A training step on the bundled model: LoRA of rank 4 on all attention projections, batch 5, with the
//! settings of `soda train --method lora`. The second bench also trains the text encoder.
//!
//! `docs/parity/train_speed.py` times diffusers and PEFT. Run both alternately, with the same number of
//! threads (`RAYON_NUM_THREADS`).

use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use divan::Bencher;
use soda_adapters::{Method as _, PlanOptions};
use soda_models::config;
use soda_models::noise::randn;
use soda_models::pipeline::Pipeline;
use soda_models::unet::UnetConfig;
use soda_models::weights;
use soda_pipeline::{Component, TARGET_PRESETS};
use soda_train::{Batch, Prompts, TextEncoderConfig, TrainConfig, Trainer, apply_setting, preset};

const BATCH: usize = 5;

/// The allocator of the binary `soda`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}

fn settings() -> TrainConfig {
    let mut table = preset("toybox").expect("a preset");
    // The default of the binary on a CPU: one shard of the batch per core.
    let shards = rayon::current_num_threads();
    let shards = format!("shards={}", shards.clamp(1, BATCH));
    for setting in ["base=b", "data=d", "method=lora", "method.rank=4", "batch_size=5", &shards] {
        apply_setting(&mut table, setting).expect("a setting");
    }
    TrainConfig::from_table(table).expect("a configuration")
}

/// Options with the target presets of a pipeline.
fn plan_options() -> PlanOptions<'static> {
    PlanOptions { presets: TARGET_PRESETS, ..PlanOptions::default() }
}

fn batch(device: &Device) -> Batch {
    let steps: Vec<i32> = vec![17, 250, 500, 733, 999];
    Batch {
        noisy: randn(0, 0, [BATCH, 4, 16, 16], device),
        target: randn(0, 1, [BATCH, 4, 16, 16], device),
        prompts: randn::<3>(0, 2, [BATCH, 77, 160], device).into(),
        timesteps: Tensor::<1, Int>::from_data(TensorData::new(steps, [BATCH]), device).float(),
        weight: Tensor::full([BATCH], 1.0 / BATCH as f64, device),
        mask: None,
    }
}

#[divan::bench(sample_count = 30)]
fn step(bencher: Bencher) {
    let device = Device::default();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/toybox/base/unet");
    let unet: UnetConfig = config::read(&folder.join("config.json")).expect("the bundled model");
    let weights = folder.join("diffusion_pytorch_model.safetensors");
    let unet = weights::load(unet.init(&device), &weights).expect("the bundled model");
    let config = settings();
    let plan =
        config.method.plan_with(&config.targets, &unet, &mut plan_options()).expect("a plan");
    let mut trainer = Trainer::new(plan.attach(unet), &config.method, &config).expect("threads");
    let batch = batch(&device);
    bencher.bench_local(|| trainer.step_on(&batch).expect("a finite loss"));
}

#[divan::bench(sample_count = 30)]
fn step_with_text_encoder(bencher: Bencher) {
    let device = Device::default();
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/toybox/base");
    let pipeline = Pipeline::load(&base, &device).expect("the bundled model");
    let text = TextEncoderConfig::default();
    let config = TrainConfig { text_encoder: Some(text.clone()), ..settings() };
    let plan = config
        .method
        .plan_with(&config.targets, &pipeline.denoiser, &mut plan_options())
        .expect("a plan");
    let clip = pipeline.text.clip().expect("the bundled model has CLIP");
    let of_text = config
        .method
        .plan_with(&text.targets, &clip.text_encoder, &mut plan_options())
        .expect("a plan");
    let mut plan = plan.with_prefix(&Component::Unet.prefix());
    plan.extend(of_text.with_prefix(&Component::TextEncoder.prefix()));
    let networks = plan.attach(pipeline.networks());
    let mut trainer = Trainer::new(networks, &config.method, &config).expect("threads");
    let ids = pipeline.tokenize(&["a photo of a sks mug on a table"; BATCH]);
    let batch = Batch { prompts: Prompts::Tokens { ids, time_ids: None }, ..batch(&device) };
    bencher.bench_local(|| trainer.step_on(&batch).expect("a finite loss"));
}
