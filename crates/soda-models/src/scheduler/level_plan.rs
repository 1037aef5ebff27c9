//! The plan of samplers whose samples are image plus noise, `x = x0 + sigma noise`: Euler, LMS, Heun, DPM2.

use burn::tensor::Tensor;

use super::config::{FinalSigmasType, SchedulerConfig, TimestepSpacing};
use super::noise_schedule::NoiseSchedule;
use super::sampler_kind::SamplerKind;
use super::spacing::{interpolate, karras, sigmas, spaced, timestep_of};

/// Timesteps, noisiest first, and noise levels.
#[derive(Debug, Clone)]
pub(super) struct LevelPlan {
    pub(super) timesteps: Vec<f64>,
    /// The noise level at each step, and after the last one.
    pub(super) sigmas: Vec<f64>,
    /// The noise levels of the trained timesteps, which increase.
    pub(super) trained: Vec<f64>,
    pub(super) init_noise_sigma: f64,
}

impl LevelPlan {
    /// Plans `steps` steps of `kind`. `last` is the noise level after the last one.
    pub(super) fn new(
        config: &SchedulerConfig,
        kind: SamplerKind,
        steps: usize,
        use_karras: bool,
        last: FinalSigmasType,
    ) -> Self {
        let trained = sigmas(&NoiseSchedule::new(config));
        let spacing = config.spacing(kind);
        let mut timesteps = spaced(spacing, trained.len(), steps, config.steps_offset);
        let mut plan: Vec<f64> = timesteps.iter().map(|t| interpolate(&trained, *t)).collect();
        if use_karras {
            plan = karras(plan[0], plan[steps - 1], steps);
            timesteps = plan.iter().map(|sigma| timestep_of(&trained, *sigma)).collect();
        }
        let last = match last {
            FinalSigmasType::SigmaMin => trained[0],
            FinalSigmasType::Zero => 0.0,
        };
        let max = plan.iter().fold(last, |max, sigma| max.max(*sigma));
        plan.push(last);
        let init_noise_sigma = match spacing {
            TimestepSpacing::Leading => (max * max + 1.0).sqrt(),
            TimestepSpacing::Trailing | TimestepSpacing::Linspace => max,
        };
        Self { timesteps, sigmas: plan, trained, init_noise_sigma }
    }
}

/// Scales a sample of noise level `sigma` to unit variance, which the denoiser expects.
pub(super) fn unit_variance(sample: Tensor<4>, sigma: f64) -> Tensor<4> {
    sample.div_scalar((sigma * sigma + 1.0).sqrt())
}
