//! The loss scale of f16: gradients below 6e-8 are zero there, and those above 65504 infinite, so the loss is multiplied
//! by as much as the largest gradient bears (Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740,
//! section 3.2).
//!
//! ```text
//! g = ∂(s L)/∂θ / s;    overflow: no step, s ← s/2;    n good steps in a row: s ← 2s
//! ```
//!
//! `s` is a power of two, so that scaling there and back rounds nothing.

use serde::{Deserialize, Serialize};

use crate::config::{LARGEST_LOSS_SCALE, LossScaleConfig};

/// The scale, and what it depends on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// What the loss is multiplied by.
    pub value: f32,
    /// Steps without an overflow since it last changed.
    pub good: u64,
}

impl LossScale {
    /// At the first step.
    pub fn new(config: &LossScaleConfig) -> Self {
        Self { value: config.initial, good: 0 }
    }

    /// After a step whose gradients were all `finite`, or were not; `None` where they overflow at a scale of 1.
    #[must_use]
    pub fn after(self, finite: bool, config: &LossScaleConfig) -> Option<Self> {
        if !finite {
            return (self.value > 1.0).then(|| Self { value: self.value / 2.0, good: 0 });
        }
        let good = self.good + 1;
        if good < config.growth_interval {
            return Some(Self { good, ..self });
        }
        Some(Self { value: (2.0 * self.value).min(LARGEST_LOSS_SCALE), good: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the steps do: a power of two in its range, halved by each overflow, doubled by n good steps in a row
    /// and by nothing else.
    #[test]
    fn the_scale_halves_on_overflow_and_doubles_after_n_good_steps() {
        let config = LossScaleConfig { initial: 1024.0, growth_interval: 3 };
        let mut numbers = 0x9E37_79B9_u32;
        let (mut scale, mut run) = (LossScale::new(&config), 0);
        let mut seen = [0; 3];
        for _ in 0..5000 {
            numbers = numbers.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let finite = numbers >> 30 != 0;
            let before = scale.value;
            run = if finite { run + 1 } else { 0 };
            match scale.after(finite, &config) {
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
    fn gradients_of_zero_do_not_drive_it_to_infinity() {
        let config = LossScaleConfig { initial: 1.0, growth_interval: 1 };
        let grown =
            (0..200).try_fold(LossScale::new(&config), |scale, _| scale.after(true, &config));
        assert_eq!(grown.map(|scale| scale.value), Some(LARGEST_LOSS_SCALE));
    }
}
