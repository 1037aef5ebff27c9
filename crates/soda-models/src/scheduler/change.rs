//! What a fine-tune may teach a network of the noise schedule, against what its base was trained with.

use serde::{Deserialize, Serialize};

use super::config::{PredictionType, SchedulerConfig, TimestepSpacing};
use super::sampler::SamplerKind;
use crate::config::ConfigFile as _;
use crate::error::ModelError;

/// A change of a scheduler's config, by the names of its fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleChange {
    /// What the network predicts from now on; without it what it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction_type: Option<PredictionType>,
    /// Whether the last timestep becomes pure noise (arXiv 2305.08891): a sampler begins there, and not at the noise with a
    /// trace of a picture that others are trained to.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rescale_betas_zero_snr: bool,
}

impl SchedulerConfig {
    /// The config with the change. Where the last timestep becomes pure noise, samplers visit it (trailing spacing).
    ///
    /// # Errors
    ///
    /// Pure noise of which the network is to predict the noise.
    pub fn changed(mut self, change: ScheduleChange) -> Result<Self, ModelError> {
        self.prediction_type = change.prediction_type.unwrap_or(self.prediction_type);
        if change.rescale_betas_zero_snr {
            self.rescale_betas_zero_snr = true;
            self.timestep_spacing = Some(TimestepSpacing::Trailing);
            if self.class == SamplerKind::Pndm {
                // PNDM cannot sample such a schedule; DDIM is its first order, with PNDM's defaults kept.
                self.class = SamplerKind::Ddim;
                self.clip_sample = self.clip_sample.or(Some(false));
                self.set_alpha_to_one = self.set_alpha_to_one.or(Some(false));
            }
        }
        self.check().map_err(|refusal| ModelError::InvalidRequest {
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
    use crate::scheduler::NoiseSchedule;

    /// Stable Diffusion 1.5 is published with PNDM, which divides by the terminal SNR.
    #[test]
    fn zero_terminal_snr_replaces_pndm_by_ddim() {
        let class = SamplerKind::Pndm;
        let pndm = SchedulerConfig { class, skip_prk_steps: true, ..SchedulerConfig::default() };
        let change = ScheduleChange {
            prediction_type: Some(PredictionType::VPrediction),
            rescale_betas_zero_snr: true,
        };
        let changed = pndm.changed(change).unwrap();
        assert_eq!(changed.class, SamplerKind::Ddim);
        assert_eq!(changed.clip_sample, Some(false));
        assert_eq!(changed.set_alpha_to_one, Some(false));
        let error = changed.sampler(Some(SamplerKind::Pndm), 8).unwrap_err().to_string();
        assert!(error.contains("PNDM") && error.contains("zero terminal SNR"), "{error}");
    }

    #[test]
    fn a_change_is_what_it_names_and_pure_noise_asks_for_v() {
        let base = SchedulerConfig::default();
        let read = |text: &str| serde_json::from_str::<ScheduleChange>(text).unwrap();
        let none = read("{}");
        assert_eq!(none, ScheduleChange::default());
        assert_eq!(serde_json::to_string(&none).unwrap(), "{}");
        assert_eq!(base.clone().changed(none).unwrap().prediction_type, base.prediction_type);

        let both = read(r#"{"prediction_type": "v_prediction", "rescale_betas_zero_snr": true}"#);
        assert_eq!(read(&serde_json::to_string(&both).unwrap()), both);
        let changed = base.clone().changed(both).unwrap();
        assert_eq!(changed.spacing(changed.class), TimestepSpacing::Trailing);
        let schedule = NoiseSchedule::new(&changed);
        let last = schedule.len() - 1;
        assert_eq!(schedule.snr(last), 0.0);
        assert!(schedule.snr(last - 1) > 0.0);
        // The first is as it was.
        assert_eq!(schedule.alphas_cumprod[0], NoiseSchedule::new(&base).alphas_cumprod[0]);

        let message =
            base.changed(ScheduleChange { prediction_type: None, ..both }).unwrap_err().to_string();
        assert!(message.contains("v_prediction"), "{message}");
    }
}
