//! From a scheduler's config to a sampler.

use super::config::SchedulerConfig;
use super::ddim::Ddim;
use super::ddpm::Ddpm;
use super::dpm_solver::DpmSolver;
use super::euler::Euler;
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
    /// [`ModelError::InvalidRequest`] if `steps` does not fit the schedule, or if the sampler does not
    /// support the model. PNDM supports neither models that predict images nor zero terminal SNR.
    pub fn sampler(
        &self,
        kind: Option<SamplerKind>,
        steps: usize,
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
        let sampler: Box<dyn Sampler> = match kind {
            SamplerKind::Ddpm => Box::new(Ddpm::new(self, steps)),
            SamplerKind::Ddim => Box::new(Ddim::new(self, steps)),
            SamplerKind::Pndm => Box::new(Pndm::new(self, steps)?),
            SamplerKind::Euler => Box::new(Euler::new(self, steps, false)),
            SamplerKind::EulerAncestral => Box::new(Euler::new(self, steps, true)),
            SamplerKind::DpmSolver => Box::new(DpmSolver::new(self, steps)),
        };
        // An offset can point beyond the schedule. diffusers would fail in its first step.
        if sampler.timesteps().iter().any(|t| *t >= total as f64 || *t < 0.0) {
            let offset = self.steps_offset;
            return Err(ModelError::InvalidRequest {
                field: "steps",
                value: steps.to_string(),
                expected: format!("with a steps_offset of {offset} it must be smaller"),
            });
        }
        Ok(sampler)
    }
}
