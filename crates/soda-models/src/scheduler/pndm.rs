//! PNDM, a pseudo linear multistep sampler: DDIM's step with a prediction extrapolated from four.
//!
//! ```text
//! e' = (55 e_t - 59 e_(t+1) + 37 e_(t+2) - 9 e_(t+3)) / 24
//! ```
//!
//! "Pseudo Numerical Methods for Diffusion Models on Manifolds" (arXiv 2202.09778), formulas (9) and (12).
//! Mirrors diffusers' `PNDMScheduler` with `skip_prk_steps`.
//!
//! The first steps have fewer predictions. The second timestep is visited twice, since the first step is
//! repeated with the mean of both predictions.

use burn::tensor::Tensor;

use super::config::{PredictionType, SchedulerConfig};
use super::noise_schedule::NoiseSchedule;
use super::sampler::Sampler;
use super::sampler_kind::SamplerKind;
use super::spacing::{rounded, spaced};
use crate::error::ModelError;

/// The timesteps of a PNDM run and its last predictions.
#[derive(Debug, Clone)]
pub(crate) struct Pndm {
    timesteps: Vec<f64>,
    schedule: NoiseSchedule,
    stride: usize,
    final_alpha: f64,
    /// The last predictions, newest first.
    history: Vec<Tensor<4>>,
    /// The sample from which the first step is taken twice.
    first: Option<Tensor<4>>,
    calls: usize,
}

impl Pndm {
    /// Plans `steps` steps, which visit one timestep more.
    pub(crate) fn new(config: &SchedulerConfig, steps: usize) -> Result<Self, ModelError> {
        if config.prediction_type == PredictionType::Sample {
            return Err(ModelError::InvalidRequest {
                field: "scheduler",
                value: "PNDM".to_string(),
                expected: "it extrapolates noise, and this model predicts images".to_string(),
            });
        }
        if config.rescale_betas_zero_snr {
            // Formula (9) divides by the root of `abar`, which is 0 at the last timestep. The class
            // `PNDMScheduler` has no such field and would sample on another schedule than the model's.
            return Err(ModelError::InvalidRequest {
                field: "scheduler",
                value: "PNDM".to_string(),
                expected: "this model has zero terminal SNR, which PNDM divides by: use DDIM, Euler or DPM-Solver++"
                    .to_string(),
            });
        }
        let schedule = NoiseSchedule::new(config);
        let spacing = config.spacing(SamplerKind::Pndm);
        let mut timesteps = rounded(spaced(spacing, schedule.len(), steps, config.steps_offset));
        // A single timestep is visited once.
        if let Some(second) = timesteps.get(1).copied() {
            timesteps.insert(1, second);
        }
        let to_one = config.set_alpha_to_one.unwrap_or(false);
        Ok(Self {
            stride: schedule.len() / steps,
            final_alpha: if to_one { 1.0 } else { schedule.alpha_cumprod(0) },
            timesteps,
            schedule,
            history: Vec::new(),
            first: None,
            calls: 0,
        })
    }

    /// Formula (9): the step from timestep `t` to `next`, or to the final `abar` without one.
    fn transfer(
        &self,
        sample: Tensor<4>,
        t: usize,
        next: Option<usize>,
        e: Tensor<4>,
    ) -> Tensor<4> {
        let abar = self.schedule.alpha_cumprod(t);
        let abar_next = next.map_or(self.final_alpha, |t| self.schedule.alpha_cumprod(t));
        let e = match self.schedule.prediction_type {
            PredictionType::VPrediction => {
                e.mul_scalar(abar.sqrt()) + sample.clone().mul_scalar((1.0 - abar).sqrt())
            }
            PredictionType::Epsilon | PredictionType::Sample | PredictionType::Flow => e,
        };
        let scale = abar * (1.0 - abar_next).sqrt() + (abar * (1.0 - abar) * abar_next).sqrt();
        sample.mul_scalar((abar_next / abar).sqrt()) - e.mul_scalar((abar_next - abar) / scale)
    }
}

impl Sampler for Pndm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn alpha_and_sigma(&self, call: usize) -> (f64, f64) {
        self.schedule.alpha_and_sigma(self.timesteps[call] as usize)
    }

    fn step(
        &mut self,
        call: usize,
        prediction: Tensor<4>,
        mut sample: Tensor<4>,
        _noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let mut t = self.timesteps[call] as usize;
        let mut next = t.checked_sub(self.stride);
        let again = self.calls == 1;
        if again {
            (t, next) = ((t + self.stride).min(self.schedule.len() - 1), Some(t));
        } else {
            self.history.insert(0, prediction.clone());
            self.history.truncate(4);
        }
        let e = |i: usize, weight: f64| self.history[i].clone().mul_scalar(weight);
        let prediction = match self.history.len() {
            1 if again => {
                sample = self.first.take().unwrap_or(sample);
                (prediction + e(0, 1.0)).div_scalar(2.0)
            }
            1 => {
                self.first = Some(sample.clone());
                prediction
            }
            2 => e(0, 1.5) - e(1, 0.5),
            3 => (e(0, 23.0) - e(1, 16.0) + e(2, 5.0)).div_scalar(12.0),
            _ => (e(0, 55.0) - e(1, 59.0) + e(2, 37.0) - e(3, 9.0)).div_scalar(24.0),
        };
        self.calls += 1;
        self.transfer(sample, t, next, prediction)
    }
}
