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
}
