//! Every sampler against diffusers: timesteps, noise levels, and every step of a trajectory.
//!
//! The fixture is written by `docs/parity/schedulers.py`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use burn::tensor::{Device, Tensor};
use common::{Fixture, check, value};
use serde::Deserialize;
use soda_models::config;
use soda_models::scheduler::{NoiseSchedule, PredictionType, SchedulerConfig};

/// Timesteps are whole or f32, and noise levels take a few f32 operations.
const PLAN: f32 = 1e-5;

/// diffusers computes each step's coefficients in f32, and a trajectory adds up their errors.
const STEP: f32 = 1e-4;

const SHAPE: [usize; 4] = [1, 4, 2, 3];

#[derive(Deserialize)]
struct Case {
    config: serde_json::Value,
    steps: usize,
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

fn read(config: &serde_json::Value) -> SchedulerConfig {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scheduler_config.json");
    // Python's spelling of an infinity.
    let text = config.to_string().replace("\"-Infinity\"", " -Infinity");
    std::fs::write(&path, text).unwrap();
    config::read(&path).unwrap_or_else(|e| panic!("{e}: {config}"))
}

#[test]
fn samplers_match_diffusers() {
    let fixture = Fixture::read("schedulers");
    let text = fixture.metadata("cases").replace("-Infinity", "\"-Infinity\"");
    let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() > 50);
    let device = Device::default();
    let network: Tensor<4> = value("network", SHAPE, &device);
    for (index, Case { config, steps }) in cases.iter().enumerate() {
        let name = format!("case {index}, {config}");
        let mut sampler = read(config).sampler(None, *steps).unwrap();
        let timesteps: Vec<f32> = sampler.timesteps().iter().map(|t| *t as f32).collect();
        let (_, theirs) = fixture.floats(&format!("{index}.timesteps"));
        check(&format!("timesteps of {name}"), &timesteps, &theirs, PLAN);
        let sigma = sampler.init_noise_sigma();
        let (_, theirs) = fixture.floats(&format!("{index}.sigma"));
        check(&format!("first noise of {name}"), &[sigma as f32], &theirs, PLAN);

        let middle = timesteps.len() / 2;
        let noisy = sampler.add_noise(middle, value("start", SHAPE, &device), network.clone());
        let (_, theirs) = fixture.floats(&format!("{index}.noisy"));
        check(&format!("noise added by {name}"), &values(noisy), &theirs, PLAN);
        if fixture.names(&format!("{index}.")).contains(&"sigmas".to_owned()) {
            let (_, theirs) = fixture.floats(&format!("{index}.sigmas"));
            for (call, theirs) in theirs[..timesteps.len()].iter().enumerate() {
                let (signal, sigma) = sampler.alpha_and_sigma(call);
                check(&format!("sigma of {name}"), &[(sigma / signal) as f32], &[*theirs], PLAN);
            }
        }

        let (_, theirs) = fixture.floats(&format!("{index}.steps"));
        let mut sample = value("start", SHAPE, &device).mul_scalar(sigma);
        for (call, t) in sampler.timesteps().to_vec().into_iter().enumerate() {
            let seen = sampler.scale_model_input(call, sample.clone());
            let prediction = seen * 0.6 + network.clone() * (0.2 + 0.0005 * t);
            let mut noise = || value(&format!("noise.{call}"), SHAPE, &device);
            sample = sampler.step(call, prediction, sample, &mut noise);
            let theirs = &theirs[call * 24..(call + 1) * 24];
            check(&format!("step {call} of {name}"), &values(sample.clone()), theirs, STEP);
        }
    }
}

/// If the last noise level is 0, the last step gives the predicted image, whatever the order.
#[test]
fn dpm_solver_ends_in_the_predicted_image() {
    let device = Device::default();
    let sample: Tensor<4> = value("start", SHAPE, &device);
    let x0: Tensor<4> = value("network", SHAPE, &device);
    for order in [1, 2, 3] {
        for algorithm in ["dpmsolver++", "sde-dpmsolver++"] {
            for (karras, steps) in [(false, 1), (true, 1), (false, 4), (true, 20)] {
                let config = read(&serde_json::json!({
                    "_class_name": "DPMSolverMultistepScheduler", "prediction_type": "sample",
                    "solver_order": order, "algorithm_type": algorithm, "use_karras_sigmas": karras,
                }));
                let mut sampler = config.sampler(None, steps).unwrap();
                let mut noise = || value("noise", SHAPE, &device);
                let mut last = sample.clone();
                for call in 0..steps {
                    last = sampler.step(call, x0.clone(), last, &mut noise);
                }
                assert_eq!(values(last), values(x0.clone()), "order {order}, {algorithm}, {steps}");
            }
        }
    }
}

/// With zero terminal SNR the last timestep is pure noise, and the first one is unchanged.
#[test]
fn a_rescaled_schedule_ends_in_pure_noise() {
    let plain = SchedulerConfig::default();
    let rescaled = SchedulerConfig {
        rescale_betas_zero_snr: true,
        prediction_type: PredictionType::VPrediction,
        ..plain.clone()
    };
    let (plain, rescaled) = (NoiseSchedule::new(&plain), NoiseSchedule::new(&rescaled));
    assert_eq!(rescaled.snr(999), 0.0);
    assert!((rescaled.snr(0) / plain.snr(0) - 1.0).abs() < 1e-3);
    assert!((1..1000).all(|t| rescaled.snr(t) < rescaled.snr(t - 1)));
}

#[test]
fn unsupported_sampler_settings_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scheduler_config.json");
    for (config, named) in [
        (r#"{"_class_name": "UniPCMultistepScheduler"}"#, "_class_name"),
        (r#"{"_class_name": "PNDMScheduler"}"#, "skip_prk_steps"),
        (r#"{"rescale_betas_zero_snr": true}"#, "rescale_betas_zero_snr"),
        (r#"{"use_beta_sigmas": true}"#, "use_beta_sigmas"),
        (r#"{"solver_order": 4}"#, "solver_order"),
        (r#"{"trained_betas": [0.1, 0.2]}"#, "trained_betas"),
        (r#"{"thresholding": true}"#, "thresholding"),
        (r#"{"algorithm_type": "dpmsolver"}"#, "algorithm_type"),
        (r#"{"clip_sample_range": 0}"#, "clip_sample_range"),
    ] {
        std::fs::write(&path, config).unwrap();
        let error = config::read::<SchedulerConfig>(&path).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}
