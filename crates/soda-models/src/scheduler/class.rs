//! From the class and the settings in a `scheduler_config.json` to those of a sampler that is implemented.
//!
//! The noise schedule is the model's, and every command needs it. The class and its settings matter only when
//! the model's own sampler draws. So a class or a setting that is not implemented does not refuse the model:
//! the nearest sampler replaces it, and [`SchedulerConfig::replaced`](super::SchedulerConfig) names it.

use serde_json::{Map, Value, json};

use super::sampler_kind::SamplerKind::{self, *};
use crate::config::InvalidField;

/// diffusers' classes that are not implemented and share the noise schedule's fields, each with the nearest
/// sampler.
const NEAREST: &[(&str, SamplerKind)] = &[
    ("DDIMInverseScheduler", Ddim),
    ("DDIMParallelScheduler", Ddim),
    ("DDPMParallelScheduler", Ddpm),
    ("DPMSolverMultistepInverseScheduler", DpmSolver),
    ("DPMSolverSDEScheduler", DpmSolver),
    ("DPMSolverSinglestepScheduler", DpmSolver),
    ("RePaintScheduler", Ddpm),
    ("SASolverScheduler", DpmSolver),
    ("TCDScheduler", Ddim),
];

/// The fields of a class that is not implemented which its nearest sampler reads: the noise schedule, and
/// where the sampler visits it.
const OF_THE_MODEL: &[&str] = &[
    "beta_end",
    "beta_schedule",
    "beta_start",
    "clip_sample",
    "clip_sample_range",
    "num_train_timesteps",
    "prediction_type",
    "rescale_betas_zero_snr",
    "set_alpha_to_one",
    "steps_offset",
    "timestep_spacing",
    "trained_betas",
    "use_karras_sigmas",
];

/// Fields that no implemented sampler reads, or reads only together with a field of [`NOT_IMPLEMENTED`].
const UNREAD: &[&str] = &[
    "corrector_order",
    "dynamic_thresholding_ratio",
    "eta",
    "flow_shift",
    "noise_sampler_seed",
    "predictor_order",
    "sample_max_value",
    "shift_terminal",
    "tau_func",
    "time_shift_type",
];

/// Fields of flow matching that only FLUX.1's pipeline reads, for its own shift.
const UNREAD_OF_FLOW: &[&str] =
    &["base_image_seq_len", "base_shift", "max_image_seq_len", "max_shift"];

/// Settings of flow matching that are not implemented, each with the JSON values at which it has no effect.
const FLOW_NOT_IMPLEMENTED: &[(&str, &[&str], &str)] = &[
    ("invert_sigmas", &["false", "null"], "false"),
    ("shift_terminal", &["null"], "null"),
    ("stochastic_sampling", &["false", "null"], "false"),
    ("use_beta_sigmas", &["false", "null"], "false"),
    ("use_exponential_sigmas", &["false", "null"], "false"),
    ("use_karras_sigmas", &["false", "null"], "false"),
];

/// Fields that flow matching does not have, since it has no betas.
const NOT_OF_FLOW: &[&str] = &[
    "algorithm_type",
    "beta_end",
    "beta_schedule",
    "beta_start",
    "clip_sample",
    "clip_sample_range",
    "disable_corrector",
    "euler_at_final",
    "final_sigmas_type",
    "lower_order_final",
    "original_inference_steps",
    "predict_x0",
    "prediction_type",
    "rescale_betas_zero_snr",
    "set_alpha_to_one",
    "solver_order",
    "solver_type",
    "steps_offset",
    "timestep_scaling",
    "timestep_spacing",
    "trained_betas",
];

/// The samplers that choose their noise levels.
const OF_LEVELS: &[SamplerKind] = &[Euler, DpmSolver, UniPc, Deis, Lms, Heun, Dpm2, Dpm2Ancestral];

/// Settings that are not implemented: the field, the JSON values at which it has no effect, and the samplers
/// that read it.
const NOT_IMPLEMENTED: &[(&str, &[&str], &[SamplerKind])] = &[
    ("interpolation_type", &["\"linear\""], &[Euler]),
    ("lambda_min_clipped", &["null"], &[DpmSolver]),
    ("sigma_max", &["null"], &[Euler, UniPc]),
    ("sigma_min", &["null"], &[Euler, UniPc]),
    ("skip_prk_steps", &["true"], &[Pndm]),
    ("solver_p", &["null"], &[UniPc]),
    ("thresholding", &["false", "null"], &[Ddpm, Ddim, DpmSolver, UniPc, Deis, Lcm]),
    ("timestep_type", &["\"discrete\""], &[Euler]),
    ("use_beta_sigmas", &["false", "null"], OF_LEVELS),
    ("use_exponential_sigmas", &["false", "null"], OF_LEVELS),
    ("use_lu_lambdas", &["false", "null"], &[DpmSolver]),
    ("variance_type", &["\"fixed_small\"", "null"], &[Ddpm, DpmSolver]),
];

/// The equations of DPM-Solver that are not implemented, each with the one of DPM-Solver++.
const EQUATIONS: &[(&str, &str)] =
    &[("dpmsolver", "dpmsolver++"), ("sde-dpmsolver", "sde-dpmsolver++")];

/// Rewrites the fields of a config to those of an implemented sampler. What could not be kept is described in
/// the field `_replaced`.
///
/// # Errors
///
/// A class that diffusers does not have, or of another process than diffusion by betas and flow matching.
pub(super) fn resolve(fields: &mut Map<String, Value>) -> Result<(), InvalidField> {
    // Files from before diffusers 0.10.
    if let Some(noise) = fields.remove("predict_epsilon") {
        let kind = if noise == json!(false) { "sample" } else { "epsilon" };
        fields.entry("prediction_type").or_insert_with(|| json!(kind));
    }
    // Exporters write no value for what is off.
    for flag in ["euler_at_final", "rescale_betas_zero_snr", "use_karras_sigmas"] {
        if fields.get(flag) == Some(&Value::Null) {
            fields.remove(flag);
        }
    }
    if fields.get("_class_name") == Some(&json!(FlowMatchEuler)) {
        return resolve_flow(fields);
    }
    if fields.get("use_dynamic_shifting") == Some(&Value::Null) {
        fields.remove("use_dynamic_shifting");
    }
    let class = match fields.get("_class_name") {
        Some(Value::String(class)) => class.strip_prefix("Flax").unwrap_or(class).to_owned(),
        // serde refuses it.
        Some(_) => return Ok(()),
        None => Ddim.class_name(),
    };
    set_class_defaults(&class, fields);
    let replaced = match SamplerKind::of_class(&class) {
        Some(kind) => {
            fields.insert("_class_name".to_owned(), json!(class));
            replace_settings(kind, fields).map(|setting| format!("{class} with {setting}"))
        }
        None => Some(replace_class(class, fields)?),
    };
    if let Some(replaced) = replaced {
        fields.insert("_replaced".to_owned(), json!(replaced));
    }
    Ok(())
}

/// Rewrites the fields of flow matching.
fn resolve_flow(fields: &mut Map<String, Value>) -> Result<(), InvalidField> {
    // An unset field has the default of its class.
    fields.retain(|field, value| !(value.is_null() || UNREAD_OF_FLOW.contains(&field.as_str())));
    for (field, neutral, supported) in FLOW_NOT_IMPLEMENTED {
        let value = fields.remove(*field).unwrap_or_default().to_string();
        if value != "null" && !neutral.contains(&value.as_str()) {
            return Err(InvalidField { field, value, supported });
        }
    }
    for field in NOT_OF_FLOW {
        if let Some(value) = fields.get(*field) {
            let supported = "no value: FlowMatchEulerDiscreteScheduler has no such field";
            return Err(InvalidField { field, value: value.to_string(), supported });
        }
    }
    fields.insert("prediction_type".to_owned(), json!("flow_prediction"));
    Ok(())
}

/// Fills in the fields whose default differs between diffusers' classes.
fn set_class_defaults(class: &str, fields: &mut Map<String, Value>) {
    let distilled = ["LCMScheduler", "TCDScheduler"].contains(&class);
    let latent = ["DPMSolverSDEScheduler", "HeunDiscreteScheduler"].contains(&class)
        || class.starts_with("KDPM2");
    let mut default = |field: &str, value| {
        fields.entry(field).or_insert(value);
    };
    if distilled || latent {
        default("beta_start", json!(0.00085));
        default("beta_end", json!(0.012));
    }
    if distilled {
        default("beta_schedule", json!("scaled_linear"));
    }
}

/// Replaces an unknown class by the nearest sampler, and drops the settings of the class.
fn replace_class(class: String, fields: &mut Map<String, Value>) -> Result<String, InvalidField> {
    let known = NEAREST.iter().find(|(name, _)| *name == class).map(|(_, kind)| *kind);
    let Some(kind) = known else {
        return Err(InvalidField {
            field: "_class_name",
            value: class,
            supported: "a class of diffusers with a `beta_schedule`, such as DDIMScheduler, or \
                        FlowMatchEulerDiscreteScheduler; other processes are not",
        });
    };
    fields.retain(|field, _| OF_THE_MODEL.contains(&field.as_str()));
    if class == "DPMSolverSDEScheduler" {
        fields.insert("algorithm_type".to_owned(), json!("sde-dpmsolver++"));
    }
    fields.insert("_class_name".to_owned(), json!(kind));
    fields.entry("clip_sample").or_insert(json!(false));
    Ok(class)
}

/// Removes the settings that are not implemented. Describes the first one that the sampler `kind` reads.
fn replace_settings(kind: SamplerKind, fields: &mut Map<String, Value>) -> Option<String> {
    let mut replaced = None;
    let mut note = |field: &str, value: &Value| {
        replaced.get_or_insert_with(|| format!("`{field}` {value}"));
    };
    if kind == Pndm {
        // The default, at which diffusers takes Runge-Kutta steps first.
        fields.entry("skip_prk_steps").or_insert(json!(false));
    }
    for (field, neutral, readers) in NOT_IMPLEMENTED {
        let Some(value) = fields.remove(*field) else { continue };
        let text = value.to_string();
        let off = neutral.contains(&text.as_str());
        if !off && readers.contains(&kind) {
            note(field, &value);
        }
    }
    for (equation, implemented) in EQUATIONS {
        if fields.get("algorithm_type") == Some(&json!(equation)) {
            if kind == DpmSolver {
                note("algorithm_type", &json!(equation));
            }
            fields.insert("algorithm_type".to_owned(), json!(implemented));
        }
    }
    fields.retain(|field, _| !UNREAD.contains(&field.as_str()));
    replaced
}
