//! Settings of loss scaling in f16.

use serde::{Deserialize, Serialize};

use super::precision::Precision;
use crate::error::ConfigError;

/// The largest loss scale. Without a limit, gradients of zeros would double the scale to infinity, which
/// halving does not undo.
pub(crate) const LARGEST_LOSS_SCALE: f32 = (1u32 << 24) as f32;

/// Dynamic loss scaling in f16 (Micikevicius et al., arXiv 1710.03740).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossScaleConfig {
    /// The initial scale, a power of two.
    pub initial: f32,
    /// Number of consecutive steps without an overflow after which the scale doubles.
    pub growth_interval: u64,
}

impl Default for LossScaleConfig {
    fn default() -> Self {
        Self { initial: 65536.0, growth_interval: 200 }
    }
}

impl LossScaleConfig {
    /// Checks the settings of a run in `precision`.
    pub(super) fn check(&self, precision: Precision) -> Result<(), ConfigError> {
        let power_of_two = self.initial.log2().fract() == 0.0;
        if !power_of_two || !(1.0..=LARGEST_LOSS_SCALE).contains(&self.initial) {
            let range = "a power of two from 1 to 16777216";
            return Err(ConfigError::OutOfRange { field: "loss_scale.initial", range });
        }
        if self.growth_interval == 0 {
            let field = "loss_scale.growth_interval";
            return Err(ConfigError::OutOfRange { field, range: "at least 1" });
        }
        if precision != Precision::F16 {
            return Err(ConfigError::Conflict(
                "`loss_scale` belongs to `precision = \"f16\"`: set that, or remove `loss_scale`",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_other_than_powers_of_two_are_errors() {
        for initial in [0.0, 0.5, -2.0, 3.0, f32::NAN, f32::INFINITY, 2f32.powi(25)] {
            let config = LossScaleConfig { initial, ..Default::default() };
            assert!(
                config
                    .check(Precision::F16)
                    .is_err_and(|error| error.to_string().contains("power of two"))
            );
        }
        assert!(
            LossScaleConfig { growth_interval: 0, ..Default::default() }
                .check(Precision::F16)
                .is_err()
        );
        assert!(LossScaleConfig::default().check(Precision::F16).is_ok());
    }
}
