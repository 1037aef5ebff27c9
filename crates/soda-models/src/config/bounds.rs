//! The largest numbers that config files may have.
//!
//! A network is built before its weights are read, with memory and time in proportion to these numbers. Each
//! bound is well above all published models.

use super::file::InvalidField;

/// The largest value of a kind of number.
#[derive(Clone, Copy)]
pub(crate) struct Bound {
    most: usize,
    supported: &'static str,
}

/// Layers of a transformer, or of a block.
pub(crate) const LAYERS: Bound = Bound { most: 256, supported: "a number of layers up to 256" };
/// Registers of a vision transformer.
pub(crate) const REGISTERS: Bound =
    Bound { most: 256, supported: "a number of registers up to 256" };
/// Levels of resolution. Each halves the side.
pub(crate) const LEVELS: Bound = Bound { most: 8, supported: "a list of at most 8 numbers" };
/// Widths of hidden states, channels, groups and heads.
pub(crate) const WIDTH: Bound = Bound { most: 65_536, supported: "a width up to 65536" };
/// Tokens of a vocabulary, and ids.
pub(crate) const TOKENS: Bound = Bound { most: 1 << 20, supported: "a number up to 1048576" };
/// Positions of a text encoder without a table of them.
pub(crate) const ROTARY_POSITIONS: Bound =
    Bound { most: 1 << 24, supported: "a length up to 16777216" };
/// Positions of a text encoder.
pub(crate) const POSITIONS: Bound = Bound { most: 65_536, supported: "a length up to 65536" };
/// Sides of images, in pixels.
pub(crate) const PIXELS: Bound = Bound { most: 4_096, supported: "a side up to 4096 pixels" };
/// Sides of the images that a judge sees, in pixels.
pub(crate) const JUDGED: Bound = Bound { most: 1_024, supported: "a side up to 1024 pixels" };
/// Sides of latents.
pub(crate) const LATENTS: Bound = Bound { most: 256, supported: "a side up to 256 latents" };
/// Numbers of a table of positions, which is allocated before the weights are read.
pub(crate) const POSITION_TABLE: Bound =
    Bound { most: 1 << 26, supported: "an image of fewer patches" };
/// Timesteps of the forward process.
pub(crate) const TIMESTEPS: Bound =
    Bound { most: 100_000, supported: "a number of timesteps up to 100000" };

/// Refuses an epsilon that is added to a variance, unless it is above 0 and at most 1.
pub(crate) fn check_epsilon(field: &'static str, value: f64) -> Result<(), InvalidField> {
    if value > 0.0 && value <= 1.0 {
        return Ok(());
    }
    let supported = "a number above 0 and up to 1";
    Err(InvalidField { field, value: value.to_string(), supported })
}

impl Bound {
    /// The largest value.
    pub(crate) fn most(self) -> usize {
        self.most
    }

    /// Refuses a larger number.
    pub(crate) fn check(self, field: &'static str, value: usize) -> Result<(), InvalidField> {
        let Self { most, supported } = self;
        match value <= most {
            true => Ok(()),
            false => Err(InvalidField { field, value: value.to_string(), supported }),
        }
    }

    /// Refuses a list with a larger number.
    pub(crate) fn check_all(
        self,
        field: &'static str,
        values: &[usize],
    ) -> Result<(), InvalidField> {
        values.iter().try_for_each(|value| self.check(field, *value))
    }

    /// Refuses fields with larger numbers.
    pub(crate) fn check_fields(self, fields: &[(&'static str, usize)]) -> Result<(), InvalidField> {
        fields.iter().try_for_each(|(field, value)| self.check(field, *value))
    }
}
