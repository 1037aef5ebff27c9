//! `scheduler_config.json`, as DDIM, DDPM and PNDM exporters write it.
//!
//! The noise schedule is a property of the model and shared by all samplers; the rest are settings
//! of the sampler, which every class writes down under the same names.

use burn::tensor::Tensor;
use serde::Deserialize;

use crate::config::{ConfigFile, Refusal};

/// How the variances of the forward process grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly from `beta_start` to `beta_end`.
    Linear,
    /// Their square roots evenly: Latent Diffusion.
    ScaledLinear,
    /// From a cosine: improved DDPM (arXiv 2102.09672).
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredcosCapV2,
}

/// What the network was trained to predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// The velocity `sqrt(abar) eps - sqrt(1 - abar) x0` (arXiv 2202.00512).
    VPrediction,
}

/// Which of the training timesteps a sampler visits; table 2 of arXiv 2305.08891.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Multiples of the stride, counted from 0.
    Leading,
    /// Multiples of the stride, counted back from the last.
    Trailing,
    /// Evenly from 0 to the last.
    Linspace,
}

/// The fields of a scheduler's config that this port honours; the defaults are diffusers'.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SchedulerConfig {
    /// Timesteps of the forward process.
    pub num_train_timesteps: usize,
    /// First variance.
    pub beta_start: f64,
    /// Last variance.
    pub beta_end: f64,
    /// How they grow.
    pub beta_schedule: BetaSchedule,
    /// What the network predicts.
    pub prediction_type: PredictionType,
    /// Which timesteps a sampler visits.
    pub timestep_spacing: TimestepSpacing,
    /// Added to every timestep of leading spacing.
    pub steps_offset: usize,
    /// Whether the step after the last one is without noise; otherwise it is timestep 0.
    pub set_alpha_to_one: bool,
    /// Whether the predicted `x0` is clipped.
    pub clip_sample: bool,
    /// The largest magnitude of a clipped `x0`.
    pub clip_sample_range: f64,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: TimestepSpacing::Leading,
            steps_offset: 0,
            set_alpha_to_one: true,
            clip_sample: true,
            clip_sample_range: 1.0,
        }
    }
}

impl SchedulerConfig {
    /// Clips a predicted `x0`, `[b, c, h, w]`, if the config asks for it.
    pub(crate) fn clip(&self, x0: Tensor<4>) -> Tensor<4> {
        if self.clip_sample {
            x0.clamp(-self.clip_sample_range, self.clip_sample_range)
        } else {
            x0
        }
    }
}

impl ConfigFile for SchedulerConfig {
    const WHAT: &'static str = "the scheduler's scheduler_config.json";

    const NEUTRAL: &'static [(&'static str, &'static str)] = &[
        // Read only together with `thresholding`.
        ("dynamic_thresholding_ratio", "0.995"),
        ("rescale_betas_zero_snr", "false"),
        ("sample_max_value", "1.0"),
        // PNDM's way of starting; DDIM needs none.
        ("skip_prk_steps", "true"),
        ("thresholding", "false"),
        ("trained_betas", "null"),
        ("variance_type", "\"fixed_small\""),
    ];

    fn check(&self) -> Result<(), Refusal> {
        let refuse = |field, value: String, supported| Err(Refusal { field, value, supported });
        if self.num_train_timesteps < 2 {
            let value = self.num_train_timesteps.to_string();
            return refuse("num_train_timesteps", value, "at least 2");
        }
        let beta = 0.0..1.0;
        if !beta.contains(&self.beta_start) || self.beta_start == 0.0 {
            return refuse("beta_start", self.beta_start.to_string(), "a number between 0 and 1");
        }
        if !beta.contains(&self.beta_end) || self.beta_end < self.beta_start {
            let supported = "a number between beta_start and 1";
            return refuse("beta_end", self.beta_end.to_string(), supported);
        }
        Ok(())
    }
}
