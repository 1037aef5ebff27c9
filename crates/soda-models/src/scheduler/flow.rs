//! Flow matching: straight paths from an image to noise, and Euler's method back along them.
//!
//! ```text
//! x = (1 - sigma) x0 + sigma eps,   v = eps - x0,   x' = x + (sigma' - sigma) v
//! sigma' / (1 - sigma') = s sigma / (1 - sigma)
//! ```
//!
//! The shift `s` moves steps towards the noise, since a large image hides more of it (Esser et al., arXiv
//! 2403.03206, formula 23). It is constant, or grows with the number of image tokens. Mirrors diffusers'
//! `FlowMatchEulerDiscreteScheduler` with the noise levels that the pipelines of FLUX.2 give it.

use burn::tensor::Tensor;

use super::config::{SchedulerConfig, TimeShiftType};
use super::sampler::Sampler;
use crate::error::ModelError;

/// Image tokens above which the shift of FLUX.2 does not depend on the number of steps.
const MANY_TOKENS: usize = 4300;

/// The shift `mu` of FLUX.2 for an image of `tokens` packed tokens that is drawn in `steps` steps.
///
/// It is linear in the tokens at 10 and at 200 steps, and linear in the steps between. Mirrors diffusers'
/// `compute_empirical_mu`.
pub fn empirical_mu(tokens: usize, steps: usize) -> f64 {
    let tokens_of = |slope: f64, offset: f64| slope * tokens as f64 + offset;
    let at_200 = tokens_of(0.000_169_27, 0.456_666_66);
    if tokens > MANY_TOKENS {
        return at_200;
    }
    let at_10 = tokens_of(8.738_095_24e-5, 1.898_333_33);
    let slope = (at_200 - at_10) / 190.0;
    slope * steps as f64 + (at_200 - 200.0 * slope)
}

/// Multiplies the odds of a noise level in (0, 1] by `factor`.
pub(super) fn shifted(sigma: f64, factor: f64) -> f64 {
    1.0 / (1.0 + (1.0 / sigma - 1.0) / factor)
}

/// Euler's method for flow matching.
#[derive(Debug, Clone)]
pub(crate) struct FlowMatchEuler {
    timesteps: Vec<f64>,
    /// The noise level at each step, and after the last one.
    sigmas: Vec<f64>,
}

impl FlowMatchEuler {
    /// Plans `steps` steps for an image of `tokens` packed tokens.
    pub(crate) fn new(
        config: &SchedulerConfig,
        steps: usize,
        tokens: Option<usize>,
    ) -> Result<Self, ModelError> {
        let factor = factor(config, steps, tokens)?;
        let last = 1.0 / steps as f64;
        let stride = (1.0 - last) / (steps.max(2) - 1) as f64;
        // diffusers rounds the noise levels to f32, also before it shifts them.
        let round = |sigma: f64| f64::from(sigma as f32);
        let mut sigmas: Vec<f64> = (0..steps)
            .map(|step| round(shifted(round(1.0 - step as f64 * stride), factor)))
            .collect();
        let trained = config.num_train_timesteps as f64;
        let timesteps = sigmas.iter().map(|sigma| round(sigma * trained)).collect();
        sigmas.push(0.0);
        Ok(Self { timesteps, sigmas })
    }
}

/// The factor of the odds of each noise level.
fn factor(
    config: &SchedulerConfig,
    steps: usize,
    tokens: Option<usize>,
) -> Result<f64, ModelError> {
    if !config.use_dynamic_shifting {
        return Ok(config.shift);
    }
    let refuse = |value: String, expected: &str| {
        let expected = expected.to_owned();
        Err(ModelError::InvalidRequest { field: "steps", value, expected })
    };
    let Some(tokens) = tokens else {
        let expected = "the noise levels of this model depend on the size of the image too";
        return refuse(steps.to_string(), expected);
    };
    let mu = empirical_mu(tokens, steps);
    match config.time_shift_type {
        TimeShiftType::Exponential => Ok(mu.exp()),
        TimeShiftType::Linear if mu > 0.0 => Ok(mu),
        TimeShiftType::Linear => {
            refuse(steps.to_string(), "with the linear time shift of this model it must be smaller")
        }
    }
}

impl Sampler for FlowMatchEuler {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn alpha_and_sigma(&self, call: usize) -> (f64, f64) {
        (1.0 - self.sigmas[call], self.sigmas[call])
    }

    fn step(
        &mut self,
        call: usize,
        prediction: Tensor<4>,
        sample: Tensor<4>,
        _noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        sample + prediction.mul_scalar(self.sigmas[call + 1] - self.sigmas[call])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values follow from the formula of diffusers' pipeline, computed in Python's f64.
    #[test]
    fn the_shift_depends_on_tokens_and_steps() {
        for (tokens, steps, mu) in [
            (64, 30, 1.752_722_998_221_642_1),
            (1024, 50, 1.701_956_207_308_631_6),
            (4096, 50, 2.023_351_157_129_263_7),
            (4300, 4, 2.308_478_070_540_631_6),
            (4301, 4, 1.184_696_93),
        ] {
            let ours = empirical_mu(tokens, steps);
            assert!((ours - mu).abs() < 1e-12, "{tokens} {steps}: {ours}");
        }
    }

    #[test]
    fn a_shift_moves_inner_levels_only() {
        assert_eq!(shifted(1.0, 3.0), 1.0);
        assert!((shifted(0.5, 3.0) - 0.75).abs() < 1e-15);
        assert_eq!(shifted(0.25, 1.0), 0.25);
        // The factor of a huge image is infinite, which leaves noise alone.
        assert_eq!(shifted(0.25, f64::INFINITY), 1.0);
    }
}
