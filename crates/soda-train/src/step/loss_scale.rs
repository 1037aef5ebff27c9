//! The loss scale of f16 (Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740, section 3.2).
//!
//! In f16 gradients below 6e-8 are zero and those above 65504 infinite. The loss is therefore multiplied by
//! the largest factor `s` for which the gradients stay finite:
//!
//! ```text
//! g = ∂(s L)/∂θ / s;    overflow: no step, s ← s/2;    n finite steps in a row: s ← 2s
//! ```
//!
//! `s` is a power of two, so that scaling and unscaling round nothing.

use serde::{Deserialize, Serialize};

use crate::config::{LARGEST_LOSS_SCALE, LossScaleConfig};

/// The scale and the number of steps since its last change.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// The factor on the loss.
    pub value: f32,
    /// The number of steps without an overflow since the last change.
    #[serde(rename = "good")]
    pub finite_steps: u64,
}

impl LossScale {
    /// The scale of the first step.
    pub fn new(config: &LossScaleConfig) -> Self {
        Self { value: config.initial, finite_steps: 0 }
    }

    /// The scale after a step, whose gradients were all `finite` or not. `None` if they overflow at a scale
    /// of 1.
    #[must_use]
    pub fn after_step(self, finite: bool, config: &LossScaleConfig) -> Option<Self> {
        if !finite {
            return (self.value > 1.0).then(|| Self { value: self.value / 2.0, finite_steps: 0 });
        }
        let finite_steps = self.finite_steps + 1;
        if finite_steps < config.growth_interval {
            return Some(Self { finite_steps, ..self });
        }
        Some(Self { value: (2.0 * self.value).min(LARGEST_LOSS_SCALE), finite_steps: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For every sequence of steps the scale is a power of two in its range. Each overflow halves it, and
    /// only n finite steps in a row double it.
    #[test]
    fn the_scale_halves_on_overflow_and_doubles_after_n_finite_steps() {
        let config = LossScaleConfig { initial: 1024.0, growth_interval: 3 };
        let mut numbers = 0x9E37_79B9_u32;
        let (mut scale, mut run) = (LossScale::new(&config), 0);
        let mut seen = [0; 3];
        for _ in 0..5000 {
            numbers = numbers.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let finite = numbers >> 30 != 0;
            let before = scale.value;
            run = if finite { run + 1 } else { 0 };
            match scale.after_step(finite, &config) {
                None => {
                    assert!(!finite && before == 1.0);
                    (scale, run) = (LossScale::new(&config), 0);
                    seen[0] += 1;
                    continue;
                }
                Some(next) => scale = next,
            }
            let doubled = run == 3;
            let factor = if !finite {
                0.5
            } else if doubled {
                2.0
            } else {
                1.0
            };
            assert_eq!(scale.value, (factor * before).min(LARGEST_LOSS_SCALE));
            assert_eq!(scale.value.log2().fract(), 0.0);
            if doubled {
                run = 0;
            }
            seen[1] += usize::from(!finite);
            seen[2] += usize::from(doubled);
        }
        assert!(seen.iter().all(|&count| count > 0), "{seen:?}");
    }

    #[test]
    fn zero_gradients_do_not_drive_the_scale_to_infinity() {
        let config = LossScaleConfig { initial: 1.0, growth_interval: 1 };
        let grown =
            (0..200).try_fold(LossScale::new(&config), |scale, _| scale.after_step(true, &config));
        assert_eq!(grown.map(|scale| scale.value), Some(LARGEST_LOSS_SCALE));
    }
}
