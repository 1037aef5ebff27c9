//! How SODA's settings make an adapter for a weight.

use soda_linalg::{LinalgError, factor_sizes};

use super::adapter::Soda;
use super::config::{Basis, RotationConfig, Shift, Side, SodaConfig};
use super::rotation::Rotation;
use super::spectrum::Spectrum;
use crate::error::AdapterError;
use crate::method::{Geometry, Method};
use crate::methods::bounds::{MAX_PRODUCT_RANK, MAX_TERMS, MAX_WIDTH};
use crate::methods::seeded_init::SeededInit;
use crate::weight::{Weight, compute_dtype};

const NAME: &str = "soda";

impl Method for SodaConfig {
    type Adapter = Soda;

    fn name(&self) -> &'static str {
        NAME
    }

    fn needs_svd(&self) -> bool {
        self.spectrum.as_ref().is_some_and(|spectrum| spectrum.basis == Basis::Svd)
    }

    fn init(&self, path: &str, weight: &Weight) -> Result<Soda, AdapterError> {
        self.check()?;
        let decomposition = |source| AdapterError::Decomposition { path: path.to_owned(), source };
        let w = weight.matrix.clone().cast(compute_dtype(weight.matrix.dtype()));
        let [input, output] = w.dims();
        let rotation = |width: usize, wanted: fn(Side) -> bool| -> Result<_, AdapterError> {
            match &self.rotation {
                Some(config) if wanted(config.side) => {
                    let sizes = config.sizes_of(width).map_err(decomposition)?;
                    Ok(Some(Rotation::identity(&sizes, config.parametrization, &w)))
                }
                _ => Ok(None),
            }
        };
        let spectrum = match &self.spectrum {
            None => None,
            Some(config) => {
                let seed = if let Shift::LowRank { seed, .. } = config.shift { seed } else { 0 };
                let init = SeededInit::new(seed, path, weight);
                Some(Spectrum::new(config, weight, &w, &init).map_err(decomposition)?)
            }
        };
        Ok(Soda {
            rotation: rotation(input, Side::has_input)?,
            output_rotation: rotation(output, Side::has_output)?,
            spectrum,
        })
    }

    fn geometry(&self, path: &str) -> Geometry {
        // Generators of the Cayley transform and unconstrained matrices have other names, and are Euclidean.
        let is_factor = path.contains("rotation.factors.");
        if is_factor { Geometry::Stiefel } else { Geometry::Euclidean }
    }
}

impl SodaConfig {
    /// Checks the settings.
    fn check(&self) -> Result<(), AdapterError> {
        let refuse = |reason| Err(AdapterError::Config { method: NAME, reason });
        if self.rotation.is_none() && self.spectrum.is_none() {
            return refuse("it trains nothing; keep the rotation, the spectrum, or both");
        }
        if self.rotation.as_ref().is_some_and(|rotation| rotation.factors == 0) {
            return refuse("a rotation has at least one factor");
        }
        if self.rotation.as_ref().is_some_and(|rotation| rotation.factors > MAX_TERMS) {
            return refuse("a rotation has at most 100 factors");
        }
        let mut sizes = self.rotation.iter().flat_map(|rotation| &rotation.sizes);
        if sizes.any(|sizes| product(sizes).is_none_or(|width| width > MAX_WIDTH)) {
            return refuse("sizes of factors are those of widths up to 1048576");
        }
        let mut sizes = self.rotation.iter().flat_map(|rotation| &rotation.sizes);
        if sizes.any(|sizes| sizes.is_empty() || sizes.contains(&0)) {
            return refuse("sizes of factors are lists of numbers of 1 or more");
        }
        match self.spectrum.as_ref().map(|spectrum| spectrum.shift) {
            Some(Shift::Diagonal { init }) if !init.is_finite() => {
                refuse("the spectrum's start must be a finite number")
            }
            Some(Shift::LowRank { rank: 0, .. }) => refuse("a low-rank shift has rank 1 or more"),
            Some(Shift::LowRank { rank, .. }) if rank > MAX_PRODUCT_RANK => {
                refuse("a low-rank shift has at most rank 4096")
            }
            _ => Ok(()),
        }
    }
}

/// The width that factors of these sizes are for. `None` if it is out of range.
fn product(sizes: &[usize]) -> Option<usize> {
    sizes.iter().try_fold(1, |width: usize, size| width.checked_mul(*size))
}

impl RotationConfig {
    /// Returns the sizes of the Kronecker factors of a width.
    fn sizes_of(&self, width: usize) -> Result<Vec<usize>, LinalgError> {
        let named = self.sizes.iter().find(|sizes| product(sizes) == Some(width));
        named.map_or_else(|| factor_sizes(width, self.factors), |sizes| Ok(sizes.clone()))
    }
}
