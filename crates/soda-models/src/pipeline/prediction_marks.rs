//! The marks in a single file of what its denoiser predicts: empty tensors, since such a file has no configs.
//!
//! `v_pred` says that it predicts the velocity, and `ztsnr` that its noise schedule has zero terminal SNR.
//! ComfyUI and A1111 go by them.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;

use super::load_warning::LoadWarning;
use super::model::Pipeline;
use crate::error::{ModelError, WeightsError};
use crate::scheduler::{PredictionType, SchedulerOverrides};
use crate::weights::Checkpoint;
use crate::weights::write::{Order, Writable};

const V_PRED: &str = "v_pred";
const ZTSNR: &str = "ztsnr";

/// Marks of other processes than diffusion by betas, which the networks could not reverse.
const OTHER_PROCESSES: &[&str] =
    &["edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min"];

/// Prefixes of the keys in original checkpoints that a pipeline has no use for: the noise schedule, which the
/// configs have, and the training's averages.
const UNREAD: &[&str] = &[
    "alphas_cumprod",
    "betas",
    "cond_stage_model.",
    "conditioner.",
    "denoiser.",
    "first_stage_model.",
    "log_one_minus_alphas_cumprod",
    "logvar",
    "lvlb_weights",
    "model.diffusion_model.",
    "model_ema.",
    "posterior_",
    "scale_factor",
    "sqrt_",
];

impl Pipeline {
    /// Follows the marks of a single file. Where the configs say otherwise, a warning is added.
    ///
    /// # Errors
    ///
    /// - [`WeightsError::Mismatch`] for the mark of another process.
    /// - [`ModelError::InvalidRequest`] for zero terminal SNR with a denoiser that predicts noise.
    pub(super) fn follow_marks(&mut self, checkpoint: &Checkpoint) -> Result<(), ModelError> {
        let has = |key: &&&str| checkpoint.entries.contains_key(**key);
        if let Some(mark) = OTHER_PROCESSES.iter().find(has) {
            let reason = format!(
                "its mark `{mark}` says that it reverses another process than diffusion by betas"
            );
            return Err(WeightsError::Mismatch { path: checkpoint.path.clone(), reason }.into());
        }
        let [v_pred, ztsnr] = [V_PRED, ZTSNR].map(|mark| has(&&mark));
        let before = (self.scheduler.prediction_type, self.scheduler.rescale_betas_zero_snr);
        let overrides = SchedulerOverrides {
            prediction_type: v_pred.then_some(PredictionType::VPrediction),
            rescale_betas_zero_snr: ztsnr,
        };
        self.scheduler = self.scheduler.clone().with_overrides(overrides)?;
        let after = (self.scheduler.prediction_type, self.scheduler.rescale_betas_zero_snr);
        let file = || checkpoint.path.clone();
        if before != after {
            let marks = [(v_pred, V_PRED), (ztsnr, ZTSNR)];
            let marks = marks.into_iter().filter(|(marked, _)| *marked).map(|(_, mark)| mark);
            self.warnings
                .push(LoadWarning::PredictionMarks { file: file(), marks: marks.collect() });
        }
        let unread: Vec<&String> =
            checkpoint.entries.keys().filter(|key| !is_known(key.as_str())).collect();
        if let Some(first) = unread.first() {
            let (count, first) = (unread.len(), (*first).clone());
            self.warnings.push(LoadWarning::UnreadTensors { file: file(), count, first });
        }
        Ok(())
    }

    /// Adds the marks of the pipeline's noise schedule to the tensors of a single file.
    pub(super) fn mark(&self, tensors: &mut BTreeMap<String, Writable>) {
        let v_pred = self.scheduler.prediction_type == PredictionType::VPrediction;
        let ztsnr = self.scheduler.rescale_betas_zero_snr;
        for (marked, name) in [(v_pred, V_PRED), (ztsnr, ZTSNR)] {
            if marked {
                tensors.insert(name.to_owned(), empty());
            }
        }
    }

    /// Refuses a single file for a denoiser that predicts images, for which there is no mark.
    pub(super) fn check_markable(&self, file: &Path) -> Result<(), ModelError> {
        if self.scheduler.prediction_type != PredictionType::Sample {
            return Ok(());
        }
        let reason =
            "a single file cannot say that the denoiser predicts images; write a directory";
        Err(WeightsError::NoSingleFile { path: file.to_path_buf(), reason }.into())
    }
}

/// Whether a key is a mark or belongs to a network or to the rest of an original checkpoint.
fn is_known(key: &str) -> bool {
    [V_PRED, ZTSNR].contains(&key) || UNREAD.iter().any(|prefix| key.starts_with(prefix))
}

/// A tensor without elements.
fn empty() -> Writable {
    Writable { dtype: Dtype::F32, shape: vec![0], order: Order::Same, parts: BTreeMap::new() }
}
