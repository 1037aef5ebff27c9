//! The `scheduler_config.json` of all samplers in [`SamplerKind`].
//!
//! The noise schedule is a property of the model and shared by all samplers. The other fields are settings of
//! a sampler, which every class writes under the same names.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::class;
use super::sampler_kind::SamplerKind;
use crate::config::bounds::TIMESTEPS;
use crate::config::{ConfigFile, InvalidField, json_text};

/// The largest shift of flow matching. Z-Image has 6.
const MOST_SHIFT: f64 = 1000.0;

/// The growth of the forward process's variances `beta`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Linear from `beta_start` to `beta_end`.
    Linear,
    /// Linear in the square roots, as in Latent Diffusion.
    ScaledLinear,
    /// From a squared cosine, as in improved DDPM (arXiv 2102.09672).
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredcosCapV2,
}

/// The quantity that the denoiser predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise `eps`.
    Epsilon,
    /// The velocity `sqrt(abar) eps - sqrt(1 - abar) x0` (arXiv 2202.00512).
    #[serde(alias = "v")]
    VPrediction,
    /// The image `x0`.
    Sample,
    /// The velocity `eps - x0` of flow matching (arXiv 2210.02747), at `x = (1 - sigma) x0 + sigma eps`.
    #[serde(rename = "flow_prediction")]
    Flow,
}

/// How the noise levels of flow matching are shifted for the size of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeShiftType {
    /// The odds of a noise level are multiplied by `e^mu`.
    Exponential,
    /// The odds of a noise level are multiplied by `mu`.
    Linear,
}

/// The noise level after the last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmasType {
    /// No noise.
    Zero,
    /// The noise level of timestep 0.
    SigmaMin,
}

/// The equation that DPM-Solver++ solves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum AlgorithmType {
    /// The ordinary differential equation of the probability flow.
    #[serde(rename = "dpmsolver++")]
    DpmSolverPlusPlus,
    /// The stochastic differential equation, with fresh noise in each step.
    #[serde(rename = "sde-dpmsolver++")]
    SdeDpmSolverPlusPlus,
    /// The only value of DEIS, which DPM-Solver++ takes for `dpmsolver++`.
    #[serde(rename = "deis")]
    Deis,
}

/// The rule of a multistep solver. Each class takes the rules of others for its default, as in diffusers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SolverType {
    /// The midpoint rule, the default of DPM-Solver++'s second order.
    Midpoint,
    /// Heun's rule, for DPM-Solver++'s second order.
    Heun,
    /// `B(h) = h` of UniPC.
    Bh1,
    /// `B(h) = e^h - 1` of UniPC, its default.
    Bh2,
    /// Polynomials in the logarithm of the noise level, the only rule of DEIS.
    Logrho,
}

/// The spacing of the timesteps that a sampler visits (arXiv 2305.08891, table 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Multiples of the stride, counted from 0.
    Leading,
    /// Multiples of the stride, counted back from the last timestep.
    Trailing,
    /// Evenly spaced from 0 to the last timestep.
    Linspace,
}

/// The fields of a scheduler's config that are honoured. The defaults are diffusers'.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SchedulerConfig {
    /// The sampler that wrote the config, which is the model's default sampler.
    #[serde(rename = "_class_name")]
    pub class: SamplerKind,
    /// What the file names in place of `class` and is not implemented: a class, or a class with a setting.
    ///
    /// `class` is the nearest sampler, and draws something else. Everything but drawing is not affected.
    #[serde(rename = "_replaced")]
    pub replaced: Option<String>,
    /// Number of timesteps of the forward process.
    pub num_train_timesteps: usize,
    /// Variance of the first timestep.
    pub beta_start: f64,
    /// Variance of the last timestep.
    pub beta_end: f64,
    /// Growth of the variances.
    pub beta_schedule: BetaSchedule,
    /// Variances of all timesteps, in place of a `beta_schedule`.
    pub trained_betas: Option<Vec<f32>>,
    /// Whether the schedule is rescaled to zero terminal SNR, so that its last timestep is pure noise (arXiv
    /// 2305.08891).
    pub rescale_betas_zero_snr: bool,
    /// The quantity that the denoiser predicts.
    pub prediction_type: PredictionType,
    /// Spacing of the timesteps that a sampler visits. See [`SchedulerConfig::spacing`] for the default.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Offset of every timestep with leading spacing.
    pub steps_offset: usize,
    /// Whether there is no noise after the last step of DDIM and PNDM. Otherwise the noise is that of
    /// timestep 0. The default is true for DDIM and false for PNDM.
    pub set_alpha_to_one: Option<bool>,
    /// Whether the predicted `x0` is clipped. The default is true for DDIM and DDPM and false for the others.
    pub clip_sample: Option<bool>,
    /// The largest magnitude of a clipped `x0`.
    pub clip_sample_range: f64,
    /// Whether the sampler uses the noise levels of Karras et al. (arXiv 2206.00364). DDPM, DDIM, PNDM, LCM
    /// and Euler with fresh noise do not read it.
    pub use_karras_sigmas: bool,
    /// Noise level after the last step of Euler, DPM-Solver++ and UniPC.
    pub final_sigmas_type: FinalSigmasType,
    /// Order of DPM-Solver++, UniPC and DEIS, 1 to 3.
    pub solver_order: usize,
    /// Equation of DPM-Solver++.
    pub algorithm_type: AlgorithmType,
    /// Rule of DPM-Solver++ and UniPC.
    pub solver_type: SolverType,
    /// Whether a run ends with lower orders: UniPC, and DPM-Solver++ and DEIS with fewer than 15 steps.
    pub lower_order_final: bool,
    /// Whether the last step of DPM-Solver++ has order 1.
    pub euler_at_final: bool,
    /// Whether UniPC extrapolates predictions of the image, and not of the noise.
    pub predict_x0: bool,
    /// Steps of UniPC whose results are not corrected, counted from 0.
    pub disable_corrector: Vec<usize>,
    /// Number of steps that an LCM was distilled at, which bounds those of its sampler.
    pub original_inference_steps: usize,
    /// Factor of the timestep in LCM's boundary condition.
    pub timestep_scaling: f64,
    /// The factor of the odds of a noise level of flow matching, for images of every size.
    pub shift: f64,
    /// Whether the noise levels of flow matching depend on the size of the image, in place of `shift`.
    pub use_dynamic_shifting: bool,
    /// How the noise levels of flow matching depend on the size of the image.
    pub time_shift_type: TimeShiftType,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            class: SamplerKind::Ddim,
            replaced: None,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            rescale_betas_zero_snr: false,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: None,
            steps_offset: 0,
            set_alpha_to_one: None,
            clip_sample: None,
            clip_sample_range: 1.0,
            use_karras_sigmas: false,
            final_sigmas_type: FinalSigmasType::Zero,
            solver_order: 2,
            algorithm_type: AlgorithmType::DpmSolverPlusPlus,
            solver_type: SolverType::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            predict_x0: true,
            disable_corrector: Vec::new(),
            original_inference_steps: 50,
            timestep_scaling: 10.0,
            shift: 1.0,
            use_dynamic_shifting: false,
            time_shift_type: TimeShiftType::Exponential,
        }
    }
}

impl SchedulerConfig {
    /// The spacing of the timesteps that a sampler visits: the config's, or else the default of `kind`.
    pub fn spacing(&self, kind: SamplerKind) -> TimestepSpacing {
        self.timestep_spacing.unwrap_or(match kind {
            SamplerKind::Ddpm | SamplerKind::Ddim | SamplerKind::Pndm | SamplerKind::Lcm => {
                TimestepSpacing::Leading
            }
            _ => TimestepSpacing::Linspace,
        })
    }

    /// Whether DPM-Solver++ rounds the timesteps of Karras' noise levels. Otherwise it truncates them.
    pub(crate) fn rounds_karras_timesteps(&self) -> bool {
        self.beta_schedule != BetaSchedule::SquaredcosCapV2
    }

    /// Clips a predicted `x0`, `[b, c, h, w]`, if the config says so.
    pub(crate) fn clip(&self, x0: Tensor<4>) -> Tensor<4> {
        let clips = matches!(self.class, SamplerKind::Ddim | SamplerKind::Ddpm);
        if self.clip_sample.unwrap_or(clips) {
            x0.clamp(-self.clip_sample_range, self.clip_sample_range)
        } else {
            x0
        }
    }
}

impl SchedulerConfig {
    /// Whether the model was trained by flow matching, and has noise levels in place of betas.
    pub fn is_flow(&self) -> bool {
        self.class == SamplerKind::FlowMatchEuler
    }

    /// Refuses fields of flow matching in other models, and those of other models in flow matching.
    fn check_flow(&self) -> Result<(), InvalidField> {
        let refuse =
            |field, value: String, supported| Err(InvalidField { field, value, supported });
        let flow = self.prediction_type == PredictionType::Flow;
        if flow != self.is_flow() {
            let value = json_text(&self.prediction_type);
            let supported = "flow_prediction with flow matching and another type otherwise";
            return refuse("prediction_type", value, supported);
        }
        if flow && self.rescale_betas_zero_snr {
            let supported = "false, since flow matching ends in pure noise already";
            return refuse("rescale_betas_zero_snr", "true".into(), supported);
        }
        if !flow && (self.shift != 1.0 || self.use_dynamic_shifting) {
            let (field, value) = match self.use_dynamic_shifting {
                true => ("use_dynamic_shifting", "true".to_owned()),
                false => ("shift", self.shift.to_string()),
            };
            return refuse(field, value, "no value, since only flow matching reads it");
        }
        if !(self.shift > 0.0 && self.shift <= MOST_SHIFT) {
            return refuse("shift", self.shift.to_string(), "a number above 0 and up to 1000");
        }
        Ok(())
    }
}

impl ConfigFile for SchedulerConfig {
    const DESCRIPTION: &'static str = "the scheduler's scheduler_config.json";

    // `class.rs` has the settings of samplers. This one would make it the schedule of another process.
    const NO_EFFECT: &'static [(&'static str, &'static str)] =
        &[("use_flow_sigmas", "false"), ("use_flow_sigmas", "null")];

    const HAS_CLASS_NAME: bool = true;

    fn prepare(fields: &mut Map<String, Value>) -> Result<(), InvalidField> {
        class::resolve(fields)
    }

    fn validate(&self) -> Result<(), InvalidField> {
        let refuse =
            |field, value: String, supported| Err(InvalidField { field, value, supported });
        self.check_flow()?;
        if self.num_train_timesteps < 2 {
            let value = self.num_train_timesteps.to_string();
            return refuse("num_train_timesteps", value, "at least 2");
        }
        TIMESTEPS.check("num_train_timesteps", self.num_train_timesteps)?;
        TIMESTEPS.check("steps_offset", self.steps_offset)?;
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
        // Pure noise and its own prediction are the same, so nothing would be learnt about the image.
        if self.rescale_betas_zero_snr && self.prediction_type == PredictionType::Epsilon {
            let supported = "false, or the prediction_type v_prediction or sample";
            return refuse("rescale_betas_zero_snr", "true".into(), supported);
        }
        if !(1..=3).contains(&self.solver_order) {
            return refuse("solver_order", self.solver_order.to_string(), "1, 2 or 3");
        }
        if self.clip_sample_range <= 0.0 {
            let value = self.clip_sample_range.to_string();
            return refuse("clip_sample_range", value, "a positive number");
        }
        if self.original_inference_steps == 0 {
            return refuse("original_inference_steps", "0".into(), "a positive number");
        }
        if !(self.timestep_scaling > 0.0 && self.timestep_scaling <= 1e6) {
            let value = self.timestep_scaling.to_string();
            return refuse("timestep_scaling", value, "a number above 0 and up to 1e6");
        }
        Ok(())
    }
}
