//! The samplers that are implemented.

use serde::{Deserialize, Serialize};

/// The samplers that are implemented. Config files name them as diffusers' classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SamplerKind {
    /// DDPM, ancestral sampling (arXiv 2006.11239).
    #[serde(rename = "DDPMScheduler")]
    Ddpm,
    /// DDIM, deterministic (arXiv 2010.02502).
    #[serde(rename = "DDIMScheduler")]
    Ddim,
    /// PNDM, linear multistep (arXiv 2202.09778).
    #[serde(rename = "PNDMScheduler")]
    Pndm,
    /// Euler's method (arXiv 2206.00364).
    #[serde(rename = "EulerDiscreteScheduler")]
    Euler,
    /// Euler's method with fresh noise in each step.
    #[serde(rename = "EulerAncestralDiscreteScheduler")]
    EulerAncestral,
    /// DPM-Solver++ (arXiv 2211.01095).
    #[serde(rename = "DPMSolverMultistepScheduler")]
    DpmSolver,
    /// UniPC, a predictor and a corrector (arXiv 2302.04867).
    #[serde(rename = "UniPCMultistepScheduler")]
    UniPc,
    /// DEIS, multistep (arXiv 2204.13902).
    #[serde(rename = "DEISMultistepScheduler")]
    Deis,
    /// A linear multistep method in the noise level.
    #[serde(rename = "LMSDiscreteScheduler")]
    Lms,
    /// Heun's method (arXiv 2206.00364). It calls the denoiser twice in a step.
    #[serde(rename = "HeunDiscreteScheduler")]
    Heun,
    /// DPM-Solver-2 (arXiv 2206.00927). It calls the denoiser twice in a step.
    #[serde(rename = "KDPM2DiscreteScheduler")]
    Dpm2,
    /// DPM-Solver-2 with fresh noise in each step.
    #[serde(rename = "KDPM2AncestralDiscreteScheduler")]
    Dpm2Ancestral,
    /// The sampler of latent consistency models (arXiv 2310.04378).
    #[serde(rename = "LCMScheduler")]
    Lcm,
    /// Euler's method for flow matching (arXiv 2210.02747, 2403.03206). Its models have no other sampler.
    #[serde(rename = "FlowMatchEulerDiscreteScheduler")]
    FlowMatchEuler,
}

impl SamplerKind {
    /// The sampler of a diffusers class, such as `DDIMScheduler`. `None` if it is not implemented.
    pub fn of_class(name: &str) -> Option<Self> {
        serde_json::from_value(serde_json::Value::String(name.to_owned())).ok()
    }

    /// The name of the sampler's class in diffusers.
    pub fn class_name(self) -> String {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::String(name)) => name,
            // A variant without fields is always a string.
            _ => String::new(),
        }
    }

    /// Whether diffusers' class knows `rescale_betas_zero_snr`. The others would sample on another schedule.
    pub(crate) fn has_zero_snr(self) -> bool {
        match self {
            Self::Ddpm
            | Self::Ddim
            | Self::Euler
            | Self::EulerAncestral
            | Self::DpmSolver
            | Self::UniPc
            | Self::Lcm => true,
            Self::Pndm
            | Self::Deis
            | Self::Lms
            | Self::Heun
            | Self::Dpm2
            | Self::Dpm2Ancestral
            | Self::FlowMatchEuler => false,
        }
    }
}
