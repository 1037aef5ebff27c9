//! The noise schedule that a file was trained with.

use std::collections::BTreeMap;

use soda_models::scheduler::{PredictionType, SchedulerOverrides};

/// What the denoiser predicts and whether the schedule has zero terminal SNR, by the fields of the model
/// specification of Stability AI and of kohya's scripts.
pub(super) fn schedule(metadata: &BTreeMap<String, String>) -> SchedulerOverrides {
    let says = |key: &str| metadata.get(key).map(|text| text.trim().to_ascii_lowercase());
    let is_true = |key: &str| says(key).as_deref() == Some("true");
    let prediction = match says("modelspec.prediction_type").as_deref() {
        Some("v" | "v_prediction") => Some(PredictionType::VPrediction),
        // Tools write `epsilon` where they do not know better, so that it says nothing against the base.
        _ => is_true("ss_v_parameterization").then_some(PredictionType::VPrediction),
    };
    SchedulerOverrides {
        prediction_type: prediction,
        rescale_betas_zero_snr: is_true("ss_zero_terminal_snr"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_is_that_of_the_metadata() {
        let of = |fields: &[(&str, &str)]| {
            let pairs = fields.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned()));
            schedule(&pairs.collect())
        };
        let v = Some(PredictionType::VPrediction);
        assert_eq!(of(&[]), SchedulerOverrides::default());
        assert_eq!(of(&[("modelspec.prediction_type", "v")]).prediction_type, v);
        assert_eq!(of(&[("ss_v_parameterization", "True")]).prediction_type, v);
        assert_eq!(of(&[("ss_v_parameterization", "False")]).prediction_type, None);
        let epsilon = of(&[("modelspec.prediction_type", "epsilon")]);
        assert_eq!(epsilon.prediction_type, None);
        assert!(of(&[("ss_zero_terminal_snr", "True")]).rescale_betas_zero_snr);
        assert!(!of(&[("ss_zero_terminal_snr", "False")]).rescale_betas_zero_snr);
    }
}
