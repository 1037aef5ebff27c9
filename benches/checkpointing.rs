//! The peak memory of a training step in addition to the network's weights, and its time. Each step runs with
//! and without block checkpointing, for random weights of a named architecture and batch 1.
//!
//! ```text
//! cargo bench --bench checkpointing --profile dev -- ARCH SIDE METHOD DTYPE [CHECKPOINTING]
//! ```
//!
//! `ARCH` is `sd15` or `sdxl`, `SIDE` the side of the latents, `DTYPE` one of `f32`, `bf16` and `f16`, and
//! `CHECKPOINTING` one of `none` and `block`.

use std::time::Instant;

use burn::tensor::{DType, Device, Tensor};
use peak_alloc::PeakAlloc;
use soda_adapters::{Method as _, PlanOptions, named_params};
use soda_models::condition::{AddedCondition, Condition};
use soda_models::noise::randn;
use soda_models::unet::{Unet, UnetConfig};
use soda_pipeline::TARGET_PRESETS;
use soda_train::{Batch, TrainConfig, Trainer, apply_setting, preset};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

#[allow(clippy::print_stdout, reason = "the bench prints its measurements")]
fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let mut next = |default: &str| args.next().unwrap_or_else(|| default.to_owned());
    let (architecture, side, method, precision) =
        (next("sd15"), next("32"), next("lora"), next("f32"));
    let only = next("");
    let side: usize = side.parse().expect("the side of the latents");
    let config = match architecture.as_str() {
        "sdxl" => UnetConfig::sdxl(),
        _ => UnetConfig::sd15(),
    };
    let device = Device::default();
    let settings = |checkpointing: &str| {
        let checkpointing = format!("checkpointing={checkpointing}");
        let (method, precision) = (format!("method={method}"), format!("precision={precision}"));
        let mut table = preset("toybox").expect("a preset");
        let all = ["base=b", "data=d", &method, &precision, &checkpointing];
        for setting in all.into_iter().chain(["optimizer.flat=adamw-8bit"]) {
            apply_setting(&mut table, setting).expect("a setting");
        }
        TrainConfig::from_table(table).expect("a configuration")
    };
    let first = settings("none");
    let unet: Unet = first.precision.cast_denoiser(config.init(&device));
    // burn initializes a weight at its first use.
    drop(named_params(&unet));
    let weights = MEMORY.current_usage_as_mb();
    let mut options = PlanOptions { presets: TARGET_PRESETS, ..PlanOptions::default() };
    let plan = first.method.plan_with(&first.targets, &unet, &mut options).expect("a plan");
    let unet = plan.attach(unet);
    let batch = batch(&config, side, &device);
    println!("{architecture}, latents of {side}, {method}, {precision}: weights {weights:.0} MiB");
    let report = |what: &str, start: Instant| {
        let (beyond, seconds) =
            (MEMORY.peak_usage_as_mb() - weights, start.elapsed().as_secs_f64());
        println!("{what:<8} {beyond:7.0} MiB in addition to the weights, {seconds:7.2} s");
    };
    // The temporary memory of the operations, mostly transformed weights.
    let dtype = unet.conv_in.weight.val().dtype();
    let forward = || {
        let condition = text(&config, side, &device).cast(dtype);
        unet.forward(batch.noisy.clone().cast(dtype), batch.timesteps.clone(), condition)
    };
    drop(forward());
    MEMORY.reset_peak_usage();
    let start = Instant::now();
    drop(forward());
    report("forward", start);
    for checkpointing in ["none", "block"].into_iter().filter(|name| name.contains(&only)) {
        let config = settings(checkpointing);
        let mut trainer = Trainer::new(unet.clone(), &config.method, &config).expect("threads");
        // The first step allocates the optimizer's moments.
        trainer.step_on(&batch).expect("a step");
        MEMORY.reset_peak_usage();
        let start = Instant::now();
        trainer.step_on(&batch).expect("a step");
        report(checkpointing, start);
    }
}

fn text(config: &UnetConfig, side: usize, device: &Device) -> Condition {
    let width = config.cross_attention_dim.get(0);
    let size = 8.0 * side as f32;
    let ids = [size, size, 0.0, 0.0, size, size];
    let added = config.addition_embed_type.map(|_| AddedCondition {
        pooled: randn(0, 3, [1, 1280], device),
        time_ids: Tensor::<1>::from_floats(ids, device).cast(DType::F32).unsqueeze(),
    });
    Condition { text: randn(0, 2, [1, 77, width], device), lengths: None, added }
}

fn batch(config: &UnetConfig, side: usize, device: &Device) -> Batch {
    Batch {
        noisy: randn(0, 0, [1, 4, side, side], device),
        target: randn(0, 1, [1, 4, side, side], device),
        prompts: text(config, side, device).into(),
        timesteps: Tensor::full([1], 500.0, device),
        weight: Tensor::ones([1], device),
        mask: None,
    }
}
