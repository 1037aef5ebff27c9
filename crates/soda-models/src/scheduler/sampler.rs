//! From noise to a sample: what every sampler is, and which there are.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::ModelError;
use crate::scheduler::config::SchedulerConfig;
use crate::scheduler::ddim::Ddim;
use crate::scheduler::ddpm::DdpmSampler;
use crate::scheduler::dpm::DpmSolver;
use crate::scheduler::euler::Euler;
use crate::scheduler::pndm::Pndm;

/// A plan of network calls that turns noise into a sample, and what to do after each.
///
/// Calls are counted from 0, the noisiest. A sampler may be entered in the middle of its plan, with
/// a picture that was noised by [`Sampler::add_noise`], but goes on from there in order.
pub trait Sampler: std::fmt::Debug {
    /// What the network is told at each call, noisiest first; may lie between two timesteps.
    fn timesteps(&self) -> &[f64];

    /// The share of the picture and the standard deviation of the noise in the sample of a call.
    fn levels(&self, call: usize) -> (f64, f64);

    /// The next sample, from the network's `prediction` at `call`; all `[b, c, h, w]`.
    ///
    /// `noise` gives numbers of unit variance, `[b, c, h, w]`; a deterministic sampler never asks.
    fn step(
        &mut self,
        call: usize,
        prediction: Tensor<4>,
        sample: Tensor<4>,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4>;

    /// The standard deviation of the noise that a plan starts from.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    /// The sample as the network was trained to see it.
    fn scale_input(&self, _call: usize, sample: Tensor<4>) -> Tensor<4> {
        sample
    }

    /// A picture `x0` with as much `noise` as the sample of a call has; all `[b, c, h, w]`.
    fn add_noise(&self, call: usize, x0: Tensor<4>, noise: Tensor<4>) -> Tensor<4> {
        let (signal, sigma) = self.levels(call);
        x0.mul_scalar(signal) + noise.mul_scalar(sigma)
    }
}

/// The samplers there are, by the names of diffusers' classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SamplerKind {
    /// Ancestral sampling (arXiv 2006.11239).
    #[serde(rename = "DDPMScheduler")]
    Ddpm,
    /// Deterministic (arXiv 2010.02502).
    #[serde(rename = "DDIMScheduler")]
    Ddim,
    /// Linear multistep (arXiv 2202.09778).
    #[serde(rename = "PNDMScheduler")]
    Pndm,
    /// Euler's method (arXiv 2206.00364).
    #[serde(rename = "EulerDiscreteScheduler")]
    Euler,
    /// Euler's method with fresh noise after each step.
    #[serde(rename = "EulerAncestralDiscreteScheduler")]
    EulerAncestral,
    /// DPM-Solver++ (arXiv 2211.01095).
    #[serde(rename = "DPMSolverMultistepScheduler")]
    DpmSolver,
}

impl SchedulerConfig {
    /// Plans `steps` steps of this config's own sampler, or of another one on its schedule.
    ///
    /// # Errors
    ///
    /// A number of steps that does not fit the schedule, and what the sampler cannot do.
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
            SamplerKind::Ddpm => Box::new(DdpmSampler::new(self, steps)),
            SamplerKind::Ddim => Box::new(Ddim::new(self, steps)),
            SamplerKind::Pndm => Box::new(Pndm::new(self, steps)?),
            SamplerKind::Euler => Box::new(Euler::new(self, steps, false)),
            SamplerKind::EulerAncestral => Box::new(Euler::new(self, steps, true)),
            SamplerKind::DpmSolver => Box::new(DpmSolver::new(self, steps)),
        };
        // An offset can point beyond the schedule; diffusers would fail in its first step.
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
