//! An exponential moving average of the trained parameters.
//!
//! A flat parameter follows `v <- d v + (1 - d) x`. On the Stiefel manifold the mean of two points lies
//! inside the manifold. There the average moves along the tangent towards `x`, and the polar retraction
//! brings it back; to first order in `1 - d` this is the same formula.

use soda_adapters::Geometry;
use soda_linalg::stiefel::{self, Retraction};

use crate::batched_params::BatchedParams;

/// The moving average of a set of parameters.
pub struct Ema {
    decay: f64,
    params: BatchedParams,
}

impl Ema {
    /// Starts the average at `params`, with `decay` from 0 up to 1.
    pub fn new(decay: f64, params: BatchedParams) -> Self {
        Self { decay, params }
    }

    /// Moves the average towards `params`, the parameters after `step` steps (counted from 1).
    ///
    /// The decay is `min(decay, (1 + step) / (10 + step))`, as in `EMAModel` of diffusers: early steps count
    /// more, so the average forgets its start.
    pub fn update(&mut self, params: &BatchedParams, step: usize) {
        let decay = self.decay.min((1.0 + step as f64) / (10.0 + step as f64));
        self.params = self.params.zip(params, |batch, average, x| {
            let direction = (x - average.clone()).mul_scalar(1.0 - decay);
            match batch.geometry() {
                Geometry::Euclidean => average + direction,
                Geometry::Stiefel => {
                    let tangent = stiefel::project_tangent(average.clone(), direction);
                    // The polar retraction runs on the device and does not fail. A value that is not finite
                    // makes the loss infinite or NaN, which stops the run.
                    Retraction::Polar.apply(average.clone(), tangent).unwrap_or(average)
                }
            }
        });
    }

    /// The average.
    pub fn params(&self) -> &BatchedParams {
        &self.params
    }

    /// Replaces the average, for example by a stored one.
    pub fn set_params(&mut self, params: BatchedParams) {
        self.params = params;
    }
}
