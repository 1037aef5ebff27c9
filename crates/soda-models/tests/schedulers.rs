//! Every sampler against diffusers: timesteps, noise levels, and every step of a trajectory.
//!
//! The fixtures are written by `docs/parity/schedulers.py`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use burn::tensor::{Device, Tensor};
use common::{Fixture, check, value};
use serde::Deserialize;
use soda_models::scheduler::{NoiseSchedule, PredictionType, SamplerKind, SchedulerConfig};
use soda_models::{ModelError, config};

/// Timesteps are whole or f32, and noise levels take a few f32 operations.
const PLAN: f32 = 1e-5;

/// diffusers computes each step's coefficients in f32, and a trajectory adds up their errors.
const STEP: f32 = 1e-4;

/// diffusers computes the ancestral noise levels as differences of squares in f32.
const DIFFERENCE: f32 = 1e-3;

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
    for (name, at_least) in [("schedulers", 85), ("multistep", 60), ("second-order", 50)] {
        compare(&Fixture::read(name), at_least);
    }
}

fn compare(fixture: &Fixture, at_least: usize) {
    let text = fixture.metadata("cases").replace("-Infinity", "\"-Infinity\"");
    let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() >= at_least);
    let device = Device::default();
    let network: Tensor<4> = value("network", SHAPE, &device);
    for (index, Case { config, steps }) in cases.iter().enumerate() {
        let name = format!("case {index}, {config}");
        let halves = config["_class_name"] == "KDPM2AncestralDiscreteScheduler";
        let mut sampler = read(config).sampler(None, *steps).unwrap();
        let timesteps: Vec<f32> = sampler.timesteps().iter().map(|t| *t as f32).collect();
        let (_, theirs) = fixture.floats(&format!("{index}.timesteps"));
        check(&format!("timesteps of {name}"), &timesteps, &theirs, PLAN);
        let sigma = sampler.init_noise_sigma();
        let (_, theirs) = fixture.floats(&format!("{index}.sigma"));
        check(&format!("first noise of {name}"), &[sigma as f32], &theirs, PLAN);

        let middle = timesteps.len() / 2;
        let middle = middle - middle % sampler.calls_per_step();
        let noisy = sampler.add_noise(middle, value("start", SHAPE, &device), network.clone());
        let (_, theirs) = fixture.floats(&format!("{index}.noisy"));
        check(&format!("noise added by {name}"), &values(noisy), &theirs, PLAN);
        if fixture.names(&format!("{index}.")).contains(&"sigmas".to_owned()) {
            let (_, theirs) = fixture.floats(&format!("{index}.sigmas"));
            for (call, theirs) in theirs[..timesteps.len()].iter().enumerate() {
                let (signal, sigma) = sampler.alpha_and_sigma(call);
                let bound = if halves && call % 2 == 1 { DIFFERENCE } else { PLAN };
                check(&format!("sigma of {name}"), &[(sigma / signal) as f32], &[*theirs], bound);
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
            let ours = values(sample.clone());
            assert!(ours.iter().all(|value| value.is_finite()), "step {call} of {name}");
            let bound = if halves { DIFFERENCE } else { STEP };
            check(&format!("step {call} of {name}"), &ours, theirs, bound);
        }
    }
}

/// If the last noise level is 0, the last step gives the predicted image, whatever the order.
#[test]
fn multistep_solvers_end_in_the_predicted_image() {
    let device = Device::default();
    let sample: Tensor<4> = value("start", SHAPE, &device);
    let x0: Tensor<4> = value("network", SHAPE, &device);
    for order in [1, 2, 3] {
        for (class, algorithm) in [
            ("DPMSolverMultistepScheduler", "dpmsolver++"),
            ("DPMSolverMultistepScheduler", "sde-dpmsolver++"),
            ("UniPCMultistepScheduler", "dpmsolver++"),
        ] {
            for (karras, steps) in [(false, 1), (true, 1), (false, 4), (true, 20)] {
                let config = read(&serde_json::json!({
                    "_class_name": class, "prediction_type": "sample",
                    "solver_order": order, "algorithm_type": algorithm, "use_karras_sigmas": karras,
                }));
                let mut sampler = config.sampler(None, steps).unwrap();
                let mut noise = || value("noise", SHAPE, &device);
                let mut last = sample.clone();
                for call in 0..steps {
                    last = sampler.step(call, x0.clone(), last, &mut noise);
                }
                assert_eq!(values(last), values(x0.clone()), "{class} {order} {algorithm} {steps}");
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

/// All implemented classes.
const CLASSES: [&str; 13] = [
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "LMSDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
];

/// The last sample of a run with a network that is a formula of its input.
fn draw(config: &SchedulerConfig, steps: usize) -> Result<Vec<f32>, ModelError> {
    let device = Device::default();
    let mut sampler = config.sampler(None, steps)?;
    let noise = || value("noise", SHAPE, &device);
    let mut sample = noise().mul_scalar(sampler.init_noise_sigma());
    for call in 0..sampler.timesteps().len() {
        let seen = sampler.scale_model_input(call, sample.clone());
        sample = sampler.step(call, seen.mul_scalar(0.6), sample, &mut || noise());
    }
    Ok(values(sample))
}

/// A run with as many steps as timesteps visits one of them twice, or the last noise level. A rescaled
/// schedule starts at a noise level that is infinite. Both are finite, or refused by name.
#[test]
fn extreme_plans_are_finite_or_refused_by_name() {
    let mut refused = Vec::new();
    for class in CLASSES {
        for spacing in ["leading", "trailing", "linspace"] {
            for (zero, last) in [(false, "zero"), (false, "sigma_min"), (true, "zero")] {
                for order in [2, 3] {
                    let config = read(&serde_json::json!({
                        "_class_name": class, "prediction_type": "v_prediction",
                        "num_train_timesteps": 40, "timestep_spacing": spacing,
                        "rescale_betas_zero_snr": zero, "final_sigmas_type": last,
                        "solver_order": order, "lower_order_final": false, "clip_sample": false,
                        "skip_prk_steps": true,
                    }));
                    for steps in [1, 2, 39, 40] {
                        let name = format!("{class} {spacing} {zero} {last} {order} {steps}");
                        match draw(&config, steps) {
                            Ok(sample) => {
                                let finite = sample.iter().all(|x| x.abs() < 1e4);
                                assert!(finite, "{name}: {sample:?}");
                            }
                            Err(error) => {
                                let error = error.to_string();
                                let known = ["PNDM", "leading spacing", "LCM"];
                                assert!(known.iter().any(|word| error.contains(word)), "{error}");
                                refused.push(name);
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(refused.iter().any(|name| name.starts_with("PNDMScheduler leading true")));
    assert!(!refused.iter().any(|name| name.starts_with("DPMSolverMultistepScheduler linspace")));
}

#[test]
fn schedules_without_noise_or_signal_are_refused_by_name() {
    for (betas, named) in [
        (serde_json::json!({"beta_start": 1e-12}), "beta_start"),
        (serde_json::json!({"beta_start": 0.9, "beta_end": 0.99}), "beta_end"),
        (serde_json::json!({"trained_betas": vec![0.0; 1000]}), "beta_start"),
    ] {
        let error = read(&betas).sampler(None, 4).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}

/// The noise schedule of Stable Diffusion, under the class of dreamshaper-8 and others.
fn of_class(class: &str, settings: serde_json::Value) -> SchedulerConfig {
    let mut config = serde_json::json!({
        "_class_name": class, "_diffusers_version": "0.42.1", "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
        "prediction_type": "epsilon", "steps_offset": 1, "timestep_spacing": "leading",
        "trained_betas": null,
    });
    let fields = config.as_object_mut().unwrap();
    fields.extend(settings.as_object().unwrap().clone());
    read(&config)
}

/// A class that is not implemented leaves the noise schedule readable, and every sampler can be chosen.
#[test]
fn classes_that_are_not_implemented_keep_the_noise_schedule() {
    let abar = NoiseSchedule::new(&of_class("DDIMScheduler", serde_json::json!({}))).alphas_cumprod;
    let settings = serde_json::json!({
        "solver_type": "logrho", "algorithm_type": "sa", "predict_x0": 7, "disable_corrector": "x",
        "solver_order": 9, "tau_func": null, "original_inference_steps": "many", "thresholding": true,
    });
    for class in [
        "DPMSolverSinglestepScheduler",
        "SASolverScheduler",
        "TCDScheduler",
        "DPMSolverSDEScheduler",
    ] {
        let config = of_class(class, settings.clone());
        assert_eq!(config.replaced.as_deref(), Some(class));
        assert_eq!(NoiseSchedule::new(&config).alphas_cumprod, abar, "{class}");
        for kind in [None, Some(SamplerKind::Ddim), Some(SamplerKind::Euler)] {
            assert_eq!(config.sampler(kind, 4).unwrap().timesteps().len(), 4, "{class}");
        }
    }
    for class in CLASSES {
        let skip = serde_json::json!({"skip_prk_steps": true});
        assert_eq!(of_class(class, skip).replaced, None, "{class}");
    }
    assert_eq!(of_class("FlaxPNDMScheduler", serde_json::json!({})).class, SamplerKind::Pndm);
}

/// A setting that is not implemented is named if the class reads it.
#[test]
fn settings_that_are_not_implemented_are_named() {
    let read_by = |class: &str, settings: serde_json::Value| of_class(class, settings).replaced;
    for (class, setting) in [
        ("PNDMScheduler", serde_json::json!({"skip_prk_steps": false})),
        ("EulerDiscreteScheduler", serde_json::json!({"use_beta_sigmas": true})),
        ("DDIMScheduler", serde_json::json!({"thresholding": true})),
        ("DPMSolverMultistepScheduler", serde_json::json!({"algorithm_type": "dpmsolver"})),
        ("DDPMScheduler", serde_json::json!({"variance_type": "learned"})),
    ] {
        let name = setting.as_object().unwrap().keys().next().unwrap().clone();
        let replaced = read_by(class, setting).unwrap();
        assert!(replaced.contains(class) && replaced.contains(&name), "{replaced}");
    }
    // DDIM reads none of these, and a file may have them from another class.
    let others = serde_json::json!({
        "use_beta_sigmas": true, "algorithm_type": "dpmsolver", "variance_type": "learned",
        "skip_prk_steps": false, "dynamic_thresholding_ratio": 0.9, "use_karras_sigmas": null,
    });
    assert_eq!(read_by("DDIMScheduler", others), None);
    assert!(read_by("PNDMScheduler", serde_json::json!({})).unwrap().contains("skip_prk_steps"));
}

#[test]
fn old_files_state_the_prediction_by_a_flag() {
    for (flag, kind) in [(true, PredictionType::Epsilon), (false, PredictionType::Sample)] {
        let old = serde_json::json!({"_class_name": "DDIMScheduler", "predict_epsilon": flag});
        assert_eq!(read(&old).prediction_type, kind);
    }
    let both = serde_json::json!({"predict_epsilon": true, "prediction_type": "v_prediction"});
    assert_eq!(read(&both).prediction_type, PredictionType::VPrediction);
}

#[test]
fn classes_have_their_own_default_betas() {
    let betas = |class: &str| {
        let config = read(&serde_json::json!({"_class_name": class}));
        (config.beta_start, config.beta_end)
    };
    assert_eq!(betas("HeunDiscreteScheduler"), (0.00085, 0.012));
    assert_eq!(betas("TCDScheduler"), (0.00085, 0.012));
    assert_eq!(betas("UniPCMultistepScheduler"), (0.0001, 0.02));
}

#[test]
fn wrong_fields_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scheduler_config.json");
    for (config, named) in [
        (r#"{"_class_name": "FlowMatchHeunDiscreteScheduler", "shift": 3.0}"#, "other processes"),
        (r#"{"_class_name": 3}"#, "_class_name"),
        (r#"{"rescale_betas_zero_snr": true}"#, "rescale_betas_zero_snr"),
        (r#"{"use_flow_sigmas": true}"#, "use_flow_sigmas"),
        (r#"{"prediction_type": "flow_prediction"}"#, "prediction_type"),
        (r#"{"solver_order": 4}"#, "solver_order"),
        (r#"{"trained_betas": [0.1, 0.2]}"#, "trained_betas"),
        (r#"{"beta_schedules": "linear"}"#, "beta_schedules"),
        (r#"{"clip_sample_range": 0}"#, "clip_sample_range"),
        (r#"{"original_inference_steps": 0}"#, "original_inference_steps"),
        (r#"{"timestep_scaling": 1e300}"#, "timestep_scaling"),
        (r#"{"use_dynamic_shifting": true}"#, "use_dynamic_shifting"),
        (r#"{"_class_name": "EulerDiscreteScheduler", "shift": 3.0}"#, "shift"),
    ] {
        std::fs::write(&path, config).unwrap();
        let error = config::read::<SchedulerConfig>(&path).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}
