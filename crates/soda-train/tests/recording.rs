//! Steps repeated from a recording are the steps. A process of its own: while a device records, no other thread may use
//! it.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use soda_adapters::Method as _;
use soda_kernels::has_library;
use soda_models::unet::{Unet, UnetConfig};
use soda_models::{config, weights};
use soda_train::{Batch, TrainConfig, Trainer, TrainerState, preset, set};

fn unet(device: &Device) -> Unet {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/toybox/base/unet");
    let config: UnetConfig = config::read(&folder.join("config.json")).unwrap();
    weights::load(config.init(device), &folder.join("diffusion_pytorch_model.safetensors")).unwrap()
}

/// Other numbers for every step.
fn batch(step: usize, samples: usize, device: &Device) -> Batch {
    let wave = |pace: f32, shape: &[usize]| {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| (i as f32 * pace + step as f32).sin()).collect();
        TensorData::new(values, shape.to_vec())
    };
    let shape = [samples, 4, 16, 16];
    Batch {
        noisy: Tensor::from_data(wave(0.37, &shape), device),
        target: Tensor::from_data(wave(0.61, &shape), device),
        timesteps: Tensor::full([samples], (100 * step) as f64, device),
        prompts: Tensor::<3>::from_data(wave(0.13, &[samples, 77, 160]), device).into(),
        weight: Tensor::full([samples], 1.0 / samples as f64, device),
        mask: None,
    }
}

fn run(config: &TrainConfig, recorded: bool, device: &Device) -> (Vec<f32>, TrainerState) {
    let unet = unet(device);
    let unet = config.method.plan(&config.targets, &unet).unwrap().attach(unet);
    let trainer = Trainer::new(unet, &config.method, config).unwrap();
    let mut trainer = if recorded { trainer.recording() } else { trainer };
    // One batch is of another size and goes past the recording.
    let batches = [(0, 4), (1, 4), (2, 4), (3, 2), (4, 4)];
    let losses =
        batches.map(|(step, samples)| trainer.step_on(&batch(step, samples, device)).unwrap().loss);
    (losses.to_vec(), trainer.state())
}

#[test]
fn repeated_from_a_recording_a_step_is_the_same() {
    let device = Device::default();
    if !has_library(&Tensor::<1>::zeros([1], &device)) {
        // Nothing is recorded there.
        return;
    }
    for settings in [
        ["method=soda", "objective.loss=dco"],
        ["method=lora", "accumulation=2"],
        ["method=soda", "precision=bf16"],
    ] {
        let mut table = preset("toybox").unwrap();
        let targets = r#"targets=['mid_block\..*attn\d\.to_(q|k)\.weight$']"#;
        for setting in ["base=b", "data=d", "batch_size=4", targets].iter().chain(&settings) {
            set(&mut table, setting).unwrap();
        }
        let config = TrainConfig::from_table(table).unwrap();
        let ((losses, state), (expected, plain)) =
            (run(&config, true, &device), run(&config, false, &device));
        assert_eq!(losses, expected, "{settings:?}");
        assert!(state == plain, "{settings:?}");
    }
}
