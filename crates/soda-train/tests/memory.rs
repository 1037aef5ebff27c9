//! What a backward pass with block checkpointing holds. A binary of its own, since the meter is the process's.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use burn::tensor::{Device, Tensor};
use peak_alloc::PeakAlloc;
use serde_json::json;
use soda_adapters::{Method as _, MethodConfig, Targets, leaves};
use soda_models::noise::gaussian;
use soda_models::unet::{Condition, UnetConfig};
use soda_train::{Call, GradientCheckpointing};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Beside what a forward pass needs without keeping anything, one block's intermediates and the maps between the
/// blocks: of fifteen blocks of three sizes, less than a third of what all of them keep.
#[test]
fn recomputed_blocks_hold_less_than_a_third() {
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
    let unet = config.init(&device);
    let plan = MethodConfig::preset("lora").unwrap().plan(&Targets::default(), &unet).unwrap();
    let unet = plan.attach(unet);
    drop(leaves(&unet));
    let condition: Condition = gaussian::<3>(0, 2, [1, 8, 32], &device).into();
    let call = Call {
        noisy: gaussian(0, 0, [1, 4, 48, 48], &device),
        timesteps: Tensor::full([1], 500.0, &device),
        condition: condition.clone(),
        wants_condition: false,
    };
    let peak = |run: &dyn Fn()| {
        // Kept transforms of the weights, threads and their stacks appear in the first run.
        run();
        MEMORY.reset_peak_usage();
        let before = MEMORY.current_usage();
        run();
        MEMORY.peak_usage() - before
    };
    let forward = peak(&|| {
        let Call { noisy, timesteps, .. } = call.clone();
        drop(unet.forward(noisy, timesteps, condition.clone()));
    });
    let [kept, recomputed] =
        [GradientCheckpointing::None, GradientCheckpointing::Block].map(|checkpointing| {
            peak(&|| {
                drop(
                    checkpointing
                        .backward(&unet, call.clone(), |prediction| prediction.square().mean()),
                );
            })
        });
    let [kept, recomputed] = [kept, recomputed].map(|peak| peak.saturating_sub(forward));
    assert!(
        3 * recomputed < kept,
        "beside {forward} bytes of a forward pass {recomputed} recomputed, {kept} kept"
    );
}
