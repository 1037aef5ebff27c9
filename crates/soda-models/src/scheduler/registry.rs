//! From a scheduler's config to a sampler.

use super::config::{SchedulerConfig, TimestepSpacing};
use super::ddim::Ddim;
use super::ddpm::Ddpm;
use super::dpm2::Dpm2;
use super::euler::Euler;
use super::flow::FlowMatchEuler;
use super::heun::Heun;
use super::lcm::Lcm;
use super::lms::Lms;
use super::multistep::{Deis, DpmSolver, UniPc};
use super::noise_schedule::NoiseSchedule;
use super::pndm::Pndm;
use super::sampler::Sampler;
use super::sampler_kind::SamplerKind;
use crate::error::ModelError;

impl SchedulerConfig {
    /// Makes a sampler that plans `steps` steps: of the config's own kind, or of `kind` on the config's noise
    /// schedule.
    ///
    /// ```
    /// use soda_models::scheduler::{SamplerKind, SchedulerConfig};
    ///
    /// let sampler = SchedulerConfig::default().sampler(Some(SamplerKind::Ddim), 4)?;
    /// assert_eq!(sampler.timesteps(), [750.0, 500.0, 250.0, 0.0]);
    /// # Ok::<(), soda_models::ModelError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ModelError::InvalidRequest`] if `steps` does not fit the schedule, if the schedule has a timestep of
    /// no noise or no image, or if the sampler does not support the model. PNDM supports neither models that
    /// predict images nor zero terminal SNR, and DPM2 no models that predict images. Models of flow matching
    /// have a sampler of their own, which may need the [size of the image](Self::sampler_for_tokens).
    pub fn sampler(
        &self,
        kind: Option<SamplerKind>,
        steps: usize,
    ) -> Result<Box<dyn Sampler>, ModelError> {
        self.plan(kind, steps, None)
    }

    /// Makes a sampler as [`sampler`](Self::sampler) does, for an image of `tokens` packed tokens.
    ///
    /// The noise levels of some models of flow matching depend on that number. Those of others do not.
    ///
    /// # Errors
    ///
    /// The errors of [`sampler`](Self::sampler).
    pub fn sampler_for_tokens(
        &self,
        kind: Option<SamplerKind>,
        steps: usize,
        tokens: usize,
    ) -> Result<Box<dyn Sampler>, ModelError> {
        self.plan(kind, steps, Some(tokens))
    }

    fn plan(
        &self,
        kind: Option<SamplerKind>,
        steps: usize,
        tokens: Option<usize>,
    ) -> Result<Box<dyn Sampler>, ModelError> {
        let total = self.num_train_timesteps;
        if steps == 0 || steps > total {
            return Err(ModelError::InvalidRequest {
                field: "steps",
                value: steps.to_string(),
                expected: format!("it must be between 1 and {total}"),
            });
        }
        let kind = kind.unwrap_or(self.class);
        if self.is_flow() != (kind == SamplerKind::FlowMatchEuler) {
            let (this, other) = match self.is_flow() {
                true => ("flow matching", "FlowMatchEulerDiscreteScheduler"),
                false => ("a noise schedule", "another scheduler"),
            };
            return Err(ModelError::InvalidRequest {
                field: "scheduler",
                value: kind.class_name(),
                expected: format!("this model was trained by {this}: use {other}"),
            });
        }
        if !self.is_flow() {
            self.check_schedule()?;
        }
        let sampler: Box<dyn Sampler> = match kind {
            SamplerKind::Ddpm => Box::new(Ddpm::new(self, steps)),
            SamplerKind::Ddim => Box::new(Ddim::new(self, steps)),
            SamplerKind::Pndm => Box::new(Pndm::new(self, steps)?),
            SamplerKind::Euler => Box::new(Euler::new(self, steps, false)),
            SamplerKind::EulerAncestral => Box::new(Euler::new(self, steps, true)),
            SamplerKind::DpmSolver => Box::new(DpmSolver::new(self, steps)),
            SamplerKind::UniPc => Box::new(UniPc::new(self, steps)),
            SamplerKind::Deis => Box::new(Deis::new(self, steps)),
            SamplerKind::Lms => Box::new(Lms::new(self, steps)),
            SamplerKind::Heun => Box::new(Heun::new(self, steps)),
            SamplerKind::Dpm2 => Box::new(Dpm2::new(self, steps, false)?),
            SamplerKind::Dpm2Ancestral => Box::new(Dpm2::new(self, steps, true)?),
            SamplerKind::Lcm => Box::new(Lcm::new(self, steps)?),
            SamplerKind::FlowMatchEuler => Box::new(FlowMatchEuler::new(self, steps, tokens)?),
        };
        // With as many steps as timesteps, leading spacing would visit a single one.
        let multistep = [SamplerKind::DpmSolver, SamplerKind::UniPc, SamplerKind::Deis];
        let leading = self.spacing(kind) == TimestepSpacing::Leading;
        if steps == total && leading && multistep.contains(&kind) {
            return Err(ModelError::InvalidRequest {
                field: "steps",
                value: steps.to_string(),
                expected:
                    "with leading spacing this sampler takes fewer steps than there are timesteps"
                        .to_string(),
            });
        }
        // An offset can point beyond the schedule. diffusers would fail in its first step.
        let beyond = |t: &f64| *t >= total as f64 || *t < 0.0;
        if !self.is_flow() && sampler.timesteps().iter().any(beyond) {
            let offset = self.steps_offset;
            return Err(ModelError::InvalidRequest {
                field: "steps",
                value: steps.to_string(),
                expected: format!("with a steps_offset of {offset} it must be smaller"),
            });
        }
        Ok(sampler)
    }
    /// Refuses a schedule whose noise levels are 0 or infinite, which all samplers divide by.
    fn check_schedule(&self) -> Result<(), ModelError> {
        let schedule = NoiseSchedule::new(self);
        let last = schedule.len() - 1;
        let refuse = |field, t: usize, lacks| ModelError::InvalidRequest {
            field,
            value: format!("{:e}", schedule.alpha_cumprod(t)),
            expected: format!(
                "with these betas timestep {t} has no {lacks}, so nothing can be drawn"
            ),
        };
        if schedule.alpha_cumprod(0) >= 1.0 {
            return Err(refuse("beta_start", 0, "noise"));
        }
        // The last timestep of a rescaled schedule is meant to be pure noise.
        let checked = if self.rescale_betas_zero_snr { last - 1 } else { last };
        if schedule.alpha_cumprod(checked) <= 0.0 {
            return Err(refuse("beta_end", checked, "signal"));
        }
        Ok(())
    }
}
