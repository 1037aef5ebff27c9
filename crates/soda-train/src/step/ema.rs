//! A moving average of the adapter, which wanders less than the adapter itself.
//!
//! Flat parameters: `v <- d v + (1 - d) x`. On the Stiefel manifold a mean of two points lies inside it,
//! so the average moves along the tangent towards `x` and is brought back by the polar retraction; to
//! first order in `1 - d` that is the same formula.

use soda_adapters::Geometry;
use soda_linalg::stiefel::{self, Retraction};

use crate::step::stacks::Stacks;

/// The average of what is trained.
pub(crate) struct Ema {
    decay: f64,
    /// Where it is now.
    pub(crate) values: Stacks,
}

impl Ema {
    /// Starts at these values.
    pub(crate) fn new(decay: f64, values: Stacks) -> Self {
        Self { decay, values }
    }

    /// Moves towards the values after `step` steps, from 1. Early steps count more, so that the
    /// start is forgotten: `d = min(decay, (1 + step) / (10 + step))`, as in diffusers.
    pub(crate) fn update(&mut self, values: &Stacks, step: usize) {
        let decay = self.decay.min((1.0 + step as f64) / (10.0 + step as f64));
        self.values = self.values.zip(values, |stack, v, x| {
            let way = (x - v.clone()).mul_scalar(1.0 - decay);
            match stack.geometry {
                Geometry::Euclidean => v + way,
                Geometry::Stiefel => {
                    let tangent = stiefel::tangent(v.clone(), way);
                    // The polar retraction runs on the device and has no way to fail; a value that is
                    // not finite stops the run by its loss.
                    Retraction::Polar.apply(v.clone(), tangent).unwrap_or(v)
                }
            }
        });
    }
}
