//! The memory of a backward pass with gradient checkpointing. The test is its own binary, because the meter
//! counts the whole process.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use burn::tensor::{Device, Tensor};
use peak_alloc::PeakAlloc;
use serde_json::json;
use soda_adapters::{Method as _, MethodConfig, Targets, named_params};
use soda_models::condition::Condition;
use soda_models::noise::randn;
use soda_models::pipeline::Denoiser;
use soda_models::unet::UnetConfig;
use soda_train::{DenoiserInputs, GradientCheckpointing};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// With gradient checkpointing a backward pass holds the intermediates of one block and the tensors between
/// blocks, besides the memory of a forward pass. For fifteen blocks of three sizes this is less than a third
/// of the intermediates of all blocks.
#[test]
fn checkpointed_blocks_hold_less_than_a_third() {
    let device = Device::default();
    let config: UnetConfig = serde_json::from_value(json!({
        "block_out_channels": [32, 64, 64],
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "norm_num_groups": 8,
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
    }))
    .unwrap();
    let denoiser = config.init(&device);
    let plan = MethodConfig::preset("lora")
        .unwrap()
        .plan(&Targets(vec![r"\.(to_q|to_k|to_v|to_out\.0)\.weight$".to_owned()]), &denoiser)
        .unwrap();
    let denoiser = Denoiser::from(plan.attach(denoiser));
    drop(named_params(&denoiser));
    let condition: Condition = randn::<3>(0, 2, [1, 8, 32], &device).into();
    let inputs = DenoiserInputs {
        noisy: randn(0, 0, [1, 4, 48, 48], &device),
        timesteps: Tensor::full([1], 500.0, &device),
        condition: condition.clone(),
        wants_condition_gradient: false,
    };
    let peak = |run: &dyn Fn()| {
        // The first run allocates cached transforms of the weights, threads and their stacks.
        run();
        MEMORY.reset_peak_usage();
        let before = MEMORY.current_usage();
        run();
        MEMORY.peak_usage() - before
    };
    let forward = peak(&|| {
        let DenoiserInputs { noisy, timesteps, .. } = inputs.clone();
        drop(denoiser.forward(noisy, timesteps, condition.clone()));
    });
    let [kept, recomputed] =
        [GradientCheckpointing::None, GradientCheckpointing::Block].map(|checkpointing| {
            peak(&|| {
                drop(
                    checkpointing.backward(&denoiser, inputs.clone(), |prediction| {
                        prediction.square().mean()
                    }),
                );
            })
        });
    let [kept, recomputed] = [kept, recomputed].map(|peak| peak.saturating_sub(forward));
    assert!(
        3 * recomputed < kept,
        "a forward pass takes {forward} bytes; besides it {recomputed} bytes with checkpointing, {kept} without"
    );
}
