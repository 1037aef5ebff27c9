//! `scheduler_config.json`, as all the samplers of [`SamplerKind`] write it.
//!
//! The noise schedule is a property of the model and shared by all samplers; the rest are settings
//! of the sampler, which every class writes down under the same names.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::config::{ConfigFile, Refusal};
use crate::scheduler::sampler::SamplerKind;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// The velocity `sqrt(abar) eps - sqrt(1 - abar) x0` (arXiv 2202.00512).
    #[serde(alias = "v")]
    VPrediction,
    /// The picture.
    Sample,
}

/// The noise after the last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmas {
    /// None.
    Zero,
    /// That of timestep 0.
    SigmaMin,
}

/// Which equation DPM-Solver solves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Algorithm {
    /// The probability flow's.
    #[serde(rename = "dpmsolver++")]
    DpmSolverPlusPlus,
    /// The one with fresh noise.
    #[serde(rename = "sde-dpmsolver++")]
    SdeDpmSolverPlusPlus,
}

/// DPM-Solver's second order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SolverType {
    /// By the midpoint's rule.
    Midpoint,
    /// By Heun's.
    Heun,
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
    /// The sampler that wrote the config.
    #[serde(rename = "_class_name")]
    pub class: SamplerKind,
    /// Timesteps of the forward process.
    pub num_train_timesteps: usize,
    /// First variance.
    pub beta_start: f64,
    /// Last variance.
    pub beta_end: f64,
    /// How they grow.
    pub beta_schedule: BetaSchedule,
    /// The variances themselves, instead of a schedule.
    pub trained_betas: Option<Vec<f32>>,
    /// Whether the schedule is rescaled so that its last timestep is pure noise.
    pub rescale_betas_zero_snr: bool,
    /// What the network predicts.
    pub prediction_type: PredictionType,
    /// Which timesteps a sampler visits; see [`SchedulerConfig::spacing`].
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Added to every timestep of leading spacing.
    pub steps_offset: usize,
    /// Whether the step after the last one is without noise; otherwise it is timestep 0. DDIM's
    /// default is true, PNDM's false.
    pub set_alpha_to_one: Option<bool>,
    /// Whether DDIM and DDPM clip the predicted `x0`; their default is true, and others have none.
    pub clip_sample: Option<bool>,
    /// The largest magnitude of a clipped `x0`.
    pub clip_sample_range: f64,
    /// Whether PNDM leaves out its Runge-Kutta start, which is not implemented.
    pub skip_prk_steps: bool,
    /// Whether Euler's method and DPM-Solver space their noise levels as Karras et al.
    pub use_karras_sigmas: bool,
    /// The noise after the last step of Euler's method and of DPM-Solver.
    pub final_sigmas_type: FinalSigmas,
    /// DPM-Solver's order, 1 to 3.
    pub solver_order: usize,
    /// DPM-Solver's equation.
    pub algorithm_type: Algorithm,
    /// DPM-Solver's second order.
    pub solver_type: SolverType,
    /// Whether short plans of DPM-Solver end with lower orders.
    pub lower_order_final: bool,
    /// Whether the last step of DPM-Solver is one of Euler's method.
    pub euler_at_final: bool,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            class: SamplerKind::Ddim,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            rescale_betas_zero_snr: false,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: None,
            steps_offset: 0,
            set_alpha_to_one: None,
            clip_sample: None,
            clip_sample_range: 1.0,
            skip_prk_steps: false,
            use_karras_sigmas: false,
            final_sigmas_type: FinalSigmas::Zero,
            solver_order: 2,
            algorithm_type: Algorithm::DpmSolverPlusPlus,
            solver_type: SolverType::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
        }
    }
}

impl SchedulerConfig {
    /// Which timesteps a sampler visits: what the config says, or else that sampler's default.
    pub fn spacing(&self, kind: SamplerKind) -> TimestepSpacing {
        self.timestep_spacing.unwrap_or(match kind {
            SamplerKind::Ddpm | SamplerKind::Ddim | SamplerKind::Pndm => TimestepSpacing::Leading,
            SamplerKind::Euler | SamplerKind::EulerAncestral | SamplerKind::DpmSolver => {
                TimestepSpacing::Linspace
            }
        })
    }

    /// Clips a predicted `x0`, `[b, c, h, w]`, if the config asks for it.
    pub(crate) fn clip(&self, x0: Tensor<4>) -> Tensor<4> {
        let clips = matches!(self.class, SamplerKind::Ddim | SamplerKind::Ddpm);
        if self.clip_sample.unwrap_or(clips) {
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
        ("sample_max_value", "1.0"),
        ("thresholding", "false"),
        ("variance_type", "\"fixed_small\""),
        ("variance_type", "null"),
        // Euler's method.
        ("interpolation_type", "\"linear\""),
        ("sigma_max", "null"),
        ("sigma_min", "null"),
        ("timestep_type", "\"discrete\""),
        ("use_beta_sigmas", "false"),
        ("use_beta_sigmas", "null"),
        ("use_exponential_sigmas", "false"),
        ("use_exponential_sigmas", "null"),
        // DPM-Solver.
        ("flow_shift", "1.0"),
        ("flow_shift", "null"),
        ("lambda_min_clipped", "null"),
        ("time_shift_type", "\"exponential\""),
        ("use_dynamic_shifting", "false"),
        ("use_flow_sigmas", "false"),
        ("use_flow_sigmas", "null"),
        ("use_lu_lambdas", "false"),
        ("use_lu_lambdas", "null"),
    ];

    const CLASS: bool = true;

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
        if let Some(betas) = &self.trained_betas {
            if betas.len() != self.num_train_timesteps {
                let supported = "as many numbers as `num_train_timesteps`";
                return refuse("trained_betas", format!("{} numbers", betas.len()), supported);
            }
            if let Some(bad) = betas.iter().find(|beta| !(0.0..1.0).contains(*beta)) {
                return refuse("trained_betas", bad.to_string(), "numbers between 0 and 1");
            }
        }
        // Noise that cannot be told from a picture where there is no picture.
        if self.rescale_betas_zero_snr && self.prediction_type == PredictionType::Epsilon {
            let supported = "false, or the prediction_type v_prediction or sample";
            return refuse("rescale_betas_zero_snr", "true".into(), supported);
        }
        if self.class == SamplerKind::Pndm && !self.skip_prk_steps {
            return refuse("skip_prk_steps", "false".into(), "true");
        }
        if !(1..=3).contains(&self.solver_order) {
            return refuse("solver_order", self.solver_order.to_string(), "1, 2 or 3");
        }
        if self.clip_sample_range <= 0.0 {
            let value = self.clip_sample_range.to_string();
            return refuse("clip_sample_range", value, "a positive number");
        }
        Ok(())
    }
}
