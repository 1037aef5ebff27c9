//! The checks of SODA's settings: each setting in its range, and beside those that it belongs to.

use super::config::{
    Basis, Parametrization, RotationConfig, Shift, SodaConfig, SpectrumConfig, Structure,
};
use crate::error::AdapterError;
use crate::method::Method as _;
use crate::methods::bounds::{MAX_BLOCK, MAX_DRAWS, MAX_PRODUCT_RANK, MAX_TERMS, MAX_WIDTH};

/// The name of the method.
pub(super) const NAME: &str = "soda";

fn refuse(reason: &'static str) -> Result<(), AdapterError> {
    Err(AdapterError::Config { method: NAME, reason })
}

/// The width that factors of these sizes are for. `None` if it is out of range.
pub(super) fn product(sizes: &[usize]) -> Option<usize> {
    sizes.iter().try_fold(1, |width: usize, size| width.checked_mul(*size))
}

impl SodaConfig {
    /// Checks the settings.
    pub(super) fn check(&self) -> Result<(), AdapterError> {
        if self.rotation.is_none() && self.spectrum.is_none() && !self.output_scale {
            return refuse("it trains nothing; keep the rotation, the spectrum, or both");
        }
        if let Some(rotation) = &self.rotation {
            rotation.check_sizes()?;
            rotation.check_structure()?;
            let shares = rotation.numbers.is_some() || !rotation.ranks.is_empty();
            if shares && self.signal().is_none() {
                return refuse(
                    "`rotation.numbers` and `rotation.ranks` belong to a subspace of the gradient or of \
                     the activations",
                );
            }
        }
        if let Some(spectrum) = &self.spectrum {
            spectrum.check()?;
        }
        if let Some(mask) = self.timestep_mask {
            mask.check(NAME)?;
            if !self.has_low_rank_change() {
                return refuse(
                    "`timestep_mask` belongs to a rotation of a subspace and a shift of `spectrum.rank` \
                     singular values, without `output_scale`",
                );
            }
        }
        if let Some(calibration) = self.calibration {
            if Self::calibration(self).is_none() {
                return refuse(
                    "`calibration` belongs to directions of the gradient or of the activations",
                );
            }
            if !(1..=MAX_DRAWS).contains(&calibration.draws) {
                return refuse("`calibration.draws` is between 1 and 100000");
            }
        }
        Ok(())
    }
}

impl SodaConfig {
    /// Whether the change of a weight is a product of low rank.
    fn has_low_rank_change(&self) -> bool {
        let is_subspace = |rotation: &RotationConfig| rotation.structure == Structure::Subspace;
        self.rotation.as_ref().is_none_or(is_subspace)
            && self.spectrum.as_ref().is_none_or(|spectrum| spectrum.rank.is_some())
            && !self.output_scale
    }
}

impl RotationConfig {
    /// Checks the sizes of factors, blocks and subspaces.
    fn check_sizes(&self) -> Result<(), AdapterError> {
        if self.factors == 0 {
            return refuse("a rotation has at least one factor");
        }
        if self.factors > MAX_TERMS {
            return refuse("a rotation has at most 100 factors");
        }
        if self.sizes.iter().any(|sizes| product(sizes).is_none_or(|width| width > MAX_WIDTH)) {
            return refuse("sizes of factors are those of widths up to 1048576");
        }
        if self.sizes.iter().any(|sizes| sizes.is_empty() || sizes.contains(&0)) {
            return refuse("sizes of factors are lists of numbers of 1 or more");
        }
        if self.numbers.is_some() && self.rank.is_some() {
            return refuse("`rotation.numbers` and `rotation.rank` exclude each other");
        }
        if self.ranks.values().any(|rank| *rank > MAX_PRODUCT_RANK) {
            return refuse("the ranks of `rotation.ranks` are at most 4096");
        }
        if self.rank.is_some_and(|rank| !(1..=MAX_PRODUCT_RANK).contains(&rank)) {
            return refuse("`rotation.rank` is between 1 and 4096");
        }
        if self.block_size.is_some_and(|size| !(2..=MAX_BLOCK).contains(&size)) {
            return refuse("`rotation.block_size` is between 2 and 4096");
        }
        Ok(())
    }

    /// Checks that settings of one structure do not stand beside another.
    fn check_structure(&self) -> Result<(), AdapterError> {
        let subspace = self.structure == Structure::Subspace;
        let householder = self.structure == Structure::Householder;
        if self.subspace.is_some() && !subspace {
            return refuse("`rotation.subspace` belongs to `rotation.structure = \"subspace\"`");
        }
        if self.scales && !subspace {
            return refuse("`rotation.scales` belongs to `rotation.structure = \"subspace\"`");
        }
        if self.rank.is_some() && !subspace && !householder {
            return refuse(
                "`rotation.rank` belongs to `rotation.structure = \"subspace\"` or \"householder\"",
            );
        }
        if householder && self.rank.is_some_and(|rank| rank % 2 == 1) {
            return refuse(
                "`rotation.rank` is even for reflections, which start as the identity in pairs",
            );
        }
        if householder && self.parametrization != Parametrization::Stiefel {
            return refuse(
                "reflections are orthogonal by themselves; leave `rotation.parametrization` out",
            );
        }
        if self.block_size.is_some() && self.structure != Structure::GroupAndShuffle {
            return refuse(
                "`rotation.block_size` belongs to `rotation.structure = \"group-and-shuffle\"`",
            );
        }
        if self.seed.is_some() && self.structure != Structure::KroneckerPermuted && !householder {
            return refuse(
                "`rotation.seed` belongs to `rotation.structure = \"kronecker-permuted\"` or \
                 \"householder\"",
            );
        }
        Ok(())
    }
}

impl SpectrumConfig {
    fn check(&self) -> Result<(), AdapterError> {
        let is_plain = self.basis == Basis::Svd && matches!(self.shift, Shift::Diagonal { .. });
        if self.rank.is_some() && !is_plain {
            return refuse("`spectrum.rank` belongs to a diagonal shift in the basis of an SVD");
        }
        if self.rank.is_some_and(|rank| !(1..=MAX_PRODUCT_RANK).contains(&rank)) {
            return refuse("`spectrum.rank` is between 1 and 4096");
        }
        if self.select.is_some() && self.rank.is_none() {
            return refuse("`spectrum.select` belongs to a `spectrum.rank`");
        }
        match self.shift {
            Shift::Diagonal { init } if !init.is_finite() => {
                refuse("the spectrum's start must be a finite number")
            }
            Shift::LowRank { rank: 0, .. } => refuse("a low-rank shift has rank 1 or more"),
            Shift::LowRank { rank, .. } if rank > MAX_PRODUCT_RANK => {
                refuse("a low-rank shift has at most rank 4096")
            }
            _ => Ok(()),
        }
    }
}
