//! The timesteps that a sampler visits and their noise levels, in numpy's arithmetic.
//!
//! The three spacings are those of table 2 of arXiv 2305.08891. Karras' sigmas (arXiv 2206.00364, formula 5)
//! are evenly spaced in their seventh root instead, and give timesteps between the trained ones.

use super::config::TimestepSpacing;
use super::noise_schedule::NoiseSchedule;

/// The timesteps of `steps` steps through `total`, noisiest first.
///
/// `offset` is added to timesteps of leading spacing. Linspace is not rounded: Euler's method visits points
/// between two timesteps, and the other samplers round.
pub(crate) fn spaced(
    spacing: TimestepSpacing,
    total: usize,
    steps: usize,
    offset: usize,
) -> Vec<f64> {
    match spacing {
        TimestepSpacing::Leading => leading(total / steps, steps, offset),
        TimestepSpacing::Trailing => {
            let stride = total as f64 / steps as f64;
            (0..steps)
                .map(|i| (total as f64 - i as f64 * stride).round_ties_even() - 1.0)
                .map(|t| t.max(0.0))
                .collect()
        }
        TimestepSpacing::Linspace => {
            let stride = (total - 1) as f64 / (steps.max(2) - 1) as f64;
            (0..steps).rev().map(|i| i as f64 * stride).collect()
        }
    }
}

/// Multiples of `stride` plus `offset`, largest first.
pub(crate) fn leading(stride: usize, steps: usize, offset: usize) -> Vec<f64> {
    (0..steps).rev().map(|i| (i * stride + offset) as f64).collect()
}

/// Rounds timesteps to whole numbers, halves to even.
pub(crate) fn rounded(timesteps: Vec<f64>) -> Vec<f64> {
    timesteps.into_iter().map(f64::round_ties_even).collect()
}

/// The noise level `sqrt((1 - abar) / abar)` of every trained timestep.
///
/// The level is rounded to f32 as in diffusers. Otherwise a timestep that is looked up by its noise level may
/// be truncated to the one below.
pub(crate) fn sigmas(schedule: &NoiseSchedule) -> Vec<f64> {
    let last = schedule.len() - 1;
    (0..=last)
        .map(|t| match schedule.alpha_cumprod(t) {
            // With zero terminal SNR the ratio is infinite; diffusers uses this value.
            0.0 => 2f64.powi(-24),
            abar => abar,
        })
        .map(|abar| f64::from(((1.0 - abar as f32) / abar as f32).sqrt()))
        .collect()
}

/// Interpolates `sigmas` between two timesteps, as `numpy.interp`.
pub(crate) fn interpolate(sigmas: &[f64], t: f64) -> f64 {
    let low = (t.floor() as usize).min(sigmas.len() - 1);
    let high = (low + 1).min(sigmas.len() - 1);
    sigmas[low] + (t - low as f64) * (sigmas[high] - sigmas[low])
}

/// Noise levels from `max` to `min`, evenly spaced in their seventh root.
pub(crate) fn karras(max: f64, min: f64, steps: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (from, to) = (max.powf(1.0 / RHO), min.powf(1.0 / RHO));
    (0..steps)
        .map(|i| i as f64 / (steps.max(2) - 1) as f64)
        .map(|ramp| (from + ramp * (to - from)).powf(RHO))
        .collect()
}

/// The timestep at which increasing `sigmas` have the noise level `sigma`, interpolated in the logarithm.
pub(crate) fn timestep_of(sigmas: &[f64], sigma: f64) -> f64 {
    let ln = |sigma: &f64| f64::from((*sigma as f32).ln());
    let log = sigma.max(1e-10).ln();
    let low = sigmas.partition_point(|s| ln(s) <= log).saturating_sub(1).min(sigmas.len() - 2);
    let (below, above) = (ln(&sigmas[low]), ln(&sigmas[low + 1]));
    let share = ((below - log) / (below - above)).clamp(0.0, 1.0);
    low as f64 + share
}
