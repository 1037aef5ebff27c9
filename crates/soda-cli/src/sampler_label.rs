//! The names that A1111 has for samplers.

use serde_json::Value;
use soda_models::scheduler::{AlgorithmType, SchedulerConfig, SolverType};

/// Classes of diffusers, the names of A1111 (`modules/sd_samplers_kdiffusion.py`,
/// `sd_samplers_timesteps.py`), and whether the noise levels of Karras et al. apply. A1111 has no DDPM;
/// Forge and ComfyUI name it so.
const LABELS: &[(&str, &str, bool)] = &[
    ("DDPMScheduler", "DDPM", false),
    ("DDIMScheduler", "DDIM", false),
    ("PNDMScheduler", "PLMS", false),
    ("EulerDiscreteScheduler", "Euler", true),
    ("EulerAncestralDiscreteScheduler", "Euler a", false),
    ("DPMSolverMultistepScheduler", "DPM++ 2M", true),
    ("UniPCMultistepScheduler", "UniPC", true),
    ("DEISMultistepScheduler", "DEIS", true),
    ("LMSDiscreteScheduler", "LMS", true),
    ("HeunDiscreteScheduler", "Heun", true),
    ("KDPM2DiscreteScheduler", "DPM2", true),
    ("KDPM2AncestralDiscreteScheduler", "DPM2 a", true),
    ("LCMScheduler", "LCM", false),
    // The noise levels are the model's own.
    ("FlowMatchEulerDiscreteScheduler", "Euler", false),
];

/// The sampler and the schedule type of a picture, in A1111's words.
///
/// `class` is the class of diffusers that drew, and `config` has its settings. A schedule type is `None`
/// where A1111's default, `Automatic`, is the one that drew.
pub(crate) fn sampler_label(
    class: &Value,
    config: &SchedulerConfig,
) -> (String, Option<&'static str>) {
    let class = class.as_str().unwrap_or_default();
    let found = LABELS.iter().find(|(name, ..)| *name == class);
    let (mut label, has_karras) = match found {
        Some((_, label, has_karras)) => ((*label).to_owned(), *has_karras),
        None => (class.trim_end_matches("Scheduler").to_owned(), false),
    };
    let multistep = label == "DPM++ 2M";
    if multistep && config.algorithm_type == AlgorithmType::SdeDpmSolverPlusPlus {
        label = match (config.solver_order, config.solver_type) {
            (3, _) => "DPM++ 3M SDE".to_owned(),
            (_, SolverType::Heun) => "DPM++ 2M SDE Heun".to_owned(),
            _ => "DPM++ 2M SDE".to_owned(),
        };
    }
    let schedule = match (has_karras && config.use_karras_sigmas, multistep) {
        (true, _) => Some("Karras"),
        // Automatic is another schedule for these samplers: Karras, or exponential.
        (false, true) => Some("Uniform"),
        (false, false) => None,
    };
    (label, schedule)
}
