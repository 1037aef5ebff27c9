//! Changes of a base model's noise schedule that a fine-tune makes.

use serde::{Deserialize, Serialize};

use super::config::{PredictionType, SchedulerConfig, TimestepSpacing};
use super::sampler_kind::SamplerKind;
use crate::config::ConfigFile as _;
use crate::error::ModelError;

/// Fields of a scheduler's config that a fine-tune overrides, by their names in the config. [`Default`]
/// overrides nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerOverrides {
    /// The quantity that the denoiser predicts. `None` for the base's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction_type: Option<PredictionType>,
    /// Whether the schedule is rescaled to zero terminal SNR (arXiv 2305.08891). A sampler then starts from
    /// pure noise.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rescale_betas_zero_snr: bool,
}

impl SchedulerConfig {
    /// Applies overrides to the config.
    ///
    /// With zero terminal SNR the timestep spacing becomes trailing, so that samplers visit the last
    /// timestep. DDIM replaces PNDM, which divides by the terminal SNR, and every sampler whose class in
    /// diffusers does not know such schedules.
    ///
    /// # Errors
    ///
    /// [`ModelError::InvalidRequest`] for zero terminal SNR with a denoiser that predicts noise.
    pub fn with_overrides(mut self, overrides: SchedulerOverrides) -> Result<Self, ModelError> {
        self.prediction_type = overrides.prediction_type.unwrap_or(self.prediction_type);
        if overrides.rescale_betas_zero_snr {
            self.rescale_betas_zero_snr = true;
            self.timestep_spacing = Some(TimestepSpacing::Trailing);
            if !self.class.has_zero_snr() || self.replaced.is_some() {
                // DDIM is the first order of the others. PNDM's defaults are kept.
                self.replaced = None;
                self.class = SamplerKind::Ddim;
                self.clip_sample = self.clip_sample.or(Some(false));
                self.set_alpha_to_one = self.set_alpha_to_one.or(Some(false));
            }
        }
        self.validate().map_err(|refusal| ModelError::InvalidRequest {
            field: refusal.field,
            value: refusal.value,
            expected: format!("with this base it must be {}", refusal.supported),
        })?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;
    use crate::scheduler::noise_schedule::NoiseSchedule;

    /// Stable Diffusion 1.5 is published with PNDM, which divides by the terminal SNR.
    #[test]
    fn zero_terminal_snr_replaces_pndm_by_ddim() {
        let class = SamplerKind::Pndm;
        let pndm = SchedulerConfig { class, ..SchedulerConfig::default() };
        let change = SchedulerOverrides {
            prediction_type: Some(PredictionType::VPrediction),
            rescale_betas_zero_snr: true,
        };
        let changed = pndm.with_overrides(change).unwrap();
        assert_eq!(changed.class, SamplerKind::Ddim);
        assert_eq!(changed.clip_sample, Some(false));
        assert_eq!(changed.set_alpha_to_one, Some(false));
        let error = changed.sampler(Some(SamplerKind::Pndm), 8).unwrap_err().to_string();
        assert!(error.contains("PNDM") && error.contains("zero terminal SNR"), "{error}");
    }

    #[test]
    fn overrides_are_applied_and_zero_snr_refuses_epsilon() {
        let base = SchedulerConfig::default();
        let read = |text: &str| serde_json::from_str::<SchedulerOverrides>(text).unwrap();
        let none = read("{}");
        assert_eq!(none, SchedulerOverrides::default());
        assert_eq!(serde_json::to_string(&none).unwrap(), "{}");
        assert_eq!(
            base.clone().with_overrides(none).unwrap().prediction_type,
            base.prediction_type
        );

        let both = read(r#"{"prediction_type": "v_prediction", "rescale_betas_zero_snr": true}"#);
        assert_eq!(read(&serde_json::to_string(&both).unwrap()), both);
        let changed = base.clone().with_overrides(both).unwrap();
        assert_eq!(changed.spacing(changed.class), TimestepSpacing::Trailing);
        let schedule = NoiseSchedule::new(&changed);
        let last = schedule.len() - 1;
        assert_eq!(schedule.snr(last), 0.0);
        assert!(schedule.snr(last - 1) > 0.0);
        // The first timestep is unchanged.
        assert_eq!(schedule.alphas_cumprod[0], NoiseSchedule::new(&base).alphas_cumprod[0]);

        let message = base
            .with_overrides(SchedulerOverrides { prediction_type: None, ..both })
            .unwrap_err()
            .to_string();
        assert!(message.contains("v_prediction"), "{message}");
    }
}
