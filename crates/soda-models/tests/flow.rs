//! Flow matching against diffusers: noise levels, steps, and the fields of its config.
//!
//! `flow.safetensors` is written by `docs/parity/schedulers.py`. The other plan is the reference of
//! `examples/toyflux`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use burn::tensor::{Device, Tensor};
use common::{Fixture, check, value};
use serde::Deserialize;
use serde_json::{Value, json};
use soda_models::scheduler::{
    PredictionType, Sampler, SamplerKind, SchedulerConfig, SchedulerOverrides,
};
use soda_models::{ModelError, config};

/// Noise levels are a few f32 operations of their step.
const PLAN: f32 = 1e-6;

/// A trajectory adds up the rounding of its steps.
const STEP: f32 = 1e-5;

const SHAPE: [usize; 4] = [1, 4, 2, 3];

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

fn read(config: &Value) -> SchedulerConfig {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scheduler_config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    config::read(&path).unwrap_or_else(|e| panic!("{e}: {config}"))
}

/// A config of flow matching, with changes.
fn flow(changes: Value) -> Value {
    let mut config = json!({
        "_class_name": "FlowMatchEulerDiscreteScheduler", "base_image_seq_len": 256, "base_shift": 0.5,
        "invert_sigmas": false, "max_image_seq_len": 4096, "max_shift": 1.15,
        "num_train_timesteps": 1000, "shift": 3.0, "shift_terminal": null,
        "stochastic_sampling": false, "time_shift_type": "exponential", "use_beta_sigmas": false,
        "use_dynamic_shifting": true, "use_exponential_sigmas": false, "use_karras_sigmas": null,
    });
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

/// The plan of toyflux's reference, which diffusers' pipeline drew.
#[test]
fn flow_matching_has_the_noise_levels_of_the_pipeline() {
    let toyflux = soda_testing::workspace_path("examples/toyflux");
    let reference = Fixture::open(&toyflux.join("reference/reference.safetensors"));
    let path = toyflux.join("base/scheduler/scheduler_config.json");
    let config: SchedulerConfig = config::read(&path).unwrap();
    let sampler = config.sampler_for_tokens(None, 30, 64).unwrap();
    let timesteps: Vec<f32> = sampler.timesteps().iter().map(|t| *t as f32).collect();
    check("timesteps", &timesteps, &reference.floats("timesteps").1, PLAN);
    let sigmas: Vec<f32> = (0..30).map(|call| sampler.alpha_and_sigma(call).1 as f32).collect();
    let (_, theirs) = reference.floats("sigmas");
    assert_eq!(theirs[30], 0.0);
    check("sigmas", &sigmas, &theirs[..30], PLAN);
}

#[derive(Deserialize)]
struct FlowCase {
    config: Value,
    steps: usize,
    tokens: usize,
}

#[test]
fn flow_matching_matches_diffusers() {
    let fixture = Fixture::read("flow");
    let cases: Vec<FlowCase> = serde_json::from_str(&fixture.metadata("cases")).unwrap();
    assert!(cases.len() >= 12);
    let device = Device::default();
    let network: Tensor<4> = value("network", SHAPE, &device);
    for (index, FlowCase { config, steps, tokens }) in cases.iter().enumerate() {
        let name = format!("case {index}, {config}");
        let mut sampler = read(config).sampler_for_tokens(None, *steps, *tokens).unwrap();
        let timesteps: Vec<f32> = sampler.timesteps().iter().map(|t| *t as f32).collect();
        let theirs = |part: &str| fixture.floats(&format!("{index}.{part}")).1;
        check(&format!("timesteps of {name}"), &timesteps, &theirs("timesteps"), PLAN);
        let middle = steps / 2;
        let noisy = sampler.add_noise(middle, value("start", SHAPE, &device), network.clone());
        check(&format!("noise added by {name}"), &values(noisy), &theirs("noisy"), STEP);
        let steps = theirs("steps");
        let mut sample: Tensor<4> = value("start", SHAPE, &device);
        for (call, t) in sampler.timesteps().to_vec().into_iter().enumerate() {
            let prediction = sample.clone() * 0.6 + network.clone() * (0.2 + 0.0005 * t);
            let mut noise = || -> Tensor<4> { panic!("flow matching adds no noise") };
            sample = sampler.step(call, prediction, sample, &mut noise);
            let theirs = &steps[call * 24..(call + 1) * 24];
            check(&format!("step {call} of {name}"), &values(sample.clone()), theirs, STEP);
        }
    }
}

#[test]
fn fields_of_flow_matching_are_read_or_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scheduler_config.json");
    for change in [
        json!({"shift": 0.0}),
        json!({"shift": 1e9}),
        json!({"shift": "3"}),
        json!({"shift_terminal": 0.02}),
        json!({"invert_sigmas": true}),
        json!({"stochastic_sampling": true}),
        json!({"use_karras_sigmas": true}),
        json!({"use_exponential_sigmas": true}),
        json!({"use_beta_sigmas": true}),
        json!({"time_shift_type": "cubic"}),
        json!({"beta_start": 0.1}),
        json!({"prediction_type": "epsilon"}),
        json!({"rescale_betas_zero_snr": true}),
        json!({"timestep_spacing": "leading"}),
        json!({"use_flow_sigmas": true}),
        json!({"num_train_timesteps": 1}),
        json!({"num_train_timestep": 5}),
    ] {
        let field = change.as_object().unwrap().keys().next().unwrap().clone();
        std::fs::write(&path, flow(change).to_string()).unwrap();
        let error = config::read::<SchedulerConfig>(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}`")), "{field}: {error}");
    }
    // An image of SD has no size in tokens, and samplers of other models do not fit.
    let dynamic = read(&flow(json!({})));
    let refused = |sampler: Result<_, ModelError>| {
        sampler.map(|_: Box<dyn Sampler>| ()).unwrap_err().to_string()
    };
    assert!(refused(dynamic.sampler(None, 4)).contains("size of the image"));
    assert!(refused(dynamic.sampler(Some(SamplerKind::Ddim), 4)).contains("flow matching"));
    assert!(refused(dynamic.sampler_for_tokens(None, 1001, 64)).contains("1000"));
    let betas = read(&json!({"_class_name": "DDIMScheduler"}));
    assert!(refused(betas.sampler(Some(SamplerKind::FlowMatchEuler), 4)).contains("FlowMatch"));
    let linear = read(&flow(json!({"time_shift_type": "linear"})));
    assert!(refused(linear.sampler_for_tokens(None, 1000, 64)).contains("linear"));
    let fixed = read(&flow(json!({"use_dynamic_shifting": false})));
    assert_eq!(fixed.sampler(None, 2).unwrap().timesteps(), [1000.0, 750.0]);
}

/// A fine-tune cannot turn one process into the other.
#[test]
fn overrides_keep_the_process() {
    let to = |prediction_type| SchedulerOverrides { prediction_type, ..Default::default() };
    let read_flow = || read(&flow(json!({})));
    assert!(read_flow().with_overrides(to(None)).is_ok());
    let v = to(Some(PredictionType::VPrediction));
    let error = read_flow().with_overrides(v).unwrap_err().to_string();
    assert!(error.contains("prediction_type"), "{error}");
    let zero = SchedulerOverrides { prediction_type: None, rescale_betas_zero_snr: true };
    assert!(read_flow().with_overrides(zero).is_err());
    let betas = read(&json!({"_class_name": "DDIMScheduler"}));
    assert!(betas.with_overrides(to(Some(PredictionType::Flow))).is_err());
}
