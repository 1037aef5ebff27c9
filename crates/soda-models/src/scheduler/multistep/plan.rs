//! The timesteps and noise levels of a multistep solver.

use crate::scheduler::config::{FinalSigmasType, SchedulerConfig, TimestepSpacing};
use crate::scheduler::noise_schedule::NoiseSchedule;
use crate::scheduler::sampler_kind::SamplerKind;
use crate::scheduler::spacing::{
    interpolate, karras, leading, rounded, sigmas, spaced, timestep_of,
};

/// Timesteps, noisiest first, and noise levels `sigma / alpha`.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) timesteps: Vec<f64>,
    /// The noise level at each step, and after the last one.
    pub(super) sigmas: Vec<f64>,
}

impl Plan {
    /// Plans `steps` steps of `kind`. `last` is the noise level after the last one.
    pub(super) fn new(
        config: &SchedulerConfig,
        kind: SamplerKind,
        steps: usize,
        last: FinalSigmasType,
    ) -> Self {
        let all = sigmas(&NoiseSchedule::new(config));
        let total = all.len();
        let mut timesteps = match config.spacing(kind) {
            TimestepSpacing::Trailing => {
                spaced(TimestepSpacing::Trailing, total, steps, config.steps_offset)
            }
            // One timestep more, so that the last visited one is not 0.
            TimestepSpacing::Linspace => {
                let mut all = spaced(TimestepSpacing::Linspace, total, steps + 1, 0);
                all.pop();
                rounded(all)
            }
            TimestepSpacing::Leading => {
                let mut all = leading(total / (steps + 1), steps + 1, config.steps_offset);
                all.pop();
                all
            }
        };
        let mut plan: Vec<f64> = timesteps.iter().map(|t| interpolate(&all, *t)).collect();
        if config.use_karras_sigmas {
            plan = karras(all[total - 1], all[0], steps);
            timesteps = plan.iter().map(|sigma| timestep_of(&all, *sigma)).collect();
            if kind != SamplerKind::DpmSolver || config.rounds_karras_timesteps() {
                timesteps = rounded(timesteps);
            }
            timesteps.iter_mut().for_each(|t| *t = t.trunc());
        }
        plan.push(match last {
            FinalSigmasType::SigmaMin => all[0],
            FinalSigmasType::Zero => 0.0,
        });
        Self { timesteps, sigmas: plan }
    }

    /// `lambda` at a step.
    pub(super) fn lambda(&self, call: usize) -> f64 {
        -self.sigmas[call].ln()
    }
}

/// `(alpha, sigma)` of a sample of unit variance, from the noise level `sigma / alpha`.
pub(super) fn shares(sigma: f64) -> (f64, f64) {
    let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
    (alpha, sigma * alpha)
}
